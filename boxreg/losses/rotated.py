"""Losses between rotated boxes (cx, cy, w, h, angle), as functions and as modules.

The boxes are compared as Gaussians; `boxreg.losses._gaussians` says how that stays finite and unbiased. For
the user it comes to this: any finite input has a finite loss and gradient; identical boxes cost 0 at any
scale; a box keeps its loss after half a turn, and after a quarter turn with width and height exchanged; a
negative side never costs less than the positive one, and its gradient makes it positive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Annotated, Unpack

import torch
from torch import Tensor

from .._checks import check_boxes, check_choice, check_number, check_same_shape, suggests_keywords
from .._dtypes import promote
from ..reduction import REDUCTIONS, Normalizer, check_weight, reduce_loss, without_ignored
from ._docs import LossFamily, texts_of
from ._gaussians import Pair, bhattacharyya, kullback_leibler, pair_of, root, wasserstein
from ._options import FACTOR, IOU_FAMILY, Reduction
from ._sum import Loss

MODES = ("l1", "l2")
"""What `mode` of `probiou_loss` may be."""

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"log1p": torch.log1p, "sqrt": root}
"""What `fun` of `kld_loss` and `gwd_loss` may be."""


def _hellinger(mode: str, pair: Pair) -> Tensor:
    distance = bhattacharyya(pair)
    return distance if mode == "l2" else root(-torch.expm1(-distance))


def _bounded(distance: Callable[[Pair], Tensor], fun: str, tau: float, pair: Pair) -> Tensor:
    """1 - 1 / (tau + f(D))."""
    value = FUNCTIONS[fun](distance(pair))
    return (tau - 1.0 + value) / (tau + value)


def _check_fun_and_tau(fun: str, tau: float) -> None:
    check_choice("fun", fun, FUNCTIONS)
    check_number("tau", tau, minimum=1)


def _reduced(
    per_box: Callable[[Pair], Tensor],
    pred: Tensor,
    target: Tensor,
    *,
    reduction: str = "none",
    weight: Tensor | None = None,
    normalizer: Normalizer | None = None,
    dim: int = -1,
) -> Tensor:
    check_boxes("pred", pred, dim, coordinates=5)
    check_boxes("target", target, dim, coordinates=5)
    check_same_shape("pred", pred, "target", target)
    if weight is not None:
        check_weight(weight, pred.select(dim, 0))
        pred, target = without_ignored(pred, weight, dim), without_ignored(target, weight, dim)
    pred, target = promote(pred, target)
    pair = pair_of(pred.unbind(dim), target.unbind(dim))
    return reduce_loss(per_box(pair) + pair.inversion, reduction, weight=weight, normalizer=normalizer)


class RotatedOptions(Reduction, total=False):
    """The options of every loss function of rotated boxes."""

    dim: Annotated[int, "the coordinate axis: -1 for boxes (N, 5), 1 for planes (B, 5, H, W)."]


BOXES = {
    "pred": """predicted boxes (cx, cy, w, h, angle) along `dim`, any shape, floating. Lengths are in any
        unit; the angle, that of the side w, is in radians, from the x axis towards the y axis.""",
    "target": "target boxes in the same format, shape and unit; nothing is broadcast.",
}

COMMON = """
A box has the same loss after half a turn, and after a quarter turn with w and h exchanged. Any finite
input gives a finite loss and gradient, including boxes without area. A negative side never costs less
than the positive one, and its gradient makes it positive. NaN or infinity gives NaN for that pair alone.
"""

TEXTS = {**IOU_FAMILY.texts, **BOXES, **texts_of(RotatedOptions)}

ROTATED = LossFamily(COMMON, TEXTS, "five", called=_reduced)
"""What completes each loss of rotated boxes."""

FUN_AND_TAU = {
    "fun": 'f, `"log1p"` for ln(1 + D) or `"sqrt"` for the square root of D.',
    "tau": "the constant beside f, at least 1; identical boxes cost 1 - 1 / tau.",
}


@ROTATED.function(
    'in [0, 1] for `"l1"` and at least 0 for `"l2"`, for boxes without negative sides',
    mode='`"l1"` or `"l2"`, see above.',
)
def probiou_loss(
    pred: Tensor, target: Tensor, *, mode: str = "l1", **options: Unpack[RotatedOptions]
) -> Tensor:
    r"""ProbIoU loss: the Hellinger distance of the boxes as Gaussians, or the distance it comes from.

    \[ L_1 = \sqrt{1 - e^{-B}}, \qquad L_2 = B = -\ln(1 - L_1^2), \qquad
       B = \tfrac18 d^T \Sigma^{-1} d + \tfrac12 \ln \frac{|\Sigma|}{\sqrt{|\Sigma_p| |\Sigma_t|}} \]

    d is the offset of the centres and Sigma the mean of the two covariances. A covariance is
    R diag(w^2, h^2) R^T / 12, that of a uniform distribution over the box; R rotates by its angle. Llerena et
    al. 2021, "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union for Object Detection"
    (arXiv:2106.06072).

    `mode` `"l1"` is 1 - ProbIoU. Its gradient fades out as e^-B for boxes far apart, where the gradient of
    `"l2"` does not. Neither loss changes under scaling.

    Example:
        >>> import torch
        >>> from boxreg.functional import probiou_loss
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
        >>> target = torch.tensor([[1.0, 0.0, 4.0, 2.0, 0.0]])
        >>> probiou_loss(pred, target)
        tensor([0.2991])
        >>> probiou_loss(pred, target, mode="l2")
        tensor([0.0938])
    """
    check_choice("mode", mode, MODES)
    return _reduced(partial(_hellinger, mode), pred, target, **options)


@ROTATED.function("in [1 - 1 / tau, 1] for boxes without negative sides", **FUN_AND_TAU)
def kld_loss(
    pred: Tensor, target: Tensor, *, fun: str = "log1p", tau: float = 1.0, **options: Unpack[RotatedOptions]
) -> Tensor:
    r"""Kullback-Leibler loss of rotated boxes, \( 1 - 1 / (\tau + f(D)) \).

    \[ D = \tfrac12 \left( d^T \Sigma_t^{-1} d + \mathrm{tr}(\Sigma_t^{-1} \Sigma_p)
           + \ln \frac{|\Sigma_t|}{|\Sigma_p|} \right) - 1 \]

    D is KL(p || t) of the predicted and the target box as Gaussians, d the offset of the centres. A
    covariance Sigma is R diag(w^2, h^2) R^T / 4; R rotates by the angle of the box. Yang et al. 2021,
    "Learning High-Precision Bounding Box for Rotated Object Detection via Kullback-Leibler Divergence"
    (arXiv:2106.01883).

    f is ln(1 + D) or the square root of D, and tau at least 1, as in the paper. The defaults are those of the
    authors' implementation in MMRotate. With tau = 1 identical boxes cost 0. The loss does not change under
    scaling.

    Example:
        >>> import torch
        >>> from boxreg.functional import kld_loss
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
        >>> target = torch.tensor([[1.0, 0.0, 4.0, 2.0, 0.0]])
        >>> kld_loss(pred, target, fun="sqrt")
        tensor([0.2612])
    """
    _check_fun_and_tau(fun, tau)
    return _reduced(partial(_bounded, kullback_leibler, fun, tau), pred, target, **options)


@ROTATED.function("in [1 - 1 / tau, 1] for boxes without negative sides", **FUN_AND_TAU)
def gwd_loss(
    pred: Tensor, target: Tensor, *, fun: str = "log1p", tau: float = 1.0, **options: Unpack[RotatedOptions]
) -> Tensor:
    r"""Gaussian Wasserstein loss of rotated boxes, \( 1 - 1 / (\tau + f(D)) \).

    \[ D = \frac{W^2}{\sqrt{w h\, w_t h_t}}, \qquad
       W^2 = |d|^2 + \mathrm{tr} \left( \Sigma_p + \Sigma_t
           - 2 (\Sigma_p^{1/2} \Sigma_t \Sigma_p^{1/2})^{1/2} \right) \]

    W is the Wasserstein distance of the boxes as Gaussians, d the offset of the centres. A covariance Sigma
    is R diag(w^2, h^2) R^T / 4; R rotates by the angle of the box. Yang et al. 2021, "Rethinking Rotated
    Object Detection with Gaussian Wasserstein Distance Loss" (arXiv:2101.11952).

    The paper's D is W^2 itself, in the unit of the boxes squared. The division, after which the loss does not
    change under scaling, is that of the authors' implementation in MMRotate (which gives f the root of D).
    f is ln(1 + D) or the square root of D, and tau at least 1, as in the paper; the defaults are MMRotate's.
    With tau = 1 identical boxes cost 0.

    Example:
        >>> import torch
        >>> from boxreg.functional import gwd_loss
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
        >>> target = torch.tensor([[2.0, 0.0, 4.0, 2.0, 0.0]])
        >>> gwd_loss(pred, target, fun="sqrt")
        tensor([0.4142])
    """
    _check_fun_and_tau(fun, tau)
    return _reduced(partial(_bounded, wasserstein, fun, tau), pred, target, **options)


@ROTATED.arguments()
class RotatedLoss(Loss, ABC):
    """What the losses of rotated boxes share as modules."""

    @suggests_keywords
    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0, dim: int = -1) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        check_number("loss_weight", loss_weight, minimum=0)
        self.reduction, self.loss_weight, self.dim = reduction, loss_weight, dim

    @abstractmethod
    def per_box(self, pair: Pair) -> Tensor:
        """The loss of each pair of boxes with positive sides."""

    @ROTATED.arguments(factor=FACTOR)
    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """The loss of `pred` against `target`."""
        reduced = partial(_reduced, self.per_box, reduction=self.reduction, dim=self.dim)
        loss = reduced(pred, target, weight=weight, normalizer=normalizer)
        return loss * (factor * self.loss_weight)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"reduction={self.reduction!r}, loss_weight={self.loss_weight}, dim={self.dim}"


@ROTATED.module(probiou_loss)
class ProbIoULoss(RotatedLoss):
    """ProbIoU loss as a module (Llerena et al. 2021, arXiv:2106.06072).

    Example:
        >>> import torch
        >>> from boxreg import ProbIoULoss
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
        >>> target = torch.tensor([[0.0, 0.0, 2.0, 4.0, 0.0]])
        >>> ProbIoULoss(loss_weight=2.0)(pred, target)
        tensor(0.8944)
    """

    def __init__(
        self, mode: str = "l1", reduction: str = "mean", loss_weight: float = 1.0, dim: int = -1
    ) -> None:
        super().__init__(reduction, loss_weight, dim)
        check_choice("mode", mode, MODES)
        self.mode = mode

    def per_box(self, pair: Pair) -> Tensor:
        """The loss of each pair of boxes with positive sides."""
        return _hellinger(self.mode, pair)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"mode={self.mode!r}, {super().extra_repr()}"


@ROTATED.arguments(**FUN_AND_TAU)
class BoundedLoss(RotatedLoss):
    """A distance D brought below 1 by 1 - 1 / (tau + f(D)); the subclasses name the distance."""

    @suggests_keywords
    def __init__(
        self,
        fun: str = "log1p",
        tau: float = 1.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        dim: int = -1,
    ) -> None:
        super().__init__(reduction, loss_weight, dim)
        _check_fun_and_tau(fun, tau)
        self.fun, self.tau = fun, tau

    @abstractmethod
    def distance(self, pair: Pair) -> Tensor:
        """D of each pair of boxes."""

    def per_box(self, pair: Pair) -> Tensor:
        """The loss of each pair of boxes with positive sides."""
        return _bounded(self.distance, self.fun, self.tau, pair)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"fun={self.fun!r}, tau={self.tau}, {super().extra_repr()}"


@ROTATED.module(kld_loss)
class KLDLoss(BoundedLoss):
    """KLD loss of rotated boxes as a module (Yang et al. 2021, arXiv:2106.01883).

    Example:
        >>> import torch
        >>> from boxreg import KLDLoss
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
        >>> target = torch.tensor([[1.0, 0.0, 4.0, 2.0, 0.0]])
        >>> KLDLoss(fun="sqrt")(pred, target)
        tensor(0.2612)
    """

    def distance(self, pair: Pair) -> Tensor:
        """D of each pair of boxes."""
        return kullback_leibler(pair)


@ROTATED.module(gwd_loss)
class GWDLoss(BoundedLoss):
    """GWD loss of rotated boxes as a module (Yang et al. 2021, arXiv:2101.11952).

    Example:
        >>> import torch
        >>> from boxreg import GWDLoss
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
        >>> target = torch.tensor([[2.0, 0.0, 4.0, 2.0, 0.0]])
        >>> GWDLoss(fun="sqrt")(pred, target)
        tensor(0.4142)
    """

    def distance(self, pair: Pair) -> Tensor:
        """D of each pair of boxes."""
        return wasserstein(pair)
