"""Loss and gradient in one launch on a GPU: the shared maths, copied into a Triton kernel.

Imported only when a tensor on a GPU asks for it. Under Triton's interpreter it computes on the CPU.
"""

from __future__ import annotations

import types

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import family
from ._copies import copy_maths
from ._one_pass import Pass, as_planes

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""

PAIRS = 512
"""Pairs a program computes."""


@triton.jit
def _where(condition, chosen, other):
    return tl.where(condition, chosen, other)


@triton.jit
def _abs(value):
    return tl.abs(value)


@triton.jit
def _exp(value):
    return tl.exp(value)


@triton.jit
def _zeros_like(value):
    return tl.zeros_like(value)


@triton.jit
def _maximum(a, b):
    # As in torch, NaN wins.
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _atan2(y, x):
    """The angle of a point with x >= 0, to 2 ulp in float32: reduced to |tan| < 0.42, then a polynomial."""
    side = tl.abs(y)
    steep = side > 2.414213562373095 * x
    middle = side > 0.4142135623730950 * x
    top = tl.where(steep, -x, tl.where(middle, side - x, side))
    bottom = tl.where(steep, side, tl.where(middle, side + x, x))
    t = top / tl.where(bottom == 0, 1.0, bottom)
    z = t * t
    # The odd polynomial of single-precision arctangents from the Cephes library.
    series = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
    quarter = tl.where(steep, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    angle = quarter + (series * z * t + t)
    return tl.where(y < 0, -angle, angle)


@triton.jit
def _hold(value):
    return value


@triton.jit
def _both(function: tl.constexpr, x, y):
    return function(*x), function(*y)


# What the shared maths calls `xp`: a module, because a kernel's globals may be no other object.
_OPERATIONS = types.ModuleType("operations")
vars(_OPERATIONS).update(
    where=_where,
    abs=_abs,
    exp=_exp,
    zeros_like=_zeros_like,
    maximum=_maximum,
    minimum=_minimum,
    atan2=_atan2,
)

MATHS = copy_maths(
    wrap=triton.jit,
    xp=_OPERATIONS,
    hold=_hold,
    both=_both,
    tl=tl,
    Tensor=tl.constexpr(None),  # annotations are looked up
    **{name: tl.constexpr(value) for name, value in vars(family).items() if isinstance(value, float)},
)
_is_large, _in_range, _pair, _loss, _pullback = (
    MATHS[name] for name in ("is_large", "in_range", "pair", "loss", "pullback")
)


@triton.jit
def _load(base, number, columns, step, outer, inner, mask, ROWS: tl.constexpr):
    """The four numbers of boxes, in float32: contiguous rows in one load of 16 bytes each, others in four."""
    if ROWS:
        tile = tl.load(base + number[:, None] * 4 + tl.arange(0, 4)[None, :], mask=mask[:, None], other=0.0)
        x, y = tl.split(tl.reshape(tile.to(tl.float32), (tile.shape[0], 2, 2)))
        first_x, second_x = tl.split(x)
        first_y, second_y = tl.split(y)
    else:
        place = (number // columns) * outer + (number % columns) * inner
        first_x = tl.load(base + place, mask=mask, other=0.0).to(tl.float32)
        first_y = tl.load(base + place + step, mask=mask, other=0.0).to(tl.float32)
        second_x = tl.load(base + place + 2 * step, mask=mask, other=0.0).to(tl.float32)
        second_y = tl.load(base + place + 3 * step, mask=mask, other=0.0).to(tl.float32)
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
        tl.store(base + place + step, first_y, mask=mask)
        tl.store(base + place + 2 * step, second_x, mask=mask)
        tl.store(base + place + 3 * step, second_y, mask=mask)


@triton.jit
def one_pass_kernel(
    pred,  # four coordinates `step` apart, boxes `outer` and `inner` apart
    target,
    loss,  # (outer, inner), contiguous
    pred_slopes,  # as pred, contiguous in the boxes' own layout
    target_slopes,
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
    PENALTY: tl.constexpr,
    SLOPES: tl.constexpr,
    TO_ENDS: tl.constexpr,
    PULL: tl.constexpr,
    OF_PRED: tl.constexpr,
    OF_TARGET: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss and gradient of BLOCK pairs."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = number < pairs
    px1, py1, px2, py2 = _load(pred, number, columns, pred_step, pred_outer, pred_inner, mask, ROWS)
    tx1, ty1, tx2, ty2 = _load(target, number, columns, target_step, target_outer, target_inner, mask, ROWS)

    large = _is_large(px1, py1, px2, py2, tx1, ty1, tx2, ty2)
    px1, px2 = TO_ENDS(_in_range(px1, large), _in_range(px2, large))
    py1, py2 = TO_ENDS(_in_range(py1, large), _in_range(py2, large))
    tx1, tx2 = TO_ENDS(_in_range(tx1, large), _in_range(tx2, large))
    ty1, ty2 = TO_ENDS(_in_range(ty1, large), _in_range(ty2, large))
    pair = _pair(px1, py1, px2, py2, tx1, ty1, tx2, ty2)
    tl.store(loss + number, _loss(pair, PENALTY(pair)), mask=mask)

    if OF_PRED or OF_TARGET:
        px1, py1, px2, py2, tx1, ty1, tx2, ty2 = _pullback(pair, SLOPES(pair))
        # A coordinate that was scaled down moves the loss by as much less.
        if OF_PRED:
            x1, x2 = PULL(_in_range(px1, large), _in_range(px2, large))
            y1, y2 = PULL(_in_range(py1, large), _in_range(py2, large))
            _store(
                pred_slopes, number, columns, slope_step, slope_outer, slope_inner, mask, x1, y1, x2, y2, ROWS
            )
        if OF_TARGET:
            x1, x2 = PULL(_in_range(tx1, large), _in_range(tx2, large))
            y1, y2 = PULL(_in_range(ty1, large), _in_range(ty2, large))
            _store(
                target_slopes,
                number,
                columns,
                slope_step,
                slope_outer,
                slope_inner,
                mask,
                x1,
                y1,
                x2,
                y2,
                ROWS,
            )


def one_pass(
    wanted: Pass, pred: Tensor, target: Tensor, dim: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss per pair and the gradients of its sum, in float32; nothing is differentiable."""
    loss = torch.empty(pred.select(dim, 0).shape, dtype=torch.float32, device=pred.device)
    of_pred, of_target = (
        torch.empty(pred.shape, dtype=torch.float32, device=pred.device) if asked else None
        for asked in (wanted.of_pred, wanted.of_target)
    )
    if not loss.numel():
        return loss, of_pred, of_target
    boxes, targets = (as_planes(side.detach(), dim) for side in (pred, target))
    # Contiguous tensors of one shape have one layout, whether they are there or not.
    slopes = as_planes(torch.empty(pred.shape, device="meta"), dim)
    variant, form = family.VARIANTS[wanted.kind], MATHS["FORMATS"][wanted.fmt]
    with torch.cuda.device_of(loss):
        one_pass_kernel[(triton.cdiv(loss.numel(), PAIRS),)](
            boxes,
            targets,
            loss,
            loss if of_pred is None else of_pred,
            loss if of_target is None else of_target,
            loss.numel(),
            boxes.shape[2],
            *boxes.stride(),
            *targets.stride(),
            *slopes.stride(),
            PENALTY=MATHS[variant.penalty.__name__],
            SLOPES=MATHS[variant.slopes.__name__],
            TO_ENDS=MATHS[form.to_ends.__name__],
            PULL=MATHS[form.pull.__name__],
            OF_PRED=wanted.of_pred,
            OF_TARGET=wanted.of_target,
            ROWS=all(side.shape[2] == 1 and side.stride()[:2] == (1, 4) for side in (boxes, targets)),
            BLOCK=PAIRS,
        )
    return loss, of_pred, of_target
