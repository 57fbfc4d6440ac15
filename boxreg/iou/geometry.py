r"""The IoU family, defined once: every backend runs these functions and no others.

Every loss is `mode(overlap(pair), penalty(pair)) + pair.inversion`, mostly 1 - iou + penalty. `pair` is the
only pass over the geometry. Overlaps (`overlaps`), penalties (`boxreg.losses`) and modes (`modes`) are each a
value and, beside it, its partial derivatives; `combine_grads` and `pair_backward` take these to the corners
of both boxes. The eager backend lets autograd differentiate the value; the others compute value and gradient
in one pass. `spec` says what can be asked for.

How it stays finite and unbiased:

- Nothing is added to a denominator. Overlap and areas are measured in the enclosing box, each axis by its
  own side: IoU does not change under such scaling, products neither overflow nor underflow, and a union below
  2^-100 of the enclosing box can be floored, because IoU is then smaller than 2^-98 and invisible beside 1.
  Distances are measured in the enclosing box's longer side.
- A unit is constant under differentiation. This is exact: IoU and the penalties do not depend on the unit,
  so their derivative with respect to it is zero. (`inversion` does depend on it: its gradient is that of
  un-inverting alone, or an inverted box could reduce its loss by moving away.)
- Gradients grow as 1 / side, as they must; below a side of 2^-100 (8e-31) they saturate.
- At a tie both sides get half of the gradient, so identical boxes have a gradient of exactly 0. At zero
  extent the gradient is the one towards a positive extent: a collapsed side can grow, a touching box can
  move in.
- An inverted side (x2 < x1) has no area and no overlap; its extent has the gradient of `inversion` alone,
  which falls as the corners un-invert, and its place keeps its gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as xp
from torch import Tensor

SMALLEST = 2.0**-100
LARGE = 2.0**125
SCALE_OF_LARGE = 2.0**-4


class Unit(NamedTuple):
    """What lengths are measured in: a divisor that is never 0, and 1 / length saturated at 1 / SMALLEST."""

    divisor: Tensor
    reciprocal: Tensor


class Axis(NamedTuple):
    """One axis of a pair: ends and lengths in input units, shares in the enclosing side of this axis."""

    low: Tensor
    high: Tensor
    target_low: Tensor
    target_high: Tensor
    inverted: Tensor
    target_inverted: Tensor
    overlapping: Tensor
    size: Tensor
    target_size: Tensor
    span: Tensor
    unit: Unit
    offset: Tensor
    share: Tensor
    target_share: Tensor
    overlap_share: Tensor
    span_share: Tensor
    inversion: Tensor


class Pair(NamedTuple):
    """What the geometry pass knows of a predicted box and its target."""

    x: Axis
    y: Axis
    union: Tensor
    iou: Tensor
    fill: Tensor
    unit: Unit
    inversion: Tensor


class AxisGrad(NamedTuple):
    """Partial derivatives with respect to the lengths of one axis."""

    size: Tensor | float = 0.0
    target_size: Tensor | float = 0.0
    span: Tensor | float = 0.0
    offset: Tensor | float = 0.0


class PairGrad(NamedTuple):
    """Partial derivatives with respect to the quantities of a pair."""

    x: AxisGrad
    y: AxisGrad
    iou: Tensor | float = 0.0
    fill: Tensor | float = 0.0


def stop_gradient(value: Tensor) -> Tensor:
    """`value` as a constant under differentiation."""
    return value.detach()


def floored(length: Tensor) -> Tensor:
    """The length, SMALLEST at least."""
    return xp.where(length < SMALLEST, SMALLEST, length)


def ratio(part: Tensor, whole: Tensor, limit: float) -> Tensor:
    """Part / whole, and `limit` where there is no whole."""
    none = whole == 0
    return xp.where(none, limit, part / xp.where(none, 1.0, whole))


def unit_of(length: Tensor) -> Unit:
    """The unit that a length makes, constant under differentiation."""
    length = stop_gradient(length)
    none = length == 0
    reciprocal = 1.0 / floored(length)
    return Unit(xp.where(none, 1.0, length), xp.where(none, 0.0, reciprocal))


def measure(length: Tensor, unit: Unit) -> Tensor:
    """The length in a unit that is no shorter, 0 without one; its gradient is 1 / unit."""
    constant = stop_gradient(length)
    return constant / unit.divisor + (length - constant) * unit.reciprocal


def ordered(first: Tensor, second: Tensor, inverted: Tensor) -> tuple[Tensor, Tensor]:
    """The two ends of a side, lower first; a side that was inverted moves as one."""
    middle = 0.5 * first + 0.5 * second
    move = middle - stop_gradient(middle)
    low = xp.where(inverted, stop_gradient(second) + move, first)
    high = xp.where(inverted, stop_gradient(first) + move, second)
    return low, high


def axis(p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> Axis:
    """The geometry of one axis: predicted side p1..p2, target side t1..t2."""
    inverted, target_inverted = p2 < p1, t2 < t1
    low, high = ordered(p1, p2, inverted)
    target_low, target_high = ordered(t1, t2, target_inverted)
    size, target_size = high - low, target_high - target_low
    span = xp.maximum(high, target_high) - xp.minimum(low, target_low)
    reach = xp.minimum(high, target_high) - xp.maximum(low, target_low)
    # An inverted side reaches nothing.
    reach = xp.where(inverted, -1.0, xp.where(target_inverted, -1.0, reach))
    overlapping = reach >= 0
    inversion = xp.where(inverted, p1 - p2, 0.0) + xp.where(target_inverted, t1 - t2, 0.0)
    unit = unit_of(span)
    return Axis(
        low=low,
        high=high,
        target_low=target_low,
        target_high=target_high,
        inverted=inverted,
        target_inverted=target_inverted,
        overlapping=overlapping,
        size=size,
        target_size=target_size,
        span=span,
        unit=unit,
        offset=0.5 * ((p1 - t1) + (p2 - t2)),
        share=xp.where(inverted, 0.0, measure(size, unit)),
        target_share=xp.where(target_inverted, 0.0, measure(target_size, unit)),
        overlap_share=measure(xp.where(overlapping, reach, 0.0), unit),
        span_share=measure(span, unit),
        inversion=measure(inversion, unit),
    )


def pair(
    px1: Tensor, py1: Tensor, px2: Tensor, py2: Tensor, tx1: Tensor, ty1: Tensor, tx2: Tensor, ty2: Tensor
) -> Pair:
    """The geometry pass: predicted corners (p) and target corners (t), any one broadcastable shape."""
    x, y = axis(px1, px2, tx1, tx2), axis(py1, py2, ty1, ty2)
    intersection = x.overlap_share * y.overlap_share
    union = x.share * y.share + x.target_share * y.target_share - intersection
    enclosing = x.span_share * y.span_share
    return Pair(
        x=x,
        y=y,
        union=union,
        iou=intersection / floored(union),
        fill=ratio(union, enclosing, 1.0),
        unit=unit_of(xp.maximum(x.span, y.span)),
        inversion=x.inversion + y.inversion,
    )


def larger(first: Tensor, second: Tensor) -> Tensor:
    """The larger magnitude of the two."""
    return xp.maximum(xp.abs(stop_gradient(first)), xp.abs(stop_gradient(second)))


def is_large(
    p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor, t1: Tensor, t2: Tensor, t3: Tensor, t4: Tensor
) -> Tensor:
    """Where one of a pair's coordinates is so near the largest float that lengths would overflow."""
    pred = (xp.abs(p1) > LARGE) | (xp.abs(p2) > LARGE) | (xp.abs(p3) > LARGE) | (xp.abs(p4) > LARGE)
    target = (xp.abs(t1) > LARGE) | (xp.abs(t2) > LARGE) | (xp.abs(t3) > LARGE) | (xp.abs(t4) > LARGE)
    return pred | target


