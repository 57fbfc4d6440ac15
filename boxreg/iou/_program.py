"""The shared maths as a program for the CPU: a flat list of calls that write into reused buffers.

Called as it stands, the maths would make a fresh tensor for each of hundreds of terms, many of them twice.
Traced once with symbols instead of tensors, equal terms become one, `0 + x` and `where(False, x, y)` fold
away, both axes of a box are computed in one call, and a term's buffer is used again once the term is dead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ._libraries import Array, Library

COMPARISONS = ("lt", "gt", "le", "ge", "eq")
Value = Any
"""A `Term`, or a number that is known while tracing."""

Compute = Callable[[Sequence[Array], Sequence[Array]], None]
"""Arrays in, and arrays to write the results to."""


class Term:
    """A value of the maths: an operation and its arguments.

    Attributes:
        operation: name of a torch function; or "input", "half" (one axis of a pair), "stack" (two axes).
        arguments: terms and numbers.
        wide: whether it holds both axes, shape (2, n), or one value a box, shape (n,).
    """

    __slots__ = ("arguments", "operation", "trace", "wide")
    __hash__ = object.__hash__

    def __init__(self, trace: Trace, operation: str, arguments: tuple[Value, ...], wide: bool) -> None:
        self.trace, self.operation, self.arguments, self.wide = trace, operation, arguments, wide

    @property
    def is_mask(self) -> bool:
        """Whether it is true or false, not a number."""
        return self.operation in COMPARISONS and not self.trace.weighs

    def __add__(self, other: Value) -> Value:
        return self.trace.apply("add", self, other)

    def __radd__(self, other: Value) -> Value:
        return self.trace.apply("add", other, self)

    def __sub__(self, other: Value) -> Value:
        return self.trace.apply("sub", self, other)

    def __rsub__(self, other: Value) -> Value:
        return self.trace.apply("sub", other, self)

    def __mul__(self, other: Value) -> Value:
        return self.trace.apply("mul", self, other)

    def __rmul__(self, other: Value) -> Value:
        return self.trace.apply("mul", other, self)

    def __truediv__(self, other: Value) -> Value:
        return self.trace.apply("div", self, other)

    def __rtruediv__(self, other: Value) -> Value:
        return self.trace.apply("div", other, self)

    def __neg__(self) -> Value:
        return self.trace.apply("neg", self)

    def __lt__(self, other: Value) -> Value:
        return self.trace.apply("lt", self, other)

    def __gt__(self, other: Value) -> Value:
        return self.trace.apply("gt", self, other)

    def __le__(self, other: Value) -> Value:
        return self.trace.apply("le", self, other)

    def __ge__(self, other: Value) -> Value:
        return self.trace.apply("ge", self, other)

    def __eq__(self, other: object) -> Value:
        return self.trace.apply("eq", self, other)


class Trace:
    """Makes terms, each only once; stands in for torch (`xp`) while the maths is traced.

    Args:
        weighs: whether masks are 0 or 1 and a choice is a weighing, for which torch has faster loops than
            for truth values. No term may be infinite or NaN then.
    """

    def __init__(self, weighs: bool) -> None:
        self.weighs = weighs
        self._known: dict[tuple[object, ...], Term] = {}

    def term(self, operation: str, *arguments: Value, wide: bool = False) -> Term:
        """The term of this operation and these arguments."""
        key = (operation, wide, *(id(a) if isinstance(a, Term) else ("number", a) for a in arguments))
        if key not in self._known:
            self._known[key] = Term(self, operation, arguments, wide)
        return self._known[key]

    def apply(self, operation: str, *arguments: Value) -> Value:
        """An elementwise operation, or what it folds to."""
        folded = fold(operation, *arguments)
        if folded is not None:
            return folded
        wide = any(isinstance(argument, Term) and argument.wide for argument in arguments)
        return self.term(operation, *arguments, wide=wide)

    def __getattr__(self, name: str) -> Callable[..., Value]:
        return lambda *arguments: self.apply(name, *arguments)

    def where(self, condition: Value, chosen: Value, other: Value) -> Value:
        """torch.where, decided here if the condition is known or makes no difference."""
        if isinstance(condition, bool):
            return chosen if condition else other
        if chosen is other:
            return other
        if condition.operation == "ge" and condition.arguments[0] is chosen:
            least = condition.arguments[1]
            if least is other or _is_number(least, other):
                return self.apply("maximum", chosen, other)
        if not self.weighs:
            return self.apply("where", condition, chosen, other)
        return condition * chosen if _is_number(other, 0.0) else self.apply("lerp", other, chosen, condition)

    def zeros_like(self, value: Value) -> float:
        """The number 0."""
        return 0.0

    def both(
        self, function: Callable[..., Value], x: Sequence[Value], y: Sequence[Value]
    ) -> tuple[Value, Value]:
        """`family.both` with the two axes in one term."""
        together = function(*map(self.stack, x, y))
        return half(together, 0), half(together, 1)

    def stack(self, x: Value, y: Value) -> Value:
        """Two axes as one wide term; a value that they share stays narrow."""
        if isinstance(x, tuple):
            return _rebuild(x, [self.stack(a, b) for a, b in zip(x, y, strict=True)])
        if x is y or not (isinstance(x, Term) or isinstance(y, Term) or x != y):
            return x
        if _is_half(x, 0) and _is_half(y, 1) and x.arguments[0] is y.arguments[0]:
            return x.arguments[0]
        return self.term("stack", x, y, wide=True)


def half(value: Value, axis: int) -> Value:
    """One axis of a wide term; anything else is the same on both."""
    if isinstance(value, tuple):
        return _rebuild(value, [half(part, axis) for part in value])
    if not isinstance(value, Term) or not value.wide:
        return value
    return value.arguments[axis] if value.operation == "stack" else value.trace.term("half", value, axis)


def _is_number(value: Value, number: float) -> bool:
    return not isinstance(value, Term) and value == number


def _is_half(value: Value, axis: int) -> bool:
    return isinstance(value, Term) and value.operation == "half" and value.arguments[1] == axis


def _rebuild(like: tuple[Value, ...], parts: list[Value]) -> tuple[Value, ...]:
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def fold(operation: str, *arguments: Value) -> Value:
    """What an operation comes to without computing, or with fewer steps; None if it must be computed.

    No rounding changes: only signs are moved about, and terms left out that are absent. A 0 that is known
    while tracing stands for an absent term, so that 0 * x is 0 whatever x will be.
    """
    if not any(isinstance(argument, Term) for argument in arguments):
        return _ON_NUMBERS[operation](*arguments)
    simpler = _SIMPLER.get(operation)
    return simpler(*arguments) if simpler else None


def _add(a: Value, b: Value) -> Value:
    if _is_number(a, 0.0):
        return b
    if _is_number(b, 0.0):
        return a
    if _negated(b) is not None:
        return a - _negated(b)
    if _negated(a) is not None:
        return b - _negated(a)
    return None


def _sub(a: Value, b: Value) -> Value:
    if a is b:
        return 0.0
    if _is_number(b, 0.0):
        return a
    if _is_number(a, 0.0):
        return -b
    if _negated(b) is not None:
        return a + _negated(b)
    return -(_negated(a) + b) if _negated(a) is not None else None


def _mul(a: Value, b: Value) -> Value:
    if not isinstance(a, Term):
        return b * a
    for number, product in ((0.0, 0.0), (1.0, a), (-1.0, -a)):
        if _is_number(b, number):
            return product
    if _negated(a) is not None:
        return -(_negated(a) * b)
    return -(a * _negated(b)) if _negated(b) is not None else None


def _div(a: Value, b: Value) -> Value:
    if _is_number(a, 0.0):
        return 0.0
    if _is_number(b, 1.0):
        return a
    return -(_negated(a) / b) if _negated(a) is not None else None


def _negated(value: Value) -> Value:
    """The term whose sign was changed, or None."""
    return value.arguments[0] if isinstance(value, Term) and value.operation == "neg" else None


_SIMPLER: dict[str, Callable[..., Value]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _negated,
}

_ON_NUMBERS: dict[str, Callable[..., float | bool]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "lt": lambda a, b: a < b,
    "gt": lambda a, b: a > b,
    "le": lambda a, b: a <= b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "minimum": min,
    "maximum": max,
    "abs": abs,
    "atan2": math.atan2,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
}


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
        if operation == "div" and _is_number(arguments[0], 1.0):
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


def in_order(value: Value, order: dict[Term, None]) -> dict[Term, None]:
    """Add a term to `order`, after everything that it is computed from."""
    if isinstance(value, Term) and value not in order:
        for argument in value.arguments:
            in_order(argument, order)
        order[value] = None
    return order
