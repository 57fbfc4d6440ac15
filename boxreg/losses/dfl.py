"""Distribution focal loss: a side of a box as a distribution over bins, its loss and its expectation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_number, check_same_shape, check_tensor, suggests_keywords
from .._dtypes import promote
from ..decoders.distributions import bins_along, check_bins
from ..reduction import REDUCTIONS, Normalizer, check_weight, reduce_loss, without_ignored

LOWEST = -(2.0**126)
"""A logit farther below the largest one than this counts as this, and keeps its gradient."""


@suggests_keywords
def dfl_loss(
    logits: Tensor,
    target: Tensor,
    *,
    reduction: str = "none",
    weight: Tensor | None = None,
    normalizer: Normalizer | None = None,
    dim: int = -1,
) -> Tensor:
    r"""Distribution focal loss: cross entropy with the two bins next to the target, weighted linearly.

    \[ L = -\big( (i + 1 - y) \ln p_i + (y - i) \ln p_{i+1} \big), \qquad i = \lfloor y \rfloor, \quad
       p = \mathrm{softmax}(\text{logits}) \]

    Least where the two bins share the probability as i + 1 - y to y - i, so that its expectation is y; the
    least value is the entropy of that split, 0 at whole targets. Li et al. 2020, "Generalized Focal Loss"
    (arXiv:2006.04388). Finite logits give a finite loss and gradient; NaN or infinity gives NaN for that
    side alone.

    Args:
        logits: a number per bin along `dim`, floating, such as (N, 4, bins) or, with dim 2,
            (B, 4, bins, H, W).
        target: a number per side, floating, in units of bins (distance / stride): `logits`' shape without
            `dim`. Targets outside [0, bins - 1] are clipped to it, without an error: to see them would
            wait for the device. At bins - 1 the last bin has all the weight.
        reduction: `"none"`, `"mean"` or `"sum"` over sides.
        weight: a factor per side, shape of `target`; 0 gives exactly 0 loss and gradient, even for NaN.
        normalizer: the divisor of `"mean"` in place of the number of sides; 0 gives 0.
        dim: the axis of the bins.

    Returns:
        A loss per side, or a scalar; float32, or float64 for float64 input.

    Raises:
        TypeError: if a tensor is not floating.
        ValueError: for an unknown reduction, fewer than two bins, or shapes that do not fit.

    Example:
        >>> import torch
        >>> from boxreg.functional import dfl_loss
        >>> dfl_loss(torch.zeros(1, 4), torch.tensor([1.25]))
        tensor([1.3863])
    """
    check_bins(logits, dim)
    check_tensor("target", target, floating=True)
    check_same_shape("target", target, f"logits without dim {dim}", logits.select(dim, 0))
    if weight is not None:
        check_weight(weight, target)
        logits, target = without_ignored(logits, weight, dim), without_ignored(target, weight)
    logits, target = promote(logits, target)
    # Weights by distance rather than by index: NaN has no index, and planes need no gather.
    near = target.clamp(0, logits.shape[dim] - 1).unsqueeze(dim)
    share = 1 - (bins_along(dim, logits) - near).abs()
    share = torch.where(share <= 0, 0.0, share)
    below = logits - logits.detach().amax(dim, keepdim=True)
    below = torch.where(below < LOWEST, LOWEST + (logits - logits.detach()), below)
    loss = below.exp().sum(dim).log() - (share * below).sum(dim)
    return reduce_loss(loss, reduction, weight=weight, normalizer=normalizer)


class DFLoss(nn.Module):
    """Distribution focal loss (Li et al. 2020, arXiv:2006.04388): `dfl_loss` as a module.

    Args:
        reduction: `"none"`, `"mean"` or `"sum"`.
        loss_weight: the lambda that scales the result.
        dim: the axis of the bins.

    Raises:
        ValueError: for an unknown reduction, or a negative or non-finite `loss_weight`.

    Example:
        >>> import torch
        >>> from boxreg import DFLoss
        >>> logits = torch.tensor([[0.0, 8.0, 8.0, 0.0]])
        >>> DFLoss(loss_weight=0.5)(logits, torch.tensor([1.5]))
        tensor(0.3467)
    """

    @suggests_keywords
    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0, dim: int = -1) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        check_number("loss_weight", loss_weight, minimum=0)
        self.reduction, self.loss_weight, self.dim = reduction, loss_weight, dim

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """The loss of `logits` against `target`; arguments as in `dfl_loss`."""
        loss = dfl_loss(
            logits,
            target,
            reduction=self.reduction,
            weight=weight,
            normalizer=normalizer,
            dim=self.dim,
        )
        return loss * self.loss_weight

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"reduction={self.reduction!r}, loss_weight={self.loss_weight}, dim={self.dim}"
