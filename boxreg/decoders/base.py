"""What every decoder has in common: checks, layout, dtypes and the prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_boxes, check_number, check_tensor
from ..boxes import Planes


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
