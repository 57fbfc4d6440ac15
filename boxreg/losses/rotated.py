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
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from .._checks import check_boxes, check_choice, check_number, check_same_shape
from .._dtypes import promote
from ..reduction import REDUCTIONS, Normalizer, check_weight, reduce_loss, without_ignored
from ._gaussians import Pair, bhattacharyya, kullback_leibler, pair_of, root, wasserstein

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


def _check_form(fun: str, tau: float) -> None:
    check_choice("fun", fun, FUNCTIONS)
    check_number("tau", tau, minimum=1)


class RotatedOptions(TypedDict, total=False):
    """The keyword arguments that every loss function of this module takes; see `probiou_loss`."""

    reduction: str
    weight: Tensor | None
    normalizer: Normalizer | None
    dim: int


def _reduced(
    per_box: Callable[[Pair], Tensor],
    pred: Tensor,
    target: Tensor,
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


def probiou_loss(
    pred: Tensor, target: Tensor, *, mode: str = "l1", **options: Unpack[RotatedOptions]
) -> Tensor:
    r"""ProbIoU loss: the Hellinger distance of the boxes' Gaussians, or the distance it comes from.

    \[ L_1 = \sqrt{1 - e^{-B}}, \qquad L_2 = B = -\ln(1 - L_1^2), \qquad
       B = \tfrac18 d^T \Sigma^{-1} d + \tfrac12 \ln \frac{|\Sigma|}{\sqrt{|\Sigma_p| |\Sigma_t|}} \]

    d is the offset of the centres, Sigma the mean of the two covariances, k = 1/12: those of uniform
    distributions over the boxes. Llerena et al. 2021, "Gaussian Bounding Boxes and Probabilistic
    Intersection-over-Union for Object Detection" (arXiv:2106.06072). L1 is 1 - ProbIoU; its gradient fades
    out as e^-B for boxes far apart, where the gradient of L2 does not. Neither changes under scaling.

    Args:
        pred: predicted boxes, (cx, cy, w, h, angle) along `dim`, any shape and unit, angle in radians.
        target: target boxes of the same shape and unit; nothing is broadcast.
        mode: `"l1"` or `"l2"`.
        **options: `reduction`, `"none"` (default), `"mean"` or `"sum"`; `weight`, a factor per box, where 0
            gives exactly 0 loss and gradient even for NaN; `normalizer`, the divisor of `"mean"` in place
            of the number of boxes; `dim`, the coordinate axis, -1 (default) for rows (N, 5), 1 for planes
            (B, 5, H, W).

    Returns:
        A loss per box (`pred`'s shape without `dim`), or a scalar; float32, or float64 for float64 input. For
        boxes with positive sides in [0, 1] (`"l1"`) or at least 0 (`"l2"`).

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown name, no axis of five coordinates, or shapes that differ.

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


def kld_loss(
    pred: Tensor,
    target: Tensor,
    *,
    fun: str = "log1p",
    tau: float = 1.0,
    **options: Unpack[RotatedOptions],
) -> Tensor:
    r"""Kullback-Leibler loss, \( 1 - 1 / (\tau + f(D)) \), with D = KL(p || t) of the boxes' Gaussians.

    \[ D = \tfrac12 \left( d^T \Sigma_t^{-1} d + \mathrm{tr}(\Sigma_t^{-1} \Sigma_p)
           + \ln \frac{|\Sigma_t|}{|\Sigma_p|} \right) - 1 \]

    d is the offset of the centres, k = 1/4. Yang et al. 2021, "Learning High-Precision Bounding Box for
    Rotated Object Detection via Kullback-Leibler Divergence" (arXiv:2106.01883). f is ln(1 + D) or the
    root of D, tau at least 1, as in the paper; identical boxes cost 1 - 1 / tau. The defaults, ln(1 + D) and
    1, are those of the authors' implementation in MMRotate; to have 0 at the minimum takes tau = 1. Does not
    change under scaling.

    Args:
        pred: predicted boxes, (cx, cy, w, h, angle) along `dim`, any shape and unit, angle in radians.
        target: target boxes of the same shape and unit; nothing is broadcast.
        fun: f, `"log1p"` or `"sqrt"`.
        tau: the paper's tau.
        **options: `reduction` (default `"none"`), `weight`, `normalizer`, `dim`: see `probiou_loss`.

    Returns:
        A loss per box in [1 - 1 / tau, 1] for boxes with positive sides, or a scalar; float32 or float64.

    Raises:
        TypeError: if a tensor is not floating, or `tau` not a number.
        ValueError: for an unknown name, `tau` below 1, no axis of five coordinates, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import kld_loss
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
        >>> target = torch.tensor([[1.0, 0.0, 4.0, 2.0, 0.0]])
        >>> kld_loss(pred, target, fun="sqrt")
        tensor([0.2612])
    """
    _check_form(fun, tau)
    return _reduced(partial(_bounded, kullback_leibler, fun, tau), pred, target, **options)


def gwd_loss(
    pred: Tensor,
    target: Tensor,
    *,
    fun: str = "log1p",
    tau: float = 1.0,
    **options: Unpack[RotatedOptions],
) -> Tensor:
    r"""Gaussian Wasserstein loss, \( 1 - 1 / (\tau + f(D)) \), whose D does not change under scaling.

    \[ D = \frac{W^2}{\sqrt{w h\, w_t h_t}}, \qquad
       W^2 = |d|^2 + \mathrm{tr} \left( \Sigma_p + \Sigma_t
           - 2 (\Sigma_p^{1/2} \Sigma_t \Sigma_p^{1/2})^{1/2} \right) \]

    d is the offset of the centres, k = 1/4. Yang et al. 2021, "Rethinking Rotated Object Detection with
    Gaussian Wasserstein Distance Loss" (arXiv:2101.11952). The paper's D is W^2 itself, in pixels squared;
    the division is that of the authors' implementation in MMRotate (which gives f the root of D). f is
    ln(1 + D) or the root of D, tau at least 1, as in the paper; identical boxes cost 1 - 1 / tau. The
    defaults, ln(1 + D) and 1, are MMRotate's; to have 0 at the minimum takes tau = 1.

    Args:
        pred: predicted boxes, (cx, cy, w, h, angle) along `dim`, any shape and unit, angle in radians.
        target: target boxes of the same shape and unit; nothing is broadcast.
        fun: f, `"log1p"` or `"sqrt"`.
        tau: the paper's tau.
        **options: `reduction` (default `"none"`), `weight`, `normalizer`, `dim`: see `probiou_loss`.

    Returns:
        A loss per box in [1 - 1 / tau, 1] for boxes with positive sides, or a scalar; float32 or float64.

    Raises:
        TypeError: if a tensor is not floating, or `tau` not a number.
        ValueError: for an unknown name, `tau` below 1, no axis of five coordinates, or shapes that differ.

    Example:
        >>> import torch
        >>> from boxreg.functional import gwd_loss
        >>> pred = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
        >>> target = torch.tensor([[2.0, 0.0, 4.0, 2.0, 0.0]])
        >>> gwd_loss(pred, target, fun="sqrt")
        tensor([0.4142])
    """
    _check_form(fun, tau)
    return _reduced(partial(_bounded, wasserstein, fun, tau), pred, target, **options)


class RotatedLoss(nn.Module, ABC):
    """What the losses of rotated boxes share as modules.

    Args:
        reduction: `"none"`, `"mean"` or `"sum"`.
        loss_weight: the lambda that scales the result.
        dim: the coordinate axis: -1 for rows (N, 5), 1 for planes (B, 5, H, W).

    Raises:
        ValueError: for an unknown reduction, or a negative or non-finite `loss_weight`.
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0, dim: int = -1) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        check_number("loss_weight", loss_weight, minimum=0)
        self.reduction, self.loss_weight, self.dim = reduction, loss_weight, dim

    @abstractmethod
    def per_box(self, pair: Pair) -> Tensor:
        """The loss of each pair of boxes with positive sides."""

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """The loss of `pred` against `target`; arguments as in `probiou_loss`."""
        loss = _reduced(self.per_box, pred, target, self.reduction, weight, normalizer, self.dim)
        return loss * self.loss_weight

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"reduction={self.reduction!r}, loss_weight={self.loss_weight}, dim={self.dim}"


