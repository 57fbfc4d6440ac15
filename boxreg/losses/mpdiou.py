"""MPDIoU: the distances of the corners are penalised."""

from __future__ import annotations

from typing import Unpack

import torch as xp
from torch import Tensor

from ..iou.functional import aligned_loss
from ..iou.geometry import Axis, AxisGrad, Pair, PairGrad
from ..iou.spec import Term, define, length
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, ModuleOptions, Options

FAR = 2.0**40
"""Distances beyond this many diagonals of the image (1e12) count as this: no square overflows."""


def in_diagonals(distance: Tensor, per_diagonal: float) -> Tensor:
    """A distance in diagonals of the image; beyond FAR of them it counts as FAR."""
    measured = distance * per_diagonal
    return xp.where(measured > FAR, FAR, xp.where(measured < -FAR, -FAR, measured))


def corner_cost(axis: Axis, per_diagonal: float) -> Tensor:
    """(x1 - xt1)^2 + (x2 - xt2)^2 in diagonals of the image.

    It compares sorted ends: at a fixed scale even a rounding of coordinates may count, and it must not favour
    an inverted box.
    """
    first = in_diagonals(axis.low - axis.target_low, per_diagonal)
    second = in_diagonals(axis.high - axis.target_high, per_diagonal)
    return first * first + second * second


def mpdiou_penalty(pair: Pair, image_width: float, image_height: float) -> Tensor:
    """Squared distances of the first and of the second corners, in diagonals of the image."""
    per_diagonal = (image_width * image_width + image_height * image_height) ** -0.5
    x, y = corner_cost(pair.x, per_diagonal), corner_cost(pair.y, per_diagonal)
    return x + y


def end_grad(gap: Tensor, per_diagonal: float) -> Tensor:
    """The derivative of the squared gap of two ends, 0 where it counts as FAR."""
    measured = in_diagonals(gap, per_diagonal)
    return xp.where(xp.abs(measured) < FAR, 2.0 * measured * per_diagonal, 0.0)


def corner_grad(axis: Axis, per_diagonal: float) -> AxisGrad:
    """Gradient of `corner_cost`; both ends of a box move with its offset, and apart with its size."""
    first = end_grad(axis.low - axis.target_low, per_diagonal)
    second = end_grad(axis.high - axis.target_high, per_diagonal)
    size = 0.5 * (second - first)
    return AxisGrad(size=size, target_size=-size, offset=first + second)


def mpdiou_penalty_grad(pair: Pair, image_width: float, image_height: float) -> PairGrad:
    """Gradient of `mpdiou_penalty`."""
    per_diagonal = (image_width * image_width + image_height * image_height) ** -0.5
    x, y = corner_grad(pair.x, per_diagonal), corner_grad(pair.y, per_diagonal)
    return PairGrad(x=x, y=y)


KIND = define(
    "mpdiou",
    penalty=Term(mpdiou_penalty, mpdiou_penalty_grad, (length("image_width"), length("image_height"))),
)


@IOU_FAMILY.function(
    "not negative and without a bound",
    image_width="W, the width of the image in the unit of the boxes, from 2^-28 to 2^28.",
    image_height="H, its height, likewise.",
)
def mpdiou_loss(
    pred: Tensor, target: Tensor, *, image_width: float, image_height: float, **options: Unpack[Options]
) -> Tensor:
    r"""MPDIoU loss, \( 1 - \mathrm{IoU} + (d_1^2 + d_2^2) / (W^2 + H^2) \).

    d_1 is the distance of the first corners (x1, y1) of the two boxes, d_2 of the second (x2, y2); W and H
    are the sides of the image. Ma and Xu 2023, "MPDIoU: A Loss for Efficient and Accurate Bounding Box
    Regression" (arXiv:2307.07662).

    Implementations differ in what they take for the image: its size, a feature map's, or a constant. Here it
    is the paper's, the network's input, in the unit of the boxes: 1 and 1 for fractions. The loss has no
    bound; distances beyond 2^40 diagonals count as that.

    Example:
        >>> import torch
        >>> from boxreg.functional import mpdiou_loss
        >>> pred, target = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]])
        >>> mpdiou_loss(pred, target, image_width=4.0, image_height=2.0)
        tensor([1.1000])
    """
    return aligned_loss(KIND, pred, target, image_width=image_width, image_height=image_height, **options)


@IOU_FAMILY.module(mpdiou_loss)
class MPDIoULoss(IoUFamilyLoss):
    """MPDIoU loss as a module (Ma and Xu 2023, arXiv:2307.07662).

    Example:
        >>> import torch
        >>> from boxreg import MPDIoULoss
        >>> criterion = MPDIoULoss(image_width=4.0, image_height=2.0)
        >>> criterion(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]]))
        tensor(1.1000)
    """

    kind = KIND

    def __init__(
        self,
        fmt: str = "xyxy",
        reduction: str = "mean",
        loss_weight: float = 1.0,
        *,
        image_width: float,
        image_height: float,
        **options: Unpack[ModuleOptions],
    ) -> None:
        self.image_width, self.image_height = image_width, image_height
        super().__init__(fmt, reduction, loss_weight, **options)
