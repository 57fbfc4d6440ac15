"""`BoxLoss`: centre, size and overlap terms, each with its lambda."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_choice, check_number, unknown_keyword
from .._dtypes import promote
from ..boxes import convert
from ..iou.functional import prepare
from ..reduction import Normalizer, reduce_loss
from ..weighting import Weighting
from . import LOSSES, Loss
from ._sum import check_agreement


class BoxLossTerms(NamedTuple):
    """What `BoxLoss` returns: the total, and its terms `coord`, `wh`, `iou` without and with their lambda.

    Scalars, or with `reduction="none"` a number for each box.
    """

    total: Tensor
    unweighted: dict[str, Tensor]
    weighted: dict[str, Tensor]


SMOOTH_L1_BETA = 1 / 9
"""Where `"smooth_l1"` turns from a parabola into a line, in the unit of the boxes."""

FARTHEST = 2.0**48
"""Coordinates beyond this (3e14) count as this in the centre and size terms: no square can overflow."""

ROOT_TANGENT = 1e-6
"""Below this size (and of inverted boxes) the square root is its tangent: the derivative is at most 500."""


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


def check_options(owner: str, overlap: str | Loss, given: Iterable[str], names: Iterable[str] = ()) -> None:
    """Raise `TypeError` for a keyword that neither `BoxLoss` nor its overlap loss takes.

    Args:
        owner: the class that was called, for the message.
        overlap: the overlap loss, or its name.
        given: the keywords.
        names: of further keywords that a misspelt one may stand for.
    """
    losses = LOSSES.values() if isinstance(overlap, Loss) else [LOSSES[overlap]]
    taken = {name for owns in (BoxLoss, *losses) for name in inspect.signature(owns).parameters}
    for name in given:
        if name not in taken:
            raise unknown_keyword(owner, name, {*taken, *names})


def _check_defaults(options: dict[str, object]) -> None:
    """Raise if an option is given that an overlap loss, itself given, has already."""
    for name, value in options.items():
        if value is not None and (name, value) not in (("backend", "auto"), ("mode", "linear")):
            raise ValueError(f"{name}: got {value!r} beside a loss as overlap; make that loss with it")


class BoxLoss(nn.Module):
    r"""Centre, size and overlap terms, each with its lambda.

    \[ L = \lambda_{coord} \sum_{x,y} d(c - c_t) + \lambda_{wh} \sum_{w,h} d(s - s_t)
         + \lambda_{iou} L_{overlap} \]

    d is a squared, smooth-L1 or absolute difference; s is the size or, as in Redmon et al. 2016, "You
    Only Look Once" (arXiv:1506.02640), its square root. The coordinate terms are in the unit of the
    boxes: give fractions of the image, or their lambdas mean something else. In them, coordinates
    beyond `FARTHEST` count as that far, so that every finite box has a finite loss.

    Args:
        overlap: a loss of the IoU family, such as `"ciou"`; or a loss module or a sum of them, used as it is:
            its `fmt`, `reduction` and `dim` must be those of this loss, and it takes no further options.
        lambda_coord: factor of the centre term.
        lambda_wh: factor of the size term.
        lambda_iou: factor of the overlap term.
        distance: `"mse"`, `"smooth_l1"` (beta 1/9) or `"l1"`, for centre and size.
        size: `"wh"`, or `"sqrt_wh"` for square roots.
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`, for predictions and targets.
        reduction: `"none"`, `"mean"` or `"sum"` over boxes.
        dim: the coordinate axis.
        backend: as in `boxreg.functional.ciou_loss`, and so are the next four, for the overlap term.
        mode: what becomes of IoU and penalty.
        alpha: the exponent of mode `"alpha"`.
        inner_ratio: the scale of the boxes between which the IoU is taken.
        weighting: a factor per box from its IoU.
        **parameters: further options of the overlap: `loss_weight`, a factor of the overlap term beside
            `lambda_iou` (default 1.0); for `"mpdiou"`, `image_width` and `image_height`, the size of the
            image in the unit of the boxes (both required); for `"shapeiou"`, `scale`, its exponent, from 0 to
            16 (default 0.0); for `"nwd"`, `constant`, a length in the unit of the boxes (required).

    Raises:
        TypeError: if a lambda or a parameter is not a number, or for an unknown keyword.
        ValueError: for an unknown name, a negative or non-finite lambda, or a parameter that is missing or
            out of its range.

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
        overlap: str | Loss = "ciou",
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
        mode: str = "linear",
        alpha: float | None = None,
        inner_ratio: float | None = None,
        weighting: Weighting | None = None,
        **parameters: float,
    ) -> None:
        super().__init__()
        if not isinstance(overlap, Loss):
            check_choice("overlap", overlap, LOSSES)
        check_options("BoxLoss", overlap, parameters)
        check_choice("distance", distance, DISTANCES)
        check_choice("size", size, SIZES)
        self.lambdas = {"coord": lambda_coord, "wh": lambda_wh, "iou": lambda_iou}
        for name, value in self.lambdas.items():
            check_number(f"lambda_{name}", value, minimum=0)
        self.distance, self.size = distance, size
        self.fmt, self.reduction, self.dim = fmt, reduction, dim
        options: dict[str, Any] = {"backend": backend, "mode": mode, "alpha": alpha}
        options |= {"inner_ratio": inner_ratio, "weighting": weighting, **parameters}
        if isinstance(overlap, Loss):
            check_agreement("BoxLoss", self, type(overlap).__name__, overlap)
            _check_defaults(options)
            self.overlap = overlap
        else:
            self.overlap = LOSSES[overlap](fmt, reduction, dim=dim, **options)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> BoxLossTerms:
        """The total and its terms; arguments, shapes and errors as in `IoUFamilyLoss.forward`."""
        pred, target = promote(*prepare(pred, target, weight, self.fmt, self.dim))
        near, target_near = _near(pred), _near(target)
        centre, size = convert(near, self.fmt, "cxcywh", self.dim).chunk(2, self.dim)
        target_centre, target_size = convert(target_near, self.fmt, "cxcywh", self.dim).chunk(2, self.dim)
        distance, shape = DISTANCES[self.distance], SIZES[self.size]
        differences = {"coord": centre - target_centre, "wh": shape(size) - shape(target_size)}
        unweighted = {
            name: reduce_loss(
                distance(difference).sum(self.dim), self.reduction, weight=weight, normalizer=normalizer
            )
            for name, difference in differences.items()
        }
        unweighted["iou"] = self.overlap(pred, target, weight, normalizer)
        weighted = {name: self.lambdas[name] * value for name, value in unweighted.items()}
        return BoxLossTerms(weighted["coord"] + weighted["wh"] + weighted["iou"], unweighted, weighted)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        lambdas = ", ".join(f"lambda_{name}={value}" for name, value in self.lambdas.items())
        return f"{lambdas}, distance={self.distance!r}, size={self.size!r}"
