"""The public names of boxreg: on which page each is documented, and what else its reader may look for."""

from __future__ import annotations

import inspect
import re
import types
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import boxreg
from boxreg import functional, iou

DOCS = Path(__file__).parents[1]
WORD = re.compile(r"[A-Za-z_]\w*")


def names_of(module: types.ModuleType) -> dict[str, Any]:
    """What a module offers: all without an underscore, but for its submodules."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


@cache
def pages() -> dict[str, list[str]]:
    """The module of each page, and the dotted names that it documents."""
    found: dict[str, list[str]] = defaultdict(list)
    known: set[int] = set()

    def add(page: str, dotted: str, value: object) -> None:
        if id(value) not in known:
            known.add(id(value))
            found[page].append(dotted)

    for name, value in names_of(functional).items():
        if name.endswith("_loss"):  # boxreg has them too
            add("boxreg.functional", f"boxreg.functional.{name}", value)
    for name, value in names_of(boxreg).items():
        add(home(value), f"boxreg.{name}", value)
    for namespace in (functional, iou):
        for name, value in names_of(namespace).items():
            add(namespace.__name__, f"{namespace.__name__}.{name}", value)
    # What public classes derive from, once those have been listed: their arguments are described there.
    for value in list(names_of(boxreg).values()):
        for base in value.__mro__[1:] if inspect.isclass(value) else ():
            if base.__module__.startswith("boxreg."):
                add(home(base), f"{base.__module__}.{base.__qualname__}", base)
    return dict(sorted(found.items()))


def home(value: Any) -> str:
    """The part of boxreg that a name comes from: `boxreg.assigners` of `boxreg.assigners.cells`."""
    return ".".join(value.__module__.split(".")[:2])


def find(dotted: str) -> Any:
    """The object of a dotted name."""
    value: Any = boxreg
    for part in dotted.split(".")[1:]:
        value = getattr(value, part)
    return value


@cache
def targets() -> dict[str, str]:
    """Where each name is documented, by its last part and by its whole."""
    found = {}
    for module, names in pages().items():
        for dotted in names:
            url = f"api/{module}/#{dotted}"
            found[dotted] = url
            found.setdefault(dotted.rpartition(".")[2], url)
    return found


@cache
def documented() -> dict[str, Any]:
    """Every object with an entry, by the last part of its name."""
    return {dotted.rpartition(".")[2]: find(dotted) for names in pages().values() for dotted in names}


def annotations(value: Any) -> Iterator[str]:
    """The annotations of a function, or of a class's fields and public methods, as text."""
    if inspect.isclass(value):
        yield from map(str, vars(value).get("__annotations__", {}).values())
        own = vars(value).items()
        methods = [method for name, method in own if name in ("__init__", "__call__") or name[0] != "_"]
    else:
        methods = [value]
    for method in methods:
        yield from map(str, getattr(method, "__annotations__", {}).values())


@cache
def mentions(name: str) -> frozenset[str]:
    """The documented names that a name's bases, annotations and docstring speak of."""
    value = documented()[name]
    said = [base.__name__ for base in value.__mro__] if inspect.isclass(value) else []
    said += [word for text in annotations(value) for word in WORD.findall(text)]
    said += re.findall(r"`(?:boxreg\.)?(?:\w+\.)*(\w+)(?:\([^`]*\))?`", inspect.getdoc(value) or "")
    return frozenset(said) & documented().keys() - {name}


def related(name: str) -> list[str]:
    """What a name speaks of and what speaks of it; without any, its neighbours on the page."""
    others = [other for other in documented() if other in mentions(name) or name in mentions(other)]
    if others:
        return others
    module = home(documented()[name])
    return [other for other, value in documented().items() if home(value) == module and other != name]


@cache
def guides() -> dict[str, tuple[str, set[str]]]:
    """Each page that is written by hand, by its file: its title, and the words in its code."""
    found = {}
    for path in sorted(DOCS.rglob("*.md")):
        if path == DOCS / "index.md":
            continue
        text = path.read_text()
        title = re.findall(r"^# (.*)$", text, re.M)[0]
        code = re.findall(r"^```.*?^```|`[^`\n]+`", text, re.M | re.S)
        found[path.relative_to(DOCS).as_posix()] = title, set(WORD.findall(" ".join(code)))
    return found


def see_also(name: str) -> str:
    """Links to what is related, as a sentence for the entry of a name, from the folder of API pages."""
    links = [f"`{other}`" for other in related(name)]
    links += [f"[{title}](../{file})" for file, (title, words) in guides().items() if name in words]
    return ", ".join(links)
