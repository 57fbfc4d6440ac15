"""The reference backend: autograd through the shared maths, differentiable as often as one likes."""

from __future__ import annotations

from torch import Tensor

from .._dtypes import promote
from ..boxes import Planes, corners
from . import family


def eager(kind: str, pred: Tensor, target: Tensor, fmt: str, dim: int) -> Tensor:
    """The loss per pair of a row of the family."""
    a, b = planes(*promote(pred, target), fmt, dim)
    pair = family.pair(*a, *b)
    return family.loss(pair, family.VARIANTS[kind].penalty(pair))


def score(kind: str, a: Tensor, b: Tensor, fmt: str, dim: int) -> Tensor:
    """The score per pair of a row of the family, of boxes in one working dtype that broadcast."""
    pred, target = planes(a, b, fmt, dim)
    pair = family.pair(*pred, *target)
    return family.score(pair, family.VARIANTS[kind].penalty(pair))


def planes(pred: Tensor, target: Tensor, fmt: str, dim: int) -> tuple[Planes, Planes]:
    """The corners of both, scaled together where their lengths would overflow."""
    large = family.is_large(*pred.unbind(dim), *target.unbind(dim)).unsqueeze(dim)
    return (
        corners(family.in_range(pred, large), fmt, dim),
        corners(family.in_range(target, large), fmt, dim),
    )
