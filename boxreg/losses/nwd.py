"""NWD: the Wasserstein distance of the boxes as Gaussians, in place of the IoU."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch as xp
from torch import Tensor

from ..iou.functional import aligned_loss
from ..iou.geometry import Axis, AxisGrad, Pair, PairGrad, Unit, larger, measure, unit_of
from ..iou.spec import Term, define, length
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, ModuleOptions, Options

FARTHEST = 2.0**10
"""In units of the constant: exp(-1024) is 0 in every dtype."""


class Displacement(NamedTuple):
    """Offsets and halved size differences of two boxes in units of the longest of them, and their length."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    length: Tensor
    longest: Tensor
    unit: Unit


def displacement(pair: Pair) -> Displacement:
    """The displacement of a pair; its `length` is between 1 and 2, and 1 for identical boxes."""
    wider = 0.5 * (pair.x.size - pair.x.target_size)
    higher = 0.5 * (pair.y.size - pair.y.target_size)
    longest = larger(larger(pair.x.offset, pair.y.offset), larger(wider, higher))
    unit = unit_of(longest)
    x, y = measure(pair.x.offset, unit), measure(pair.y.offset, unit)
    width, height = measure(wider, unit), measure(higher, unit)
    squared = (x * x + y * y) + (width * width + height * height)
    length = xp.sqrt(xp.where(squared == 0, 1.0, squared))
    return Displacement(x, y, width, height, length, longest, unit)


def in_constants(distance: Tensor, constant: float) -> Tensor:
    """A distance in units of the constant, FARTHEST at most."""
    quotient = distance / constant
    return xp.where(quotient > FARTHEST, FARTHEST, quotient)


def nwd_score(pair: Pair, constant: float) -> Tensor:
    """NWD = exp(-W / C), W being the Wasserstein distance of the boxes as Gaussians."""
    way = displacement(pair)
    return xp.exp(-(way.length * in_constants(way.longest, constant)))


def displacement_grad(axis: Axis, offset: Tensor, gap: Tensor, fall: Tensor) -> AxisGrad:
    """Gradient of a displacement's length on one axis, times `fall`; the gap is half the size difference."""
    size = 0.5 * gap * fall
    return AxisGrad(size=size, target_size=-size, offset=offset * fall)


def nwd_score_grad(pair: Pair, constant: float) -> PairGrad:
    """Gradient of `nwd_score`: -NWD / C times that of W; 0 where boxes are identical, the tip of a cone."""
    way = displacement(pair)
    steepness = nwd_score(pair, constant) * in_constants(way.longest, constant) / way.length
    fall = -steepness * way.unit.reciprocal
    x, y = (
        displacement_grad(pair.x, way.x, way.width, fall),
        displacement_grad(pair.y, way.y, way.height, fall),
    )
    return PairGrad(x=x, y=y)


KIND = define("nwd", overlap=Term(nwd_score, nwd_score_grad, (length("constant"),)))


@IOU_FAMILY.function(
    "in [0, 1] for boxes that are not inverted",
    constant=(
        "C, in the unit of the boxes, from 2^-28 to 2^28. The paper relates it to the "
        "sizes of a dataset's objects; a few constants away the loss is almost 1 and "
        "almost flat."
    ),
)
def nwd_loss(pred: Tensor, target: Tensor, *, constant: float, **options: Unpack[Options]) -> Tensor:
    r"""NWD loss, \( 1 - e^{-W_2 / C} \): the Wasserstein distance of the boxes as Gaussians.

    \[ W_2^2 = d_x^2 + d_y^2 + \frac{(w - w_t)^2 + (h - h_t)^2}{4} \]

    d is the offset of the centres: the Gaussians have the boxes' centres and half of their sizes. Wang et al.
    2021, "A Normalized Gaussian Wasserstein Distance for Tiny Object Detection" (arXiv:2110.13389).

    It has no IoU and no penalty: `mode` applies to the NWD in place of the IoU, and `inner_ratio` not at all.
    The gradient of identical boxes, the tip of a cone, is 0.

    Example:
        >>> import torch
        >>> from boxreg.functional import nwd_loss
        >>> pred, target = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[3.0, 4.0, 7.0, 8.0]])
        >>> nwd_loss(pred, target, constant=10.0)
        tensor([0.3935])
    """
    return aligned_loss(KIND, pred, target, constant=constant, **options)


@IOU_FAMILY.module(nwd_loss)
class NWDLoss(IoUFamilyLoss):
    """NWD loss as a module (Wang et al. 2021, arXiv:2110.13389).

    Example:
        >>> import torch
        >>> from boxreg import NWDLoss
        >>> criterion = NWDLoss(constant=10.0)
        >>> criterion(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[3.0, 4.0, 7.0, 8.0]]))
        tensor(0.3935)
    """

    kind = KIND

    def __init__(
        self,
        fmt: str = "xyxy",
        reduction: str = "mean",
        loss_weight: float = 1.0,
        *,
        constant: float,
        **options: Unpack[ModuleOptions],
    ) -> None:
        self.constant = constant
        super().__init__(fmt, reduction, loss_weight, **options)
