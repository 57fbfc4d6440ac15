"""Wise-IoU: the IoU loss times a factor that grows with the distance of the centres."""

from __future__ import annotations

from typing import Unpack

import torch as xp
from torch import Tensor

from ..iou.distances import squared, squared_diagonal
from ..iou.functional import aligned_loss
from ..iou.geometry import Axis, AxisGrad, Pair, PairGrad, Unit, measure, ratio, stop_gradient
from ..iou.spec import Term, define
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, Options


def constant_diagonal(pair: Pair) -> Tensor:
    """`squared_diagonal`, a constant under differentiation."""
    return stop_gradient(squared_diagonal(pair))


def attention(pair: Pair) -> Tensor:
    """The paper's R = exp(rho^2 / c^2)."""
    x, y = squared(pair.x.offset, pair.unit), squared(pair.y.offset, pair.unit)
    return xp.exp(ratio(x + y, constant_diagonal(pair), 0.0))


def wiou_penalty(pair: Pair) -> Tensor:
    """The difference of R (1 - IoU) and 1 - IoU."""
    return (attention(pair) - 1.0) * (1.0 - pair.iou)


def offset_grad(axis: Axis, unit: Unit, factor: Tensor) -> AxisGrad:
    """The offset in a unit, times a factor, as the gradient at the offset."""
    return AxisGrad(offset=measure(axis.offset, unit) * factor)


def wiou_penalty_grad(pair: Pair) -> PairGrad:
    """Gradient of `wiou_penalty`: 1 - R at the IoU, R (1 - IoU) 2 d / c^2 at an offset."""
    focus = attention(pair)
    factor = focus * (1.0 - pair.iou) * ratio(2.0 * pair.unit.reciprocal, constant_diagonal(pair), 0.0)
    x, y = offset_grad(pair.x, pair.unit, factor), offset_grad(pair.y, pair.unit, factor)
    return PairGrad(x=x, y=y, iou=1.0 - focus)


KIND = define("wiou", penalty=Term(wiou_penalty, wiou_penalty_grad))


@IOU_FAMILY.function("in [0, e] for boxes that are not inverted")
def wiou_loss(pred: Tensor, target: Tensor, **options: Unpack[Options]) -> Tensor:
    r"""Wise-IoU loss, version 1: \( R\, (1 - \mathrm{IoU}) \) with \( R = e^{\rho^2 / c^2} \).

    rho is the distance of the centres, c the diagonal of the smallest enclosing box. c^2 is a constant under
    differentiation, as in the paper: the gradient through it would move boxes apart to enlarge the enclosing
    box. Some implementations differentiate it. Tong et al. 2023, "Wise-IoU" (arXiv:2301.10051). Its version 3
    is `WIoULoss(weighting=WiseWeighting())`.

    The penalty is (R - 1) (1 - IoU); `mode` and `inner_ratio` apply as to any other loss.

    Example:
        >>> import torch
        >>> from boxreg.functional import wiou_loss
        >>> wiou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([1.6979])
    """
    return aligned_loss(KIND, pred, target, **options)


@IOU_FAMILY.module(wiou_loss)
class WIoULoss(IoUFamilyLoss):
    """Wise-IoU loss as a module (Tong et al. 2023, arXiv:2301.10051).

    Example:
        >>> import torch
        >>> from boxreg import WIoULoss
        >>> WIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor(1.6979)
    """

    kind = KIND
