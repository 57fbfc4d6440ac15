r"""The IoU family, defined once: every backend runs these functions and no others.

Every variant is `loss = 1 - iou + penalty(pair) + pair.inversion`. `pair` is the only geometry pass;
a variant is a penalty and, beside it, the penalty's partial derivatives (slopes); `pullback` takes
slopes to the corners of both boxes. The eager backend lets autograd differentiate `loss`; a fused
backend calls `loss`, slopes and `pullback` in one pass. `VARIANTS` is the table of rows.

How it stays finite and unbiased:

- Nothing is added to a denominator. Overlap and areas are taken in shares of the enclosing box, each
  axis by its own side: IoU and the enclosing share do not change under such scaling, products neither
  overflow nor underflow, and a union below 2^-100 of the enclosing box can be floored, because IoU
  is then smaller than 2^-98 and cannot be seen beside 1. Distances are taken in the enclosing box's longer
  side.
- A unit is held constant under differentiation. That is exact, not an approximation: IoU and the
  penalties do not depend on the unit, so their derivative with respect to it is zero. (`inversion`
  does: its slope is that of un-crossing alone, or an inverted box could fall by moving away.)
- Slopes grow as 1 / side, as they must; below a side of 2^-100 (8e-31) they saturate.
- Ties share the slope in halves, so identical boxes have a gradient of exactly 0. At zero extent the
  slope is the one towards a positive extent: a collapsed side can grow, a touching box can move in.
- An inverted side (x2 < x1) has no area and no overlap; its extent feels `inversion` alone, which
  falls when the corners un-cross, and its place keeps its slope.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as xp
from torch import Tensor

SMALLEST = 2.0**-100
LARGE = 2.0**125
SCALE_OF_LARGE = 2.0**-4


class Unit(NamedTuple):
    """What lengths are measured in: a divisor that is never 0, and 1 / length saturated at 1 / SMALLEST."""

    divisor: Tensor
    slope: Tensor


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


class AxisSlopes(NamedTuple):
    """Partial derivatives of a penalty with respect to the lengths of one axis."""

    size: Tensor | float = 0.0
    target_size: Tensor | float = 0.0
    span: Tensor | float = 0.0
    offset: Tensor | float = 0.0


class Slopes(NamedTuple):
    """Partial derivatives of a penalty with respect to the quantities of a pair."""

    x: AxisSlopes
    y: AxisSlopes
    iou: Tensor | float = 0.0
    fill: Tensor | float = 0.0


class Variant(NamedTuple):
    """A row of the table: what is added to 1 - IoU, and its slopes."""

    penalty: Callable[[Pair], Tensor]
    slopes: Callable[[Pair], Slopes]


def hold(value: Tensor) -> Tensor:
    """`value` as a constant under differentiation."""
    return value.detach()


def both(function: Callable[..., Any], x: tuple[Any, ...], y: tuple[Any, ...]) -> tuple[Any, Any]:
    """The same for either axis; a backend may do the two at once."""
    return function(*x), function(*y)


def is_inverted(first: Tensor, second: Tensor) -> Tensor:
    """Whether a side runs backwards. Of ordinary boxes a backend may know this and the next two: False."""
    return second < first


def is_zero(length: Tensor) -> Tensor:
    """Whether there is nothing to divide by."""
    return length == 0


def is_negligible(length: Tensor) -> Tensor:
    """Whether a length is below the smallest that is told from 0."""
    return length < SMALLEST


def floored(length: Tensor) -> Tensor:
    """The length, or the smallest that is told from 0."""
    return xp.where(is_negligible(length), SMALLEST, length)


def ratio(part: Tensor, whole: Tensor, limit: float) -> Tensor:
    """Part / whole, and `limit` where there is no whole."""
    none = is_zero(whole)
    return xp.where(none, limit, part / xp.where(none, 1.0, whole))


def guarded_unit(length: Tensor, zero: Tensor, negligible: Tensor) -> Unit:
    """The unit that a held length makes, where it is neither 0 nor negligible."""
    slope = 1.0 / xp.where(negligible, SMALLEST, length)
    return Unit(xp.where(zero, 1.0, length), xp.where(zero, 0.0, slope))


def unit_of(length: Tensor) -> Unit:
    """The unit that a length makes, constant under differentiation."""
    length = hold(length)
    return guarded_unit(length, is_zero(length), is_negligible(length))


def measure(length: Tensor, unit: Unit) -> Tensor:
    """The length in a unit that is no shorter, 0 without one; its slope is the unit's."""
    constant = hold(length)
    return constant / unit.divisor + (length - constant) * unit.slope


