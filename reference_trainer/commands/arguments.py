"""Reading a command's arguments; what is wrong with them is said in a few lines, with what to type instead.

tyro frames its errors, with help texts, in a dozen lines. What it finds is kept, the frame is not.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import tyro
from pydantic import ValidationError

from ..config import explain
from ..errors import UserError

T = TypeVar("T")
Command = Callable[[list[str]], int]

# The characters of its frame; plain ASCII where the terminal cannot show the others.
_FRAME, _RULE = "╭╮╰╯│|+", "─-"
_SHOWN = 3


def read(
    schema: type[T], arguments: list[str], command: str, beside: type[Any] | None = None, **how: Any
) -> T:
    """The arguments of a command as `schema` says; `--help` is answered, and ends the process.

    Args:
        schema: a dataclass or model, a field an option.
        arguments: what came.
        command: its name.
        beside: a schema of further options that the command has, read before.
        how: passed on to `tyro.cli`.

    Raises:
        UserError: what is wrong, and what to type instead.
    """
    understood, rest = read_known(schema, arguments, command, **how)
    if rest:
        known = list(dict.fromkeys(option_names(schema, **how) + (option_names(beside) if beside else [])))
        unknown = [each for each in rest if each.startswith("--")] or rest
        lines = [_unknown(each.partition("=")[0], known) for each in unknown[:_SHOWN]]
        more = [f"and {len(unknown) - _SHOWN} more"] if len(unknown) > _SHOWN else []
        raise UserError("\n".join([*lines, *more, _see(command)]))
    return understood


def read_known(schema: type[T], arguments: list[str], command: str, **how: Any) -> tuple[T, list[str]]:
    """The same, with the arguments that the schema does not have.

    Raises:
        UserError: what is wrong with the schema's own.
    """
    prog = f"reference_trainer {command}"
    framed = io.StringIO()
    try:
        with contextlib.redirect_stderr(framed):
            understood: tuple[T, list[str]] = tyro.cli(
                schema, **{"prog": prog} | how, args=arguments, return_unknown_args=True
            )
    except SystemExit as stopped:
        if stopped.code != 2:
            raise
        refused = _cause(stopped)
        lines = list(explain(refused)) if refused else _unframed(framed.getvalue())
        raise UserError("\n".join([*lines, _see(command)])) from None
    return understood


def option_names(schema: type[Any], **how: Any) -> list[str]:
    """The names of a schema's options, as its help shows them."""
    shown = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        tyro.cli(schema, **how | {"add_help": True}, args=["--help"])
    lines = (line.strip(f" {_FRAME}") for line in shown.getvalue().splitlines())
    names = (re.findall(r"--[a-z][\w.-]*", line) for line in lines if line.startswith("-"))
    return list(dict.fromkeys(itertools.chain.from_iterable(names)))


def hint(name: str, known: Iterable[str]) -> str:
    """What may be meant by a name that is not known: one near to it, or else any of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"


def choose(name: str, commands: dict[str, Command], prefix: str = "") -> Command:
    """The command of a name.

    Raises:
        UserError: if there is none; it says which one may be meant.
    """
    if name not in commands:
        raise UserError(f"unknown command {prefix + name!r}; {hint(name, commands)}")
    return commands[name]


def _unknown(name: str, known: list[str]) -> str:
    if not name.startswith("-"):
        return (
            f"unexpected: {name!r}; settings are given as --NAME VALUE, or --NAME alone if they are on or off"
        )
    leaf = name.lstrip("-").replace("_", "-")
    # --lr stands for --optimizer.lr, --size may be --data.size.
    near = [each for each in known if re.split(r"[.]|--", each)[-1] == leaf]
    near = near or difflib.get_close_matches(f"--{leaf}", known, n=2)
    if not near:
        leaves = {each.rpartition(".")[2]: each for each in known}
        near = [leaves[each] for each in difflib.get_close_matches(leaf.rpartition(".")[2], leaves, n=1)]
    return f"unknown option {name}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _see(command: str) -> str:
    return f"all options: reference_trainer {command} --help"


def _cause(error: BaseException | None) -> ValidationError | None:
    """The refusal of a setting that an error came from, if it did."""
    while error is not None and not isinstance(error, ValidationError):
        error = error.__context__
    return error


def _unframed(text: str) -> list[str]:
    """The message of tyro without its frame, a line a paragraph, and without where to find help."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines()[1:]:  # behind its title
        words = line.strip(f" {_FRAME}")
        if words.strip(_RULE):
            paragraphs[-1].append(words)
        else:
            paragraphs.append([])
    joined = [" ".join(words).replace("Argument helptext:", "expected") for words in paragraphs if words]
    return [_in_short(line) for line in joined if not line.startswith(("For full helptext", "Got errors"))]


def _in_short(line: str) -> str:
    """What tyro says of a value without None and Python's types, and with what may be meant."""
    if choice := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", line):
        value, name, choices = choice.groups()
        known = sorted(set(re.findall(r"'([^']*)'", choices)) - {"None"})
        near = difflib.get_close_matches(value, known, n=1)
        return f"{name}: got {value!r}, expected one of {', '.join(known)}" + (
            f"; did you mean {near[0]!r}?" if near else ""
        )
    if parsed := re.match(r"Error parsing (\S+): no type matching (\S+) .* from \[(.*)\]", line):
        name, kinds, value = parsed.groups()
        return f"{name}: got {value}, expected {kinds}"
    return line
