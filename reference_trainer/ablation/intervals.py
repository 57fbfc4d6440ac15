"""Means of a few numbers, and how far they may be off: Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """The mean of some numbers and its interval of confidence, which takes at least two numbers."""

    mean: float
    low: float | None
    high: float | None
    of: int

    @property
    def sign(self) -> int | None:
        """1 or -1 if the whole interval lies on that side of 0, else 0; None if there is no interval."""
        if self.low is None or self.high is None:
            return None
        return (self.low > 0) - (self.high < 0)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean, and `mean ± t s / sqrt(n)` with n - 1 degrees of freedom (Student 1908)."""
    count = len(values)
    if count == 0:
        return Interval(math.nan, None, None, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile(confidence, count - 1) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half, count)


def t_quantile(confidence: float, freedom: int) -> float:
    """The t that |T| stays below with probability `confidence`, for the given degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)): a finite sum for whole degrees of freedom (Fisher 1935)."""
    cosine, odd = math.cos(angle), freedom % 2
    # 1 + 1/2 cos^2 + 1/2 3/4 cos^4 + ... for even, cos + 2/3 cos^3 + 2/3 4/5 cos^5 + ... for odd freedom.
    term, total = (cosine if odd else 1.0), 0.0
    for step in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (step - 1) / step
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
