"""The tables of the IoU family: what a loss may be made of, and which numbers that needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from .._checks import check_choice, check_number
from . import modes, overlaps, penalties
from .family import Pair, combined, pullback

LONGEST = 2.0**28
"""Lengths among the parameters may lie between this (2.7e8) and 1 / this."""


class Parameter(NamedTuple):
    """A number that a part of a loss needs.

    Attributes:
        name: the keyword.
        least: the smallest that it may be.
        most: the largest that it may be.
        default: what it is if it is not given; None if it must be.
        is_length: whether it is in the unit of the boxes. A loss without such a parameter is free of scale.
    """

    name: str
    least: float
    most: float
    default: float | None = None
    is_length: bool = False


def length(name: str) -> Parameter:
    """A parameter in the unit of the boxes, which nobody but the caller knows."""
    return Parameter(name, 1 / LONGEST, LONGEST, is_length=True)


class Term(NamedTuple):
    """A part of a loss: its value, its slopes, and the parameters that both take after other arguments."""

    value: Callable[..., Tensor]
    slopes: Callable[..., Any]
    parameters: tuple[Parameter, ...] = ()


IOU = Term(overlaps.plain_iou, overlaps.plain_iou_slopes)
INNER = Term(overlaps.inner_iou, overlaps.inner_iou_slopes, (Parameter("inner_ratio", 0.1, 10.0),))


class Variant(NamedTuple):
    """A row: what is added to the overlap's part of the loss, and what stands for the overlap."""

    penalty: Term = Term(penalties.no_penalty, penalties.no_slopes)
    overlap: Term = IOU


VARIANTS: dict[str, Variant] = {
    "iou": Variant(),
    "giou": Variant(Term(penalties.empty_share, penalties.empty_share_slopes)),
    "diou": Variant(Term(penalties.centre_distance, penalties.centre_distance_slopes)),
    "ciou": Variant(Term(penalties.aspect_and_distance, penalties.aspect_and_distance_slopes)),
    "eiou": Variant(Term(penalties.sizes_and_distance, penalties.sizes_and_distance_slopes)),
    "siou": Variant(Term(penalties.distance_and_shape, penalties.distance_and_shape_slopes)),
    "wiou": Variant(Term(penalties.attention_gain, penalties.attention_gain_slopes)),
    "mpdiou": Variant(
        Term(
            penalties.corner_distance,
            penalties.corner_distance_slopes,
            (length("image_width"), length("image_height")),
        )
    ),
    "shapeiou": Variant(
        Term(
            penalties.weighed_distance_and_shape,
            penalties.weighed_distance_and_shape_slopes,
            (Parameter("scale", 0.0, 16.0, default=0.0),),
        )
    ),
    "nwd": Variant(
        overlap=Term(overlaps.gaussian_nearness, overlaps.gaussian_nearness_slopes, (length("constant"),))
    ),
}
"""The family: a name for `kind`, its penalty and its overlap."""

MODES: dict[str, Term] = {
    "linear": Term(modes.linear, modes.linear_slopes),
    "log": Term(modes.logarithmic, modes.logarithmic_slopes),
    "square": Term(modes.squared_overlap, modes.squared_overlap_slopes),
    "alpha": Term(modes.powers, modes.powers_slopes, (Parameter("alpha", 1.0, 10.0, default=3.0),)),
}
"""What a loss makes of overlap and penalty: a name for `mode`; slopes are a pair, at overlap and penalty."""


SCORE = "score"
"""In place of a mode: not a loss, but overlap - penalty, 1 for identical boxes."""

SCORING = Term(modes.difference, modes.difference_slopes)


class Form(NamedTuple):
    """How a loss or a score is made, in names and numbers; see `form_of`.

    Attributes:
        kind: a row of `VARIANTS`.
        mode: an entry of `MODES`, or `SCORE`.
        inner: whether `INNER` stands for the row's IoU.
        values: of the parameters of overlap, penalty and mode, one after the other.
    """

    kind: str
    mode: str
    inner: bool
    values: tuple[float, ...]


def terms(form: Form) -> tuple[Term, Term, Term]:
    """Overlap, penalty and mode of a form."""
    variant = VARIANTS[form.kind]
    mode = SCORING if form.mode == SCORE else MODES[form.mode]
    return INNER if form.inner else variant.overlap, variant.penalty, mode


