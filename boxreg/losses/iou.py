"""The IoU loss: one minus the IoU."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from ..iou.functional import aligned_loss
from ..iou.spec import define
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, Options

KIND = define("iou")


@IOU_FAMILY.function("in [0, 1] for boxes that are not inverted")
def iou_loss(pred: Tensor, target: Tensor, **options: Unpack[Options]) -> Tensor:
    r"""IoU loss, \( 1 - \mathrm{IoU} \).

    Yu et al. 2016, "UnitBox" (arXiv:1608.01471) use its logarithm; this is the linear form. Boxes that do not
    touch have no gradient.

    Example:
        >>> import torch
        >>> from boxreg.functional import iou_loss
        >>> iou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        tensor([0.7500])
    """
    return aligned_loss(KIND, pred, target, **options)


@IOU_FAMILY.module(iou_loss)
class IoULoss(IoUFamilyLoss):
    """IoU loss as a module (Yu et al. 2016, arXiv:1608.01471, in its linear form).

    Example:
        >>> import torch
        >>> from boxreg import IoULoss
        >>> IoULoss()(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        tensor(0.7500)
    """

    kind = KIND