class ProbIoULoss(RotatedLoss):
    """ProbIoU loss (Llerena et al. 2021, arXiv:2106.06072): `probiou_loss` as a module.

    Args:
        mode: `"l1"` or `"l2"`.
        reduction: `"none"`, `"mean"` or `"sum"`.
        loss_weight: the lambda that scales the result.
        dim: the coordinate axis.

    Raises:
        ValueError: for an unknown name, or a negative or non-finite `loss_weight`.

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


class BoundedLoss(RotatedLoss):
    """A distance D brought below 1 by 1 - 1 / (tau + f(D)); the subclasses name the distance.

    Args:
        fun: f, `"log1p"` or `"sqrt"`.
        tau: at least 1; identical boxes cost 1 - 1 / tau.
        reduction: `"none"`, `"mean"` or `"sum"`.
        loss_weight: the lambda that scales the result.
        dim: the coordinate axis.

    Raises:
        TypeError: if `tau` is not a number.
        ValueError: for an unknown name, `tau` below 1, or a negative or non-finite `loss_weight`.
    """

    def __init__(
        self,
        fun: str = "log1p",
        tau: float = 1.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        dim: int = -1,
    ) -> None:
        super().__init__(reduction, loss_weight, dim)
        _check_form(fun, tau)
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


class KLDLoss(BoundedLoss):
    """KLD loss (Yang et al. 2021, arXiv:2106.01883): `kld_loss` as a module.

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


class GWDLoss(BoundedLoss):
    """GWD loss (Yang et al. 2021, arXiv:2101.11952): `gwd_loss` as a module.

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
