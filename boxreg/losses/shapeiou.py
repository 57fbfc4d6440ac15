"""Shape-IoU: costs of distance and shape, weighted by the target's shape."""

from __future__ import annotations

from typing import Unpack

import torch as xp
from torch import Tensor

from ..iou.distances import (
    direction,
    distance_grad,
    half_shape_cost_grad,
    shape_cost,
    size_mismatch,
    size_mismatch_grad,
    squared,
    squared_diagonal,
)
from ..iou.functional import aligned_loss
from ..iou.geometry import SMALLEST, Axis, AxisGrad, Pair, PairGrad, Unit, ratio, stop_gradient
from ..iou.spec import Parameter, Term, define
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, ModuleOptions, Options


def shape_weights(pair: Pair, scale: float) -> tuple[Tensor, Tensor]:
    """The weights 2 ht^s / (wt^s + ht^s) along x and 2 wt^s / (wt^s + ht^s) along y; constants."""
    w, h = direction(pair.x.target_size, pair.y.target_size)
    # A side of length 0 has the power 1 where the exponent is 0.
    wide = xp.exp(scale * xp.log(xp.where(w < SMALLEST, SMALLEST, stop_gradient(w))))
    high = xp.exp(scale * xp.log(xp.where(h < SMALLEST, SMALLEST, stop_gradient(h))))
    return 2.0 * high / (wide + high), 2.0 * wide / (wide + high)


def weighted_square(axis: Axis, unit: Unit, weight: Tensor) -> Tensor:
    """The squared offset in a unit, times the weight of its axis."""
    return weight * squared(axis.offset, unit)


def shape_distance(pair: Pair, x_weight: Tensor, y_weight: Tensor) -> Tensor:
    """DIoU's penalty with a weight for each axis."""
    x, y = weighted_square(pair.x, pair.unit, x_weight), weighted_square(pair.y, pair.unit, y_weight)
    return ratio(x + y, squared_diagonal(pair), 0.0)


def weighted_shape_cost(axis: Axis, weight: Tensor) -> Tensor:
    """The shape cost of one axis, its size mismatch times the weight of the axis."""
    omega, _ = size_mismatch(axis)
    return shape_cost(weight * omega)


def shapeiou_penalty(pair: Pair, scale: float) -> Tensor:
    """The distance of the centres plus half the shape cost, both weighted by the target's shape."""
    x_weight, y_weight = shape_weights(pair, scale)
    x, y = weighted_shape_cost(pair.x, x_weight), weighted_shape_cost(pair.y, y_weight)
    return shape_distance(pair, x_weight, y_weight) + 0.5 * (x + y)


def weighted_axis_grad(axis: Axis, unit: Unit, weight: Tensor, factor: Tensor, distance: Tensor) -> AxisGrad:
    """Gradient of `shapeiou_penalty` on one axis; that of the distance as in `distance_grad`."""
    along = distance_grad(axis, unit, factor, distance)
    omega, _ = size_mismatch(axis)
    size, target_size = size_mismatch_grad(axis, weight * half_shape_cost_grad(weight * omega))
    return AxisGrad(size, target_size, along.span, weight * along.offset)


def shapeiou_penalty_grad(pair: Pair, scale: float) -> PairGrad:
    """Gradient of `shapeiou_penalty`, the weights being constants."""
    x_weight, y_weight = shape_weights(pair, scale)
    factor = ratio(2.0 * pair.unit.reciprocal, squared_diagonal(pair), 0.0)
    distance = shape_distance(pair, x_weight, y_weight)
    x, y = (
        weighted_axis_grad(pair.x, pair.unit, x_weight, factor, distance),
        weighted_axis_grad(pair.y, pair.unit, y_weight, factor, distance),
    )
    return PairGrad(x=x, y=y)


KIND = define(
    "shapeiou",
    penalty=Term(shapeiou_penalty, shapeiou_penalty_grad, (Parameter("scale", 0.0, 16.0, default=0.0),)),
)


@IOU_FAMILY.function(
    "in [0, 3.28] for boxes that are not inverted",
    scale=("the exponent s, from 0 to 16; the paper relates it to the sizes of a dataset's objects."),
)
def shapeiou_loss(pred: Tensor, target: Tensor, *, scale: float = 0.0, **options: Unpack[Options]) -> Tensor:
    r"""Shape-IoU loss: costs of distance and shape, weighted by the target's shape.

    \[ 1 - \mathrm{IoU} + \frac{a d_x^2 + b d_y^2}{c^2}
       + \frac{1}{2} \left( (1 - e^{-a \omega_w})^4 + (1 - e^{-b \omega_h})^4 \right) \]

    \[ a = \frac{2 h_t^s}{w_t^s + h_t^s}, \qquad b = \frac{2 w_t^s}{w_t^s + h_t^s}, \qquad
       \omega_w = \frac{|w - w_t|}{\max(w, w_t)}, \qquad \omega_h = \frac{|h - h_t|}{\max(h, h_t)} \]

    d is the offset of the centres, c the diagonal of the smallest enclosing box, s the exponent `scale`.
    Zhang and Zhang 2023, "Shape-IoU" (arXiv:2312.17663).

    The weights are constants under differentiation: they do not depend on the predicted box, and the gradient
    at the target is that of distance and shape alone. With the authors' default, s = 0, they are 1.

    Example:
        >>> import torch
        >>> from boxreg.functional import shapeiou_loss
        >>> pred, target = torch.tensor([[1.0, 0.0, 3.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]])
        >>> shapeiou_loss(pred, target), shapeiou_loss(pred, target, scale=1.0)
        (tensor([0.7667]), tensor([0.7333]))
    """
    return aligned_loss(KIND, pred, target, scale=scale, **options)


@IOU_FAMILY.module(shapeiou_loss)
class ShapeIoULoss(IoUFamilyLoss):
    """Shape-IoU loss as a module (Zhang and Zhang 2023, arXiv:2312.17663).

    Example:
        >>> import torch
        >>> from boxreg import ShapeIoULoss
        >>> criterion = ShapeIoULoss(scale=1.0)
        >>> criterion(torch.tensor([[1.0, 0.0, 3.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))
        tensor(0.7333)
    """

    kind = KIND

    def __init__(
        self,
        fmt: str = "xyxy",
        reduction: str = "mean",
        loss_weight: float = 1.0,
        *,
        scale: float = 0.0,
        **options: Unpack[ModuleOptions],
    ) -> None:
        self.scale = scale
        super().__init__(fmt, reduction, loss_weight, **options)
