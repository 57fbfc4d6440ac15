"""Complete IoU: DIoU's penalty, and the difference of the aspect ratios."""

from __future__ import annotations

import math
from typing import Unpack

import torch as xp
from torch import Tensor

from ..iou.distances import direction
from ..iou.functional import aligned_loss
from ..iou.geometry import SMALLEST, AxisGrad, Pair, PairGrad, stop_gradient, unit_of
from ..iou.spec import Term, define
from ._family import IoUFamilyLoss
from ._options import IOU_FAMILY, Options
from .diou import diou_penalty, diou_penalty_grad

FOUR_OVER_PI_SQUARED = 4.0 / math.pi**2


def angle_between(pair: Pair) -> Tensor:
    """atan(wt / ht) - atan(w / h), by one arctangent that divides by nothing."""
    w, h = direction(pair.x.size, pair.y.size)
    wt, ht = direction(pair.x.target_size, pair.y.target_size)
    return xp.atan2(wt * h - w * ht, ht * h + wt * w)


def aspect_weight(pair: Pair, aspect: Tensor) -> Tensor:
    """The weight alpha = v / (1 - iou + v), a constant under differentiation as in the paper."""
    # Beside any total but 0, SMALLEST is lost in rounding.
    return stop_gradient(aspect) / (stop_gradient(1.0 - pair.iou + aspect) + SMALLEST)


def ciou_penalty(pair: Pair) -> Tensor:
    """DIoU's penalty plus alpha v, with v = 4 / pi^2 angle_between^2."""
    angle = angle_between(pair)
    aspect = FOUR_OVER_PI_SQUARED * angle * angle
    return diou_penalty(pair) + aspect_weight(pair, aspect) * aspect


def angle_grad(width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of atan(width / height): height / (w^2 + h^2) and -width / (w^2 + h^2)."""
    w, h = direction(width, height)
    per_length = unit_of(xp.maximum(width, height)).reciprocal / (w * w + h * h)
    return h * per_length, -w * per_length


def ciou_penalty_grad(pair: Pair) -> PairGrad:
    """Gradient of `ciou_penalty`; `angle_between` rises with the target's angle and falls with the box's."""
    angle = angle_between(pair)
    factor = 2.0 * FOUR_OVER_PI_SQUARED * aspect_weight(pair, FOUR_OVER_PI_SQUARED * angle * angle) * angle
    width, height = angle_grad(pair.x.size, pair.y.size)
    target_width, target_height = angle_grad(pair.x.target_size, pair.y.target_size)
    distance = diou_penalty_grad(pair)
    return PairGrad(
        x=AxisGrad(-width * factor, target_width * factor, distance.x.span, distance.x.offset),
        y=AxisGrad(-height * factor, target_height * factor, distance.y.span, distance.y.offset),
    )


KIND = define("ciou", penalty=Term(ciou_penalty, ciou_penalty_grad))


@IOU_FAMILY.function("in [0, 3] for boxes that are not inverted")
def ciou_loss(pred: Tensor, target: Tensor, **options: Unpack[Options]) -> Tensor:
    r"""Complete IoU loss, \( 1 - \mathrm{IoU} + \rho^2 / c^2 + \alpha v \).

    \[ v = \frac{4}{\pi^2} \left( \arctan\frac{w_t}{h_t} - \arctan\frac{w}{h} \right)^2, \qquad
       \alpha = \frac{v}{1 - \mathrm{IoU} + v} \]

    rho is the distance of the centres, c the diagonal of the smallest enclosing box. alpha is a constant
    under differentiation, as in the paper; the gradient of v keeps its true 1 / (w^2 + h^2). A box that is a
    point counts as a square. Zheng et al. 2020, "Distance-IoU Loss" (arXiv:1911.08287).

    Example:
        >>> import torch
        >>> from boxreg.functional import ciou_loss
        >>> ciou_loss(torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]]))
        tensor([0.7629])
    """
    return aligned_loss(KIND, pred, target, **options)


@IOU_FAMILY.module(ciou_loss)
class CIoULoss(IoUFamilyLoss):
    """Complete IoU loss as a module (Zheng et al. 2020, arXiv:1911.08287).

    Example:
        >>> import torch
        >>> from boxreg import CIoULoss
        >>> boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3]])
        >>> CIoULoss(fmt="cxcywh")(boxes, boxes)
        tensor(0.)
    """

    kind = KIND
