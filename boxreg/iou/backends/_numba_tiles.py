"""What every loss has in common on the CPU: tiles of pairs are read, computed by a core, and written.

Layout, format, weight and reduction are dealt with here, so that a core is the maths of a loss and no more,
and this code is compiled once for all losses.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types

from ..._raw import raw_backward
from ..geometry import SCALE_OF_LARGE, is_large
from ..rebind import digest
from ._numba_cores import (
    ANCHOR,
    ARRAYS,
    CELL,
    DECODE_GRAD,
    LOSS,
    PRED,
    PRED_GRAD,
    RAW,
    SCALE,
    TARGET_GRAD,
    TILE,
    compiled,
)
from ._numba_maths import as_floats, as_pointer, call, fetch_add, offset, on_stack, tile_language

TILE_SIZE = ARRAYS * TILE

CHUNK = 16
"""Tiles that a thread takes at a time."""

# The arguments of a call are a list of 64-bit integers, each at the place that its name stands for; addresses
# of what is not there are 0. COUNT pairs are numbered row by row: COLUMNS to a row, ROWS rows to an image.
# Each side has four strides: of coordinates, images, rows and columns. Pairwise scores are pairs with a
# column stride of 0 for `a` and a row stride of 0 for `b`. CONVERTED says of each side whether its format is
# another than corners. After the integers come floats.
# fmt: off
(
    PRED_AT, TARGET_AT, LOSS_AT, PRED_GRAD_AT, TARGET_GRAD_AT, WEIGHT_AT, SUMS_AT, COUNTERS_AT,
    CORE, DECODE, COUNT, COLUMNS, ROWS, STRIDES, IMAGE_STRIDE, ROW_STRIDE, COLUMN_STRIDE,
    TARGET_STRIDES, _, _, _, GRAD_STRIDES, _, _, _, REDUCED, GRID_COLUMNS, GRID_ROWS, ANCHORS,
    DECODE_VALUES, ANCHOR_VALUES, SIDES, CONVERTED, _, CHUNK_ROWS, CHUNKS,
) = range(FIELDS := 36)
# fmt: on

FACTOR, VALUES = 8, 9
"""The floats: formats of both sides as in `_converted`, a factor, parameters of the loss and the decoder."""

REAL = types.float64
"""The type of coordinates; in the copy for another dtype it is that."""


@cache
def losses(dtype: str) -> int:
    """The address of the code that computes losses of aligned pairs with gradients, or pairwise scores."""
    return _driver(_losses, dtype)


@cache
def pairwise_backward(dtype: str) -> int:
    """The address of the code that computes the gradients of pairwise scores."""
    return _driver(_pairwise_backward, dtype)


def _driver(make: Any, dtype: str) -> int:
    names = tile_language(dtype, (_evaluate, _finish)).names(make(""))
    signature = types.void(types.CPointer(types.int64))
    return compiled(make, names, digest(is_large, raw_backward), dtype, signature)


# What follows is compiled.


def _read(memory, step, inner, tile, count):
    """Read four coordinates, `step` apart, of pairs that are `inner` apart."""
    if step == 1 and inner == 4:
        for i in range(count):
            tile[i] = memory[4 * i]
            tile[TILE + i] = memory[4 * i + 1]
            tile[2 * TILE + i] = memory[4 * i + 2]
            tile[3 * TILE + i] = memory[4 * i + 3]
        return
    for number in range(4):
        if inner == 1:
            for i in range(count):
                tile[number * TILE + i] = memory[number * step + i]
        elif inner == 0:
            value = memory[number * step]
            for i in range(count):
                tile[number * TILE + i] = value
        else:
            for i in range(count):
                tile[number * TILE + i] = memory[number * step + inner * i]


def _write(memory, step, inner, tile, factor, count):
    """Write four gradients, times the factor of each pair."""
    if step == 1 and inner == 4:
        for i in range(count):
            memory[4 * i] = tile[i] * factor[i]
            memory[4 * i + 1] = tile[TILE + i] * factor[i]
            memory[4 * i + 2] = tile[2 * TILE + i] * factor[i]
            memory[4 * i + 3] = tile[3 * TILE + i] * factor[i]
    else:
        for number in range(4):
            for i in range(count):
                memory[number * step + i] = tile[number * TILE + i] * factor[i]


def _converted(job, floats, tile, grads, count):
    """Boxes of a format to corners, or gradients at corners to those at a format's coordinates, in place.

    Both ends of a side are sums of its two coordinates times factors, which `floats` holds.
    """
    for side in range(job[SIDES]):
        if job[CONVERTED + side]:
            fmt, axes = (
                offset(floats, 4 * side),
                offset(tile, (4 * side + (PRED_GRAD if grads else PRED)) * TILE),
            )
            a, b, c, d = REAL(fmt[0]), REAL(fmt[1]), REAL(fmt[2]), REAL(fmt[3])
            if grads:
                b, c = c, b
            for axis in range(2):
                for i in range(count):
                    first, second = axes[axis * TILE + i], axes[(axis + 2) * TILE + i]
                    axes[axis * TILE + i] = a * first + b * second
                    axes[(axis + 2) * TILE + i] = c * first + d * second


def _positions(tile, job, values, first, count):
    """Column and row of each pair in a grid, and the sides of its anchor."""
    columns, rows, anchors = job[GRID_COLUMNS], job[GRID_ROWS], job[ANCHORS]
    column, row = first % columns, first // columns % rows
    box = first // (columns * rows) % anchors
    for i in range(count):
        tile[CELL * TILE + i], tile[(CELL + 1) * TILE + i] = column, row
        tile[ANCHOR * TILE + i] = values[box]
        tile[(ANCHOR + 1) * TILE + i] = values[anchors + box]
        column += 1
        if column == columns:
            column = 0
            row += 1
            if row == rows:
                row = 0
                box += 1
                if box == anchors:
                    box = 0


def _decoded_backward(tile, known, count):
    """Gradients at centre and size to those at the raw outputs, in place."""
    for axis in range(2):
        for i in range(count):
            tile[axis * TILE + i], tile[(axis + 2) * TILE + i] = raw_backward(
                tile[axis * TILE + i],
                tile[(axis + 2) * TILE + i],
                known[4 * axis * TILE + i],
                known[(4 * axis + 1) * TILE + i],
                known[(4 * axis + 2) * TILE + i],
                known[(4 * axis + 3) * TILE + i],
            )


def _add_up(losses, count):
    """The sum of the losses of a tile, by halves: always in the same order."""
    width = 1
    while width < count:
        width *= 2
    for i in range(count, width):
        losses[i] = 0.0
    while width > 1:
        width //= 2
        for i in range(width):
            losses[i] += losses[width + i]
    return losses[0]


def _store(job, memory, tile, grads, first, count):
    """Write gradients of a side at its coordinates, times the factor of each pair."""
    weight, scale, strides = (
        as_pointer(job[WEIGHT_AT], REAL),
        offset(tile, SCALE * TILE),
        offset(job, GRAD_STRIDES),
    )
    if job[WEIGHT_AT]:  # a NaN times a weight of 0 would be NaN
        for number in range(4):
            for i in range(count):
                value = grads[number * TILE + i]
                grads[number * TILE + i] = 0.0 if weight[first + i] == 0.0 else value
    row, column, done = first // job[COLUMNS], first % job[COLUMNS], 0
    while done < count:
        run = job[COLUMNS] - column
        run = run if run < count - done else count - done
        out = offset(memory, row * strides[2] + column * strides[3])
        _write(out, strides[0], strides[3], offset(grads, done), offset(scale, done), run)
        row, column, done = row + 1, 0, done + run


def _read_tile(job, tile, first, count):
    """Read the boxes of both sides; raw outputs go where the decoder expects them."""
    for side in range(job[SIDES]):
        memory, strides = as_pointer(job[PRED_AT + side], REAL), offset(job, STRIDES + 4 * side)
        goal = offset(tile, RAW * TILE if job[DECODE] and side == 0 else 4 * side * TILE)
        row, column, done = first // job[COLUMNS], first % job[COLUMNS], 0
        while done < count:
            run = job[COLUMNS] - column
            run = run if run < count - done else count - done
            start = row // job[ROWS] * strides[1] + row % job[ROWS] * strides[2] + column * strides[3]
            _read(offset(memory, start), strides[0], strides[3], offset(goal, done), run)
            row, column, done = row + 1, 0, done + run


def _evaluate(job, floats, tile, first, count):
    """Losses of the pairs of a tile, and their gradients at the corners, as the core has it."""
    scale = offset(tile, SCALE * TILE)
    _read_tile(job, tile, first, count)
    # Whole vectors: what is left over by a vector loop would be computed pair by pair.
    padded = (count + 63) // 64 * 64
    if job[DECODE]:
        if job[GRID_COLUMNS]:
            _positions(tile, job, offset(floats, job[ANCHOR_VALUES]), first, count)
        call(job[DECODE], tile, offset(floats, job[DECODE_VALUES]), padded)
    unusual = types.int64(0)
    for i in range(padded):
        large = is_large(
            tile[i],
            tile[TILE + i],
            tile[2 * TILE + i],
            tile[3 * TILE + i],
            tile[4 * TILE + i],
            tile[5 * TILE + i],
            tile[6 * TILE + i],
            tile[7 * TILE + i],
        )
        scale[i] = SCALE_OF_LARGE if large else 1.0
        total = tile[i] + tile[TILE + i] + tile[2 * TILE + i] + tile[3 * TILE + i]
        total += tile[4 * TILE + i] + tile[5 * TILE + i] + tile[6 * TILE + i] + tile[7 * TILE + i]
        unusual += large | (total != total)
    if unusual:
        # A NaN or an infinity makes all of its pair NaN. The place of the losses is free until the core runs.
        spoiled = offset(tile, LOSS * TILE)
        for i in range(padded):
            spoiled[i] = 0.0
        for number in range(4 * job[SIDES]):
            for i in range(padded):
                spoiled[i] += tile[number * TILE + i] - tile[number * TILE + i]
        for number in range(4 * job[SIDES]):
            for i in range(padded):
                tile[number * TILE + i] = tile[number * TILE + i] * scale[i] + spoiled[i]
    _converted(job, floats, tile, False, padded)
    call(job[CORE], tile, offset(floats, VALUES), padded)


def _finish(job, floats, tile, first, count):
    """Weigh and write losses and gradients; returns the sum of the losses, if it is asked for."""
    weight, losses, factor = as_pointer(job[WEIGHT_AT], REAL), offset(tile, LOSS * TILE), REAL(floats[FACTOR])
    scale = offset(tile, SCALE * TILE)
    if job[WEIGHT_AT]:
        for i in range(count):
            value = losses[i] * weight[first + i]
            losses[i] = 0.0 if weight[first + i] == 0.0 else value
            scale[i] *= weight[first + i]
    for i in range(count):
        scale[i] *= factor
    _converted(job, floats, tile, True, count)
    for side in range(job[SIDES]):
        if job[PRED_GRAD_AT + side]:
            grads = offset(tile, (PRED_GRAD + 4 * side) * TILE)
            if side == 0 and job[DECODE]:
                _decoded_backward(grads, offset(tile, DECODE_GRAD * TILE), count)
            _store(job, as_pointer(job[PRED_GRAD_AT + side], REAL), tile, grads, first, count)
    if job[REDUCED]:
        return _add_up(losses, count)
    out = as_pointer(job[LOSS_AT], REAL)
    for i in range(count):
        out[first + i] = losses[i] * factor
    return 0.0


def _add_to_sides(job, pred_grad, target_grad, tile, first, count):
    """Add the gradients of a tile of pairs to those of their boxes; planes (4, columns) for `b`."""
    columns, done = job[COLUMNS], 0
    while done < count:
        row, column = (first + done) // columns, (first + done) % columns
        run = columns - column
        run = run if run < count - done else count - done
        for number in range(4):
            if job[TARGET_GRAD_AT]:
                grads = offset(tile, (TARGET_GRAD + number) * TILE + done)
                sums = offset(target_grad, number * columns + column)
                for i in range(run):
                    sums[i] += grads[i]
            if job[PRED_GRAD_AT]:
                losses = offset(tile, LOSS * TILE)
                grads = offset(tile, (PRED_GRAD + number) * TILE + done)
                for i in range(run):
                    losses[i] = grads[i]
                pred_grad[4 * row + number] += _add_up(losses, run)
        done += run


def _losses(key):
    """Code that computes the tiles of a call that no other thread has taken."""

    def losses(job):
        key  # noqa: B018 - into the closure
        floats, tile = offset(as_floats(job), FIELDS), on_stack(TILE_SIZE, REAL)
        counters = as_pointer(job[COUNTERS_AT], types.int64)
        sums, shared = as_pointer(job[SUMS_AT], types.float64), job[COUNTERS_AT] != 0
        tiles = (job[COUNT] + TILE - 1) // TILE
        total, number, end = types.float64(0), 0, 0 if shared else tiles
        while True:
            if number == end:
                if not shared:
                    break
                if number:
                    fetch_add(counters, 1)
                number = CHUNK * fetch_add(counters, 0)
                if number >= tiles:
                    break
                end = number + CHUNK if number + CHUNK < tiles else tiles
            first = number * TILE
            count = TILE if first + TILE <= job[COUNT] else job[COUNT] - first
            _evaluate(job, floats, tile, first, count)
            part = _finish(job, floats, tile, first, count)
            if job[SUMS_AT]:
                sums[number] = part
            total += part
            number += 1
        if job[REDUCED] and not shared:
            as_pointer(job[LOSS_AT], REAL)[0] = total * floats[FACTOR]

    return losses


def _pairwise_backward(key):
    """Code that computes the chunks of a call, some rows of `a` each, that no other thread has taken."""

    def pairwise_backward(job):
        key  # noqa: B018 - into the closure
        floats, tile = offset(as_floats(job), FIELDS), on_stack(TILE_SIZE, REAL)
        counters = as_pointer(job[COUNTERS_AT], types.int64)
        upstream, scale = as_pointer(job[WEIGHT_AT], REAL), offset(tile, SCALE * TILE)
        pred_grad, parts = as_pointer(job[PRED_GRAD_AT], REAL), as_pointer(job[TARGET_GRAD_AT], REAL)
        rows, columns = job[ROWS], job[COLUMNS]
        by_image = (rows + job[CHUNK_ROWS] - 1) // job[CHUNK_ROWS]
        while True:
            chunk = fetch_add(counters, 0)
            if chunk >= job[CHUNKS]:
                break
            start = chunk % by_image * job[CHUNK_ROWS]
            end = start + job[CHUNK_ROWS] if start + job[CHUNK_ROWS] < rows else rows
            image = chunk // by_image
            first, stop = (image * rows + start) * columns, (image * rows + end) * columns
            target_grad = offset(parts, chunk * 4 * columns)
            while first < stop:
                count = TILE if first + TILE <= stop else stop - first
                _evaluate(job, floats, tile, first, count)
                for i in range(count):
                    scale[i] *= upstream[first + i]
                for side in range(PRED_GRAD, TARGET_GRAD + 4):
                    for i in range(count):
                        tile[side * TILE + i] *= scale[i]
                _converted(job, floats, tile, True, count)
                _add_to_sides(job, pred_grad, target_grad, tile, first, count)
                first += count
            fetch_add(counters, 1)

    return pairwise_backward
