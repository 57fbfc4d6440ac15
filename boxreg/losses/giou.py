"""Generalised IoU: the empty part of the enclosing box is penalised."""

from __future__ import annotations

from torch import Tensor

from ..decoders import Decoder
from ..iou.functional import aligned_loss
from ..iou.geometry import AxisGrad, Pair, PairGrad
from ..iou.spec import Term, define
from ..reduction import Normalizer
from ..weighting import Weighting
from ._docs import loss_docs, module_docs
from ._family import IoUFamilyLoss


def giou_penalty(pair: Pair) -> Tensor:
    """The part of the enclosing box that neither box covers, (C - U) / C."""
    return 1.0 - pair.fill


def giou_penalty_grad(pair: Pair) -> PairGrad:
    """Gradient of `giou_penalty`."""
    return PairGrad(x=AxisGrad(), y=AxisGrad(), fill=-1.0)


KIND = define("giou", penalty=Term(giou_penalty, giou_penalty_grad))


@loss_docs("in [0, 2] for boxes that are not inverted")
def giou_loss(
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
    r"""Generalised IoU loss, \( 1 - \mathrm{IoU} + (C - U) / C \).

    C is the area of the smallest enclosing box, U of the union. Rezatofighi et al. 2019, "Generalized
    Intersection over Union" (arXiv:1902.09630).

    Example:
        >>> import torch
        >>> from boxreg.functional import giou_loss
        >>> giou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([1.5000])
    """
    return aligned_loss(
        KIND, pred, target, fmt=fmt, reduction=reduction, weight=weight, normalizer=normalizer, dim=dim,
        backend=backend, decoder=decoder, mode=mode, alpha=alpha, inner_ratio=inner_ratio,
        weighting=weighting, loss_weight=loss_weight,
    )  # fmt: skip


@module_docs(giou_loss)
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
