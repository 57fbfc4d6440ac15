"""Box losses: each row of the IoU family as a function and as a module, and `BoxLoss` with its lambdas."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._checks import check_choice, check_number
from ._dtypes import promote
from .boxes import FORMATS, convert
from .decoders import Decoder, check_decoder
from .iou.backends import BACKENDS
from .iou.functional import OverlapOptions, overlap_loss, prepare
from .iou.variants import VARIANTS
from .reduction import REDUCTIONS, Normalizer, reduce_loss


def iou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""IoU loss, \( 1 - \mathrm{IoU} \).

    Yu et al. 2016, "UnitBox" (arXiv:1608.01471) use its logarithm; this is the linear form. Boxes that
    do not touch have no gradient.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`:
            see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 1] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import iou_loss
        >>> iou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        tensor([0.7500])
    """
    return overlap_loss("iou", pred, target, **options)


def giou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""Generalised IoU loss, \( 1 - \mathrm{IoU} + (C - U) / C \).

    C is the area of the smallest enclosing box, U of the union. Rezatofighi et al. 2019,
    "Generalized Intersection over Union" (arXiv:1902.09630).

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`:
            see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 2] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import giou_loss
        >>> giou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([1.5000])
    """
    return overlap_loss("giou", pred, target, **options)


def diou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""Distance IoU loss, \( 1 - \mathrm{IoU} + \rho^2 / c^2 \).

    rho is the distance of the centres, c the diagonal of the smallest enclosing box. Zheng et al.
    2020, "Distance-IoU Loss" (arXiv:1911.08287).

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`:
            see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 2] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import diou_loss
        >>> diou_loss(torch.tensor([[0.0, 0.0, 1.0, 3.0]]), torch.tensor([[3.0, 0.0, 4.0, 3.0]]))
        tensor([1.3600])
    """
    return overlap_loss("diou", pred, target, **options)


def ciou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""Complete IoU loss, \( 1 - \mathrm{IoU} + \rho^2 / c^2 + \alpha v \).

    \[ v = \frac{4}{\pi^2} \left( \arctan\frac{w_t}{h_t} - \arctan\frac{w}{h} \right)^2, \qquad
       \alpha = \frac{v}{1 - \mathrm{IoU} + v} \]

    alpha is a constant under differentiation, as in the paper; the slope of v keeps its true
    1 / (w^2 + h^2). A box that is a point counts as a square. Zheng et al. 2020, "Distance-IoU Loss"
    (arXiv:1911.08287).

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`:
            see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 3] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import ciou_loss
        >>> ciou_loss(torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]]))
        tensor([0.7629])
    """
    return overlap_loss("ciou", pred, target, **options)


