"""What is asked of a backend: which loss of the IoU family, between which boxes, with which gradients."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .._checks import check_choice, check_number
from ..decoders import Settings
from . import modes, overlaps
from .geometry import Pair, combine_grads, pair_backward

LONGEST = 2.0**28
"""Lengths among the parameters may lie between 1 / LONGEST and LONGEST (2.7e8)."""


class Parameter(NamedTuple):
    """A number that a loss needs beside the boxes.

    Attributes:
        name: the keyword argument.
        minimum: the smallest value.
        maximum: the largest value.
        default: the value if none is given; None if it must be given.
    """

    name: str
    minimum: float
    maximum: float
    default: float | None = None


def length(name: str) -> Parameter:
    """A parameter in the unit of the boxes."""
    return Parameter(name, 1 / LONGEST, LONGEST)


class Term(NamedTuple):
    """A part of a loss.

    Attributes:
        value: the function, of a pair or, for a mode, of overlap and penalty; then of the parameters.
        grad: its partial derivatives, a function of the same arguments.
        parameters: what both take after the other arguments.
    """

    value: Callable[..., Any]
    grad: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()


IOU = Term(overlaps.plain_iou, overlaps.plain_iou_grad)
INNER_IOU = Term(overlaps.inner_iou, overlaps.inner_iou_grad, (Parameter("inner_ratio", 0.1, 10.0),))
NO_PENALTY = Term(overlaps.no_penalty, overlaps.no_penalty_grad)

MODES: dict[str, Term] = {
    "linear": Term(modes.linear, modes.linear_grad),
    "log": Term(modes.logarithmic, modes.logarithmic_grad),
    "square": Term(modes.squared_overlap, modes.squared_overlap_grad),
    "alpha": Term(modes.powers, modes.powers_grad, (Parameter("alpha", 1.0, 10.0, default=3.0),)),
}
"""What a loss makes of overlap and penalty; the derivatives are a pair, at overlap and at penalty."""

SCORE = "score"
"""In place of a mode: overlap - penalty, 1 for identical boxes."""

SCORE_TERM = Term(modes.difference, modes.difference_grad)


class Kind(NamedTuple):
    """A loss of the IoU family: its penalty, and what it takes for the overlap."""

    penalty: Term
    overlap: Term


FAMILY: dict[str, Kind] = {}
"""The losses of the family by name. Each file of `boxreg.losses` defines one."""


def define(kind: str, *, penalty: Term = NO_PENALTY, overlap: Term = IOU) -> str:
    """Add a loss to the family, and return its name."""
    FAMILY[kind] = Kind(penalty, overlap)
    return kind


class Maths(NamedTuple):
    """The three terms of a loss or score."""

    overlap: Term
    penalty: Term
    mode: Term

    def parameters(self) -> list[Parameter]:
        """Of all three, in this order."""
        return [parameter for term in self for parameter in term.parameters]


class Spec(NamedTuple):
    """A loss or score of the family, and the gradients that are needed with it.

    Attributes:
        kind: the loss, a key of `FAMILY`.
        mode: a key of `MODES`, or `SCORE`.
        inner: whether the IoU is that of scaled boxes, `INNER_IOU`.
        pred_fmt: format of the predicted boxes, or of the first ones.
        target_fmt: format of the target boxes, or of the second ones.
        reduction: what is made of the loss per pair: `"none"`, `"mean"` or `"sum"`.
        scheme: if `pred` holds raw outputs, how they are decoded: a key of `decoders.SCHEMES`; else "".
        pred_grad: whether the gradient of `pred` is needed.
        target_grad: whether the gradient of `target` is needed.
        parameters: of overlap, penalty and mode, in this order.
        settings: of the decoder, for the x and the y axis.
        anchor_sides: widths and heights of the decoder's anchors, if it has any.
        factor: what every loss and gradient is multiplied by.
    """

    kind: str
    mode: str
    inner: bool
    pred_fmt: str
    target_fmt: str
    reduction: str = "none"
    scheme: str = ""
    pred_grad: bool = False
    target_grad: bool = False
    parameters: tuple[float, ...] = ()
    settings: Settings = ((), ())
    anchor_sides: Settings = ((), ())
    factor: float = 1.0

    @property
    def code(self) -> tuple[Any, ...]:
        """All that decides which code computes it; the rest are arguments at run time."""
        return (*self[:9], len(self.anchor_sides[0]))

    @property
    def maths(self) -> Maths:
        """The terms of the loss."""
        return maths(self.kind, self.mode, self.inner)

    @property
    def values(self) -> tuple[tuple[float, ...], ...]:
        """The parameters of overlap, penalty and mode, each by itself."""
        overlap, penalty, _ = (len(term.parameters) for term in self.maths)
        first, second = overlap, overlap + penalty
        return self.parameters[:first], self.parameters[first:second], self.parameters[second:]

    @property
    def inversion_weight(self) -> float:
        """The factor of a pair's `inversion`: 1 of a loss, 0 of a score."""
        return 0.0 if self.mode == SCORE else 1.0


