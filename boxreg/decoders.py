"""Decoders: the raw numbers of a network to boxes and back, one class a scheme.

Boxes are cxcywh throughout. `decode` turns raw numbers into boxes and `encode` is its inverse, in
closed form. Both take the coordinate axis as `dim`, so rows (N, 4) and planes (B, 4, H, W) go in
as they are.

`decode` never clamps: a box that reaches over the picture's border keeps its value and its gradient.
`encode` clips, because no finite raw number stands for a size of 0 or a centre on the edge of its range:

| dtype of the boxes | centre, as a fraction of its range | size, as a fraction of the picture |
|---|---|---|
| float64 | 2.2e-16 from either end | at least 2.2e-308 |
| float32, bfloat16 | 1.2e-7 from either end | at least 1.2e-38 |
| float16 | 6.1e-5 from either end | at least 6.1e-5 |

The size's bound is the smallest normal number of the boxes' dtype; the centre's is the same, or the epsilon
of the dtype computed in (float32 for the two half formats) where that is larger. So finite boxes always
encode to finite numbers, and decoding those has a gradient that the dtype can hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._checks import check_boxes, check_number, check_tensor
from ._raw import inverse_softplus, logit, sigmoid, sigmoid_slope, softplus, softplus_slope
from .boxes import Planes


def _computing_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class Decoder(ABC):
    """How a network's raw numbers stand for boxes.

    A scheme derives from this class and states both directions on planes, the tensors that are left when
    the coordinate axis is taken away: `_decode` and `_encode`. Checks, layout and dtypes are dealt with
    here. Make it a frozen dataclass, so that a decoder compares, hashes and prints by its settings.
    """

    needs_grid: ClassVar[bool] = False
    """Whether the last two axes of a plane must be the rows and columns of a grid."""

    @property
    def channels(self) -> int:
        """How many raw numbers stand for one box."""
        return 4

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the picture, in the unit of the boxes."""
        return (1.0, 1.0)

    @abstractmethod
    def _decode(self, raw: tuple[Tensor, ...]) -> Planes:
        """Planes of raw numbers, float32 or float64, to planes cx, cy, w, h."""

    @abstractmethod
    def _encode(self, boxes: Planes, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Planes cx, cy, w, h, float32 or float64, to planes of numbers that are finite in `dtype`."""

    def decode(self, raw: Tensor, dim: int = -1) -> Tensor:
        """Turn raw numbers into boxes.

        Args:
            raw: floating, any shape with `channels` numbers along `dim`.
            dim: the coordinate axis: -1 for rows (N, 4), 1 or -3 for planes (B, 4, H, W).

        Returns:
            Boxes in cxcywh, four coordinates along `dim`, in the dtype of `raw` (float16 and bfloat16
            are computed in float32). Nothing is clamped.

        Raises:
            TypeError: if `raw` is not a floating tensor.
            ValueError: if `raw` has no such axis, or no grid where the scheme needs one.
        """
        self.check_raw("raw", raw, dim)
        return _stack(self._decode(raw.to(_computing_dtype(raw.dtype)).unbind(dim)), raw, dim)

    def encode(self, boxes: Tensor, dim: int = -1) -> Tensor:
        """Turn boxes into the raw numbers that `decode` takes back to them.

        Centres and sizes that the scheme cannot express are clipped (see the table above); there, and
        only there, the gradient is 0.

        Args:
            boxes: cxcywh, floating, any shape with four coordinates along `dim`.
            dim: the coordinate axis: -1 for rows (N, 4), 1 or -3 for planes (B, 4, H, W).

        Returns:
            Raw numbers, `channels` along `dim`, in the dtype of `boxes`; finite wherever `boxes` is.

        Raises:
            TypeError: if `boxes` is not a floating tensor.
            ValueError: if `boxes` has no such axis, or no grid where the scheme needs one.
        """
        check_boxes("boxes", boxes, dim)
        self._check_grid("boxes", boxes)
        cx, cy, w, h = boxes.to(_computing_dtype(boxes.dtype)).unbind(dim)
        return _stack(self._encode((cx, cy, w, h), boxes.dtype), boxes, dim)

    def bias(self, prior: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        """The raw numbers that stand for a prior box: what the bias of an untrained head should be.

        A scheme that reads centres inside a grid's cells takes the prior as the box of a one-cell grid:
        with a centre in the middle of the picture, every cell starts in its own middle.

        Args:
            prior: one box (cx, cy, w, h) in the unit of the boxes, its centre inside the picture.
            dtype: dtype wanted.

        Returns:
            A tensor of shape (channels,).

        Raises:
            TypeError: if a coordinate is not a number.
            ValueError: if `prior` is not four finite numbers, has no positive size, or has its centre
                outside the picture.
        """
        _check_prior(prior, self.extent)
        one_cell = torch.tensor(list(prior), dtype=dtype, device="cpu").view(4, 1, 1)
        return self.encode(one_cell, dim=0).flatten()

    def check_raw(self, name: str, raw: Tensor, dim: int) -> None:
        """Raise, in the name of an argument, unless `decode` takes such raw numbers."""
        check_tensor(name, raw, floating=True)
        if not -raw.ndim <= dim < raw.ndim or raw.shape[dim] != self.channels:
            raise ValueError(
                f"{name}: got shape {tuple(raw.shape)}, expected {self.channels} numbers along dim {dim}"
            )
        self._check_grid(name, raw)

    def _check_grid(self, name: str, value: Tensor) -> None:
        if self.needs_grid and value.ndim < 3:
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)}, but {type(self).__name__} reads its grid from the "
                "last two axes beside the coordinates: expected (B, 4, H, W) with dim=1 or "
                "(B, H, W, 4) with dim=-1"
            )


def check_decoder(decoder: object) -> None:
    """Raise unless `decoder` is an instance of a `Decoder`."""
    if not isinstance(decoder, Decoder):
        raise TypeError(f"decoder: got {decoder!r}, expected an instance of a Decoder")


def _stack(planes: tuple[Tensor, ...], like: Tensor, dim: int) -> Tensor:
    return torch.stack(planes, dim).to(like.dtype)


def _check_prior(prior: Sequence[float], extent: tuple[float, float]) -> None:
    if not isinstance(prior, Sequence) or len(prior) != 4:
        raise ValueError(f"prior: got {prior!r}, expected four numbers (cx, cy, w, h)")
    for value in prior:
        check_number("prior", value)
    cx, cy, w, h = prior
    if not (w > 0 and h > 0):
        raise ValueError(f"prior: got {tuple(prior)}, expected a width and a height above 0")
    if not (0 < cx < extent[0] and 0 < cy < extent[1]):
        raise ValueError(
            f"prior: got {tuple(prior)}, expected a centre inside the picture: "
            f"0 < cx < {extent[0]} and 0 < cy < {extent[1]}"
        )


SCHEMES: dict[str, type[AxisDecoder]] = {}
"""The schemes that state the maths of an axis, by a name that is theirs alone."""

Settings = tuple[tuple[float, ...], tuple[float, ...]]
"""Numbers of a scheme: those of the x and those of the y axis."""


class AxisDecoder(Decoder):
    """A scheme that reads either axis by itself, a centre and a size from two raw numbers.

    A scheme states the maths of one axis, on tensors of any one shape: `decode_axis`, `decode_slopes` and
    `encode_axis`. The first two are also traced and copied into kernels (see `boxreg.iou`), so that a loss of
    raw numbers finds its gradient in one pass: they consist of operators, `xp` and the functions of
    `boxreg._raw`, without loops. All three get, after the two numbers: if `needs_grid`, the cell's
    index along the axis and the number of cells, then the `settings` of the axis.
    """

    scheme: ClassVar[str]
    """The key of this class in `SCHEMES`."""

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

    @staticmethod
    @abstractmethod
    def decode_axis(first: Any, second: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Two raw numbers of an axis to centre and size."""

    @staticmethod
    @abstractmethod
    def decode_slopes(first: Any, second: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any, Any]:
        """Slopes of `decode_axis`: the centre's at either raw number, then the size's; 0.0 where none."""

    @staticmethod
    @abstractmethod
    def encode_axis(centre: Any, size: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Centre and size to two raw numbers that are finite in `dtype`."""

    def _decode(self, raw: tuple[Tensor, ...]) -> Planes:
        return decode_planes(self.scheme, self.settings, raw)

    def _encode(self, boxes: Planes, dtype: torch.dtype) -> tuple[Tensor, ...]:
        cx, cy, w, h = boxes
        x, y = axis_arguments(self.scheme, self.settings, cx)
        tx, tw = self.encode_axis(cx, w, dtype, *x)
        ty, th = self.encode_axis(cy, h, dtype, *y)
        return tx, ty, tw, th


def decode_planes(scheme: str, settings: Settings, raw: tuple[Tensor, ...]) -> Planes:
    """Planes of raw numbers to planes cx, cy, w, h, by a scheme of the table."""
    first_x, first_y, second_x, second_y = raw
    x, y = axis_arguments(scheme, settings, first_x)
    cx, w = SCHEMES[scheme].decode_axis(first_x, second_x, *x)
    cy, h = SCHEMES[scheme].decode_axis(first_y, second_y, *y)
    return cx, cy, w, h


def axis_arguments(
    scheme: str, settings: Settings, plane: Tensor
) -> tuple[tuple[Tensor | float, ...], tuple[Tensor | float, ...]]:
    """What the maths of the x and of the y axis get besides the two numbers, for planes like this one."""
    if not SCHEMES[scheme].needs_grid:
        return settings[0], settings[1]
    cols, rows = cell_indices(plane)
    return (cols, plane.shape[-1], *settings[0]), (rows, plane.shape[-2], *settings[1])


def cell_indices(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (W,) and rows (H, 1) of the grid in the last two axes of `plane`, in its dtype."""
    rows, cols = plane.shape[-2:]
    return (
        torch.arange(cols, dtype=plane.dtype, device=plane.device),
        torch.arange(rows, dtype=plane.dtype, device=plane.device).unsqueeze(-1),
    )


@dataclass(frozen=True)
class UnitSquareDecoder(AxisDecoder):
    """A box anywhere in the picture, as fractions of it.

    `cx = sigmoid(tx)`, `cy = sigmoid(ty)`, `w = softplus(tw)`, `h = softplus(th)`

    where `softplus(t) = log(1 + exp(t))`. Centres lie inside the picture; sizes are positive and have no
    upper bound, and grow linearly in the raw number, so that a bad step cannot blow a box up as an
    exponential would. The gradient stays positive for raw centres within ±88 and raw sizes above -87
    (float64: ±709 and -708).

    Example:
        >>> import torch
        >>> from boxreg.decoders import UnitSquareDecoder
        >>> decoder = UnitSquareDecoder()
        >>> decoder.decode(torch.zeros(4))
        tensor([0.5000, 0.5000, 0.6931, 0.6931])
        >>> decoder.decode(decoder.encode(torch.tensor([0.5, 0.25, 0.2, 1.5])))
        tensor([0.5000, 0.2500, 0.2000, 1.5000])
    """

    @staticmethod
    def decode_axis(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        return sigmoid(first), softplus(second)

    @staticmethod
    def decode_slopes(first: Tensor, second: Tensor) -> tuple[Any, Any, Any, Any]:
        """See `AxisDecoder`."""
        return sigmoid_slope(first), 0.0, 0.0, softplus_slope(second)

    @staticmethod
    def encode_axis(centre: Tensor, size: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        return logit(centre, dtype), inverse_softplus(size, dtype)


@dataclass(frozen=True)
class GridCellDecoder(AxisDecoder):
    """One box a cell of a grid, its centre in or near that cell.

    `cx = (col + stretch * sigmoid(tx) - (stretch - 1) / 2) / W * picture_width`

    `w = picture_width * softplus(tw)`

    and likewise cy and h from the row, H and picture_height. H and W are read from the tensor: they are
    its last two axes when the coordinate axis is taken away.

    The sigmoid offset inside a cell, stretch 1, is from "YOLO9000: Better, Faster, Stronger" (Redmon and
    Farhadi, 2016, arXiv:1612.08242). It reaches a cell's edge only in the limit; a stretch above 1 brings
    the edge within reach, as in "YOLOv4: Optimal Speed and Accuracy of Object Detection" (Bochkovskiy,
    Wang and Liao, 2020, arXiv:2004.10934). Both papers multiply anchors by exp(tw); here sizes are those
    of `UnitSquareDecoder`, as is the range in which the gradient is positive.

    `encode` reads each box relative to the cell it is stored in; a centre farther away than that cell
    reaches is clipped to the nearest one that it does.

    Args:
        picture_size: width and height of the picture in the unit of the boxes, both above 0: (1.0, 1.0)
            for fractions of the picture, its size for pixels.
        stretch: width of the range of a centre, in cells, about the middle of its cell; at least 1.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from boxreg.decoders import GridCellDecoder
        >>> decoder = GridCellDecoder(picture_size=(640.0, 480.0))
        >>> boxes = decoder.decode(torch.zeros(1, 4, 3, 4), dim=1)
        >>> boxes[0, :, 1, 2]  # row 1, column 2, cells of 160 by 160 pixels
        tensor([400.0000, 240.0000, 443.6142, 332.7106])
    """

    needs_grid: ClassVar[bool] = True

    picture_size: tuple[float, float] = (1.0, 1.0)
    stretch: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.picture_size, Sequence) or len(self.picture_size) != 2:
            raise ValueError(f"picture_size: got {self.picture_size!r}, expected (width, height)")
        width, height = self.picture_size
        check_number("picture_size", width)
        check_number("picture_size", height)
        if not (width > 0 and height > 0):
            raise ValueError(f"picture_size: got {(width, height)}, expected a width and a height above 0")
        check_number("stretch", self.stretch, minimum=1.0)
        # A list would not hash.
        object.__setattr__(self, "picture_size", (width, height))

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the picture, in the unit of the boxes."""
        return self.picture_size

    @property
    def settings(self) -> Settings:
        """The picture's side along the axis, and the stretch."""
        width, height = self.picture_size
        return (width, self.stretch), (height, self.stretch)

    @staticmethod
    def decode_axis(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, side: float, stretch: float
    ) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        overhang = (stretch - 1) / 2
        return (cell + (stretch * sigmoid(first) - overhang)) / cells * side, side * softplus(second)

    @staticmethod
    def decode_slopes(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, side: float, stretch: float
    ) -> tuple[Any, Any, Any, Any]:
        """See `AxisDecoder`."""
        return stretch * sigmoid_slope(first) / cells * side, 0.0, 0.0, side * softplus_slope(second)

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
