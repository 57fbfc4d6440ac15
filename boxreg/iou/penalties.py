"""What each row of the family adds to 1 - IoU: a penalty, and beside it its slopes.

Slopes are the penalty's partial derivatives with respect to the quantities of a pair. Written like `family`,
whose functions these use, and run by every backend.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch as xp
from torch import Tensor

from .family import (
    SMALLEST,
    Axis,
    AxisSlopes,
    Pair,
    Slopes,
    Unit,
    both,
    guarded_unit,
    hold,
    is_zero,
    larger,
    measure,
    ratio,
    unit_of,
)

FAR = 2.0**40
"""MPDIoU's distances beyond this many diagonals of the picture (1e12) count as this: no square overflows."""


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
    w, h = both(measure, (width, unit), (height, unit))
    return xp.where(point, 1.0, w), xp.where(point, 1.0, h)


def turn(pair: Pair) -> Tensor:
    """atan(wt / ht) - atan(w / h), by one arctangent that no zero can divide."""
    w, h = direction(pair.x.size, pair.y.size)
    wt, ht = direction(pair.x.target_size, pair.y.target_size)
    return xp.atan2(wt * h - w * ht, ht * h + wt * w)


def aspect_weight(pair: Pair, aspect: Tensor) -> Tensor:
    """CIoU's trade-off alpha = v / (1 - iou + v), a constant under differentiation as in the paper."""
    # Beside any total but 0, SMALLEST is lost in rounding.
    return hold(aspect) / (hold(1.0 - pair.iou + aspect) + SMALLEST)


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


def unlikeness(omega: Tensor) -> Tensor:
    """(1 - exp(-omega))^4."""
    unlike = 1.0 - xp.exp(-omega)
    squared = unlike * unlike
    return squared * squared


def distance_and_shape_cost(axis: Axis, gamma: Tensor) -> Tensor:
    """SIoU's costs of one axis: 1 - exp(-gamma rho), and the unlikeness of the sizes."""
    _, near = nearness(axis, gamma)
    omega, _ = mismatch(axis)
    return (1.0 - near) + unlikeness(omega)


def distance_and_shape(pair: Pair) -> Tensor:
    """SIoU: half the sum of the distance and shape costs."""
    gamma = steepness(heading(pair))
    x, y = both(distance_and_shape_cost, (pair.x, gamma), (pair.y, gamma))
    return 0.5 * (x + y)  # type: ignore[no-any-return]


def nearness_weight(axis: Axis, gamma: Tensor) -> Tensor:
    """The slope of the distance cost at gamma: rho exp(-gamma rho)."""
    share, near = nearness(axis, gamma)
    return share * share * near


def unlikeness_slope(omega: Tensor) -> Tensor:
    """Half of the slope of `unlikeness`: 2 (1 - exp(-omega))^3 exp(-omega)."""
    alike = xp.exp(-omega)
    unlike = 1.0 - alike
    return 2.0 * (unlike * unlike * unlike) * alike