def in_range(plane: Tensor, large: Tensor) -> Tensor:
    """A coordinate brought back from near the largest float, by a power of two; otherwise as it is."""
    return xp.where(large, plane * SCALE_OF_LARGE, plane)


def combine_axis_grads(
    at_overlap: Tensor, overlap: AxisGrad, at_penalty: Tensor, penalty: AxisGrad
) -> AxisGrad:
    """`combine_grads` for one axis."""
    return AxisGrad(
        at_overlap * overlap.size + at_penalty * penalty.size,
        at_overlap * overlap.target_size + at_penalty * penalty.target_size,
        at_overlap * overlap.span + at_penalty * penalty.span,
        at_overlap * overlap.offset + at_penalty * penalty.offset,
    )


def combine_grads(at_overlap: Tensor, at_penalty: Tensor, overlap: PairGrad, penalty: PairGrad) -> PairGrad:
    """Gradient of a loss at the pair, from its own at overlap and penalty and from theirs."""
    x, y = (
        combine_axis_grads(at_overlap, overlap.x, at_penalty, penalty.x),
        combine_axis_grads(at_overlap, overlap.y, at_penalty, penalty.y),
    )
    iou = at_overlap * overlap.iou + at_penalty * penalty.iou
    return PairGrad(x, y, iou, at_overlap * overlap.fill + at_penalty * penalty.fill)