def maths(kind: str, mode: str, inner: bool) -> Maths:
    """The terms of a loss or score."""
    penalty, overlap = FAMILY[kind]
    return Maths(INNER_IOU if inner else overlap, penalty, SCORE_TERM if mode == SCORE else MODES[mode])


_WITHOUT_PARAMETERS: set[tuple[str, str]] = set()
"""Kinds and modes that were found to have no parameters: nothing is left to check."""


def check_parameters(
    kind: str, mode: str, inner_ratio: float | None, given: Mapping[str, object]
) -> tuple[float, ...]:
    """The values of all parameters of a loss in the order of `Maths.parameters`, checked.

    Args:
        kind: a key of `FAMILY`.
        mode: a key of `MODES`, or `SCORE`.
        inner_ratio: the scale of the boxes between which the IoU is taken; None for the boxes themselves.
        given: values by name; None counts as not given.

    Raises:
        TypeError: if a parameter is not a number, or the loss has none of that name.
        ValueError: for an unknown name, a parameter that is missing or out of its range, or an inner ratio
            for a loss without IoU.
    """
    if not given and inner_ratio is None and (kind, mode) in _WITHOUT_PARAMETERS:
        return ()
    check_choice("kind", kind, FAMILY)
    if mode != SCORE:
        check_choice("mode", mode, MODES)
    if inner_ratio is not None and FAMILY[kind].overlap is not IOU:
        raise ValueError(f"inner_ratio: got {inner_ratio}, but {kind!r} has no IoU to scale boxes for")
    given = {name: value for name, value in given.items() if value is not None}
    if inner_ratio is not None:
        given["inner_ratio"] = inner_ratio
    expected = maths(kind, mode, inner_ratio is not None).parameters()
    names = [parameter.name for parameter in expected]
    for name in given:
        if name == "alpha" and name not in names:
            raise ValueError(
                f"alpha: got {given[name]}, but it is the exponent of mode 'alpha', not of {mode!r}"
            )
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            takes = ", ".join(names) or "no parameters"
            raise TypeError(f"{name}: unknown; {kind!r} takes {takes}{hint}")
    values = []
    for name, minimum, maximum, default in expected:
        value = given.get(name, default)
        if value is None:
            raise ValueError(f"{name}: missing; {kind!r} has no default for it")
        check_number(name, value, minimum=minimum, maximum=maximum)
        values.append(float(value))  # type: ignore[arg-type]
    if not expected:
        _WITHOUT_PARAMETERS.add((kind, mode))
    return tuple(values)


def value(spec: Spec, pair: Pair) -> Tensor:
    """The loss or score of a pair, differentiable."""
    (overlap, penalty, mode), (of_overlap, of_penalty, of_mode) = spec.maths, spec.values
    found: Tensor = mode.value(overlap.value(pair, *of_overlap), penalty.value(pair, *of_penalty), *of_mode)
    return found + pair.inversion if spec.inversion_weight else found


def gradient(spec: Spec, pair: Pair) -> tuple[Tensor, ...]:
    """The gradient at the eight corners of a pair, in closed form."""
    (overlap, penalty, mode), (of_overlap, of_penalty, of_mode) = spec.maths, spec.values
    at_overlap, at_penalty = mode.grad(
        overlap.value(pair, *of_overlap), penalty.value(pair, *of_penalty), *of_mode
    )
    grads = overlap.grad(pair, *of_overlap), penalty.grad(pair, *of_penalty)
    return pair_backward(pair, combine_grads(at_overlap, at_penalty, *grads), spec.inversion_weight)
