"""The reference backend: autograd through the shared maths, differentiable as often as one likes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..boxes import Planes, corners
from . import family


def eager(kind: str, pred: Tensor, target: Tensor, fmt: str, dim: int) -> Tensor:
    """The loss per pair of a row of the family."""
    a, b = planes(*promote(pred, target), fmt, dim)
    return family.loss(family.pair(*a, *b), family.VARIANTS[kind])


def score(kind: str, a: Tensor, b: Tensor, fmt: str, dim: int) -> Tensor:
    """The score per pair of a row of the family, of boxes in one working dtype that broadcast."""
    pred, target = planes(a, b, fmt, dim)
    return family.score(family.pair(*pred, *target), family.VARIANTS[kind])


def planes(pred: Tensor, target: Tensor, fmt: str, dim: int) -> tuple[Planes, Planes]:
    """The corners of both, scaled together where their lengths would overflow."""
    large = family.is_large(*pred.unbind(dim), *target.unbind(dim)).unsqueeze(dim)
    return (
        corners(family.in_range(pred, large), fmt, dim),
        corners(family.in_range(target, large), fmt, dim),
    )


def promote(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one working dtype: float64 if either is, float32 otherwise."""
    double = torch.float64 in (a.dtype, b.dtype)
    dtype = torch.float64 if double else torch.float32
    return _working(a, dtype), _working(b, dtype)


def _working(boxes: Tensor, dtype: torch.dtype) -> Tensor:
    if boxes.dtype == torch.float16:
        widened: Tensor = _Widen.apply(boxes, dtype)
        return widened
    return boxes.to(dtype)


class _Widen(torch.autograd.Function):
    """float16 to a wider dtype; on the way back a gradient saturates at float16's range."""

    generate_vmap_rule = True

    @staticmethod
    def forward(boxes: Tensor, dtype: torch.dtype) -> Tensor:
        return boxes.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        most = torch.finfo(torch.float16).max
        return gradient.clamp(-most, most).to(torch.float16), None
