"""Decoders that read either axis by itself: what backends run inside their pass."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..boxes import Planes
from .base import Decoder

SCHEMES: dict[str, type[AxisDecoder]] = {}
"""The schemes that state the maths of an axis, by a name that is theirs alone."""

Settings = tuple[tuple[float, ...], tuple[float, ...]]
"""Numbers of a scheme: those of the x and those of the y axis."""


class AxisDecoder(Decoder):
    """A scheme that reads either axis by itself, a centre and a size from two raw outputs.

    A scheme states the maths of one axis, on tensors of any one shape: `decode_axis`, `decode_axis_grad` and
    `encode_axis`. The first two are also traced and copied into kernels (see `boxreg.iou`), so that a loss of
    raw outputs finds its gradient in one pass: they consist of operators, `xp` and the functions of
    `boxreg._raw`, without loops. All three get, after the two numbers: if `needs_grid`, the cell's
    index along the axis and the number of cells; if `needs_anchors`, the side of the box's anchor; then the
    `settings` of the axis.
    """

    needs_anchors: ClassVar[bool] = False
    """Whether each box of a cell has an anchor: the axis before rows and columns then counts anchors."""

    scheme: str
    """The key in `SCHEMES` of the class that states the maths: its own, unless an instance sets another."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.scheme = f"{cls.__module__}.{cls.__qualname__}"
        while cls.scheme in SCHEMES:  # a class that is defined again is another class
            cls.scheme += "'"
        SCHEMES[cls.scheme] = cls

    @property
    def settings(self) -> Settings:
        """The numbers that the maths of the x and of the y axis need besides."""
        return (), ()

    @property
    def anchor_sides(self) -> Settings:
        """The widths and the heights of the anchors, of a scheme that needs them."""
        return (), ()

    @staticmethod
    @abstractmethod
    def decode_axis(first: Any, second: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Two raw outputs of an axis to centre and size."""

    @staticmethod
    @abstractmethod
    def decode_axis_grad(first: Any, second: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any, Any]:
        """Derivatives of `decode_axis`: the centre's by either raw output, then the size's; 0.0 if none."""

    @staticmethod
    @abstractmethod
    def encode_axis(centre: Any, size: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Centre and size to two raw outputs that are finite in `dtype`."""

    def _decode(self, raw: tuple[Tensor, ...]) -> Planes:
        return decode_planes(self.scheme, self.settings, self.anchor_sides, raw)

    def _encode(self, boxes: Planes, dtype: torch.dtype) -> tuple[Tensor, ...]:
        cx, cy, w, h = boxes
        encode_axis = SCHEMES[self.scheme].encode_axis
        x, y = axis_arguments(self.scheme, self.settings, self.anchor_sides, cx)
        tx, tw = encode_axis(cx, w, dtype, *x)
        ty, th = encode_axis(cy, h, dtype, *y)
        return tx, ty, tw, th


def decode_planes(scheme: str, settings: Settings, anchor_sides: Settings, raw: tuple[Tensor, ...]) -> Planes:
    """Planes of raw outputs to planes cx, cy, w, h, by a scheme of the table."""
    first_x, first_y, second_x, second_y = raw
    x, y = axis_arguments(scheme, settings, anchor_sides, first_x)
    cx, w = SCHEMES[scheme].decode_axis(first_x, second_x, *x)
    cy, h = SCHEMES[scheme].decode_axis(first_y, second_y, *y)
    return cx, cy, w, h


def axis_arguments(
    scheme: str, settings: Settings, anchor_sides: Settings, plane: Tensor
) -> tuple[tuple[Tensor | float, ...], tuple[Tensor | float, ...]]:
    """What the maths of the x and of the y axis get besides the two numbers, for planes like this one."""
    x: tuple[Tensor | float, ...]
    y: tuple[Tensor | float, ...]
    x, y = settings
    if SCHEMES[scheme].needs_anchors:
        widths, heights = anchor_sides
        x, y = (of_boxes(widths, plane), *x), (of_boxes(heights, plane), *y)
    if SCHEMES[scheme].needs_grid:
        cols, rows = cell_indices(plane)
        x, y = (cols, plane.shape[-1], *x), (rows, plane.shape[-2], *y)
    return x, y


def cell_indices(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (W,) and rows (H, 1) of the grid in the last two axes of `plane`, in its dtype."""
    rows, cols = plane.shape[-2:]
    return (
        torch.arange(cols, dtype=plane.dtype, device=plane.device),
        torch.arange(rows, dtype=plane.dtype, device=plane.device).unsqueeze(-1),
    )


def of_boxes(numbers: tuple[float, ...], plane: Tensor) -> Tensor:
    """A number for each of the K boxes of a cell, (K, 1, 1), in the dtype of `plane`; () if K is 1."""
    # Filled one by one: a list would be copied to the device, which waits for it.
    filled = [torch.full((), number, dtype=plane.dtype, device=plane.device) for number in numbers]
    return torch.stack(filled).view(-1, 1, 1) if len(filled) > 1 else filled[0]
