"""How far two boxes overlap, with the gradient: the IoU, and the IoU of scaled boxes.

Written like `geometry`, whose functions these use, and run by every backend.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as xp
from torch import Tensor

from .geometry import SMALLEST, Axis, AxisGrad, Pair, PairGrad, floored, measure, split_at_tie


def plain_iou(pair: Pair) -> Tensor:
    """The IoU, as the geometry pass computes it."""
    return pair.iou


def plain_iou_grad(pair: Pair) -> PairGrad:
    """Gradient of `plain_iou`."""
    return PairGrad(x=AxisGrad(), y=AxisGrad(), iou=1.0)


def no_penalty(pair: Pair) -> Tensor:
    """No penalty: 0."""
    return xp.zeros_like(pair.iou)


def no_penalty_grad(pair: Pair) -> PairGrad:
    """Gradient of `no_penalty`: 0."""
    return PairGrad(x=AxisGrad(), y=AxisGrad())


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
    # As in `axis`, an inverted side overlaps with nothing.
    reach = xp.where(axis.inverted, -1.0, xp.where(axis.target_inverted, -1.0, reach))
    overlapping = reach >= 0
    return Inner(low, high, target_half, size, target_size, overlapping, xp.where(overlapping, reach, 0.0))


def inner_areas(x: Inner, y: Inner) -> tuple[Tensor, Tensor]:
    """Intersection and union of the inner boxes."""
    intersection = x.overlap * y.overlap
    return intersection, x.size * y.size + x.target_size * y.target_size - intersection


def inner_iou(pair: Pair, inner_ratio: float) -> Tensor:
    """Inner-IoU: the IoU of the boxes scaled about their own centres."""
    x, y = inner_axis(pair.x, inner_ratio), inner_axis(pair.y, inner_ratio)
    intersection, union = inner_areas(x, y)
    return intersection / floored(union)


def inner_axis_grad(
    axis: Axis, inner: Inner, other: Inner, at_intersection: Tensor, at_area: Tensor, inner_ratio: float
) -> AxisGrad:
    """Gradient at the lengths of an axis, from the gradients at intersection and areas.

    As in `side_backward`, the inner one of two ends bounds the overlap.
    """
    overlap = xp.where(inner.overlapping, at_intersection * other.overlap, 0.0)
    none = xp.zeros_like(overlap)
    at_low = -split_at_tie(inner.low, -inner.target_half, overlap, none)
    at_high = split_at_tie(inner.target_half, inner.high, overlap, none)
    widening = 0.5 * (at_high - at_low)
    per_length = axis.unit.reciprocal
    return AxisGrad(
        size=inner_ratio * (widening + at_area * other.size) * per_length,
        target_size=inner_ratio * (overlap - widening + at_area * other.target_size) * per_length,
        offset=(at_low + at_high) * per_length,
    )


def inner_iou_grad(pair: Pair, inner_ratio: float) -> PairGrad:
    """Gradient of `inner_iou`."""
    x, y = inner_axis(pair.x, inner_ratio), inner_axis(pair.y, inner_ratio)
    intersection, union = inner_areas(x, y)
    per_union = 1.0 / floored(union)
    per_area = xp.where(union < SMALLEST, 0.0, intersection / floored(union) * per_union)
    at_x, at_y = (
        inner_axis_grad(pair.x, x, y, per_union + per_area, -per_area, inner_ratio),
        inner_axis_grad(pair.y, y, x, per_union + per_area, -per_area, inner_ratio),
    )
    return PairGrad(x=at_x, y=at_y)
