"""Efficient IoU: DIoU's penalty, and the differences of width and of height."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from ..iou.functional import aligned_loss
from ..iou.geometry import Axis, AxisGrad, Pair, PairGrad, measure, ratio
from ..iou.spec import Term, define
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, Options
from .diou import diou_penalty, diou_penalty_grad


def size_gap(axis: Axis) -> Tensor:
    """The difference of the two sizes over the enclosing side, 0 if that has no length."""
    return ratio(measure(axis.size - axis.target_size, axis.unit), axis.span_share, 0.0)


def squared_gap(axis: Axis) -> Tensor:
    """The square of `size_gap`."""
    gap = size_gap(axis)
    return gap * gap


def eiou_penalty(pair: Pair) -> Tensor:
    """DIoU's penalty plus the squared size gaps of both axes."""
    x, y = squared_gap(pair.x), squared_gap(pair.y)
    return diou_penalty(pair) + (x + y)


def gap_grad(axis: Axis, distance: AxisGrad) -> AxisGrad:
    """Gradient of `squared_gap` added to DIoU's: 2 gap / C for the sizes, -2 gap^2 / C for the span."""
    gap = size_gap(axis)
    at_size = 2.0 * gap * axis.unit.reciprocal
    return AxisGrad(at_size, -at_size, distance.span - gap * at_size, distance.offset)


def eiou_penalty_grad(pair: Pair) -> PairGrad:
    """Gradient of `eiou_penalty`."""
    distance = diou_penalty_grad(pair)
    x, y = gap_grad(pair.x, distance.x), gap_grad(pair.y, distance.y)
    return PairGrad(x=x, y=y)


KIND = define("eiou", penalty=Term(eiou_penalty, eiou_penalty_grad))


@IOU_FAMILY.function("in [0, 3.25] for boxes that are not inverted")
def eiou_loss(pred: Tensor, target: Tensor, **options: Unpack[Options]) -> Tensor:
    r"""Efficient IoU loss: the distance of the centres, and the difference of the sizes.

    \[ 1 - \mathrm{IoU} + \frac{\rho^2}{c^2} + \frac{(w - w_t)^2}{C_w^2} + \frac{(h - h_t)^2}{C_h^2} \]

    rho is the distance of the centres; c, C_w and C_h are the diagonal and the sides of the smallest
    enclosing box. Zhang et al. 2021, "Focal and Efficient IOU Loss for Accurate Bounding Box Regression"
    (arXiv:2101.08158), without its focal weight, which is `weighting=FocalWeighting()`. The Extended IoU of
    the same year, which some libraries call EIoU too, is another loss.

    Example:
        >>> import torch
        >>> from boxreg.functional import eiou_loss
        >>> eiou_loss(torch.tensor([[1.0, 0.0, 3.0, 4.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
        tensor([0.7500])
    """
    return aligned_loss(KIND, pred, target, **options)


@IOU_FAMILY.module(eiou_loss)
class EIoULoss(IoUFamilyLoss):
    """Efficient IoU loss as a module (Zhang et al. 2021, arXiv:2101.08158).

    Example:
        >>> import torch
        >>> from boxreg import EIoULoss
        >>> EIoULoss()(torch.tensor([[1.0, 0.0, 3.0, 4.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
        tensor(0.7500)
    """

    kind = KIND
