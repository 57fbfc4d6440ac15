"""Scores of every box with every other on a GPU, tile by tile, and their gradient in a second launch a side.

Imported only when a tensor on a GPU asks for it. Under Triton's interpreter it computes on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...boxes import FORMATS
from ..spec import Spec
from ._triton_launch import launch
from ._triton_maths import MATHS
from .triton import _combine, _in_range, _is_large, _load, _pair, _pair_backward, terms

TILE = (16, 32)
"""Boxes of `a` and of `b` whose scores a program computes."""

OWN, OTHERS, TILES = 16, 16, 32
"""Boxes whose gradient a program sums, over so many others at a time, so many times."""


@triton.jit
def _boxes(base, number, count):
    """The four numbers of boxes, of contiguous rows of them."""
    return _load(base, number, 0, 0, 0, 0, number < count, True)


@triton.jit
def _down(box):
    """Boxes along the first axis of a tile."""
    return box[0][:, None], box[1][:, None], box[2][:, None], box[3][:, None]


@triton.jit
def _across(box):
    """Boxes along the second axis of a tile."""
    return box[0][None, :], box[1][None, :], box[2][None, :], box[3][None, :]


@triton.jit
def _meet(a, b, TO_ENDS: tl.constexpr):
    """The pairs of a tile, and where their coordinates were scaled down."""
    large = _is_large(a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3])
    px1, px2 = TO_ENDS(_in_range(a[0], large), _in_range(a[2], large))
    py1, py2 = TO_ENDS(_in_range(a[1], large), _in_range(a[3], large))
    tx1, tx2 = TO_ENDS(_in_range(b[0], large), _in_range(b[2], large))
    ty1, ty2 = TO_ENDS(_in_range(b[1], large), _in_range(b[3], large))
    return _pair(px1, py1, px2, py2, tx1, ty1, tx2, ty2), large


@triton.jit
def scores_kernel(
    a,  # (images, rows, 4), contiguous
    b,  # (images, columns, 4), contiguous
    scores,  # (images, rows, columns), contiguous
    rows,
    columns,
    row_tiles,
    column_tiles,
    overlap_values,  # as for aligned boxes
    penalty_values,
    OVERLAP: tl.constexpr,
    PENALTY: tl.constexpr,
    TO_ENDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The scores of a tile."""
    tile = tl.program_id(0)
    image = (tile // column_tiles // row_tiles).to(tl.int64)
    row = (tile // column_tiles % row_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tile % column_tiles).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    of_a = _down(_boxes(a + image * rows * 4, row, rows))
    of_b = _across(_boxes(b + image * columns * 4, column, columns))
    pair, _ = _meet(of_a, of_b, TO_ENDS)
    place = (image * rows + row[:, None]) * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    score = OVERLAP(pair, *overlap_values) - PENALTY(pair, *penalty_values)
    tl.store(scores + place, score, mask=mask)


@triton.jit
def gradient_kernel(
    own,  # (images, own_boxes, 4), contiguous: the boxes whose gradient is asked for
    other,  # (images, other_boxes, 4), contiguous
    upstream,  # (images, ...), contiguous: a step for each box of either side
    sums,  # (chunks, images, own_boxes, 4)
    images,
    own_boxes,
    other_boxes,
    own_step,
    other_step,
    own_tiles,
    chunks,
    overlap_values,  # as for aligned boxes
    penalty_values,
    OVERLAP_GRAD: tl.constexpr,
    PENALTY_GRAD: tl.constexpr,
    TO_ENDS: tl.constexpr,
    BACKWARD: tl.constexpr,
    OF_A: tl.constexpr,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
    TILES: tl.constexpr,
):
    """The gradient at a few boxes of one side, summed over a chunk of the other side's in a fixed order."""
    program = tl.program_id(0)
    chunk = (program // own_tiles % chunks).to(tl.int64)
    image = (program // own_tiles // chunks).to(tl.int64)
    number = (program % own_tiles).to(tl.int64) * OWN + tl.arange(0, OWN)
    mine = _down(_boxes(own + image * own_boxes * 4, number, own_boxes))
    first_x = tl.zeros((OWN,), tl.float32)
    first_y = first_x
    second_x = first_x
    second_y = first_x
    start = chunk * TILES * OTHERS
    end = tl.minimum(start + TILES * OTHERS, other_boxes)
    # The interpreter of Triton 3.6 has no `range` up to a number that is not constant.
    while start < end:
        place = start + tl.arange(0, OTHERS)
        theirs = _across(_boxes(other + image * other_boxes * 4, place, other_boxes))
        if OF_A:
            pair, large = _meet(mine, theirs, TO_ENDS)
        else:
            pair, large = _meet(theirs, mine, TO_ENDS)
        overlap_grad, penalty_grad = OVERLAP_GRAD(pair, *overlap_values), PENALTY_GRAD(pair, *penalty_values)
        grad = _combine(1.0, -1.0, overlap_grad, penalty_grad)
        if OF_A:
            x1, y1, x2, y2, _, _, _, _ = _pair_backward(pair, grad, 0.0)
        else:
            _, _, _, _, x1, y1, x2, y2 = _pair_backward(pair, grad, 0.0)
        # A coordinate that was scaled down moves the score by as much less.
        x1, x2 = BACKWARD(_in_range(x1, large), _in_range(x2, large))
        y1, y2 = BACKWARD(_in_range(y1, large), _in_range(y2, large))
        mask = (number < own_boxes)[:, None] & (place < other_boxes)[None, :]
        at = image * own_boxes * other_boxes + number[:, None] * own_step + place[None, :] * other_step
        factor = tl.load(upstream + at, mask=mask, other=0.0)
        first_x += tl.sum(x1 * factor, axis=1)
        first_y += tl.sum(y1 * factor, axis=1)
        second_x += tl.sum(x2 * factor, axis=1)
        second_y += tl.sum(y2 * factor, axis=1)
        start += OTHERS
    sums += ((chunk * images + image) * own_boxes + number) * 4
    mask = number < own_boxes
    tl.store(sums, first_x, mask=mask)
    tl.store(sums + 1, first_y, mask=mask)
    tl.store(sums + 2, second_x, mask=mask)
    tl.store(sums + 3, second_y, mask=mask)


def scores(spec: Spec, a: Tensor, b: Tensor) -> Tensor:
    """Scores (B, N, M) of float32 boxes (B, N, 4) and (B, M, 4)."""
    values = torch.empty(*a.shape[:2], b.shape[1], dtype=torch.float32, device=a.device)
    if not values.numel():
        return values
    images, *shape = values.shape
    tiles = [triton.cdiv(boxes, step) for boxes, step in zip(shape, TILE, strict=True)]
    arguments = a.contiguous(), b.contiguous(), values, *shape, *tiles, *spec.values[:2]
    constants = _constants(spec, "OVERLAP", "PENALTY") | {"ROWS": TILE[0], "COLUMNS": TILE[1]}
    with torch.cuda.device_of(values):
        launch(scores_kernel, images * tiles[0] * tiles[1], spec.code, arguments, constants, warps=8)
    return values


def scores_backward(
    spec: Spec, a: Tensor, b: Tensor, upstream: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the boxes, from that of their scores: a launch for either side that needs one."""
    upstream = upstream.contiguous()
    return (
        _gradient(spec, a, b, upstream, True) if spec.pred_grad else None,
        _gradient(spec, b, a, upstream, False) if spec.target_grad else None,
    )


def _constants(spec: Spec, *names: str) -> dict[str, Any]:
    """The constants of either kernel that say what is computed."""
    every = terms(spec.kind, spec.mode, spec.inner)
    return {name: every[name] for name in names} | {"TO_ENDS": MATHS.copy(FORMATS[spec.pred_fmt].to_ends)}


def _gradient(spec: Spec, own: Tensor, other: Tensor, upstream: Tensor, of_a: bool) -> Tensor:
    if not upstream.numel():
        return torch.zeros_like(own)
    columns = upstream.shape[2]
    tiles, chunks = triton.cdiv(own.shape[1], OWN), triton.cdiv(other.shape[1], OTHERS * TILES)
    sums = torch.empty(chunks, *own.shape, dtype=torch.float32, device=own.device)
    arguments = (
        own.contiguous(),
        other.contiguous(),
        upstream,
        sums,
        *own.shape[:2],
        other.shape[1],
        *((columns, 1) if of_a else (1, columns)),
        tiles,
        chunks,
        *spec.values[:2],
    )
    constants = _constants(spec, "OVERLAP_GRAD", "PENALTY_GRAD") | {
        "BACKWARD": MATHS.copy(FORMATS[spec.pred_fmt].backward),
        "OF_A": of_a,
        "OWN": OWN,
        "OTHERS": OTHERS,
        "TILES": TILES,
    }
    key = spec.code, of_a
    with torch.cuda.device_of(sums):
        launch(gradient_kernel, len(own) * chunks * tiles, key, arguments, constants, warps=4)
    return sums[0] if chunks == 1 else sums.sum(0)
