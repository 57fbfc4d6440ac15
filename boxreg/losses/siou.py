"""SIoU: costs of angle, distance and shape."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch as xp
from torch import Tensor

from ..iou.distances import half_shape_cost_grad, shape_cost, size_mismatch, size_mismatch_grad
from ..iou.functional import aligned_loss
from ..iou.geometry import Axis, AxisGrad, Pair, PairGrad, larger, measure, ratio, unit_of
from ..iou.spec import Term, define
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, Options


class Heading(NamedTuple):
    """The offset of the centres in units of its longer part, its squared length, and 1 / that unit."""

    x: Tensor
    y: Tensor
    squared: Tensor
    reciprocal: Tensor


def heading(pair: Pair) -> Heading:
    """The heading from centre to centre: x and y are 0 where they coincide, and `squared` is 1 there."""
    unit = unit_of(larger(pair.x.offset, pair.y.offset))
    x, y = measure(pair.x.offset, unit), measure(pair.y.offset, unit)
    squared = x * x + y * y
    return Heading(x, y, xp.where(squared == 0, 1.0, squared), unit.reciprocal)


def steepness(way: Heading) -> Tensor:
    """The paper's gamma = 2 - Lambda; the angle cost Lambda is 0 along an axis and 1 on a diagonal."""
    return 2.0 - 2.0 * xp.abs(way.x * way.y) / way.squared


def nearness(axis: Axis, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """The offset over the enclosing side, 0 if that has no length; and exp(-gamma rho), rho its square."""
    share = ratio(measure(axis.offset, axis.unit), axis.span_share, 0.0)
    return share, xp.exp(-gamma * (share * share))


def axis_cost(axis: Axis, gamma: Tensor) -> Tensor:
    """The costs of one axis: distance, 1 - exp(-gamma rho), and shape."""
    _, near = nearness(axis, gamma)
    omega, _ = size_mismatch(axis)
    return (1.0 - near) + shape_cost(omega)


def siou_penalty(pair: Pair) -> Tensor:
    """Half the sum of the distance and shape costs."""
    gamma = steepness(heading(pair))
    x, y = axis_cost(pair.x, gamma), axis_cost(pair.y, gamma)
    return 0.5 * (x + y)


def nearness_weight(axis: Axis, gamma: Tensor) -> Tensor:
    """The derivative of the distance cost at gamma: rho exp(-gamma rho)."""
    share, near = nearness(axis, gamma)
    return share * share * near


def axis_cost_grad(axis: Axis, gamma: Tensor, own: Tensor, other: Tensor, turned: Tensor) -> AxisGrad:
    """Gradient of half the costs of one axis, and of gamma at this axis's part of the heading."""
    share, near = nearness(axis, gamma)
    at_offset = gamma * near * share * axis.unit.reciprocal
    omega, _ = size_mismatch(axis)
    size, target_size = size_mismatch_grad(axis, half_shape_cost_grad(omega))
    return AxisGrad(
        size=size,
        target_size=target_size,
        span=-share * at_offset,
        offset=at_offset - turned * other * ((other - own) * (other + own)),
    )


def siou_penalty_grad(pair: Pair) -> PairGrad:
    """Gradient of `siou_penalty`.

    With the heading (a, b), the angle cost is 2 |a b| / (a^2 + b^2), and its derivative at a is
    2 sign(a b) b (b^2 - a^2) / (a^2 + b^2)^2; on an axis, where it has a kink, 0.
    """
    way = heading(pair)
    gamma = steepness(way)
    weight_x, weight_y = nearness_weight(pair.x, gamma), nearness_weight(pair.y, gamma)
    product = way.x * way.y
    sign = xp.where(product > 0, 1.0, xp.where(product < 0, -1.0, 0.0))
    turned = (weight_x + weight_y) * sign / (way.squared * way.squared) * way.reciprocal
    x, y = (
        axis_cost_grad(pair.x, gamma, way.x, way.y, turned),
        axis_cost_grad(pair.y, gamma, way.y, way.x, turned),
    )
    return PairGrad(x=x, y=y)


KIND = define("siou", penalty=Term(siou_penalty, siou_penalty_grad))


@IOU_FAMILY.function("in [0, 2.03] for boxes that are not inverted")
def siou_loss(pred: Tensor, target: Tensor, **options: Unpack[Options]) -> Tensor:
    r"""SIoU loss, \( 1 - \mathrm{IoU} + (\Delta + \Omega) / 2 \): angle, distance and shape costs.

    \[ \Lambda = \frac{2 |d_x d_y|}{d_x^2 + d_y^2}, \qquad
       \Delta = \sum_{t = x, y} \left( 1 - e^{-(2 - \Lambda) (d_t / C_t)^2} \right), \qquad
       \Omega = \sum_{s = w, h} \left( 1 - e^{-|s - s_t| / \max(s, s_t)} \right)^4 \]

    d is the offset of the centres, C_x and C_y are the sides of the smallest enclosing box, and Lambda is the
    paper's \( 1 - 2 \sin^2(\arcsin x - \pi / 4) \) without its arcsine; it is 0 where the centres coincide.
    Gevorgyan 2022, "SIoU Loss: More Powerful Learning for Bounding Box Regression" (arXiv:2205.12740).

    Implementations differ. Here d / C is squared; C is a side of the enclosing box, although the paper writes
    c_w and c_h for the offset too; the exponent is negative, so that the loss rises as boxes move apart; the
    paper's theta is 4; and Lambda has its gradient.

    Example:
        >>> import torch
        >>> from boxreg.functional import siou_loss
        >>> siou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([1.3377])
    """
    return aligned_loss(KIND, pred, target, **options)


@IOU_FAMILY.module(siou_loss)
class SIoULoss(IoUFamilyLoss):
    """SIoU loss as a module (Gevorgyan 2022, arXiv:2205.12740).

    Example:
        >>> import torch
        >>> from boxreg import SIoULoss
        >>> SIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor(1.3377)
    """

    kind = KIND
