"""The maths of raw outputs that decoders share: functions onto a range, their derivatives and inverses.

A backend that does not compute with torch tensors brings a `sigmoid` and a `softplus` of its own; what else
`decode_axis` and `decode_axis_grad` call is written with operators and `xp`. Inverses are for torch alone.
"""

from __future__ import annotations

import math

import torch
import torch as xp
import torch.nn.functional as F
from torch import Tensor

SOFTPLUS_THRESHOLD = 40.0
"""Beyond this torch returns the number itself; its default of 20 is off by 1e-10 in float64."""

EXP_BOUND = math.log(1000 / 16)
"""Where an exponential goes on as its tangent: at 62.5 times its value at 0, as torchvision clips."""

KNEE = 2.0**-4
"""Where a rectified number leaves relu: above, the derivative is 1; below, it falls, but never to 0."""


def sigmoid(t: Tensor) -> Tensor:
    """1 / (1 + exp(-t))."""
    # torch differentiates sigmoid as s * (1 - s), exactly 0 once s rounds to 1 (t > 17 in float32).
    # Reflected, the small factor is the one that is computed: alive to |t| = 88, 709 in float64.
    return torch.where(t > 0, 1 - torch.sigmoid(-t), torch.sigmoid(t))


def sigmoid_grad(t: Tensor) -> Tensor:
    """The derivative of `sigmoid`, alive as far out."""
    return sigmoid(t) * sigmoid(-t)


def margin(computed: torch.dtype, dtype: torch.dtype) -> float:
    """How far inside the ends of a range encoded outputs stay."""
    return max(torch.finfo(computed).eps, torch.finfo(dtype).smallest_normal)


def logit(p: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `sigmoid`, finite in `dtype`."""
    return torch.logit(p, eps=margin(p.dtype, dtype))


def softplus(t: Tensor) -> Tensor:
    """log(1 + exp(t))."""
    return F.softplus(t, threshold=SOFTPLUS_THRESHOLD)


def softplus_grad(t: Tensor) -> Tensor:
    """The derivative of `softplus`."""
    return sigmoid(t)


def inverse_softplus(y: Tensor, dtype: torch.dtype) -> Tensor:
    """log(exp(y) - 1), without the overflow of exp(y) and the cancellation at small y, finite in `dtype`."""
    limits = torch.finfo(dtype)
    y = y.clamp(limits.smallest_normal, limits.max)
    return y + torch.log(-torch.expm1(-y))


def bounded_exp(t: Tensor, bound: float) -> Tensor:
    """exp(t), and above a bound its tangent there: it does not overflow, nor does its derivative become 0."""
    over = t > bound
    return xp.exp(xp.where(over, bound, t)) * (1.0 + xp.where(over, t - bound, 0.0))


def bounded_exp_grad(t: Tensor, bound: float) -> Tensor:
    """The derivative of `bounded_exp`."""
    return xp.exp(xp.where(t > bound, bound, t))


def inverse_bounded_exp(y: Tensor, bound: float, dtype: torch.dtype) -> Tensor:
    """The inverse of `bounded_exp`, finite in `dtype`."""
    limits, top = torch.finfo(dtype), math.exp(bound)
    y = y.clamp(limits.smallest_normal, limits.max)
    return torch.where(y > top, bound + (y / top - 1), y.clamp(max=top).log())


def rectified(t: Tensor) -> Tensor:
    """t, as relu; below the knee the hyperbola KNEE^2 / (2 KNEE - t), whose derivative there is 1 too."""
    over = t > KNEE
    return xp.where(over, t, KNEE * KNEE / (2.0 * KNEE - xp.where(over, KNEE, t)))


def rectified_grad(t: Tensor) -> Tensor:
    """The derivative of `rectified`."""
    share = KNEE / (2.0 * KNEE - xp.where(t > KNEE, KNEE, t))
    return share * share


def inverse_rectified(y: Tensor) -> Tensor:
    """The inverse of `rectified`."""
    return torch.where(y > KNEE, y, 2.0 * KNEE - KNEE * KNEE / y)


def between(low: Tensor, high: Tensor, cell: Tensor, stride: float) -> tuple[Tensor, Tensor]:
    """Centre and size of an axis, from the distances in cells of both ends from the middle of a cell."""
    return (cell + 0.5 + 0.5 * (high - low)) * stride, (low + high) * stride


def between_grad(low: Tensor, high: Tensor, stride: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of `between` in the order of `decode_axis_grad`, from those of the distances."""
    return -0.5 * stride * low, 0.5 * stride * high, stride * low, stride * high


def to_ends(
    centre: Tensor, size: Tensor, dtype: torch.dtype, cell: Tensor, stride: float
) -> tuple[Tensor, Tensor]:
    """The inverse of `between`, finite in `dtype`; an end on the wrong side of the middle moves to it."""
    least, most = margin(centre.dtype, dtype), torch.finfo(dtype).max
    # Two infinities would make NaN.
    offset = (centre / stride - (cell + 0.5)).clamp(-0.5 * most, 0.5 * most)
    half = (0.5 * (size / stride)).clamp(-0.5 * most, 0.5 * most)
    return (half - offset).clamp(least, most), (half + offset).clamp(least, most)


def raw_backward(
    at_centre: Tensor,
    at_size: Tensor,
    centre_first: Tensor,
    centre_second: Tensor,
    size_first: Tensor,
    size_second: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients at centre and size to gradients at the two raw outputs of an axis, by `decode_axis_grad`."""
    return (
        at_centre * centre_first + at_size * size_first,
        at_centre * centre_second + at_size * size_second,
    )
