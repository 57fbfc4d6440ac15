"""Grids: the maps of a pyramid, and the points in the middle of their cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_number


class Level(NamedTuple):
    """One map of a pyramid: its rows, its columns, and its stride, the side of a cell.

    A plain tuple (rows, cols, stride) does as well: `(*features.shape[-2:], 8)`. The stride has the unit of
    the boxes, as a rule pixels. Cells are squares; boxes given as fractions of an image fit only if the
    image is a square.
    """

    rows: int
    cols: int
    stride: float


Levels = Sequence[tuple[int, int, float]]
"""A pyramid: its levels in the order in which their predictions are laid end to end."""


class Points(NamedTuple):
    """The middles of cells, as planes: x, y, and the stride of the level that each is of, all (A,)."""

    x: Tensor
    y: Tensor
    stride: Tensor


def points_of(
    levels: Levels,
    *,
    per_cell: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Points:
    r"""The points of a pyramid: the middle of every cell of every level.

    \[ x = (\text{col} + \tfrac12)\, \text{stride}, \qquad y = (\text{row} + \tfrac12)\, \text{stride} \]

    as in "FCOS: Fully Convolutional One-Stage Object Detection" (Tian et al. 2019, arXiv:1904.01355). The
    order is that of maps (B, ..., K, H, W) flattened from K on and laid end to end: level by level, and
    within a level box by box, row by row.

    Args:
        levels: (rows, cols, stride) of every level; the stride in the unit of the boxes.
        per_cell: boxes per cell, K; each has its own copy of the point.
        dtype: the dtype of the result.
        device: the device of the result, torch's default if None.

    Returns:
        x, y and stride, (A,) each, A being the sum of K * rows * cols; they broadcast with planes (B, A).

    Raises:
        TypeError: if a number is of the wrong type.
        ValueError: for no level, a level that is not three numbers, or numbers out of their range.

    Example:
        >>> from boxreg import points_of
        >>> points = points_of([(2, 3, 8), (1, 1, 16)])
        >>> points.x
        tensor([ 4., 12., 20.,  4., 12., 20.,  8.])
        >>> points.stride
        tensor([ 8.,  8.,  8.,  8.,  8.,  8., 16.])
    """
    check_levels(levels)
    _check_count("per_cell", per_cell)
    planes = [_points_of_level(*level, per_cell, dtype, device) for level in levels]
    return Points(*(torch.cat(plane) for plane in zip(*planes, strict=True)))


def _points_of_level(
    rows: int,
    cols: int,
    stride: float,
    per_cell: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Points:
    x, y = centres_of((rows, cols, stride), dtype, device)
    shape = (per_cell, rows, cols)
    return Points(
        x.expand(shape).flatten(),
        y.unsqueeze(-1).expand(shape).flatten(),
        x.new_full(shape, stride).flatten(),
    )


def centres_of(
    level: tuple[int, int, float], dtype: torch.dtype, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """The middles of a map's columns (cols,) and of its rows (rows,)."""
    rows, cols, stride = level
    x, y = (torch.arange(cells, dtype=dtype, device=device) for cells in (cols, rows))
    return (x + 0.5) * stride, (y + 0.5) * stride


def check_levels(levels: Levels) -> None:
    """Raise unless `levels` is a sequence of (rows, cols, stride)."""
    if not isinstance(levels, Sequence):
        raise TypeError(f"levels: got {type(levels).__name__}, expected a sequence of (rows, cols, stride)")
    if not levels:
        raise ValueError("levels: got none, expected at least one (rows, cols, stride)")
    for level in levels:
        if not isinstance(level, Sequence) or len(level) != 3:
            raise ValueError(f"levels: got {level!r}, expected (rows, cols, stride)")
        rows, cols, stride = level
        _check_count("levels: rows", rows)
        _check_count("levels: cols", cols)
        check_number("levels: stride", stride)
        if not stride > 0:
            raise ValueError(f"levels: stride: got {stride}, expected a number above 0")


def _check_count(name: str, value: object) -> None:
    # A size that torch traces as a symbol is not an int, and is at least 1 wherever there is a map.
    if isinstance(value, torch.SymInt):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an int")
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")
