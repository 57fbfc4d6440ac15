"""The maths of raw numbers that decoders share: sigmoid and softplus, their slopes and inverses.

A backend that does not compute with torch tensors brings a `sigmoid` and a `softplus` of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTPLUS_THRESHOLD = 40.0
"""Beyond this torch returns the number itself; its default of 20 is off by 1e-10 in float64."""


def sigmoid(t: Tensor) -> Tensor:
    """1 / (1 + exp(-t))."""
    # torch differentiates sigmoid as s * (1 - s), exactly 0 once s rounds to 1 (t > 17 in float32).
    # Reflected, the small factor is the one that is computed: alive to |t| = 88, 709 in float64.
    return torch.where(t > 0, 1 - torch.sigmoid(-t), torch.sigmoid(t))


def sigmoid_slope(t: Tensor) -> Tensor:
    """The slope of `sigmoid`, alive as far out."""
    return sigmoid(t) * sigmoid(-t)


def logit(p: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `sigmoid`, finite in `dtype`."""
    return torch.logit(p, eps=max(torch.finfo(p.dtype).eps, torch.finfo(dtype).smallest_normal))


def softplus(t: Tensor) -> Tensor:
    """log(1 + exp(t))."""
    return F.softplus(t, threshold=SOFTPLUS_THRESHOLD)


def softplus_slope(t: Tensor) -> Tensor:
    """The slope of `softplus`."""
    return sigmoid(t)


def inverse_softplus(y: Tensor, dtype: torch.dtype) -> Tensor:
    """log(exp(y) - 1), without the overflow of exp(y) and the cancellation at small y, finite in `dtype`."""
    limits = torch.finfo(dtype)
    y = y.clamp(limits.smallest_normal, limits.max)
    return y + torch.log(-torch.expm1(-y))


def pull_to_raw(
    at_centre: Tensor,
    at_size: Tensor,
    centre_first: Tensor,
    centre_second: Tensor,
    size_first: Tensor,
    size_second: Tensor,
) -> tuple[Tensor, Tensor]:
    """Slopes at centre and size to slopes at the two raw numbers of an axis, by `decode_slopes`."""
    return (
        at_centre * centre_first + at_size * size_first,
        at_centre * centre_second + at_size * size_second,
    )