def ordered(first: Tensor, second: Tensor, inverted: Tensor) -> tuple[Tensor, Tensor]:
    """The two ends of a side, lower first; a side that was inverted moves as one."""
    middle = 0.5 * first + 0.5 * second
    move = middle - hold(middle)
    low = xp.where(inverted, hold(second) + move, first)
    high = xp.where(inverted, hold(first) + move, second)
    return low, high


def axis(p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> Axis:
    """The geometry of one axis: predicted side p1..p2, target side t1..t2."""
    inverted, target_inverted = is_inverted(p1, p2), is_inverted(t1, t2)
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
    x, y = both(axis, (px1, px2, tx1, tx2), (py1, py2, ty1, ty2))
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
    return xp.maximum(xp.abs(hold(first)), xp.abs(hold(second)))


def is_large(
    p1: Tensor, p2: Tensor, p3: Tensor, p4: Tensor, t1: Tensor, t2: Tensor, t3: Tensor, t4: Tensor
) -> Tensor:
    """Where one of a pair's numbers is so near the largest float that lengths would overflow."""
    pred = larger(larger(p1, p2), larger(p3, p4))
    target = larger(larger(t1, t2), larger(t3, t4))
    return larger(pred, target) > LARGE


def in_range(plane: Tensor, large: Tensor) -> Tensor:
    """A coordinate brought back from near the largest float, by a power of two; otherwise as it is."""
    return xp.where(large, plane * SCALE_OF_LARGE, plane)


def no_penalty(pair: Pair) -> Tensor:
    """IoU: 0."""
    return xp.zeros_like(pair.iou)


def no_slopes(pair: Pair) -> Slopes:
    """IoU: nothing to differentiate."""
    return Slopes(x=AxisSlopes(), y=AxisSlopes())


def empty_share(pair: Pair) -> Tensor:
    """GIoU: the share of the enclosing box that neither box covers, (C - U) / C."""
    return 1.0 - pair.fill


def empty_share_slopes(pair: Pair) -> Slopes:
    """Slopes of `empty_share`."""
    return Slopes(x=AxisSlopes(), y=AxisSlopes(), fill=-1.0)


def squared(length: Tensor, unit: Unit) -> Tensor:
    """The square of a length in a unit."""
    measured = measure(length, unit)
    return measured * measured


def squared_diagonal(pair: Pair) -> Tensor:
    """Of the enclosing box, in its unit."""
    x, y = both(squared, (pair.x.span, pair.unit), (pair.y.span, pair.unit))
    return x + y  # type: ignore[no-any-return]


def centre_distance(pair: Pair) -> Tensor:
    """DIoU: squared distance of the centres over the squared diagonal of the enclosing box."""
    x, y = both(squared, (pair.x.offset, pair.unit), (pair.y.offset, pair.unit))
    return ratio(x + y, squared_diagonal(pair), 0.0)


def distance_slopes(axis: Axis, unit: Unit, factor: Tensor, distance: Tensor) -> AxisSlopes:
    """Slopes of `centre_distance` on one axis."""
    offset, span = measure(axis.offset, unit), measure(axis.span, unit)
    return AxisSlopes(offset=offset * factor, span=-span * (distance * factor))


def centre_distance_slopes(pair: Pair) -> Slopes:
    """Slopes of `centre_distance`: 2 d / c^2 for an offset, -2 s rho^2 / c^4 for a span."""
    factor = ratio(2.0 * pair.unit.slope, squared_diagonal(pair), 0.0)
    distance = centre_distance(pair)
    x, y = both(distance_slopes, (pair.x, pair.unit, factor, distance), (pair.y, pair.unit, factor, distance))
    return Slopes(x=x, y=y)


def direction(width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height in units of the longer of them; a point counts as a square."""
    unit = unit_of(xp.maximum(width, height))
    point = is_zero(xp.maximum(width, height))
    return xp.where(point, 1.0, measure(width, unit)), xp.where(point, 1.0, measure(height, unit))


def turn(pair: Pair) -> Tensor:
    """atan(wt / ht) - atan(w / h), by one arctangent that no zero can divide."""
    w, h = direction(pair.x.size, pair.y.size)
    wt, ht = direction(pair.x.target_size, pair.y.target_size)
    return xp.atan2(wt * h - w * ht, ht * h + wt * w)


def aspect_weight(pair: Pair, aspect: Tensor) -> Tensor:
    """CIoU's trade-off alpha = v / (1 - iou + v), a constant under differentiation as in the paper."""
    total = hold(1.0 - pair.iou + aspect)
    return hold(aspect) / xp.where(total == 0, 1.0, total)


def aspect_and_distance(pair: Pair) -> Tensor:
    """CIoU: the centre distance plus alpha v, v = 4 / pi^2 turn^2."""
    angle = turn(pair)
    aspect = (4.0 / math.pi**2) * angle * angle
    return centre_distance(pair) + aspect_weight(pair, aspect) * aspect


def turning(width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of atan(width / height): height / (w^2 + h^2) and -width / (w^2 + h^2)."""
    w, h = direction(width, height)
    per_length = unit_of(xp.maximum(width, height)).slope / (w * w + h * h)
    return h * per_length, -w * per_length


def aspect_and_distance_slopes(pair: Pair) -> Slopes:
    """Slopes of `aspect_and_distance`; the turn grows with the target's angle and falls with the box's."""
    angle = turn(pair)
    factor = (8.0 / math.pi**2) * aspect_weight(pair, (4.0 / math.pi**2) * angle * angle) * angle
    width, height = turning(pair.x.size, pair.y.size)
    target_width, target_height = turning(pair.x.target_size, pair.y.target_size)
    distance = centre_distance_slopes(pair)
    return Slopes(
        x=AxisSlopes(-width * factor, target_width * factor, distance.x.span, distance.x.offset),
        y=AxisSlopes(-height * factor, target_height * factor, distance.y.span, distance.y.offset),
    )


def size_gap(axis: Axis) -> Tensor:
    """The difference of the two sizes over the enclosing side, 0 without one."""
    return ratio(measure(axis.size - axis.target_size, axis.unit), axis.span_share, 0.0)


def squared_gap(axis: Axis) -> Tensor:
    """The square of `size_gap`."""
    gap = size_gap(axis)
    return gap * gap


def sizes_and_distance(pair: Pair) -> Tensor:
    """EIoU: the centre distance plus, for either axis, the squared gap of the sizes."""
    x, y = both(squared_gap, (pair.x,), (pair.y,))
    return centre_distance(pair) + (x + y)  # type: ignore[no-any-return]


def gap_slopes(axis: Axis, distance: AxisSlopes) -> AxisSlopes:
    """Slopes of `squared_gap` on top of those of the centre distance: 2 gap / C, -2 gap^2 / C for a span."""
    gap = size_gap(axis)
    slope = 2.0 * gap * axis.unit.slope
    return AxisSlopes(slope, -slope, distance.span - gap * slope, distance.offset)


def sizes_and_distance_slopes(pair: Pair) -> Slopes:
    """Slopes of `sizes_and_distance`."""
    distance = centre_distance_slopes(pair)
    x, y = both(gap_slopes, (pair.x, distance.x), (pair.y, distance.y))
    return Slopes(x=x, y=y)


class Heading(NamedTuple):
    """The way from centre to centre, in units of the longer of its two parts; 0, 0 where they coincide."""

    x: Tensor
    y: Tensor
    squared: Tensor
    slope: Tensor


def heading(pair: Pair) -> Heading:
    """With its squared length (between 1 and 2; 1 where there is none) and the slope of its unit."""
    apart = larger(pair.x.offset, pair.y.offset)
    # Compared here, because the centres of ordinary boxes may coincide too.
    unit = guarded_unit(apart, apart == 0, apart < SMALLEST)
    x, y = both(measure, (pair.x.offset, unit), (pair.y.offset, unit))
    squared = x * x + y * y
    return Heading(x, y, xp.where(squared == 0, 1.0, squared), unit.slope)


def steepness(way: Heading) -> Tensor:
    """SIoU's gamma = 2 - Lambda; the angle cost Lambda is 0 along an axis and 1 on a diagonal."""
    return 2.0 - 2.0 * xp.abs(way.x * way.y) / way.squared


def nearness(axis: Axis, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """The offset over the enclosing side, 0 without one, and exp(-gamma rho), rho being its square."""
    share = ratio(measure(axis.offset, axis.unit), axis.span_share, 0.0)
    return share, xp.exp(-gamma * (share * share))


def mismatch(axis: Axis) -> tuple[Tensor, Unit]:
    """SIoU's omega, the difference of the sizes over the larger of them, and that as a unit."""
    whole = xp.maximum(axis.size, axis.target_size)
    unit = unit_of(whole)
    return ratio(measure(xp.abs(axis.size - axis.target_size), unit), measure(whole, unit), 0.0), unit


def distance_and_shape_cost(axis: Axis, gamma: Tensor) -> Tensor:
    """SIoU's costs of one axis: 1 - exp(-gamma rho), and (1 - exp(-omega))^4."""
    _, near = nearness(axis, gamma)
    omega, _ = mismatch(axis)
    unlike = 1.0 - xp.exp(-omega)
    squared = unlike * unlike
    return (1.0 - near) + squared * squared


def distance_and_shape(pair: Pair) -> Tensor:
    """SIoU: half the sum of the distance and shape costs."""
    gamma = steepness(heading(pair))
    x, y = both(distance_and_shape_cost, (pair.x, gamma), (pair.y, gamma))
    return 0.5 * (x + y)  # type: ignore[no-any-return]


def nearness_weight(axis: Axis, gamma: Tensor) -> Tensor:
    """The slope of the distance cost at gamma: rho exp(-gamma rho)."""
    share, near = nearness(axis, gamma)
    return share * share * near


def costs_slopes(axis: Axis, gamma: Tensor, own: Tensor, other: Tensor, turned: Tensor) -> AxisSlopes:
    """Slopes of half the costs of one axis, and of gamma at this axis's part of the heading."""
    share, near = nearness(axis, gamma)
    pull = gamma * near * share * axis.unit.slope
    omega, unit = mismatch(axis)
    alike = xp.exp(-omega)
    unlike = 1.0 - alike
    # 0 where the sizes are equal, so that it does not matter there which one counts as larger.
    shrink = 2.0 * (unlike * unlike * unlike) * alike * unit.slope
    grow = shrink * (1.0 - omega)
    is_larger = axis.size > axis.target_size
    return AxisSlopes(
        size=xp.where(is_larger, grow, -shrink),
        target_size=xp.where(is_larger, -shrink, grow),
        span=-share * pull,
        offset=pull - turned * other * ((other - own) * (other + own)),
    )


def distance_and_shape_slopes(pair: Pair) -> Slopes:
    """Slopes of `distance_and_shape`.

    With the heading (a, b), the angle cost is 2 |a b| / (a^2 + b^2), and its slope at a is
    2 sign(a b) b (b^2 - a^2) / (a^2 + b^2)^2; on an axis, where it has a kink, 0.
    """
    way = heading(pair)
    gamma = steepness(way)
    weight_x, weight_y = both(nearness_weight, (pair.x, gamma), (pair.y, gamma))
    product = way.x * way.y
    sign = xp.where(product > 0, 1.0, xp.where(product < 0, -1.0, 0.0))
    turned = (weight_x + weight_y) * sign / (way.squared * way.squared) * way.slope
    x, y = both(costs_slopes, (pair.x, gamma, way.x, way.y, turned), (pair.y, gamma, way.y, way.x, turned))
    return Slopes(x=x, y=y)


VARIANTS: dict[str, Variant] = {
    "iou": Variant(no_penalty, no_slopes),
    "giou": Variant(empty_share, empty_share_slopes),
    "diou": Variant(centre_distance, centre_distance_slopes),
    "ciou": Variant(aspect_and_distance, aspect_and_distance_slopes),
    "eiou": Variant(sizes_and_distance, sizes_and_distance_slopes),
    "siou": Variant(distance_and_shape, distance_and_shape_slopes),
}
"""The family: a name for `kind`, its penalty and its slopes."""


def loss(pair: Pair, penalty: Tensor) -> Tensor:
    """The loss of a pair: 1 - iou + penalty + inversion."""
    return 1.0 - pair.iou + penalty + pair.inversion


def score(pair: Pair, penalty: Tensor) -> Tensor:
    """The score of a pair: iou - penalty, 1 for identical boxes."""
    return pair.iou - penalty


def settle(first: Tensor, second: Tensor, larger: Tensor, smaller: Tensor) -> Tensor:
    """`larger` where first > second, `smaller` where first < second, and their mean at a tie."""
    tie = xp.where(first == second, 0.5 * (larger + smaller), smaller)
    return xp.where(first > second, larger, tie)


def pull_side(
    low: Tensor,
    high: Tensor,
    other_low: Tensor,
    other_high: Tensor,
    inverted: Tensor,
    overlap: Tensor,
    size: Tensor,
    span: Tensor,
    per_span: Tensor,
) -> tuple[Tensor, Tensor]:
    """Slopes at the two ends of a side, from those at its overlap with the other side, size and span.

    An end that is the inner one of the two bounds the overlap; the outer one bounds the span.
    """
    at_low = -settle(low, other_low, overlap, span) - size
    at_high = settle(other_high, high, overlap, span) + size
    middle = 0.5 * (at_low + at_high)
    first = xp.where(inverted, middle + per_span, at_low)
    second = xp.where(inverted, middle - per_span, at_high)
    return first, second


class ShareSlopes(NamedTuple):
    """Slopes of the loss at the shares of one axis, which come from the other axis's."""

    overlap: Tensor
    size: Tensor
    target_size: Tensor
    span: Tensor


def share_slopes(other: Axis, intersection: Tensor, area: Tensor, enclosing: Tensor) -> ShareSlopes:
    """Slopes at the shares of an axis: a product's slope at one factor is the other factor."""
    return ShareSlopes(
        overlap=intersection * other.overlap_share,
        size=area * other.share,
        target_size=area * other.target_share,
        span=enclosing * other.span_share,
    )


def pull_axis(axis: Axis, shares: ShareSlopes, own: AxisSlopes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes at the ends of the predicted and of the target side, from slopes at shares and lengths."""
    per_span = axis.unit.slope
    overlap = xp.where(axis.overlapping, shares.overlap * per_span, 0.0)
    size, target_size = shares.size * per_span + own.size, shares.target_size * per_span + own.target_size
    span = shares.span * per_span + own.span
    predicted, target = (axis.low, axis.high), (axis.target_low, axis.target_high)
    p1, p2 = pull_side(*predicted, *target, axis.inverted, overlap, size, span, per_span)
    t1, t2 = pull_side(*target, *predicted, axis.target_inverted, overlap, target_size, span, per_span)
    half = 0.5 * own.offset
    return p1 + half, p2 + half, t1 - half, t2 - half


def pullback(pair: Pair, slopes: Slopes) -> tuple[Tensor, ...]:
    """The gradient of `loss` with respect to all eight corners, in the order of `pair`'s arguments."""
    x, y = pair.x, pair.y
    per_union = 1.0 / floored(pair.union)
    iou = slopes.iou - 1.0
    fill = xp.where(is_zero(x.span_share * y.span_share), 0.0, slopes.fill)
    per_area = xp.where(is_negligible(pair.union), 0.0, pair.iou * per_union)
    intersection = iou * (per_union + per_area) - fill
    area = fill - iou * per_area
    enclosing = -fill * pair.fill
    from_x = share_slopes(x, intersection, area, enclosing)
    from_y = share_slopes(y, intersection, area, enclosing)
    at_x, at_y = both(pull_axis, (x, from_y, slopes.x), (y, from_x, slopes.y))
    px1, px2, tx1, tx2 = at_x
    py1, py2, ty1, ty2 = at_y
    return px1, py1, px2, py2, tx1, ty1, tx2, ty2