def mismatch_slopes(axis: Axis, at_omega: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes at the two sizes from the one at omega.

    That must be 0 where the sizes are equal, so that it does not matter there which one counts as larger.
    """
    omega, unit = mismatch(axis)
    shrink = at_omega * unit.slope
    grow = shrink * (1.0 - omega)
    is_larger = axis.size > axis.target_size
    return xp.where(is_larger, grow, -shrink), xp.where(is_larger, -shrink, grow)


def costs_slopes(axis: Axis, gamma: Tensor, own: Tensor, other: Tensor, turned: Tensor) -> AxisSlopes:
    """Slopes of half the costs of one axis, and of gamma at this axis's part of the heading."""
    share, near = nearness(axis, gamma)
    pull = gamma * near * share * axis.unit.slope
    omega, _ = mismatch(axis)
    size, target_size = mismatch_slopes(axis, unlikeness_slope(omega))
    return AxisSlopes(
        size=size,
        target_size=target_size,
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


def held_diagonal(pair: Pair) -> Tensor:
    """`squared_diagonal` as WIoU has it: a constant under differentiation."""
    return hold(squared_diagonal(pair))


def attention(pair: Pair) -> Tensor:
    """WIoU's R = exp(rho^2 / c^2)."""
    x, y = both(squared, (pair.x.offset, pair.unit), (pair.y.offset, pair.unit))
    return xp.exp(ratio(x + y, held_diagonal(pair), 0.0))


def attention_gain(pair: Pair) -> Tensor:
    """WIoU: what R (1 - IoU) has more than 1 - IoU."""
    return (attention(pair) - 1.0) * (1.0 - pair.iou)


def offset_slopes(axis: Axis, unit: Unit, factor: Tensor) -> AxisSlopes:
    """The offset in a unit times a factor."""
    return AxisSlopes(offset=measure(axis.offset, unit) * factor)


def attention_gain_slopes(pair: Pair) -> Slopes:
    """Slopes of `attention_gain`: 1 - R at the IoU, R (1 - IoU) 2 d / c^2 at an offset."""
    stress = attention(pair)
    factor = stress * (1.0 - pair.iou) * ratio(2.0 * pair.unit.slope, held_diagonal(pair), 0.0)
    x, y = both(offset_slopes, (pair.x, pair.unit, factor), (pair.y, pair.unit, factor))
    return Slopes(x=x, y=y, iou=1.0 - stress)


def in_pictures(length: Tensor, per_diagonal: float) -> Tensor:
    """A length in diagonals of the picture; beyond FAR of them it counts as FAR."""
    measured = length * per_diagonal
    return xp.where(measured > FAR, FAR, xp.where(measured < -FAR, -FAR, measured))


def corner_cost(axis: Axis, per_diagonal: float) -> Tensor:
    """(x1 - xt1)^2 + (x2 - xt2)^2 in diagonals of the picture.

    Of sorted ends: at a fixed scale even a rounding of coordinates may count, and must not favour inversion.
    """
    first = in_pictures(axis.low - axis.target_low, per_diagonal)
    second = in_pictures(axis.high - axis.target_high, per_diagonal)
    return first * first + second * second


def corner_distance(pair: Pair, image_width: float, image_height: float) -> Tensor:
    """MPDIoU: squared distances of the first and of the second corners, in the picture's diagonal."""
    per_diagonal = (image_width * image_width + image_height * image_height) ** -0.5
    x, y = both(corner_cost, (pair.x, per_diagonal), (pair.y, per_diagonal))
    return x + y  # type: ignore[no-any-return]


def end_slope(gap: Tensor, per_diagonal: float) -> Tensor:
    """Slope of the square of a gap of two ends, none where it counts as FAR."""
    measured = in_pictures(gap, per_diagonal)
    return xp.where(xp.abs(measured) < FAR, 2.0 * measured * per_diagonal, 0.0)


def corner_slopes(axis: Axis, per_diagonal: float) -> AxisSlopes:
    """Slopes of `corner_cost`; both ends of a box move with its offset, and apart with its size."""
    first = end_slope(axis.low - axis.target_low, per_diagonal)
    second = end_slope(axis.high - axis.target_high, per_diagonal)
    size = 0.5 * (second - first)
    return AxisSlopes(size=size, target_size=-size, offset=first + second)


def corner_distance_slopes(pair: Pair, image_width: float, image_height: float) -> Slopes:
    """Slopes of `corner_distance`."""
    per_diagonal = (image_width * image_width + image_height * image_height) ** -0.5
    x, y = both(corner_slopes, (pair.x, per_diagonal), (pair.y, per_diagonal))
    return Slopes(x=x, y=y)


def shape_weights(pair: Pair, scale: float) -> tuple[Tensor, Tensor]:
    """Shape-IoU's weights 2 ht^s / (wt^s + ht^s) of what lies along x, and along y; constants."""
    w, h = direction(pair.x.target_size, pair.y.target_size)
    # A side of length 0 has the power 1 where the exponent is 0.
    wide = xp.exp(scale * xp.log(xp.where(w < SMALLEST, SMALLEST, hold(w))))
    high = xp.exp(scale * xp.log(xp.where(h < SMALLEST, SMALLEST, hold(h))))
    return 2.0 * high / (wide + high), 2.0 * wide / (wide + high)


def weighed_square(axis: Axis, unit: Unit, weight: Tensor) -> Tensor:
    """Of the offset in a unit, times its weight."""
    return weight * squared(axis.offset, unit)


def shape_distance(pair: Pair, x_weight: Tensor, y_weight: Tensor) -> Tensor:
    """`centre_distance` with weights."""
    x, y = both(weighed_square, (pair.x, pair.unit, x_weight), (pair.y, pair.unit, y_weight))
    return ratio(x + y, squared_diagonal(pair), 0.0)


def weighed_unlikeness(axis: Axis, weight: Tensor) -> Tensor:
    """Shape-IoU's shape cost of one axis."""
    omega, _ = mismatch(axis)
    return unlikeness(weight * omega)


def weighed_distance_and_shape(pair: Pair, scale: float) -> Tensor:
    """Shape-IoU: the centre distance plus half the shape cost, both weighed by the target's shape."""
    x_weight, y_weight = shape_weights(pair, scale)
    x, y = both(weighed_unlikeness, (pair.x, x_weight), (pair.y, y_weight))
    return shape_distance(pair, x_weight, y_weight) + 0.5 * (x + y)  # type: ignore[no-any-return]


def weighed_axis_slopes(
    axis: Axis, unit: Unit, weight: Tensor, factor: Tensor, distance: Tensor
) -> AxisSlopes:
    """Slopes of `weighed_distance_and_shape` on one axis; those of the distance as in `distance_slopes`."""
    along = distance_slopes(axis, unit, factor, distance)
    omega, _ = mismatch(axis)
    size, target_size = mismatch_slopes(axis, weight * unlikeness_slope(weight * omega))
    return AxisSlopes(size, target_size, along.span, weight * along.offset)


def weighed_distance_and_shape_slopes(pair: Pair, scale: float) -> Slopes:
    """Slopes of `weighed_distance_and_shape`, the weights being constants."""
    x_weight, y_weight = shape_weights(pair, scale)
    factor = ratio(2.0 * pair.unit.slope, squared_diagonal(pair), 0.0)
    distance = shape_distance(pair, x_weight, y_weight)
    x, y = both(
        weighed_axis_slopes,
        (pair.x, pair.unit, x_weight, factor, distance),
        (pair.y, pair.unit, y_weight, factor, distance),
    )
    return Slopes(x=x, y=y)
