"""Traced maths as a program for the CPU: a flat list of calls that write into reused buffers.

A term's buffer is used again once the term is dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ._libraries import Array, Library
from ._trace import Term, Value, in_order, is_number

Compute = Callable[[Sequence[Array], Sequence[Array]], None]
"""Arrays in, and arrays to write the results to."""


class Program:
    """The terms that lead to `outputs`, as a function of calls that write into reused buffers.

    Args:
        library: whose calls.
        inputs: terms that are given: of operation "input", or what another program found.
        outputs: what to compute: terms, wide or narrow, or numbers.
    """

    def __init__(self, library: Library, inputs: Sequence[Term], outputs: Sequence[Value]) -> None:
        compiler = _Compiler(inputs, outputs)
        self._library = library
        self.text, self.numbers = compiler.text, list(compiler.numbers)
        self.buffers = compiler.buffers
        scope: dict[str, Any] = {name: library.operation(name) for name in compiler.operations}
        exec(compile(self.text, "<boxreg program>", "exec"), scope)
        self._run = scope["run"]
        self._constants: dict[tuple[object, object], list[Array]] = {}

    def __call__(self, shape: Sequence[int], inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Compute for boxes in `shape`: wide outputs are (2, *shape), narrow ones `shape`."""
        self.prepared(shape, inputs[0])(inputs, outputs)

    def prepared(self, shape: Sequence[int], like: Array) -> Compute:
        """The same with buffers of its own, to be called for one block after the other."""
        _, empty, number, rows, *_ = self._library
        kind = like.dtype, getattr(like, "device", None)
        if kind not in self._constants:
            self._constants[kind] = [number(like, value) for value in self.numbers]
        places = []
        for truth in (False, True):
            wide, narrow = (self.buffers[pool + "_mask" * truth] for pool in ("wide", "narrow"))
            space = empty(like, (2 * wide + narrow, *shape), truth)
            parts = rows(space)
            places += [rows(space[: 2 * wide].reshape(wide, 2, *shape)), parts, parts[2 * wide :]]
        return partial(self._run, *places, self._constants[kind])


class _Compiler:
    """Puts terms in order, gives each a buffer for as long as it is needed, and writes the calls."""

    def __init__(self, inputs: Sequence[Term], outputs: Sequence[Value]) -> None:
        self.buffers = {"wide": 0, "narrow": 0, "wide_mask": 0, "narrow_mask": 0}
        self.numbers: dict[float, int] = {}
        self.operations: set[str] = set()
        self._unused: dict[str, list[int]] = {pool: [] for pool in self.buffers}
        self._held: dict[Term, tuple[str, int]] = {}
        self._fixed = {term: f"inputs[{i}]" for i, term in enumerate(inputs)}
        for i, output in enumerate(outputs):
            if isinstance(output, Term) and output.operation != "half":
                self._fixed.setdefault(output, f"outputs[{i}]")
        order = dict.fromkeys(inputs)
        for output in outputs:
            in_order(output, order)
        self._order = list(order)[len(inputs) :]
        self._place = self._halves_in_place()
        self._lines: list[str] = []
        self._write_steps(kept={self._owner(output) for output in outputs if isinstance(output, Term)})
        for i, output in enumerate(outputs):
            if not isinstance(output, Term) or self._fixed.get(output) != f"outputs[{i}]":
                self._assign(f"outputs[{i}]", output)
        parameters = "wide, half, narrow, wide_mask, half_mask, narrow_mask, number, inputs, outputs"
        self.text = "\n    ".join([f"def run({parameters}):", *(self._lines or ["pass"])]) + "\n"

    def _halves_in_place(self) -> dict[Term, tuple[Term, int]]:
        """Narrow terms that are computed where a stack of two wants them."""
        place: dict[Term, tuple[Term, int]] = {}
        for term in self._order:
            if term.operation == "stack":
                for axis, part in enumerate(term.arguments):
                    computed = isinstance(part, Term) and part.operation not in ("half", "stack")
                    if computed and part not in place and part not in self._fixed:
                        place[part] = (term, axis)
        return place

    def _owner(self, term: Term) -> Term:
        """The term whose buffer another one is a part of."""
        if term.operation == "half":
            return self._owner(term.arguments[0])
        return self._place[term][0] if term in self._place else term

    def _write_steps(self, kept: set[Term]) -> None:
        last_use: dict[Term, int] = {}
        for step, term in enumerate(self._order):
            for used in (term, *term.arguments):
                if isinstance(used, Term):
                    last_use[self._owner(used)] = step
        for step, term in enumerate(self._order):
            owners = dict.fromkeys(
                self._owner(part) for part in (term, *term.arguments) if isinstance(part, Term)
            )
            dead = [used for used in owners if last_use[used] == step and used not in kept]
            whole = self._read_whole(term)
            self._release(used for used in dead if used in whole)
            self._write(term)
            self._release(used for used in dead if used not in whole)

    def _read_whole(self, term: Term) -> set[Term]:
        """Arguments of an operation of which no part alone is read: it may write over them.

        Of a choice only what is not chosen: where there is no such call, that is written first.
        """
        arguments = {argument for argument in term.arguments if isinstance(argument, Term)}
        in_parts = {self._owner(argument) for argument in arguments if self._owner(argument) is not argument}
        if term.operation in ("half", "stack"):
            return set()
        if term.operation == "where":
            arguments &= {term.arguments[2]} - set(term.arguments[:2])
        return arguments - in_parts

    def _release(self, terms: Iterable[Term]) -> None:
        for term in terms:
            if term in self._held:
                pool, number = self._held[term]
                self._unused[pool].append(number)

    def _write(self, term: Term) -> None:
        if term.operation == "half":
            return
        if term.operation == "stack":
            for axis, part in enumerate(term.arguments):
                if self._place.get(part) != (term, axis):
                    self._assign(self._half_of(term, axis), part)
            return
        operation, arguments = term.operation, term.arguments
        if operation == "div" and is_number(arguments[0], 1.0):
            operation, arguments = "reciprocal", arguments[1:]
        self.operations.add(operation)
        read = ", ".join(map(self._read, arguments))
        self._lines.append(f"{operation}({read}, out={self._read(term)})")

    def _assign(self, where: str, value: Value) -> None:
        self.operations.add("assign")
        self._lines.append(f"assign({where}, {self._read(value)})")

    def _read(self, value: Value) -> str:
        """How the program's text names a value; gives it a buffer if it has none."""
        if not isinstance(value, Term):
            return f"number[{self.numbers.setdefault(float(value), len(self.numbers))}]"
        if value in self._fixed:
            return self._fixed[value]
        if value in self._place:
            return self._half_of(*self._place[value])
        if value.operation == "half":
            return self._half_of(*value.arguments)
        pool, number = self._buffer(value)
        return f"{pool}[{number}]"

    def _half_of(self, term: Term, axis: int) -> str:
        if term in self._fixed:
            return f"{self._fixed[term]}[{axis}]"
        pool, number = self._buffer(term)
        return f"{pool.replace('wide', 'half')}[{2 * number + axis}]"

    def _buffer(self, term: Term) -> tuple[str, int]:
        if term not in self._held:
            pool = ("wide" if term.wide else "narrow") + ("_mask" if term.is_mask else "")
            if not self._unused[pool]:
                self._unused[pool].append(self.buffers[pool])
                self.buffers[pool] += 1
            self._held[term] = pool, self._unused[pool].pop()
        return self._held[term]
