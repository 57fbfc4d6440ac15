"""The dtype that losses are computed in: float64 if any input is, float32 otherwise."""

from __future__ import annotations

import torch
from torch import Tensor


def working_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    """The dtype that two tensors are computed in."""
    return torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32


def promote(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in their working dtype."""
    dtype = working_dtype(a, b)
    return a.to(dtype), b.to(dtype)
