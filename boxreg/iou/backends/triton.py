"""Loss and gradient in one launch on a GPU: the shared maths, copied into a Triton kernel.

Imported only when a tensor on a GPU asks for it. Under Triton's interpreter it computes on the CPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._raw import raw_backward
from ...boxes import FORMATS
from ...decoders import SCHEMES
from .. import geometry
from ..autograd import MAY_KEEP, Result
from ..spec import SCORE, Spec, maths
from ._layout import as_planes
from ._triton_launch import launch
from ._triton_maths import MATHS

PAIRS, WARPS = 512, 8
"""Pairs a program computes, and the warps that share them: more than two a thread would spill registers."""

CHUNK = 4096
"""Partial sums that the last program adds at a time."""

_is_large, _in_range = MATHS.copy(geometry.is_large), MATHS.copy(geometry.in_range)
_pair, _pair_backward = MATHS.copy(geometry.pair), MATHS.copy(geometry.pair_backward)
_combine = MATHS.copy(geometry.combine_grads)
_raw_backward = MATHS.copy(raw_backward)


def terms(kind: str, mode: str, inner: bool) -> dict[str, Any]:
    """The constants of a kernel that say how a loss or score is made."""
    found: dict[str, Any] = {"INVERSION_WEIGHT": 0.0 if mode == SCORE else 1.0}
    for name, term in zip(("OVERLAP", "PENALTY", "MODE"), maths(kind, mode, inner), strict=True):
        found[name], found[f"{name}_GRAD"] = MATHS.copy(term.value), MATHS.copy(term.grad)
    return found


@lru_cache(maxsize=1024)
def _constants(
    kind: str,
    mode: str,
    inner: bool,
    pred_fmt: str,
    target_fmt: str,
    reduction: str,
    scheme: str,
    pred_grad: bool,
    target_grad: bool,
    anchors: int,
) -> dict[str, Any]:
    """The constants of the kernel of a spec, by its `code`."""
    pred, target = FORMATS[pred_fmt], FORMATS[target_fmt]
    decoder = SCHEMES.get(scheme)
    return terms(kind, mode, inner) | {
        "PRED_ENDS": MATHS.copy(pred.to_ends),
        "PRED_BACKWARD": MATHS.copy(pred.backward),
        "TARGET_ENDS": MATHS.copy(target.to_ends),
        "TARGET_BACKWARD": MATHS.copy(target.backward),
        "DECODE": decoder and MATHS.copy(decoder.decode_axis),
        "DECODE_GRAD": decoder and MATHS.copy(decoder.decode_axis_grad),
        "GRID": decoder is not None and decoder.needs_grid,
        "ANCHORS": anchors,
        "GRAD_OF_PRED": pred_grad,
        "GRAD_OF_TARGET": target_grad,
        "REDUCED": reduction != "none",
    }


@triton.jit
def _load(base, number, columns, step, outer, inner, mask, ROWS: tl.constexpr):
    """The four numbers of boxes, in float32: contiguous rows in one load of 16 bytes each, others in four."""
    if ROWS:
        tile = tl.load(base + number[:, None] * 4 + tl.arange(0, 4)[None, :], mask=mask[:, None], other=0.0)
        x, y = tl.split(tl.reshape(tile.to(tl.float32), (tile.shape[0], 2, 2)))
        first_x, second_x = tl.split(x)
        first_y, second_y = tl.split(y)
    else:
        # One step after the other: three of them may be more than 32 bits hold.
        place = (number // columns) * outer + (number % columns) * inner
        first_x = tl.load(base + place, mask=mask, other=0.0).to(tl.float32)
        place += step
        first_y = tl.load(base + place, mask=mask, other=0.0).to(tl.float32)
        place += step
        second_x = tl.load(base + place, mask=mask, other=0.0).to(tl.float32)
        place += step
        second_y = tl.load(base + place, mask=mask, other=0.0).to(tl.float32)
    return first_x, first_y, second_x, second_y


@triton.jit
def _store(
    base,
    number,
    columns,
    step,
    outer,
    inner,
    mask,
    first_x,
    first_y,
    second_x,
    second_y,
    ROWS: tl.constexpr,
):
    if ROWS:
        tile = tl.join(tl.join(first_x, second_x), tl.join(first_y, second_y))
        tile = tl.reshape(tile, (first_x.shape[0], 4))
        tl.store(base + number[:, None] * 4 + tl.arange(0, 4)[None, :], tile, mask=mask[:, None])
    else:
        place = (number // columns) * outer + (number % columns) * inner
        tl.store(base + place, first_x, mask=mask)
        place += step
        tl.store(base + place, first_y, mask=mask)
        place += step
        tl.store(base + place, second_x, mask=mask)
        place += step
        tl.store(base + place, second_y, mask=mask)


@triton.jit
def _side(box, sides, ANCHORS: tl.constexpr):
    """The side of the anchor of each box of a cell."""
    side = tl.zeros(box.shape, tl.float32)
    for number in tl.static_range(ANCHORS):
        side = tl.where(box == number, sides[number], side)
    return side


@triton.jit
def _decode(
    first_x,
    first_y,
    second_x,
    second_y,
    number,
    columns,
    rows,
    settings_x,
    settings_y,
    anchors_x,
    anchors_y,
    FUNCTION: tl.constexpr,
    GRID: tl.constexpr,
    ANCHORS: tl.constexpr,
):
    """A decoder's function of either axis, for the places in a grid that come `number`th."""
    if ANCHORS > 0:
        column = (number % columns).to(tl.float32)
        row = (number // columns % rows).to(tl.float32)
        box = number // columns // rows % ANCHORS
        side_x, side_y = _side(box, anchors_x, ANCHORS), _side(box, anchors_y, ANCHORS)
        x = FUNCTION(first_x, second_x, column, columns * 1.0, side_x, *settings_x)
        y = FUNCTION(first_y, second_y, row, rows * 1.0, side_y, *settings_y)
    elif GRID:
        column = (number % columns).to(tl.float32)
        row = (number // columns % rows).to(tl.float32)
        x = FUNCTION(first_x, second_x, column, columns * 1.0, *settings_x)
        y = FUNCTION(first_y, second_y, row, rows * 1.0, *settings_y)
    else:
        x = FUNCTION(first_x, second_x, *settings_x)
        y = FUNCTION(first_y, second_y, *settings_y)
    return x, y


@triton.jit
def _scaled(x1, y1, x2, y2, scale, ignored, WEIGHTED: tl.constexpr):
    """A gradient times the factor of its pair; 0 where the pair is ignored, even if it is NaN."""
    x1, y1, x2, y2 = x1 * scale, y1 * scale, x2 * scale, y2 * scale
    if WEIGHTED:
        x1, y1 = tl.where(ignored, 0.0, x1), tl.where(ignored, 0.0, y1)
        x2, y2 = tl.where(ignored, 0.0, x2), tl.where(ignored, 0.0, y2)
    return x1, y1, x2, y2


@triton.jit
def _add_up(part, partials, arrived, total, factor, CHUNK: tl.constexpr):
    """The sum of all programs' parts, by the one that comes last, in an order that is always the same."""
    programs = tl.num_programs(0)
    tl.store(partials + tl.program_id(0), part)
    tl.debug_barrier()
    if tl.atomic_add(arrived, 1, sem="acq_rel") == programs - 1:
        sums = tl.zeros((CHUNK,), tl.float32)
        start = 0
        # The interpreter of Triton 3.6 has no `range` up to a number that is not constant.
        while start < programs:
            place = start + tl.arange(0, CHUNK)
            # Past the first cache, which does not see what other programs wrote.
            sums += tl.load(partials + place, mask=place < programs, other=0.0, cache_modifier=".cg")
            start += CHUNK
        tl.store(total, tl.sum(sums) * factor)
        tl.store(arrived, 0)  # for the next launch


@triton.jit
def aligned_kernel(
    pred,  # four coordinates `step` apart, boxes `outer` and `inner` apart
    target,
    weight,  # if WEIGHTED, one number a pair
    loss,  # (outer, inner), contiguous; a single number if REDUCED
    pred_grad,  # as pred, contiguous in the boxes' own layout
    target_grad,
    partials,  # if REDUCED, one number a program
    arrived,  # if REDUCED, how many programs have come to their end; 0 before and after
    pairs,
    columns,  # boxes along `inner`
    pred_step,
    pred_outer,
    pred_inner,
    target_step,
    target_outer,
    target_inner,
    grad_step,
    grad_outer,
    grad_inner,
    factor,  # of loss and gradients
    overlap_values,  # parameters of the three terms of the loss
    penalty_values,
    mode_values,
    grid_columns,  # of a decoder that reads a grid
    grid_rows,
    settings_x,  # numbers of the decoder
    settings_y,
    anchors_x,  # of its boxes of a cell
    anchors_y,
    OVERLAP: tl.constexpr,  # three terms of the loss: a function and its gradient
    OVERLAP_GRAD: tl.constexpr,
    PENALTY: tl.constexpr,
    PENALTY_GRAD: tl.constexpr,
    MODE: tl.constexpr,
    MODE_GRAD: tl.constexpr,
    INVERSION_WEIGHT: tl.constexpr,  # of inverted boxes, which do not count in a score
    PRED_ENDS: tl.constexpr,
    PRED_BACKWARD: tl.constexpr,
    TARGET_ENDS: tl.constexpr,
    TARGET_BACKWARD: tl.constexpr,
    DECODE: tl.constexpr,
    DECODE_GRAD: tl.constexpr,
    GRID: tl.constexpr,
    ANCHORS: tl.constexpr,
    GRAD_OF_PRED: tl.constexpr,
    GRAD_OF_TARGET: tl.constexpr,
    REDUCED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Loss and gradient of BLOCK pairs."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = number < pairs
    px1, py1, px2, py2 = _load(pred, number, columns, pred_step, pred_outer, pred_inner, mask, ROWS)
    tx1, ty1, tx2, ty2 = _load(target, number, columns, target_step, target_outer, target_inner, mask, ROWS)
    if DECODE is not None:
        at = (number, grid_columns, grid_rows, settings_x, settings_y, anchors_x, anchors_y)
        raw_x, raw_y = _decode(px1, py1, px2, py2, *at, DECODE_GRAD, GRID, ANCHORS)
        x, y = _decode(px1, py1, px2, py2, *at, DECODE, GRID, ANCHORS)
        px1, px2 = x
        py1, py2 = y

    large = _is_large(px1, py1, px2, py2, tx1, ty1, tx2, ty2)
    px1, px2 = PRED_ENDS(_in_range(px1, large), _in_range(px2, large))
    py1, py2 = PRED_ENDS(_in_range(py1, large), _in_range(py2, large))
    tx1, tx2 = TARGET_ENDS(_in_range(tx1, large), _in_range(tx2, large))
    ty1, ty2 = TARGET_ENDS(_in_range(ty1, large), _in_range(ty2, large))
    pair = _pair(px1, py1, px2, py2, tx1, ty1, tx2, ty2)
    overlap, penalty = OVERLAP(pair, *overlap_values), PENALTY(pair, *penalty_values)
    losses = MODE(overlap, penalty, *mode_values)
    if INVERSION_WEIGHT != 0:
        losses += pair.inversion
    scale, ignored = factor, mask  # nothing is ignored without weights
    if WEIGHTED:
        weights = tl.load(weight + number, mask=mask, other=0.0)
        ignored = weights == 0
        losses = tl.where(ignored, 0.0, losses * weights)
        scale = weights * factor
    if REDUCED:
        part = tl.sum(tl.where(mask, losses, 0.0))
    else:
        tl.store(loss + number, losses * factor, mask=mask)

    if GRAD_OF_PRED or GRAD_OF_TARGET:
        at_overlap, at_penalty = MODE_GRAD(overlap, penalty, *mode_values)
        overlap_grad, penalty_grad = OVERLAP_GRAD(pair, *overlap_values), PENALTY_GRAD(pair, *penalty_values)
        grad = _combine(at_overlap, at_penalty, overlap_grad, penalty_grad)
        px1, py1, px2, py2, tx1, ty1, tx2, ty2 = _pair_backward(pair, grad, INVERSION_WEIGHT)
        # A coordinate that was scaled down moves the loss by as much less.
        if GRAD_OF_PRED:
            x1, x2 = PRED_BACKWARD(_in_range(px1, large), _in_range(px2, large))
            y1, y2 = PRED_BACKWARD(_in_range(py1, large), _in_range(py2, large))
            if DECODE is not None:
                x1, x2 = _raw_backward(x1, x2, *raw_x)
                y1, y2 = _raw_backward(y1, y2, *raw_y)
            x1, y1, x2, y2 = _scaled(x1, y1, x2, y2, scale, ignored, WEIGHTED)
            place = (number, columns, grad_step, grad_outer, grad_inner, mask)
            _store(pred_grad, *place, x1, y1, x2, y2, ROWS)
        if GRAD_OF_TARGET:
            x1, x2 = TARGET_BACKWARD(_in_range(tx1, large), _in_range(tx2, large))
            y1, y2 = TARGET_BACKWARD(_in_range(ty1, large), _in_range(ty2, large))
            x1, y1, x2, y2 = _scaled(x1, y1, x2, y2, scale, ignored, WEIGHTED)
            place = (number, columns, grad_step, grad_outer, grad_inner, mask)
            _store(target_grad, *place, x1, y1, x2, y2, ROWS)
    if REDUCED:
        # Last, when nothing but the sum is left in registers.
        _add_up(part, partials, arrived, loss, factor, CHUNK)


def aligned(spec: Spec, pred: Tensor, target: Tensor, weight: Tensor | None, dim: int) -> Result:
    """The loss and its gradients in float32."""
    dim %= pred.ndim
    shape = pred.shape[:dim] + pred.shape[dim + 1 :]
    count, device = shape.numel(), pred.device
    pred_grad, target_grad = (
        torch.empty(pred.shape, dtype=torch.float32, device=device) if needed else None
        for needed in (spec.pred_grad, spec.target_grad)
    )
    reduced = spec.reduction != "none"
    if not count:
        return torch.zeros(() if reduced else shape, device=device), pred_grad, target_grad
    programs = triton.cdiv(count, PAIRS)
    loss = torch.empty(() if reduced else shape, dtype=torch.float32, device=device)
    partials = torch.empty(programs, dtype=torch.float32, device=device) if reduced else loss
    boxes, targets = (as_planes(side.detach(), dim) for side in (pred, target))
    columns = boxes.shape[2]
    constants = _constants(*spec.code)
    arguments = (
        boxes,
        targets,
        loss if weight is None else weight.detach().contiguous(),
        loss,
        loss if pred_grad is None else pred_grad,
        loss if target_grad is None else target_grad,
        partials,
        _arrivals(device) if reduced else loss,
        count,
        columns,
        *boxes.stride(),
        *targets.stride(),
        *(columns, 4 * columns, 1),  # the gradients are contiguous
        float(spec.factor / count if spec.reduction == "mean" else spec.factor),
        *spec.values,
        *(shape[:-3:-1] if constants["GRID"] else (1, 1)),
        *(tuple(map(float, numbers)) for numbers in (*spec.settings, *spec.anchor_sides)),
    )
    rows = all(side.shape[2] == 1 and side.stride()[:2] == (1, 4) for side in (boxes, targets))
    layout = {"WEIGHTED": weight is not None, "ROWS": rows, "BLOCK": PAIRS, "CHUNK": CHUNK}
    key = (spec.code, *layout.values())
    with torch.cuda.device_of(loss):
        launch(aligned_kernel, programs, key, arguments, constants | layout, WARPS)
    return loss, pred_grad, target_grad


_ARRIVALS: dict[tuple[torch.device, int], Tensor] = {}


def _arrivals(device: torch.device) -> Tensor:
    """A counter of finished programs, which is 0 between launches.

    There is one a stream, because launches on a stream follow each other: setting a new one to 0 would be a
    launch of its own. In a CUDA graph it is a new one, because the graph may own the memory.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if capturing or not MAY_KEEP.get():
        return torch.zeros(1, dtype=torch.int32, device=device)
    if (device, stream) not in _ARRIVALS:
        _ARRIVALS[device, stream] = torch.zeros(1, dtype=torch.int32, device=device)
    return _ARRIVALS[device, stream]
