"""A box a cell, sizes as fractions of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._checks import check_number
from .._raw import inverse_softplus, logit, sigmoid, sigmoid_grad, softplus, softplus_grad
from .axis import AxisDecoder, Settings


@dataclass(frozen=True)
class GridCellDecoder(AxisDecoder):
    """One box a cell of a grid, its centre in or near that cell.

    `cx = (col + stretch * sigmoid(tx) - (stretch - 1) / 2) / W * image_width`

    `w = image_width * softplus(tw)`

    and likewise cy and h from the row, H and image_height. H and W are read from the tensor: they are
    its last two axes when the coordinate axis is taken away.

    The sigmoid offset inside a cell, stretch 1, is from "YOLO9000: Better, Faster, Stronger" (Redmon and
    Farhadi, 2016, arXiv:1612.08242). It reaches a cell's edge only in the limit; a stretch above 1 brings
    the edge within reach, as in "YOLOv4: Optimal Speed and Accuracy of Object Detection" (Bochkovskiy,
    Wang and Liao, 2020, arXiv:2004.10934). Both papers multiply anchors by exp(tw); here sizes are those
    of `UnitSquareDecoder`, as is the range in which the gradient is positive.

    `encode` reads each box relative to the cell it is stored in; a centre farther away than that cell
    reaches is clipped to the nearest one that it does.

    Args:
        image_size: width and height of the image in the unit of the boxes, both above 0: (1.0, 1.0)
            for fractions of the image, its size for pixels.
        stretch: width of the range of a centre, in cells, about the middle of its cell; at least 1.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from boxreg.decoders import GridCellDecoder
        >>> decoder = GridCellDecoder(image_size=(640.0, 480.0))
        >>> boxes = decoder.decode(torch.zeros(1, 4, 3, 4), dim=1)
        >>> boxes[0, :, 1, 2]  # row 1, column 2, cells of 160 by 160 pixels
        tensor([400.0000, 240.0000, 443.6142, 332.7106])
    """

    needs_grid: ClassVar[bool] = True

    image_size: tuple[float, float] = (1.0, 1.0)
    stretch: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, Sequence) or len(self.image_size) != 2:
            raise ValueError(f"image_size: got {self.image_size!r}, expected (width, height)")
        width, height = self.image_size
        check_number("image_size", width)
        check_number("image_size", height)
        if not (width > 0 and height > 0):
            raise ValueError(f"image_size: got {(width, height)}, expected a width and a height above 0")
        check_number("stretch", self.stretch, minimum=1.0)
        # A list would not hash.
        object.__setattr__(self, "image_size", (width, height))

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the image, in the unit of the boxes."""
        return self.image_size

    @property
    def settings(self) -> Settings:
        """The image's side along the axis, and the stretch."""
        width, height = self.image_size
        return (width, self.stretch), (height, self.stretch)

    @staticmethod
    def decode_axis(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, side: float, stretch: float
    ) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        overhang = (stretch - 1) / 2
        return (cell + (stretch * sigmoid(first) - overhang)) / cells * side, side * softplus(second)

    @staticmethod
    def decode_axis_grad(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, side: float, stretch: float
    ) -> tuple[Any, Any, Any, Any]:
        """See `AxisDecoder`."""
        return stretch * sigmoid_grad(first) / cells * side, 0.0, 0.0, side * softplus_grad(second)

    @staticmethod
    def encode_axis(
        centre: Tensor,
        size: Tensor,
        dtype: torch.dtype,
        cell: Tensor,
        cells: float,
        side: float,
        stretch: float,
    ) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        overhang = (stretch - 1) / 2
        offset = (centre / side * cells - cell + overhang) / stretch
        return logit(offset, dtype), inverse_softplus(size / side, dtype)
