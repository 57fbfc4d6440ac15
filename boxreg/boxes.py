"""Box formats: xyxy, xywh and cxcywh, in any layout.

`xyxy` is (x1, y1, x2, y2), `xywh` is (x1, y1, width, height), `cxcywh` is (centre x, centre y,
width, height). The unit is the caller's: pixels, or fractions of the picture. `dim` says along
which axis the four coordinates lie, so rows (N, 4) and planes (B, 4, H, W) both work without a
permutation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import check_boxes, check_choice

Planes = tuple[Tensor, Tensor, Tensor, Tensor]
"""The four coordinates of boxes, each a tensor of the boxes' shape without the coordinate axis."""

_TO_CORNERS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Planes]] = {
    "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    "xywh": lambda x, y, w, h: (x, y, x + w, y + h),
    "cxcywh": lambda cx, cy, w, h: (cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h),
}

_FROM_CORNERS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Planes]] = {
    "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    "xywh": lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    "cxcywh": lambda x1, y1, x2, y2: (x1 + 0.5 * (x2 - x1), y1 + 0.5 * (y2 - y1), x2 - x1, y2 - y1),
}

FORMATS = tuple(_TO_CORNERS)
"""The box formats that every `fmt` argument understands."""


def corners(boxes: Tensor, fmt: str, dim: int = -1) -> Planes:
    """The corners x1, y1, x2, y2 of `boxes` as four tensors, without copying the layout."""
    a, b, c, d = boxes.unbind(dim)
    return _TO_CORNERS[fmt](a, b, c, d)


def convert(boxes: Tensor, src: str, dst: str, dim: int = -1) -> Tensor:
    """Convert boxes from one format to another.

    Args:
        boxes: four coordinates along `dim`, any shape, floating or integer (integers become float32).
        src: format of `boxes`: `"xyxy"`, `"xywh"` or `"cxcywh"`.
        dst: format wanted.
        dim: the coordinate axis.

    Returns:
        A tensor of the same shape and unit, differentiable.

    Raises:
        ValueError: for an unknown format, or no axis of four coordinates.

    Example:
        >>> import torch
        >>> from boxreg.boxes import convert
        >>> convert(torch.tensor([0.5, 0.5, 0.2, 0.4]), "cxcywh", "xywh")
        tensor([0.4000, 0.3000, 0.2000, 0.4000])
    """
    check_choice("src", src, FORMATS)
    check_choice("dst", dst, FORMATS)
    check_boxes("boxes", boxes, dim, floating=False)
    if not boxes.is_floating_point():
        boxes = boxes.float()
    if src == dst:
        return boxes
    return torch.stack(_FROM_CORNERS[dst](*corners(boxes, src, dim)), dim)


def area(boxes: Tensor, fmt: str = "xyxy", dim: int = -1) -> Tensor:
    """Area of each box, width x height; 0 for a box that is empty or inverted.

    Args:
        boxes: four coordinates along `dim`, any shape.
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`.
        dim: the coordinate axis.

    Returns:
        The boxes' shape without `dim`, in the unit of `boxes` squared.

    Raises:
        ValueError: for an unknown format, or no axis of four coordinates.

    Example:
        >>> import torch
        >>> from boxreg.boxes import area
        >>> area(torch.tensor([[1.0, 1.0, 3.0, 4.0], [3.0, 1.0, 1.0, 4.0]]))
        tensor([6., 0.])
    """
    check_choice("fmt", fmt, FORMATS)
    check_boxes("boxes", boxes, dim, floating=False)
    x1, y1, x2, y2 = corners(boxes if boxes.is_floating_point() else boxes.float(), fmt, dim)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
