"""Loss and gradient in one launch on a GPU: the shared maths, copied into a Triton kernel.

Imported only when a tensor on a GPU asks for it. Under Triton's interpreter it computes on the CPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..boxes import FORMATS
from ..decoders import SCHEMES
from ._copies import copied
from ._one_pass import MAY_KEEP, as_planes, divisor
from ._pass import Pass, Result
from ._triton_launch import launch
from ._triton_maths import MATHS, numbers
from .variants import Form, parts, surcharge

PAIRS, WARPS = 512, 8
"""Pairs a program computes, and the warps that share them: more than two a thread would spill registers."""

CHUNK = 4096
"""Partial sums that the last program adds at a time."""


_is_large, _in_range, _pair, _combined, _pullback, _pull_to_raw = (
    MATHS[name] for name in ("is_large", "in_range", "pair", "combined", "pullback", "raw_backward")
)


def terms_of(form: Form) -> dict[str, Any]:
    """The constants of a kernel that say how a loss or score is made."""
    told: dict[str, Any] = {"SURCHARGE": surcharge(form)}
    for name, (term, values) in zip(("OVERLAP", "PENALTY", "MODE"), parts(form), strict=True):
        told[name], told[f"{name}_SLOPES"] = MATHS[term.value.__name__], MATHS[term.slopes.__name__]
        told[f"{name}_VALUES"] = values
    return told


@cache
def constants(wanted: Pass) -> dict[str, Any]:
    """The constants of the kernel for a pass, its settings and reduction apart."""
    pred, target = FORMATS[wanted.pred_fmt], FORMATS[wanted.target_fmt]
    decoder = SCHEMES.get(wanted.scheme)
    return terms_of(wanted.form) | {
        "PRED_ENDS": MATHS[pred.to_ends.__name__],
        "PULL_PRED": MATHS[pred.backward.__name__],
        "TARGET_ENDS": MATHS[target.to_ends.__name__],
        "PULL_TARGET": MATHS[target.backward.__name__],
        "DECODE": decoder and triton.jit(copied(decoder.decode_axis, MATHS)),
        "DECODE_SLOPES": decoder and triton.jit(copied(decoder.decode_axis_grad, MATHS)),
        "GRID": decoder is not None and decoder.needs_grid,
        "ANCHORS": len(wanted.anchor_sides[0]),
        "OF_PRED": wanted.of_pred,
        "OF_TARGET": wanted.of_target,
        "REDUCED": wanted.reduction != "none",
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
def _times(gradient, scale, boxes):
    """The gradient times a constant; for float16 boxes it saturates at the largest float16."""
    gradient = gradient * scale
    if boxes.dtype.element_ty == tl.float16:
        gradient = tl.clamp(gradient, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return gradient


@triton.jit
def _add_up(part, partials, arrived, total, scale, CHUNK: tl.constexpr):
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
        tl.store(total, tl.sum(sums) * scale)
        tl.store(arrived, 0)  # for the next launch


@triton.jit
def one_pass_kernel(
    pred,  # four coordinates `step` apart, boxes `outer` and `inner` apart
    target,
    loss,  # (outer, inner), contiguous; a single number if REDUCED
    pred_slopes,  # as pred, contiguous in the boxes' own layout
    target_slopes,
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
    slope_step,
    slope_outer,
    slope_inner,
    scale,  # if REDUCED, 1 or 1 / pairs
    grid_columns,  # of a decoder that reads a grid
    grid_rows,
    settings_x,  # numbers of the decoder
    settings_y,
    anchors_x,  # of its boxes of a cell
    anchors_y,
    OVERLAP: tl.constexpr,  # three terms of the loss: a function, its slopes and the parameters of both
    OVERLAP_SLOPES: tl.constexpr,
    OVERLAP_VALUES: tl.constexpr,
    PENALTY: tl.constexpr,
    PENALTY_SLOPES: tl.constexpr,
    PENALTY_VALUES: tl.constexpr,
    MODE: tl.constexpr,
    MODE_SLOPES: tl.constexpr,
    MODE_VALUES: tl.constexpr,
    SURCHARGE: tl.constexpr,  # of inverted boxes, which a score has not
    PRED_ENDS: tl.constexpr,
    PULL_PRED: tl.constexpr,
    TARGET_ENDS: tl.constexpr,
    PULL_TARGET: tl.constexpr,
    DECODE: tl.constexpr,
    DECODE_SLOPES: tl.constexpr,
    GRID: tl.constexpr,
    ANCHORS: tl.constexpr,
    OF_PRED: tl.constexpr,
    OF_TARGET: tl.constexpr,
    REDUCED: tl.constexpr,
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
        raw_x, raw_y = _decode(px1, py1, px2, py2, *at, DECODE_SLOPES, GRID, ANCHORS)
        x, y = _decode(px1, py1, px2, py2, *at, DECODE, GRID, ANCHORS)
        px1, px2 = x
        py1, py2 = y

    large = _is_large(px1, py1, px2, py2, tx1, ty1, tx2, ty2)
    px1, px2 = PRED_ENDS(_in_range(px1, large), _in_range(px2, large))
    py1, py2 = PRED_ENDS(_in_range(py1, large), _in_range(py2, large))
    tx1, tx2 = TARGET_ENDS(_in_range(tx1, large), _in_range(tx2, large))
    ty1, ty2 = TARGET_ENDS(_in_range(ty1, large), _in_range(ty2, large))
    pair = _pair(px1, py1, px2, py2, tx1, ty1, tx2, ty2)
    overlap, penalty = OVERLAP(pair, *numbers(OVERLAP_VALUES)), PENALTY(pair, *numbers(PENALTY_VALUES))
    losses = MODE(overlap, penalty, *numbers(MODE_VALUES))
    if SURCHARGE != 0:
        losses += pair.inversion
    if REDUCED:
        part = tl.sum(tl.where(mask, losses, 0.0))
    else:
        tl.store(loss + number, losses, mask=mask)

    if OF_PRED or OF_TARGET:
        at_overlap, at_penalty = MODE_SLOPES(overlap, penalty, *numbers(MODE_VALUES))
        of_overlap = OVERLAP_SLOPES(pair, *numbers(OVERLAP_VALUES))
        of_penalty = PENALTY_SLOPES(pair, *numbers(PENALTY_VALUES))
        slopes = _combined(at_overlap, at_penalty, of_overlap, of_penalty)
        px1, py1, px2, py2, tx1, ty1, tx2, ty2 = _pullback(pair, slopes, SURCHARGE)
        # A coordinate that was scaled down moves the loss by as much less.
        if OF_PRED:
            x1, x2 = PULL_PRED(_in_range(px1, large), _in_range(px2, large))
            y1, y2 = PULL_PRED(_in_range(py1, large), _in_range(py2, large))
            if DECODE is not None:
                x1, x2 = _pull_to_raw(x1, x2, *raw_x)
                y1, y2 = _pull_to_raw(y1, y2, *raw_y)
            x1, y1 = _times(x1, scale, pred), _times(y1, scale, pred)
            x2, y2 = _times(x2, scale, pred), _times(y2, scale, pred)
            place = (number, columns, slope_step, slope_outer, slope_inner, mask)
            _store(pred_slopes, *place, x1, y1, x2, y2, ROWS)
        if OF_TARGET:
            x1, x2 = PULL_TARGET(_in_range(tx1, large), _in_range(tx2, large))
            y1, y2 = PULL_TARGET(_in_range(ty1, large), _in_range(ty2, large))
            x1, y1 = _times(x1, scale, target), _times(y1, scale, target)
            x2, y2 = _times(x2, scale, target), _times(y2, scale, target)
            place = (number, columns, slope_step, slope_outer, slope_inner, mask)
            _store(target_slopes, *place, x1, y1, x2, y2, ROWS)
    if REDUCED:
        # Last, when nothing but the sum is left in registers.
        _add_up(part, partials, arrived, loss, scale, CHUNK)


def one_pass(wanted: Pass, pred: Tensor, target: Tensor, dim: int) -> Result:
    """The loss and its gradients in float32; nothing is differentiable."""
    shape = pred.select(dim, 0).shape
    count, device = shape.numel(), pred.device
    of_pred, of_target = (
        torch.empty(pred.shape, dtype=torch.float32, device=device) if asked else None
        for asked in (wanted.of_pred, wanted.of_target)
    )
    reduced = wanted.reduction != "none"
    if not count:
        return torch.zeros(() if reduced else shape, device=device), of_pred, of_target
    programs = triton.cdiv(count, PAIRS)
    loss = torch.empty(() if reduced else shape, dtype=torch.float32, device=device)
    partials = torch.empty(programs, dtype=torch.float32, device=device) if reduced else loss
    boxes, targets = (as_planes(side.detach(), dim) for side in (pred, target))
    columns = boxes.shape[2]
    told = constants(wanted)
    arguments = (
        boxes,
        targets,
        loss,
        loss if of_pred is None else of_pred,
        loss if of_target is None else of_target,
        partials,
        _arrivals(device) if reduced else loss,
        count,
        columns,
        *boxes.stride(),
        *targets.stride(),
        *(columns, 4 * columns, 1),  # the gradients are contiguous
        1.0 / divisor(wanted, count),
        *(shape[:-3:-1] if told["GRID"] else (1, 1)),
        *(tuple(map(float, numbers)) for numbers in (*wanted.settings, *wanted.anchor_sides)),
    )
    rows = all(side.shape[2] == 1 and side.stride()[:2] == (1, 4) for side in (boxes, targets))
    with torch.cuda.device_of(loss):
        told = told | {"ROWS": rows, "BLOCK": PAIRS, "CHUNK": CHUNK}
        launch(one_pass_kernel, programs, (wanted, rows, PAIRS), arguments, told, WARPS)
    return loss, of_pred, of_target


_ARRIVALS: dict[tuple[torch.device, int], Tensor] = {}


def _arrivals(device: torch.device) -> Tensor:
    """A 0 to count programs with: one a stream, on which launches follow each other, for all of them.

    Setting one to 0 would be a launch of its own. That it is, where the memory may be a CUDA graph's.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if capturing or not MAY_KEEP.get():
        return torch.zeros(1, dtype=torch.int32, device=device)
    if (device, stream) not in _ARRIVALS:
        _ARRIVALS[device, stream] = torch.zeros(1, dtype=torch.int32, device=device)
    return _ARRIVALS[device, stream]