def eiou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""Efficient IoU loss: the distance of the centres, and the difference of the sizes.

    \[ 1 - \mathrm{IoU} + \frac{\rho^2}{c^2} + \frac{(w - w_t)^2}{C_w^2} + \frac{(h - h_t)^2}{C_h^2} \]

    rho is the distance of the centres; c, C_w and C_h are the diagonal and the sides of the smallest
    enclosing box. Zhang et al. 2021, "Focal and Efficient IOU Loss for Accurate Bounding Box
    Regression" (arXiv:2101.08158), without its focal weight. The Extended IoU of the same year, which
    some libraries call EIoU too, is another loss.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`:
            see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 3.25] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import eiou_loss
        >>> eiou_loss(torch.tensor([[1.0, 0.0, 3.0, 4.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
        tensor([0.7500])
    """
    return overlap_loss("eiou", pred, target, **options)


def siou_loss(pred: Tensor, target: Tensor, **options: Unpack[OverlapOptions]) -> Tensor:
    r"""SIoU loss, \( 1 - \mathrm{IoU} + (\Delta + \Omega) / 2 \): angle, distance and shape costs.

    \[ \Lambda = \frac{2 |d_x d_y|}{d_x^2 + d_y^2}, \qquad
       \Delta = \sum_{t = x, y} \left( 1 - e^{-(2 - \Lambda) (d_t / C_t)^2} \right), \qquad
       \Omega = \sum_{s = w, h} \left( 1 - e^{-|s - s_t| / \max(s, s_t)} \right)^4 \]

    d is the offset of the centres, C_x and C_y are the sides of the smallest enclosing box, and Lambda
    is the paper's \( 1 - 2 \sin^2(\arcsin x - \pi / 4) \) without its arcsine; it is 0 where the
    centres coincide. Gevorgyan 2022, "SIoU Loss: More Powerful Learning for Bounding Box Regression"
    (arXiv:2205.12740).

    Implementations differ. Here d / C is squared; C is a side of the enclosing box, although the paper
    writes c_w and c_h for the offset too; the exponent is negative, so that the loss rises as boxes
    move apart; the paper's theta is 4; and Lambda has its gradient.

    Args:
        pred: predicted boxes, four coordinates along `dim`.
        target: target boxes of the same shape and unit.
        **options: `fmt`, `reduction` (default `"none"`), `weight`, `normalizer`, `dim`, `backend`:
            see `boxreg.iou.overlap_loss`.

    Returns:
        A loss per box in [0, 2.03] for upright boxes, or a scalar.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import siou_loss
        >>> siou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor([1.3377])
    """
    return overlap_loss("siou", pred, target, **options)


class OverlapLoss(nn.Module):
    """A row of the IoU family as a module; the subclasses name the row.

    Args:
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`, for predictions and targets.
        reduction: `"none"`, `"mean"` or `"sum"`.
        loss_weight: the lambda that scales the result.
        dim: the coordinate axis: -1 for rows (N, 4), 1 for planes (B, 4, H, W).
        backend: `"auto"`, or a name in `boxreg.iou.backends.BACKENDS`.

    Raises:
        TypeError: if `loss_weight` is not a number.
        ValueError: for an unknown name, or a negative or non-finite `loss_weight`.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        kind = cls.__name__.removesuffix("Loss").lower()
        if kind in VARIANTS:  # a subclass of a row by any other name stays that row
            cls.kind = kind

    def __init__(
        self,
        fmt: str = "xyxy",
        reduction: str = "mean",
        loss_weight: float = 1.0,
        dim: int = -1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("fmt", fmt, FORMATS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_number("loss_weight", loss_weight, minimum=0)
        check_choice("backend", backend, ("auto", *BACKENDS))
        self.fmt, self.reduction, self.loss_weight = fmt, reduction, loss_weight
        self.dim, self.backend = dim, backend
        self.decoder: Decoder | None = None

    def from_raw(self, decoder: Decoder, fmt: str = "cxcywh") -> Self:
        """This loss with the decoder inside: of a head's raw numbers instead of its boxes.

        The gradient is that of the raw numbers, found in the same pass as the loss. The loss is that of the
        decoded boxes, which are never rounded to the dtype of raw numbers in half precision.

        Args:
            decoder: how the raw numbers stand for boxes.
            fmt: format of the targets; the format that this loss was made with is for boxes.

        Returns:
            A copy of this loss that takes raw numbers, `decoder.channels` of them along `dim`.

        Raises:
            TypeError: if `decoder` is no `Decoder`.
            ValueError: if `fmt` is not a format.

        Example:
            >>> import torch
            >>> from boxreg import BoxHead, CIoULoss
            >>> head = BoxHead(16, prior=(0.5, 0.5, 0.2, 0.3))
            >>> criterion = CIoULoss(dim=head.dim).from_raw(head.decoder)
            >>> features, target = torch.zeros(8, 16), torch.tensor([[0.5, 0.5, 0.2, 0.3]]).expand(8, 4)
            >>> criterion(head.raw(features), target).round(decimals=4)
            tensor(0., grad_fn=<RoundBackward1>)
        """
        check_decoder(decoder)
        check_choice("fmt", fmt, FORMATS)
        of_raw = copy.deepcopy(self)
        of_raw.decoder, of_raw.fmt = decoder, fmt
        return of_raw

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """The loss of `pred` against `target`; arguments as in `boxreg.iou.overlap_loss`.

        A loss made by `from_raw` takes raw numbers as `pred`.
        """
        loss = overlap_loss(
            self.kind,
            pred,
            target,
            fmt=self.fmt,
            reduction=self.reduction,
            weight=weight,
            normalizer=normalizer,
            dim=self.dim,
            backend=self.backend,
            decoder=self.decoder,
        )
        return loss * self.loss_weight

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        settings = (
            f"fmt={self.fmt!r}, reduction={self.reduction!r}, loss_weight={self.loss_weight}, dim={self.dim}"
        )
        return settings if self.decoder is None else f"{settings}, decoder={self.decoder}"


class IoULoss(OverlapLoss):
    """`iou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import IoULoss
        >>> IoULoss()(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        tensor(0.7500)
    """


class GIoULoss(OverlapLoss):
    """`giou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import GIoULoss
        >>> left, right = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]])
        >>> GIoULoss(loss_weight=2.0)(left, right)
        tensor(3.)
    """


class DIoULoss(OverlapLoss):
    """`diou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import DIoULoss
        >>> DIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 3.0]]), torch.tensor([[3.0, 0.0, 4.0, 3.0]]))
        tensor(1.3600)
    """


class CIoULoss(OverlapLoss):
    """`ciou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import CIoULoss
        >>> boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3]])
        >>> CIoULoss(fmt="cxcywh")(boxes, boxes)
        tensor(0.)
    """


class EIoULoss(OverlapLoss):
    """`eiou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import EIoULoss
        >>> EIoULoss()(torch.tensor([[1.0, 0.0, 3.0, 4.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
        tensor(0.7500)
    """


class SIoULoss(OverlapLoss):
    """`siou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import SIoULoss
        >>> SIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor(1.3377)
    """


class BoxLossTerms(NamedTuple):
    """What `BoxLoss` returns: the total, and its terms `coord`, `wh`, `iou` without and with their lambda.

    Scalars, or with `reduction="none"` a number for each box.
    """

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]


SMOOTH_L1_BETA = 1 / 9
"""Where `"smooth_l1"` turns from a parabola into a line, in the unit of the boxes."""

FARTHEST = 2.0**48
"""Coordinates beyond this (3e14) count as this in the centre and size terms: no square can overflow."""

ROOT_TANGENT = 1e-6
"""Below this size (inverted boxes too) the square root goes on as its tangent: a slope of 500 at most."""


def _near(boxes: Tensor) -> Tensor:
    # An infinity is not far away, it is nowhere: infinity minus itself is NaN.
    return boxes.clamp(-FARTHEST, FARTHEST) + (boxes - boxes)


def _mse(difference: Tensor) -> Tensor:
    return difference * difference


def _smooth_l1(difference: Tensor) -> Tensor:
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=SMOOTH_L1_BETA)


