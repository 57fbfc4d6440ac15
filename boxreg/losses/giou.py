"""Generalised IoU: the empty part of the enclosing box is penalised."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from ..iou.functional import aligned_loss
from ..iou.geometry import AxisGrad, Pair, PairGrad
from ..iou.spec import Term, define
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, Options


def giou_penalty(pair: Pair) -> Tensor:
    """The part of the enclosing box that neither box covers, (C - U) / C."""
    return 1.0 - pair.fill


def giou_penalty_grad(pair: Pair) -> PairGrad:
    """Gradient of `giou_penalty`."""
    return PairGrad(x=AxisGrad(), y=AxisGrad(), fill=-1.0)


KIND = define("giou", penalty=Term(giou_penalty, giou_penalty_grad))


@IOU_FAMILY.function("in [0, 2] for boxes that are not inverted")
def giou_loss(pred: Tensor, target: Tensor, **options: Unpack[Options]) -> Tensor:
    r"""Generalised IoU loss, \( 1 - \mathrm{IoU} + (C - U) / C \).

    C is the area of the smallest enclosing box, U of the union. Rezatofighi et al. 2019, "Generalized
    Intersection over Union" (arXiv:1902.09630).

    Example:
        >>> import torch
        >>> from boxreg.functional import giou_loss
        >>> giou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([1.5000])
    """
    return aligned_loss(KIND, pred, target, **options)


@IOU_FAMILY.module(giou_loss)
class GIoULoss(IoUFamilyLoss):
    """Generalised IoU loss as a module (Rezatofighi et al. 2019, arXiv:1902.09630).

    Example:
        >>> import torch
        >>> from boxreg import GIoULoss
        >>> left, right = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]])
        >>> GIoULoss(loss_weight=2.0)(left, right)
        tensor(3.)
    """

    kind = KIND
