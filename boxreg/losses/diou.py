"""Distance IoU: the distance of the centres is penalised."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from ..iou.distances import distance_grad, squared, squared_diagonal
from ..iou.functional import aligned_loss
from ..iou.geometry import Pair, PairGrad, ratio
from ..iou.spec import Term, define
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, Options


def diou_penalty(pair: Pair) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the enclosing box, rho^2 / c^2."""
    x, y = squared(pair.x.offset, pair.unit), squared(pair.y.offset, pair.unit)
    return ratio(x + y, squared_diagonal(pair), 0.0)


def diou_penalty_grad(pair: Pair) -> PairGrad:
    """Gradient of `diou_penalty`: 2 d / c^2 for an offset, -2 s rho^2 / c^4 for a span."""
    factor = ratio(2.0 * pair.unit.reciprocal, squared_diagonal(pair), 0.0)
    distance = diou_penalty(pair)
    x, y = (
        distance_grad(pair.x, pair.unit, factor, distance),
        distance_grad(pair.y, pair.unit, factor, distance),
    )
    return PairGrad(x=x, y=y)


KIND = define("diou", penalty=Term(diou_penalty, diou_penalty_grad))


@IOU_FAMILY.function("in [0, 2] for boxes that are not inverted")
def diou_loss(pred: Tensor, target: Tensor, **options: Unpack[Options]) -> Tensor:
    r"""Distance IoU loss, \( 1 - \mathrm{IoU} + \rho^2 / c^2 \).

    rho is the distance of the centres, c the diagonal of the smallest enclosing box. Zheng et al. 2020,
    "Distance-IoU Loss" (arXiv:1911.08287).

    Example:
        >>> import torch
        >>> from boxreg.functional import diou_loss
        >>> diou_loss(torch.tensor([[0.0, 0.0, 1.0, 3.0]]), torch.tensor([[3.0, 0.0, 4.0, 3.0]]))
        tensor([1.3600])
    """
    return aligned_loss(KIND, pred, target, **options)


@IOU_FAMILY.module(diou_loss)
class DIoULoss(IoUFamilyLoss):
    """Distance IoU loss as a module (Zheng et al. 2020, arXiv:1911.08287).

    Example:
        >>> import torch
        >>> from boxreg import DIoULoss
        >>> DIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 3.0]]), torch.tensor([[3.0, 0.0, 4.0, 3.0]]))
        tensor(1.3600)
    """

    kind = KIND
