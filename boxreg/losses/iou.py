"""The IoU loss: one minus the IoU."""

from __future__ import annotations

from torch import Tensor

from ..decoders import Decoder
from ..iou.functional import aligned_loss
from ..iou.spec import define
from ..reduction import Normalizer
from ..weighting import Weighting
from ._docs import loss_docs, module_docs
from ._family import IoUFamilyLoss

KIND = define("iou")


@loss_docs("in [0, 1] for boxes that are not inverted")
def iou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    fmt: str = "xyxy",
    reduction: str = "none",
    weight: Tensor | None = None,
    normalizer: Normalizer | None = None,
    dim: int = -1,
    backend: str = "auto",
    decoder: Decoder | None = None,
    mode: str = "linear",
    alpha: float | None = None,
    inner_ratio: float | None = None,
    weighting: Weighting | None = None,
    loss_weight: float = 1.0,
) -> Tensor:
    r"""IoU loss, \( 1 - \mathrm{IoU} \).

    Yu et al. 2016, "UnitBox" (arXiv:1608.01471) use its logarithm; this is the linear form. Boxes that do not
    touch have no gradient.

    Example:
        >>> import torch
        >>> from boxreg.functional import iou_loss
        >>> iou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        tensor([0.7500])
    """
    return aligned_loss(
        KIND, pred, target, fmt=fmt, reduction=reduction, weight=weight, normalizer=normalizer, dim=dim,
        backend=backend, decoder=decoder, mode=mode, alpha=alpha, inner_ratio=inner_ratio,
        weighting=weighting, loss_weight=loss_weight,
    )  # fmt: skip


@module_docs(iou_loss)
class IoULoss(IoUFamilyLoss):
    """IoU loss as a module (Yu et al. 2016, arXiv:1608.01471, in its linear form).

    Example:
        >>> import torch
        >>> from boxreg import IoULoss
        >>> IoULoss()(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        tensor(0.7500)
    """

    kind = KIND
