"""The layouts of boxes, as kernels read them."""

from __future__ import annotations

from torch import Tensor


def as_planes(boxes: Tensor, dim: int) -> Tensor:
    """Boxes of any layout as (4, outer, inner): a view, or a copy where the strides allow none."""
    shape = boxes.shape
    return boxes.reshape(shape[:dim].numel(), 4, shape[dim + 1 :].numel()).movedim(1, 0)
