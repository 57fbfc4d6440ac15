"""Loss and gradient in one pass on the CPU, from the closed-form slopes, in blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from ..boxes import FORMATS
from ._copies import copy_maths
from ._libraries import TORCH, Array, Library, numpy_library
from ._one_pass import Pass, as_planes
from ._program import Program, Trace, half

BLOCK = 2**16
"""Boxes computed at a time."""

SMALL = 2**14
"""Up to so many boxes are computed by NumPy, where it is installed."""

ORDINARY_SIDE = 2.0**-24
ORDINARY_COORDINATE = 2.0**24
"""Of boxes with sides and coordinates between these, nothing is inverted, near 0 or near the float range."""


@cache
def program(wanted: Pass, ordinary: bool, library: Library) -> Program:
    """The maths of a pass: from (first, second) of pred and of target, two axes each, to its results.

    Outputs: the loss, then the gradient of pred's first and second, then of target's, as `wanted` says.

    Args:
        wanted: what is computed.
        ordinary: made for ordinary boxes, for which most of the care can be left out.
        library: what computes.
    """
    trace = Trace(weighs=ordinary and library.weighs)
    known = dict.fromkeys(("is_inverted", "is_zero", "is_negligible"), lambda *_: False) if ordinary else {}
    maths = copy_maths(xp=trace, hold=lambda value: value, both=trace.both, **known)
    penalty, slopes = (maths[function.__name__] for function in maths["VARIANTS"][wanted.kind])
    to_ends, _, pull = (maths[function.__name__] for function in maths["FORMATS"][wanted.fmt])

    inputs = [trace.term("input", i, wide=True) for i in range(4)]
    planes = [half(term, axis) for term in inputs for axis in (0, 1)]
    large = False if ordinary else maths["is_large"](*planes)
    p1, p2, t1, t2 = (maths["in_range"](term, large) for term in inputs)
    ends = (*to_ends(p1, p2), *to_ends(t1, t2))
    pair = maths["pair"](*(half(end, axis) for box in (ends[:2], ends[2:]) for end in box for axis in (0, 1)))
    results = [maths["loss"](pair, penalty(pair))]
    x1, y1, x2, y2, *of_target = maths["pullback"](pair, slopes(pair))
    gradients = [*pull(trace.stack(x1, y1), trace.stack(x2, y2))] if wanted.of_pred else []
    if wanted.of_target:
        x1, y1, x2, y2 = of_target
        gradients += pull(trace.stack(x1, y1), trace.stack(x2, y2))
    # A coordinate that was scaled down moves the loss by as much less.
    return Program(library, inputs, results + [maths["in_range"](slope, large) for slope in gradients])


def one_pass(
    wanted: Pass, pred: Tensor, target: Tensor, dim: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss per pair and the gradients of its sum, in the working dtype; nothing is differentiable."""
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    loss = torch.empty(pred.select(dim, 0).shape, dtype=dtype, device=pred.device)
    gradients = [
        torch.empty(pred.shape, dtype=dtype, device=pred.device) if asked else None
        for asked in (wanted.of_pred, wanted.of_target)
    ]
    boxes = [as_planes(side.detach(), dim) for side in (pred, target)]
    slopes = [as_planes(gradient, dim) for gradient in gradients if gradient is not None]
    losses = loss.view(boxes[0].shape[1:])
    if 0 < loss.numel() <= SMALL and loss.is_cpu and numpy_library():
        _small(wanted, [side.to(dtype) for side in boxes], losses, slopes)
        return loss, gradients[0], gradients[1]
    for rows, columns in blocks(*losses.shape):
        _block(
            wanted,
            [side[:, rows, columns] for side in boxes],
            losses[rows, columns],
            [side[:, rows, columns] for side in slopes],
        )
    return loss, gradients[0], gradients[1]


def blocks(outer: int, inner: int) -> Iterator[tuple[slice, slice]]:
    """Cut (outer, inner) into parts of at most `BLOCK` places, whole rows of it where several fit."""
    rows = max(BLOCK // max(inner, 1), 1)
    for row in range(0, outer, rows):
        for column in range(0, inner, BLOCK):
            yield slice(row, row + rows), slice(column, column + BLOCK)


def _small(wanted: Pass, boxes: list[Tensor], loss: Tensor, slopes: list[Tensor]) -> None:
    """Few boxes, by NumPy: with so many calls on so little, what a call costs is what it takes."""
    library, n = numpy_library(), loss.numel()
    assert library is not None
    flat = [side.contiguous().numpy().reshape(4, n) for side in boxes]
    found = [library.empty(flat[0], (4, n), False) for _ in slopes]
    inputs = [part for side in flat for part in (side[:2], side[2:])]
    outputs = [loss.numpy().reshape(n), *(part for side in found for part in (side[:2], side[2:]))]
    with library.silent():
        ordinary = all(are_ordinary(side, wanted.fmt) for side in flat)
        program(wanted, ordinary, library)(n, inputs, outputs)
    for side, values in zip(slopes, found, strict=True):
        side.numpy()[...] = values.reshape(side.shape)


def _block(wanted: Pass, boxes: list[Tensor], loss: Tensor, slopes: list[Tensor]) -> None:
    n = loss.numel()
    if all(side.dtype == loss.dtype and _is_flat(side) for side in boxes):
        flat = [side[:, 0] for side in boxes]
    else:
        # Stacked plane by plane: torch's own copy of a transposed tensor takes six times as long.
        both = loss.new_empty(2, 4, *loss.shape)
        for side, planes in zip(boxes, both, strict=True):
            torch.stack(side.to(loss.dtype).unbind(), out=planes)
        flat = [both.view(2, 4, n)]
    found = [side[:, 0] if _is_flat(side) else side.new_empty(4, n) for side in slopes]
    inputs = [part for side in flat for part in side.view(-1, 2, n).unbind()]
    outputs = [loss.view(n), *(part for side in found for part in side.view(2, 2, n).unbind())]
    # Elsewhere than on the CPU the answer would have to be waited for.
    ordinary = loss.is_cpu and all(are_ordinary(side, wanted.fmt) for side in flat)
    program(wanted, ordinary, TORCH)(n, inputs, outputs)
    for side, values in zip(slopes, found, strict=True):
        if not _is_flat(side):
            torch.stack(values.view(side.shape).unbind(), dim=-1, out=side.permute(1, 2, 0))


def _is_flat(block: Tensor) -> bool:
    """Whether each plane of a block (4, rows, columns) is one contiguous stretch."""
    return block.shape[1] == 1 and block.stride(2) == 1


def are_ordinary(boxes: Array, fmt: str) -> bool:
    """Whether boxes (..., 4, n) are all upright, and neither tiny nor huge; NaN is not."""
    low, high = FORMATS[fmt].to_ends(boxes[..., :2, :], boxes[..., 2:, :])
    upright = (high - low).min() >= ORDINARY_SIDE
    return bool(upright and boxes.min() >= -ORDINARY_COORDINATE and boxes.max() <= ORDINARY_COORDINATE)