def split_at_tie(first: Tensor, second: Tensor, larger: Tensor, smaller: Tensor) -> Tensor:
    """`larger` where first > second, `smaller` where first < second, and their mean at a tie."""
    tie = xp.where(first == second, 0.5 * (larger + smaller), smaller)
    return xp.where(first > second, larger, tie)


def side_backward(
    low: Tensor,
    high: Tensor,
    other_low: Tensor,
    other_high: Tensor,
    inverted: Tensor,
    overlap: Tensor,
    size: Tensor,
    span: Tensor,
    crossed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradient at the two ends of a side, from those at its overlap with the other side, size and span.

    An end that is the inner one of the two bounds the overlap; the outer one bounds the span; `crossed` is
    the gradient of how far a side is inverted.
    """
    at_low = -split_at_tie(low, other_low, overlap, span) - size
    at_high = split_at_tie(other_high, high, overlap, span) + size
    middle = 0.5 * (at_low + at_high)
    first = xp.where(inverted, middle + crossed, at_low)
    second = xp.where(inverted, middle - crossed, at_high)
    return first, second


class ShareGrad(NamedTuple):
    """Gradient of the loss at the shares of one axis, which come from the other axis's."""

    overlap: Tensor
    size: Tensor
    target_size: Tensor
    span: Tensor


def share_grad(other: Axis, intersection: Tensor, area: Tensor, enclosing: Tensor) -> ShareGrad:
    """Gradient at the shares of an axis: the derivative of a product by one factor is the other."""
    return ShareGrad(
        overlap=intersection * other.overlap_share,
        size=area * other.share,
        target_size=area * other.target_share,
        span=enclosing * other.span_share,
    )


def axis_backward(
    axis: Axis, shares: ShareGrad, own: AxisGrad, inversion_weight: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient at the ends of the predicted and of the target side, from those at shares and lengths."""
    per_span = axis.unit.reciprocal
    crossed = inversion_weight * per_span
    overlap = xp.where(axis.overlapping, shares.overlap * per_span, 0.0)
    size, target_size = shares.size * per_span + own.size, shares.target_size * per_span + own.target_size
    span = shares.span * per_span + own.span
    predicted, target = (axis.low, axis.high), (axis.target_low, axis.target_high)
    p1, p2 = side_backward(*predicted, *target, axis.inverted, overlap, size, span, crossed)
    t1, t2 = side_backward(*target, *predicted, axis.target_inverted, overlap, target_size, span, crossed)
    half = 0.5 * own.offset
    return p1 + half, p2 + half, t1 - half, t2 - half


def pair_backward(pair: Pair, grad: PairGrad, inversion_weight: float) -> tuple[Tensor, ...]:
    """The gradient with respect to all eight corners, in the order of `pair`'s arguments, from grad.

    `inversion_weight` is the derivative by `inversion`: 1 of a loss, 0 of a score.
    """
    x, y = pair.x, pair.y
    per_union = 1.0 / floored(pair.union)
    fill = xp.where(x.span_share * y.span_share == 0, 0.0, grad.fill)
    per_area = xp.where(pair.union < SMALLEST, 0.0, pair.iou * per_union)
    intersection = grad.iou * (per_union + per_area) - fill
    area = fill - grad.iou * per_area
    enclosing = -fill * pair.fill
    from_x = share_grad(x, intersection, area, enclosing)
    from_y = share_grad(y, intersection, area, enclosing)
    at_x, at_y = (
        axis_backward(x, from_y, grad.x, inversion_weight),
        axis_backward(y, from_x, grad.y, inversion_weight),
    )
    px1, px2, tx1, tx2 = at_x
    py1, py2, ty1, ty2 = at_y
    return px1, py1, px2, py2, tx1, ty1, tx2, ty2
