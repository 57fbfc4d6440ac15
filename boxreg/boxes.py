"""Box formats: xyxy, xywh and cxcywh, in any layout.

`xyxy` is (x1, y1, x2, y2), `xywh` is (x1, y1, width, height), `cxcywh` is (centre x, centre y,
width, height). The unit is the caller's: pixels, or fractions of the image. `dim` says along
which axis the four coordinates lie, so rows (N, 4) and planes (B, 4, H, W) both work without a
permutation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_boxes, check_choice

Planes = tuple[Tensor, Tensor, Tensor, Tensor]
"""The four coordinates of boxes, each a tensor of the boxes' shape without the coordinate axis."""


def ends_of_corners(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The two ends of a side of xyxy: as they are."""
    return low, high


def ends_of_corner_and_size(low: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two ends of a side of xywh."""
    return low, low + size


def ends_of_centre_and_size(centre: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two ends of a side of cxcywh."""
    return centre - 0.5 * size, centre + 0.5 * size


def corner_and_size(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A side as xywh has it."""
    return low, high - low


def centre_and_size(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """A side as cxcywh has it."""
    return low + 0.5 * (high - low), high - low


def corner_and_size_backward(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients at the ends of a side to those at its low end and size."""
    return low + high, high


def centre_and_size_backward(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients at the ends of a side to those at its centre and size."""
    return low + high, 0.5 * (high - low)


class Format(NamedTuple):
    """What a box's first and second number on an axis mean: to the two ends, back, and gradients back."""

    to_ends: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    from_ends: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


FORMATS: dict[str, Format] = {
    "xyxy": Format(ends_of_corners, ends_of_corners, ends_of_corners),
    "xywh": Format(ends_of_corner_and_size, corner_and_size, corner_and_size_backward),
    "cxcywh": Format(ends_of_centre_and_size, centre_and_size, centre_and_size_backward),
}
"""The box formats that every `fmt` argument understands."""


def corners(boxes: Tensor, fmt: str, dim: int = -1) -> Planes:
    """The corners x1, y1, x2, y2 of `boxes` as four tensors, without copying the layout."""
    a, b, c, d = boxes.unbind(dim)
    (x1, x2), (y1, y2) = FORMATS[fmt].to_ends(a, c), FORMATS[fmt].to_ends(b, d)
    return x1, y1, x2, y2


def convert(boxes: Tensor, src: str, dst: str, dim: int = -1) -> Tensor:
    """Convert boxes from one format to another.

    Seldom needed: losses, scores and assigners take the format as `fmt` (see `aligned_loss`, `box_iou`).

    Args:
        boxes: four coordinates along `dim`, any shape, floating or integer (integers become float32).
        src: format of `boxes`: `"xyxy"`, `"xywh"` or `"cxcywh"`.
        dst: format to convert to.
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
    x1, y1, x2, y2 = corners(boxes, src, dim)
    (a, c), (b, d) = FORMATS[dst].from_ends(x1, x2), FORMATS[dst].from_ends(y1, y2)
    return torch.stack((a, b, c, d), dim)


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
