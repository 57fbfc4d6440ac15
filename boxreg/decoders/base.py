"""What every decoder has in common: checks, layout, dtypes and the prior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_boxes, check_number, check_tensor
from ..boxes import Planes
from ..grids import Level

Prior = Sequence[float] | Sequence[Sequence[float]]
"""A box (cx, cy, w, h), or one for each of the K boxes of a cell."""


def _computing_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class Decoder(ABC):
    """How a network's raw outputs stand for boxes.

    A scheme derives from this class and states both directions on planes, the tensors that are left when
    the coordinate axis is taken away: `_decode` and `_encode`. Checks, layout and dtypes are dealt with
    here. Make it a frozen dataclass, so that a decoder compares, hashes and prints by its settings.
    """

    needs_grid: ClassVar[bool] = False
    """Whether the last two axes of a plane must be the rows and columns of a grid."""

    @property
    def channels(self) -> int:
        """How many raw outputs stand for one box."""
        return 4

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of what a one-cell grid covers, in the unit of the boxes.

        The image, or a single cell where the scheme knows the size of cells.
        """
        return (1.0, 1.0)

    @property
    def own_sizes(self) -> tuple[tuple[float, float], ...] | None:
        """The sizes (w, h) that a head starts from if nobody names others, a box of a cell each; or None."""
        return None

    def level(self, rows: int, cols: int) -> Level:
        """A map of `rows` by `cols` cells, with its stride in the unit of the boxes.

        Raises:
            ValueError: if the image has a size, and cut into these cells gives no squares.
        """
        width, height = self.extent
        if not math.isclose(width * rows, height * cols):
            raise ValueError(
                f"level: got {rows} rows and {cols} columns, expected square cells, but {self} cuts a "
                f"image of {width} by {height}"
            )
        return Level(rows, cols, width / cols)

    def _read(self, raw: Tensor, dim: int) -> tuple[Tensor, ...]:
        """What `_decode` gets of raw outputs that lie along `dim`."""
        return raw.unbind(dim)

    @abstractmethod
    def _decode(self, raw: tuple[Tensor, ...]) -> Planes:
        """Planes of raw outputs, float32 or float64, to planes cx, cy, w, h."""

    @abstractmethod
    def _encode(self, boxes: Planes, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Planes cx, cy, w, h, float32 or float64, to planes of numbers that are finite in `dtype`."""

    def decode(self, raw: Tensor, dim: int = -1) -> Tensor:
        """Turn raw outputs into boxes.

        Args:
            raw: floating, any shape with `channels` numbers along `dim`.
            dim: the coordinate axis: -1 for rows (N, 4), 1 or -3 for planes (B, 4, H, W), 1 for planes of
                K boxes a cell (B, 4, K, H, W).

        Returns:
            Boxes in cxcywh, four coordinates along `dim`, in the dtype of `raw` (float16 and bfloat16
            are computed in float32). Nothing is clamped.

        Raises:
            TypeError: if `raw` is not a floating tensor.
            ValueError: if `raw` has no such axis, or no grid where the scheme needs one.
        """
        self.check_raw("raw", raw, dim)
        return _stack(self._decode(self._read(raw.to(_computing_dtype(raw.dtype)), dim)), raw, dim)

    def encode(self, boxes: Tensor, dim: int = -1) -> Tensor:
        """Turn boxes into the raw outputs that `decode` takes back to them.

        Centres and sizes that the scheme cannot express are clipped (see the table above); there, and
        only there, the gradient is 0.

        Args:
            boxes: cxcywh, floating, any shape with four coordinates along `dim`.
            dim: the coordinate axis: -1 for rows (N, 4), 1 or -3 for planes (B, 4, H, W), 1 for planes of
                K boxes a cell (B, 4, K, H, W).

        Returns:
            Raw outputs, `channels` along `dim`, in the dtype of `boxes`; finite wherever `boxes` is.

        Raises:
            TypeError: if `boxes` is not a floating tensor.
            ValueError: if `boxes` has no such axis, or no grid where the scheme needs one.
        """
        check_boxes("boxes", boxes, dim)
        self._check_grid("boxes", boxes, dim)
        cx, cy, w, h = boxes.to(_computing_dtype(boxes.dtype)).unbind(dim)
        return _stack(self._encode((cx, cy, w, h), boxes.dtype), boxes, dim)

    def bias(self, prior: Prior, dtype: torch.dtype = torch.float32) -> Tensor:
        """The raw outputs that stand for a prior box: what the bias of an untrained head should be.

        A scheme that reads centres inside a grid's cells takes the prior as the box of a one-cell grid
        (see `extent`): with a centre in the middle of it, every cell starts in its own middle.

        Args:
            prior: one box (cx, cy, w, h) in the unit of the boxes, its centre inside `extent`; or K of them,
                one for each box of a cell.
            dtype: the dtype of the result.

        Returns:
            A tensor of shape (channels,), or (channels, K).

        Raises:
            TypeError: if a coordinate is not a number.
            ValueError: if a prior is not four finite numbers, has no positive size, has its centre outside,
                or is no box that the scheme can express.
        """
        several = isinstance(prior, Sequence) and bool(prior) and isinstance(prior[0], tuple | list)
        for box in prior if several else (prior,):
            _check_prior(box, self.extent)
        one_cell = torch.tensor(prior, dtype=torch.float64, device="cpu").movedim(-1, 0)[..., None, None]
        self._check_expressible(prior, one_cell)
        return self.encode(one_cell.to(dtype), dim=0).flatten(-2).squeeze(-1)

    def _check_expressible(self, prior: Prior, one_cell: Tensor) -> None:
        nearest = self.decode(self.encode(one_cell, dim=0), dim=0)
        if type(nearest) is not Tensor:  # a fake one knows no numbers
            return
        if not torch.allclose(nearest, one_cell, rtol=1e-6, atol=1e-6 * max(self.extent)):
            boxes = [tuple(round(number, 3) for number in box) for box in nearest.flatten(1).T.tolist()]
            raise ValueError(f"prior: got {prior}, expected what {self} can express; the nearest is {boxes}")

    def check_raw(self, name: str, raw: Tensor, dim: int) -> None:
        """Raise, in the name of an argument, unless `decode` takes such raw outputs."""
        check_tensor(name, raw, floating=True)
        if not -raw.ndim <= dim < raw.ndim or raw.shape[dim] != self.channels:
            raise ValueError(
                f"{name}: got shape {tuple(raw.shape)}, expected {self.channels} numbers along dim {dim}"
            )
        self._check_grid(name, raw, dim)

    def _check_grid(self, name: str, value: Tensor, dim: int) -> None:
        if self.needs_grid and value.ndim < 3:
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)}, but {type(self).__name__} reads its grid from the "
                "last two axes beside the coordinates: expected (B, 4, H, W) with dim=1 or "
                "(B, H, W, 4) with dim=-1"
            )


@dataclass(frozen=True)
class StrideDecoder(Decoder):
    """A scheme on a grid of squares of a known side: images of any size, one decoder a level."""

    needs_grid: ClassVar[bool] = True

    stride: float

    def __post_init__(self) -> None:
        check_number("stride", self.stride)
        if not self.stride > 0:
            raise ValueError(f"stride: got {self.stride}, expected a number above 0")

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of a cell, in the unit of the boxes."""
        return (self.stride, self.stride)

    @property
    def own_sizes(self) -> tuple[tuple[float, float], ...] | None:
        """A square of 8 by 8 cells, the one anchor of ATSS and TOOD."""
        return ((8 * self.stride, 8 * self.stride),)

    def level(self, rows: int, cols: int) -> Level:
        """A map of `rows` by `cols` cells, with its stride."""
        return Level(rows, cols, self.stride)


def check_decoder(decoder: object) -> None:
    """Raise unless `decoder` is an instance of a `Decoder`."""
    if not isinstance(decoder, Decoder):
        raise TypeError(f"decoder: got {decoder!r}, expected an instance of a Decoder")


def _stack(planes: tuple[Tensor, ...], like: Tensor, dim: int) -> Tensor:
    return torch.stack(planes, dim).to(like.dtype)


def _check_prior(prior: object, extent: tuple[float, float]) -> None:
    if not isinstance(prior, Sequence) or len(prior) != 4:
        raise ValueError(f"prior: got {prior!r}, expected four numbers (cx, cy, w, h)")
    for value in prior:
        check_number("prior", value)
    cx, cy, w, h = prior
    if not (w > 0 and h > 0):
        raise ValueError(f"prior: got {tuple(prior)}, expected a width and a height above 0")
    if not (0 < cx < extent[0] and 0 < cy < extent[1]):
        raise ValueError(
            f"prior: got {tuple(prior)}, expected a centre inside the image: "
            f"0 < cx < {extent[0]} and 0 < cy < {extent[1]}"
        )