def parts(form: Form) -> list[tuple[Term, tuple[float, ...]]]:
    """Overlap, penalty and mode of a form, each with the values of its parameters."""
    found, start = [], 0
    for term in terms(form):
        end = start + len(term.parameters)
        found.append((term, form.values[start:end]))
        start = end
    return found


def form_of(
    kind: str,
    mode: str = "linear",
    inner_ratio: float | None = None,
    parameters: Mapping[str, object] | None = None,
) -> Form:
    """The form of a loss, checked.

    Args:
        kind: a row of `VARIANTS`.
        mode: an entry of `MODES`.
        inner_ratio: the scale of the boxes between which the IoU is taken; None for the boxes themselves.
        parameters: values by name, of the parameters of row and mode.

    Raises:
        TypeError: if a parameter is not a number.
        ValueError: for an unknown name, a parameter that is missing or out of its range, or an inner ratio
            for a row without IoU.
    """
    check_choice("kind", kind, VARIANTS)
    check_choice("mode", mode, MODES)
    if inner_ratio is None and not parameters:
        return _form_without_parameters(kind, mode)
    return _form_of(kind, mode, inner_ratio, dict(parameters or {}))


@cache
def _form_without_parameters(kind: str, mode: str) -> Form:
    return _form_of(kind, mode, None, {})


def _form_of(kind: str, mode: str, inner_ratio: float | None, given: dict[str, object]) -> Form:
    if inner_ratio is not None:
        if VARIANTS[kind].overlap is not IOU:
            raise ValueError(f"inner_ratio: got {inner_ratio}, but {kind!r} has no IoU to scale boxes for")
        given["inner_ratio"] = inner_ratio
    form = Form(kind, mode, inner_ratio is not None, ())
    wanted = [parameter for term in terms(form) for parameter in term.parameters]
    names = [parameter.name for parameter in wanted]
    for name in given:
        if name not in names:
            takes = ", ".join(names) or "none"
            raise ValueError(f"{name}: not a parameter of {kind!r} in mode {mode!r}, which takes {takes}")
    values = []
    for name, least, most, default, _ in wanted:
        value = given.get(name, default)
        if value is None:
            raise ValueError(f"{name}: missing; {kind!r} has no default for it")
        check_number(name, value, minimum=least, maximum=most)
        values.append(float(value))  # type: ignore[arg-type]
    return form._replace(values=tuple(values))


def score_of(kind: str, parameters: Mapping[str, object] | None = None) -> Form:
    """The form of a row's score, checked as by `form_of`."""
    return form_of(kind, parameters=parameters)._replace(mode=SCORE)


def surcharge(form: Form) -> float:
    """The weight of a pair's `inversion`."""
    return 0.0 if form.mode == SCORE else 1.0


class Formula:
    """The functions of a form, of the shared maths or of a copy, that take loss or score from a pair.

    Args:
        form: how it is made.
        copy: the shared functions of a copy by name; None for themselves.
    """

    def __init__(self, form: Form, copy: Mapping[str, Any] | None = None) -> None:
        self.copy = copy
        self.overlap, self.penalty, self.mode = parts(form)
        self.surcharge = surcharge(form)

    def value(self, pair: Pair) -> Tensor:
        """What the mode makes of overlap and penalty; of a loss, with the surcharge of inverted boxes."""
        mode, values = self.mode
        found: Tensor = self._call(mode.value, *self._values(pair), *values)
        return found + pair.inversion if self.surcharge else found

    def gradient(self, pair: Pair) -> tuple[Tensor, ...]:
        """The gradient at the eight corners, in closed form."""
        (overlap, of_overlap), (penalty, of_penalty), (mode, values) = self.overlap, self.penalty, self.mode
        slopes = self._call(
            combined,
            *self._call(mode.slopes, *self._values(pair), *values),
            self._call(overlap.slopes, pair, *of_overlap),
            self._call(penalty.slopes, pair, *of_penalty),
        )
        found: tuple[Tensor, ...] = self._call(pullback, pair, slopes, self.surcharge)
        return found

    def _values(self, pair: Pair) -> tuple[Tensor, Tensor]:
        (overlap, of_overlap), (penalty, of_penalty) = self.overlap, self.penalty
        return self._call(overlap.value, pair, *of_overlap), self._call(penalty.value, pair, *of_penalty)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return (function if self.copy is None else self.copy[function.__name__])(*arguments)
