"""Loss and gradient in one pass on the CPU, from the closed-form slopes, in blocks that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import FORMATS
from ..decoders import SCHEMES, Settings, cell_indices, of_boxes
from ..reduction import reduce_loss
from ._copies import copied, copy_maths
from ._libraries import TORCH, Array, Library, numpy_library
from ._one_pass import as_planes, divisor
from ._pass import Pass, Result
from ._program import Program
from ._trace import Term, Trace, half
from .variants import Formula

BLOCK = 2**16
"""Boxes computed at a time."""

SMALL = 2**14
"""Up to so many boxes are computed by NumPy, where it is installed."""

ORDINARY_SIDE = 2.0**-24
ORDINARY_COORDINATE = 2.0**24
"""Of boxes with sides and coordinates between these, nothing is inverted, near 0 or near the float range."""


@cache
def program(wanted: Pass, ordinary: bool, library: Library) -> Program:
    """The maths of a pass between boxes: from (first, second) of pred and of target, to its results.

    Outputs: the loss per pair, then the gradient of pred's first and second, then of target's, as `wanted`
    says.

    Args:
        wanted: what is computed.
        ordinary: made for ordinary boxes, for which most of the care can be left out.
        library: what computes.
    """
    trace = Trace(weighs=ordinary and library.weighs)
    known = dict.fromkeys(("is_inverted", "is_zero", "is_negligible"), lambda *_: False) if ordinary else {}
    maths = copy_maths(xp=trace, hold=lambda value: value, both=trace.both, **known)
    formula = Formula(wanted.form, maths)
    (pred_ends, _, pull_pred), (target_ends, _, pull_target) = (
        [maths[function.__name__] for function in FORMATS[fmt]]
        for fmt in (wanted.pred_fmt, wanted.target_fmt)
    )

    inputs = [trace.term("input", i, wide=True) for i in range(4)]
    planes = [half(term, axis) for term in inputs for axis in (0, 1)]
    large = False if ordinary else maths["is_large"](*planes)
    p1, p2, t1, t2 = (maths["in_range"](term, large) for term in inputs)
    ends = (*pred_ends(p1, p2), *target_ends(t1, t2))
    pair = maths["pair"](*(half(end, axis) for box in (ends[:2], ends[2:]) for end in box for axis in (0, 1)))
    results = [formula.value(pair)]
    x1, y1, x2, y2, *of_target = formula.gradient(pair)
    gradients = [*pull_pred(trace.stack(x1, y1), trace.stack(x2, y2))] if wanted.of_pred else []
    if wanted.of_target:
        x1, y1, x2, y2 = of_target
        gradients += pull_target(trace.stack(x1, y1), trace.stack(x2, y2))
    # A coordinate that was scaled down moves the loss by as much less.
    return Program(library, inputs, results + [maths["in_range"](slope, large) for slope in gradients])


class Decoding(NamedTuple):
    """The maths of a decoder, both axes in one term.

    Attributes:
        there: from raw first and second, the grid's cells and their number if the scheme reads a grid, and
            the sides of anchors if it has any, to centre and size, and to those of their slopes that are not
            constant.
        back: from slopes of the loss at centre and size, and these, to slopes at raw first and second.
        slopes: how many slopes these are.
    """

    there: Program
    back: Program
    slopes: int


@cache
def decoding(scheme: str, settings: Settings, library: Library) -> Decoding:
    """The programs of a decoder."""
    decoder, trace = SCHEMES[scheme], Trace(weighs=False)
    maths = copy_maths(xp=trace, sigmoid=trace.sigmoid, softplus=trace.softplus)
    count = 2 + 2 * decoder.needs_grid + decoder.needs_anchors
    raw = [trace.term("input", i, wide=True) for i in range(count)]
    arguments = (*raw, *map(trace.stack, *settings))
    slopes = copied(decoder.decode_axis_grad, maths)(*arguments)
    found = [slope for slope in slopes if isinstance(slope, Term)]
    there = Program(library, raw, [*copied(decoder.decode_axis, maths)(*arguments), *found])

    given = [trace.term("input", len(raw) + i, wide=True) for i in range(2 + len(found))]
    centre, size, *known = given
    known_of = dict(zip(found, known, strict=True))
    back = maths["raw_backward"](centre, size, *(known_of.get(slope, slope) for slope in slopes))
    return Decoding(there, Program(library, given, back), slopes=len(found))


def one_pass(wanted: Pass, pred: Tensor, target: Tensor, dim: int) -> Result:
    """The loss and its gradients in the working dtype; nothing is differentiable."""
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    if pred.is_cpu and 0 < pred.numel() <= 4 * SMALL and numpy_library():
        return _few(wanted, pred, target, dim % pred.ndim, dtype)
    loss = torch.empty(pred.select(dim, 0).shape, dtype=dtype, device=pred.device)
    gradients = [
        torch.empty(pred.shape, dtype=dtype, device=pred.device) if asked else None
        for asked in (wanted.of_pred, wanted.of_target)
    ]
    boxes = [as_planes(side.detach(), dim) for side in (pred, target)]
    slopes = [as_planes(gradient, dim) for gradient in gradients if gradient is not None]
    losses = loss.view(boxes[0].shape[1:])
    boxes += _places(wanted, loss, *losses.shape)
    count = divisor(wanted, loss.numel())
    for rows, columns in blocks(*losses.shape):
        boxes_here, slopes_here = ([side[:, rows, columns] for side in sides] for sides in (boxes, slopes))
        _block(wanted, count, boxes_here, losses[rows, columns], slopes_here)
    return reduce_loss(loss, wanted.reduction), gradients[0], gradients[1]


def _few(wanted: Pass, pred: Tensor, target: Tensor, dim: int, dtype: torch.dtype) -> Result:
    """`one_pass` of few boxes, by NumPy: with so much to call for so little, what a call costs counts."""
    library, shape = numpy_library(), (*pred.shape[:dim], *pred.shape[dim + 1 :])
    assert library is not None
    outer, inner = math.prod(shape[:dim]), math.prod(shape[dim:])
    n = outer * inner
    sides = [side.detach().to(dtype).numpy() for side in (pred, target)]
    boxes = library.empty(sides[0], (2, 4, n), False)
    for side, planes in zip(sides, boxes, strict=True):
        planes.reshape(4, outer, inner)[...] = side.reshape(outer, 4, inner).swapaxes(0, 1)
    asked = (wanted.of_pred, wanted.of_target)
    losses, slopes = library.empty(boxes, (n,), False), library.empty(boxes, (sum(asked), 4, n), False)
    loss = torch.from_numpy(losses.reshape(shape))
    place = [part.numpy().reshape(2, n) for part in _places(wanted, loss, outer, inner)]
    gradients = [torch.empty(pred.shape, dtype=dtype) if wants else None for wants in asked]
    count = divisor(wanted, n)
    with library.silent():
        _compute(library, wanted, [boxes], place, losses, list(slopes))
        found = iter(slopes.reshape(-1, 4, outer, inner))
        for gradient in gradients:
            if gradient is not None:
                out = gradient.numpy().reshape(outer, 4, inner).swapaxes(0, 1)
                library.operation("div")(next(found), count, out=out)
        if wanted.reduction != "none":
            loss = torch.from_numpy(losses.sum(keepdims=True) / count).squeeze(0)
    return loss, gradients[0], gradients[1]


def blocks(outer: int, inner: int) -> Iterator[tuple[slice, slice]]:
    """Cut (outer, inner) into parts of at most `BLOCK` places, whole rows of it where several fit."""
    rows = max(BLOCK // max(inner, 1), 1)
    for row in range(0, outer, rows):
        for column in range(0, inner, BLOCK):
            yield slice(row, row + rows), slice(column, column + BLOCK)


def _places(wanted: Pass, plane: Tensor, outer: int, inner: int) -> list[Tensor]:
    """What a decoder wants to know of each place in a plane, both axes of each as (2, outer, inner).

    Column and row, and the number of either; width and height of the anchor.
    """
    decoder, found = SCHEMES.get(wanted.scheme), []
    if decoder and decoder.needs_grid:
        found += _grid(plane, outer, inner)
    if decoder and decoder.needs_anchors:
        sides = [of_boxes(numbers, plane).expand(plane.shape) for numbers in wanted.anchor_sides]
        found.append(torch.stack(sides).reshape(2, outer, inner))
    return found


def _grid(plane: Tensor, outer: int, inner: int) -> list[Tensor]:
    """Column and row of each place in a plane, and the number of either, as (2, outer, inner)."""
    cells = torch.stack([part.expand(plane.shape[-2:]) for part in cell_indices(plane)])
    counts = torch.stack([plane.new_full((), number) for number in plane.shape[:-3:-1]])
    cells = cells.view(2, *[1] * (plane.ndim - 2), *plane.shape[-2:]).expand(2, *plane.shape)
    return [cells.reshape(2, outer, inner), counts.view(2, 1, 1).expand(2, outer, inner)]


def _block(wanted: Pass, count: int, boxes: list[Tensor], loss: Tensor, slopes: list[Tensor]) -> None:
    n, sides = loss.numel(), boxes[:2]
    place = [part.reshape(2, n) for part in boxes[2:]]
    if all(side.dtype == loss.dtype and _is_flat(side) for side in sides):
        flat = [side[:, 0] for side in sides]
    else:
        # Stacked plane by plane: torch's own copy of a transposed tensor takes six times as long.
        both = loss.new_empty(2, 4, *loss.shape)
        for side, planes in zip(sides, both, strict=True):
            torch.stack(side.to(loss.dtype).unbind(), out=planes)
        flat = [both.view(2, 4, n)]
    found = [side[:, 0] if _is_flat(side) else side.new_empty(4, n) for side in slopes]
    _compute(TORCH, wanted, flat, place, loss.view(n), found)
    for side, values in zip(slopes, found, strict=True):
        if count > 1:
            values /= count
        if not _is_flat(side):
            torch.stack(values.view(side.shape).unbind(), dim=-1, out=side.permute(1, 2, 0))


def _compute(
    library: Library,
    wanted: Pass,
    sides: list[Array],
    place: list[Array],
    loss: Array,
    slopes: list[Array],
) -> None:
    """The loss per pair (n,) and its slopes (4, n), of pred and target, and of where raw numbers are.

    Pred and target are two arrays (4, n) or one (2, 4, n); boxes made of raw numbers stay in the cache.
    """
    if not wanted.scheme:
        return _between_boxes(library, wanted, sides, loss, slopes)
    there, back, known = decoding(wanted.scheme, wanted.settings, library)
    raw, target = sides if len(sides) == 2 else sides[0]
    n = len(loss)
    made = library.empty(raw, (2 + known, 2, n), False)
    there((n,), [*_halves(library, raw), *place], library.rows(made))
    if not wanted.of_pred:
        return _between_boxes(library, wanted, [made[:2].reshape(4, n), target], loss, slopes)
    at_boxes = library.empty(raw, (4, n), False)
    _between_boxes(library, wanted, [made[:2].reshape(4, n), target], loss, [at_boxes, *slopes[1:]])
    back((n,), [*_halves(library, at_boxes), *library.rows(made[2:])], _halves(library, slopes[0]))
    return None


def _between_boxes(
    library: Library, wanted: Pass, boxes: list[Array], loss: Array, slopes: list[Array]
) -> None:
    # Elsewhere than on the CPU the answer would have to be waited for.
    ordinary = getattr(loss, "is_cpu", True) and all(
        are_ordinary(side, fmt)
        for side, fmt in zip(boxes, (wanted.pred_fmt, wanted.target_fmt), strict=False)
    )
    inputs = [part for side in boxes for part in _halves(library, side)]
    outputs = [part for side in slopes for part in _halves(library, side)]
    program(wanted.of_pairs(), ordinary, library)(loss.shape, inputs, [loss, *outputs])


def _halves(library: Library, boxes: Array) -> Sequence[Array]:
    """Of boxes (..., 4, n), the x and y of the first number and those of the second: (2, n) each."""
    return library.rows(boxes.reshape(-1, 2, boxes.shape[-1]))


def _is_flat(block: Tensor) -> bool:
    """Whether each plane of a block (4, rows, columns) is one contiguous stretch."""
    return block.shape[1] == 1 and block.stride(2) == 1


def are_ordinary(boxes: Array, fmt: str) -> bool:
    """Whether boxes (..., 4, n) are all upright, and neither tiny nor huge; NaN is not."""
    low, high = FORMATS[fmt].to_ends(boxes[..., :2, :], boxes[..., 2:, :])
    upright = (high - low).min() >= ORDINARY_SIDE
    return bool(upright and boxes.min() >= -ORDINARY_COORDINATE and boxes.max() <= ORDINARY_COORDINATE)
