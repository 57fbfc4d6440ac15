"""Distances of centres and differences of sizes: the maths that several losses share, with its gradient.

Written like `geometry`, whose functions these use, and run by every backend.
"""

from __future__ import annotations

import torch as xp
from torch import Tensor

from .geometry import Axis, AxisGrad, Pair, Unit, measure, ratio, unit_of


def squared(length: Tensor, unit: Unit) -> Tensor:
    """The square of a length, measured in a unit."""
    measured = measure(length, unit)
    return measured * measured


def squared_diagonal(pair: Pair) -> Tensor:
    """The squared diagonal of the enclosing box, in the pair's unit."""
    x, y = squared(pair.x.span, pair.unit), squared(pair.y.span, pair.unit)
    return x + y


def distance_grad(axis: Axis, unit: Unit, factor: Tensor, distance: Tensor) -> AxisGrad:
    """Gradient on one axis of a squared distance of the centres over the squared diagonal.

    Args:
        axis: the axis.
        unit: the pair's unit.
        factor: 2 / c^2, c being the diagonal.
        distance: the value, rho^2 / c^2.
    """
    offset, span = measure(axis.offset, unit), measure(axis.span, unit)
    return AxisGrad(offset=offset * factor, span=-span * (distance * factor))


def direction(width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height in units of the longer of them; a point counts as a square."""
    unit = unit_of(xp.maximum(width, height))
    point = xp.maximum(width, height) == 0
    w, h = measure(width, unit), measure(height, unit)
    return xp.where(point, 1.0, w), xp.where(point, 1.0, h)


def size_mismatch(axis: Axis) -> tuple[Tensor, Unit]:
    """Omega, the difference of the two sizes over the larger of them, and the larger one as a unit."""
    whole = xp.maximum(axis.size, axis.target_size)
    unit = unit_of(whole)
    return ratio(measure(xp.abs(axis.size - axis.target_size), unit), measure(whole, unit), 0.0), unit


def size_mismatch_grad(axis: Axis, at_omega: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient at the two sizes, from the gradient at omega.

    `at_omega` must be 0 where the sizes are equal: it does not matter there which of them counts as larger.
    """
    omega, unit = size_mismatch(axis)
    shrink = at_omega * unit.reciprocal
    grow = shrink * (1.0 - omega)
    is_larger = axis.size > axis.target_size
    return xp.where(is_larger, grow, -shrink), xp.where(is_larger, -shrink, grow)


def shape_cost(omega: Tensor) -> Tensor:
    """The cost of a size mismatch, (1 - exp(-omega))^4."""
    unlike = 1.0 - xp.exp(-omega)
    squared = unlike * unlike
    return squared * squared


def half_shape_cost_grad(omega: Tensor) -> Tensor:
    """Half of the derivative of `shape_cost`: 2 (1 - exp(-omega))^3 exp(-omega)."""
    alike = xp.exp(-omega)
    unlike = 1.0 - alike
    return 2.0 * (unlike * unlike * unlike) * alike