def _root(size: Tensor) -> Tensor:
    small = size < ROOT_TANGENT
    root = torch.where(small, ROOT_TANGENT, size).sqrt()
    tangent = (size + ROOT_TANGENT) * (0.5 / ROOT_TANGENT**0.5)
    return torch.where(small, tangent, root)


DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {"mse": _mse, "smooth_l1": _smooth_l1, "l1": torch.abs}
"""What `BoxLoss` may do with a difference of coordinates."""

SIZES: dict[str, Callable[[Tensor], Tensor]] = {"wh": lambda size: size, "sqrt_wh": _root}
"""What `BoxLoss` may compare sizes on."""


class BoxLoss(nn.Module):
    r"""Centre, size and overlap terms, each with its lambda.

    \[ L = \lambda_{coord} \sum_{x,y} d(c - c_t) + \lambda_{wh} \sum_{w,h} d(s - s_t)
         + \lambda_{iou} L_{overlap} \]

    d is a squared, smooth-L1 or absolute difference; s is the size or, as in Redmon et al. 2016, "You
    Only Look Once" (arXiv:1506.02640), its square root. The coordinate terms are in the unit of the
    boxes: give fractions of the picture, or their lambdas mean something else. In them, coordinates
    beyond `FARTHEST` count as that far, so that every finite box has a finite loss.

    Args:
        overlap: a row of the IoU family, `"iou"`, `"giou"`, `"diou"`, `"ciou"`, `"eiou"`, `"siou"`.
        lambda_coord: factor of the centre term.
        lambda_wh: factor of the size term.
        lambda_iou: factor of the overlap term.
        distance: `"mse"`, `"smooth_l1"` (beta 1/9) or `"l1"`, for centre and size.
        size: `"wh"`, or `"sqrt_wh"` for square roots.
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`, for predictions and targets.
        reduction: `"none"`, `"mean"` or `"sum"` over boxes.
        dim: the coordinate axis.
        backend: as in `boxreg.iou.overlap_loss`.

    Raises:
        TypeError: if a lambda is not a number.
        ValueError: for an unknown name, or a negative or non-finite lambda.

    Example:
        >>> import torch
        >>> from boxreg import BoxLoss
        >>> criterion = BoxLoss("iou", lambda_coord=5.0, lambda_wh=5.0, lambda_iou=1.0, fmt="cxcywh")
        >>> pred, target = torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([[0.5, 0.5, 0.4, 0.2]])
        >>> terms = criterion(pred, target)
        >>> {name: round(value.item(), 4) for name, value in terms.weighted.items()}
        {'coord': 0.0, 'wh': 0.2, 'iou': 0.5}
    """

    def __init__(
        self,
        overlap: str = "ciou",
        lambda_coord: float = 5.0,
        lambda_wh: float = 5.0,
        lambda_iou: float = 1.0,
        *,
        distance: str = "mse",
        size: str = "wh",
        fmt: str = "xyxy",
        reduction: str = "mean",
        dim: int = -1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("overlap", overlap, VARIANTS)
        check_choice("distance", distance, DISTANCES)
        check_choice("size", size, SIZES)
        check_choice("fmt", fmt, FORMATS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("backend", backend, ("auto", *BACKENDS))
        self.lambdas = {"coord": lambda_coord, "wh": lambda_wh, "iou": lambda_iou}
        for name, value in self.lambdas.items():
            check_number(f"lambda_{name}", value, minimum=0)
        self.overlap, self.distance, self.size = overlap, distance, size
        self.fmt, self.reduction, self.dim, self.backend = fmt, reduction, dim, backend

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> BoxLossTerms:
        """The total and its terms; arguments, shapes and errors as in `boxreg.iou.overlap_loss`."""
        pred, target = promote(*prepare(pred, target, weight, self.fmt, self.dim))
        near, target_near = _near(pred), _near(target)
        centre, size = convert(near, self.fmt, "cxcywh", self.dim).chunk(2, self.dim)
        target_centre, target_size = convert(target_near, self.fmt, "cxcywh", self.dim).chunk(2, self.dim)
        distance, shape = DISTANCES[self.distance], SIZES[self.size]
        per_box = {
            "coord": distance(centre - target_centre).sum(self.dim),
            "wh": distance(shape(size) - shape(target_size)).sum(self.dim),
            "iou": overlap_loss(self.overlap, pred, target, fmt=self.fmt, dim=self.dim, backend=self.backend),
        }
        raw = {
            name: reduce_loss(loss, self.reduction, weight=weight, normalizer=normalizer)
            for name, loss in per_box.items()
        }
        weighted = {name: self.lambdas[name] * value for name, value in raw.items()}
        return BoxLossTerms(weighted["coord"] + weighted["wh"] + weighted["iou"], raw, weighted)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        lambdas = ", ".join(f"lambda_{name}={value}" for name, value in self.lambdas.items())
        return (
            f"{self.overlap!r}, {lambdas}, distance={self.distance!r}, size={self.size!r}, fmt={self.fmt!r}"
        )
