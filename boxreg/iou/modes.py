"""What a loss makes of overlap and penalty, with the partial derivatives: the modes.

Written like `geometry`, and run by every backend.
"""

from __future__ import annotations

import torch as xp
from torch import Tensor

LOWEST = 2.0**-20
"""Below this overlap (1e-6) the logarithm goes on as its tangent."""

HIGHEST = 4.0
"""Above this penalty its power goes on as its tangent. Only penalties without a bound get there."""


def linear(overlap: Tensor, penalty: Tensor) -> Tensor:
    """1 - overlap + penalty."""
    return 1.0 - overlap + penalty


def linear_grad(overlap: Tensor, penalty: Tensor) -> tuple[float, float]:
    """Gradient of `linear`."""
    return -1.0, 1.0


def difference(overlap: Tensor, penalty: Tensor) -> Tensor:
    """Overlap - penalty: the score."""
    return overlap - penalty


def difference_grad(overlap: Tensor, penalty: Tensor) -> tuple[float, float]:
    """Gradient of `difference`."""
    return 1.0, -1.0


def logarithmic(overlap: Tensor, penalty: Tensor) -> Tensor:
    """-log(overlap) + penalty."""
    low = overlap < LOWEST
    tangent = xp.where(low, 1.0 - overlap / LOWEST, 0.0)
    return tangent - xp.log(xp.where(low, LOWEST, overlap)) + penalty


def logarithmic_grad(overlap: Tensor, penalty: Tensor) -> tuple[Tensor, float]:
    """Gradient of `logarithmic`."""
    return -1.0 / xp.where(overlap < LOWEST, LOWEST, overlap), 1.0


def squared_overlap(overlap: Tensor, penalty: Tensor) -> Tensor:
    """1 - overlap^2 + penalty."""
    return 1.0 - overlap * overlap + penalty


def squared_overlap_grad(overlap: Tensor, penalty: Tensor) -> tuple[Tensor, float]:
    """Gradient of `squared_overlap`."""
    return -2.0 * overlap, 1.0


def power(base: Tensor, exponent: float) -> Tensor:
    """Base^exponent of a base that is negative by rounding at most; 0 of 0, whatever the exponent."""
    none = base <= 0
    return xp.where(none, 0.0, xp.exp(exponent * xp.log(xp.where(none, 1.0, base))))


def powers(overlap: Tensor, penalty: Tensor, alpha: float) -> Tensor:
    """1 - overlap^alpha + penalty^alpha."""
    high = penalty > HIGHEST
    tangent = xp.where(high, alpha * HIGHEST ** (alpha - 1.0) * (penalty - HIGHEST), 0.0)
    return 1.0 - power(overlap, alpha) + power(xp.where(high, HIGHEST, penalty), alpha) + tangent


def powers_grad(overlap: Tensor, penalty: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Gradient of `powers`."""
    near = xp.where(penalty > HIGHEST, HIGHEST, penalty)
    return -alpha * power(overlap, alpha - 1.0), alpha * power(near, alpha - 1.0)
