"""An image to test with, and how to save it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

RACCOONS = Path(os.environ.get("BOXREG_RACCOONS", "nowhere"))
"""A YOLO folder of 200 photographs that two tests read if it is there."""


def ramp(height: int = 20, width: int = 30) -> Tensor:
    """A smooth image without any symmetry: JPEG keeps it, and a wrong turn shows."""
    down, across = torch.arange(height).view(-1, 1) * 4, torch.arange(width) * 3
    return torch.stack([down.expand(height, width), across.expand(height, width), down + across]).byte()


def save(image: Tensor, file: Path, **options: Any) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, **options)
