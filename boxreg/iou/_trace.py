"""Symbols for the shared maths, from which programs for the CPU are made.

Called as it stands, the maths would make a fresh tensor for each of hundreds of terms, many of them twice.
Traced once with symbols instead of tensors, equal terms become one, `0 + x` and `where(False, x, y)` fold
away, and both axes of a box are computed in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

COMPARISONS = ("lt", "gt", "le", "ge", "eq")
Value = Any
"""A `Term`, or a number that is known while tracing."""


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
            if least is other or is_number(least, other):
                return self.apply("maximum", chosen, other)
        if not self.weighs:
            return self.apply("where", condition, chosen, other)
        return condition * chosen if is_number(other, 0.0) else self.apply("lerp", other, chosen, condition)

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


def is_number(value: Value, number: float) -> bool:
    return not isinstance(value, Term) and value == number


def _is_half(value: Value, axis: int) -> bool:
    return isinstance(value, Term) and value.operation == "half" and value.arguments[1] == axis


def _rebuild(like: tuple[Value, ...], parts: list[Value]) -> tuple[Value, ...]:
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def in_order(value: Value, order: dict[Term, None]) -> dict[Term, None]:
    """Add a term to `order`, after everything that it is computed from."""
    if isinstance(value, Term) and value not in order:
        for argument in value.arguments:
            in_order(argument, order)
        order[value] = None
    return order


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
    if is_number(a, 0.0):
        return b
    if is_number(b, 0.0):
        return a
    if _negated(b) is not None:
        return a - _negated(b)
    if _negated(a) is not None:
        return b - _negated(a)
    return None


def _sub(a: Value, b: Value) -> Value:
    if a is b:
        return 0.0
    if is_number(b, 0.0):
        return a
    if is_number(a, 0.0):
        return -b
    if _negated(b) is not None:
        return a + _negated(b)
    return -(_negated(a) + b) if _negated(a) is not None else None


def _mul(a: Value, b: Value) -> Value:
    if not isinstance(a, Term):
        return b * a
    for number, product in ((0.0, 0.0), (1.0, a), (-1.0, -a)):
        if is_number(b, number):
            return product
    if _negated(a) is not None:
        return -(_negated(a) * b)
    return -(a * _negated(b)) if _negated(b) is not None else None


def _div(a: Value, b: Value) -> Value:
    if is_number(a, 0.0):
        return 0.0
    if is_number(b, 1.0):
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
