"""The dtype that losses are computed in: float64 if any input is, float32 otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
    """float16 to a wider dtype; on the way back a finite gradient saturates at float16's range."""

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
        finite = gradient.clamp(-most, most)
        return torch.where(gradient.isinf(), gradient, finite).to(torch.float16), None
