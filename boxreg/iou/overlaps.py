"""How far two boxes overlap, with slopes: IoU, and what may stand in its place.

Written like `family`, whose functions these use, and run by every backend.
"""

from __future__ import annotations

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
    floored,
    guarded_unit,
    is_negligible,
    larger,
    measure,
    settle,
)

FARTHEST = 2.0**10
"""In units of NWD's constant: exp(-1024) is 0 in every dtype."""


def plain_iou(pair: Pair) -> Tensor:
    """IoU as the geometry pass finds it."""
    return pair.iou


def plain_iou_slopes(pair: Pair) -> Slopes:
    """Slopes of `plain_iou`."""
    return Slopes(x=AxisSlopes(), y=AxisSlopes(), iou=1.0)


class Inner(NamedTuple):
    """One axis of the inner boxes, in shares of the enclosing side, with the target's centre as origin."""

    low: Tensor
    high: Tensor
    target_half: Tensor
    size: Tensor
    target_size: Tensor
    overlapping: Tensor
    overlap: Tensor


def inner_axis(axis: Axis, inner_ratio: float) -> Inner:
    """Both sides of an axis, scaled about their own centres."""
    size, target_size = inner_ratio * axis.share, inner_ratio * axis.target_share
    offset, target_half = measure(axis.offset, axis.unit), 0.5 * target_size
    low, high = offset - 0.5 * size, offset + 0.5 * size
    reach = xp.minimum(high, target_half) - xp.maximum(low, -target_half)
    # As in `axis`, an inverted side reaches nothing.
    reach = xp.where(axis.inverted, -1.0, xp.where(axis.target_inverted, -1.0, reach))
    overlapping = reach >= 0
    return Inner(low, high, target_half, size, target_size, overlapping, xp.where(overlapping, reach, 0.0))


def inner_areas(x: Inner, y: Inner) -> tuple[Tensor, Tensor]:
    """Intersection and union of the inner boxes."""
    intersection = x.overlap * y.overlap
    return intersection, x.size * y.size + x.target_size * y.target_size - intersection


def inner_iou(pair: Pair, inner_ratio: float) -> Tensor:
    """Inner-IoU: the IoU of the boxes scaled about their own centres."""
    x, y = both(inner_axis, (pair.x, inner_ratio), (pair.y, inner_ratio))
    intersection, union = inner_areas(x, y)
    return intersection / floored(union)


def inner_axis_slopes(
    axis: Axis, inner: Inner, other: Inner, at_intersection: Tensor, at_area: Tensor, inner_ratio: float
) -> AxisSlopes:
    """Slopes at the lengths of an axis, from those at intersection and areas.

    As in `pull_side`, the inner one of two ends bounds the overlap.
    """
    overlap = xp.where(inner.overlapping, at_intersection * other.overlap, 0.0)
    none = xp.zeros_like(overlap)
    at_low = -settle(inner.low, -inner.target_half, overlap, none)
    at_high = settle(inner.target_half, inner.high, overlap, none)
    widening = 0.5 * (at_high - at_low)
    per_length = axis.unit.slope
    return AxisSlopes(
        size=inner_ratio * (widening + at_area * other.size) * per_length,
        target_size=inner_ratio * (overlap - widening + at_area * other.target_size) * per_length,
        offset=(at_low + at_high) * per_length,
    )


def inner_iou_slopes(pair: Pair, inner_ratio: float) -> Slopes:
    """Slopes of `inner_iou`."""
    x, y = both(inner_axis, (pair.x, inner_ratio), (pair.y, inner_ratio))
    intersection, union = inner_areas(x, y)
    per_union = 1.0 / floored(union)
    per_area = xp.where(is_negligible(union), 0.0, intersection / floored(union) * per_union)
    at_x, at_y = both(
        inner_axis_slopes,
        (pair.x, x, y, per_union + per_area, -per_area, inner_ratio),
        (pair.y, y, x, per_union + per_area, -per_area, inner_ratio),
    )
    return Slopes(x=at_x, y=at_y)


class Displacement(NamedTuple):
    """Between two boxes as Gaussians: offsets and halved gaps of the sizes, in the longest of them."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    length: Tensor
    longest: Tensor
    unit: Unit


def displacement(pair: Pair) -> Displacement:
    """With its length in that unit: between 1 and 2, and 1 where there is none."""
    wider = 0.5 * (pair.x.size - pair.x.target_size)
    higher = 0.5 * (pair.y.size - pair.y.target_size)
    longest = larger(larger(pair.x.offset, pair.y.offset), larger(wider, higher))
    # Compared here, because ordinary boxes may be identical too.
    unit = guarded_unit(longest, longest == 0, longest < SMALLEST)
    x, y = both(measure, (pair.x.offset, unit), (pair.y.offset, unit))
    width, height = both(measure, (wider, unit), (higher, unit))
    squared = (x * x + y * y) + (width * width + height * height)
    length = xp.sqrt(xp.where(squared == 0, 1.0, squared))
    return Displacement(x, y, width, height, length, longest, unit)


def in_constants(length: Tensor, constant: float) -> Tensor:
    """A length in units of NWD's constant, as far as it matters."""
    quotient = length / constant
    return xp.where(quotient > FARTHEST, FARTHEST, quotient)


def gaussian_nearness(pair: Pair, constant: float) -> Tensor:
    """NWD: exp(-W / C), W being the Wasserstein distance of the boxes as Gaussians."""
    way = displacement(pair)
    return xp.exp(-(way.length * in_constants(way.longest, constant)))


def displacement_slopes(axis: Axis, offset: Tensor, gap: Tensor, fall: Tensor) -> AxisSlopes:
    """Slopes on one axis of a displacement's length, times `fall`; half of a gap is half of a size's."""
    size = 0.5 * gap * fall
    return AxisSlopes(size=size, target_size=-size, offset=offset * fall)


def gaussian_nearness_slopes(pair: Pair, constant: float) -> Slopes:
    """Slopes of `gaussian_nearness`: -NWD / C times those of W; 0 at its tip, where boxes are identical."""
    way = displacement(pair)
    steepness = gaussian_nearness(pair, constant) * in_constants(way.longest, constant) / way.length
    fall = -steepness * way.unit.slope
    x, y = both(displacement_slopes, (pair.x, way.x, way.width, fall), (pair.y, way.y, way.height, fall))
    return Slopes(x=x, y=y)
