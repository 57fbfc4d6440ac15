"""Mixed precision: what a forward pass computes in, and the scaler that float16 needs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch.amp import GradScaler

from .errors import ConfigError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What a forward pass computes in; without an entry all is float32."""

LEAST_SCALE = 1.0
"""A gradient that is not finite at a scale above is put down to the scale, which is lowered then."""


def pick_precision(name: str, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision that `name` means: for "auto" bf16 on GPUs that have it, else fp16; fp32 on the CPU.

    Raises:
        ConfigError: for "bf16" on a GPU that has none.
    """
    has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not has_bf16:
        raise ConfigError("precision: got 'bf16', which this GPU has not; use --precision fp16 or auto")
    if name == "fp32" or (name == "auto" and device.type == "cpu"):
        return "fp32"
    return "bf16" if has_bf16 and name != "fp16" else "fp16"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Compute in a precision while entered, where that is safe."""
    return torch.autocast(device.type, DTYPES.get(precision), enabled=precision in DTYPES)


def grad_scaler(device: torch.device, precision: str) -> GradScaler:
    """Scales losses so that float16 holds their gradients; for other precisions it does nothing."""
    return GradScaler(device.type, enabled=precision == "fp16")
