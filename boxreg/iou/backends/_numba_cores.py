"""Cores: the maths of a loss, or of a decoder, over a tile of pairs; each compiled once, called by address.

A tile is one flat array: `TILE` numbers of the first coordinate, then of the second, and so on. With one
array in place of many LLVM can prove that nothing overlaps, and vectorises the loop.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from numba import types

from ...decoders import SCHEMES
from ..geometry import combine_grads, pair, pair_backward
from ..rebind import digest
from ..spec import SCORE, maths
from ._numba_maths import jit, language, take

TILE = 256
"""Pairs of a tile: its arrays stay in the cache nearest to the processor."""

PRED, TARGET, LOSS, PRED_GRAD, TARGET_GRAD, SCALE, RAW, CELL, ANCHOR, DECODE_GRAD = (
    0,
    4,
    8,
    9,
    13,
    17,
    18,
    22,
    24,
    26,
)
"""Where in a tile the arrays of each quantity begin."""

ARRAYS = 34
"""How many arrays a tile has."""

logger = logging.getLogger(__name__)


@cache
def loss_core(dtype: str, kind: str, mode: str, inner: bool, pred_grad: bool, target_grad: bool) -> int:
    """The address of the code that computes the losses of a tile, and their gradients at the corners.

    Args:
        dtype: `"float32"` or `"float64"`.
        kind: of the loss, a key of `FAMILY`.
        mode: of the loss.
        inner: whether the IoU is that of scaled boxes.
        pred_grad: whether the gradients of predicted boxes are computed.
        target_grad: whether those of target boxes are.
    """
    overlap, penalty, mode_term = terms = maths(kind, mode, inner)
    copy = language(dtype).copy
    names: dict[str, Any] = {
        "REAL": getattr(types, dtype),
        "PAIR": copy(pair),
        "OVERLAP": copy(overlap.value),
        "PENALTY": copy(penalty.value),
        "MODE": copy(mode_term.value),
        "OVERLAP_GRAD": copy(overlap.grad),
        "PENALTY_GRAD": copy(penalty.grad),
        "MODE_GRAD": copy(mode_term.grad),
        "COMBINE": copy(combine_grads),
        "PAIR_BACKWARD": copy(pair_backward),
        "IS_LOSS": mode != SCORE,
        "INVERSION_WEIGHT": language(dtype).constant(0.0 if mode == SCORE else 1.0),
        "GRAD_OF_PRED": pred_grad,
        "GRAD_OF_TARGET": target_grad,
    }
    names |= dict(
        zip(("OVERLAPS", "PENALTIES", "MODES"), (len(term.parameters) for term in terms), strict=True)
    )
    functions = [function for term in terms for function in (term.value, term.grad)]
    maths_key = digest(pair, combine_grads, pair_backward, *functions)
    key = repr((pred_grad, target_grad, mode))
    return compiled(_loss_core, names, maths_key, key, core_signature(dtype))


@cache
def decode_core(dtype: str, scheme: str, settings: int) -> int:
    """The address of the code that decodes the raw outputs of a tile, and finds the derivatives of that.

    Args:
        dtype: `"float32"` or `"float64"`.
        scheme: a key of `SCHEMES`.
        settings: how many the scheme has of an axis.
    """
    decoder = SCHEMES[scheme]
    copy = language(dtype).copy
    place = {(False, False): _nowhere, (True, False): _in_a_cell, (True, True): _in_a_cell_with_anchor}
    names = {
        "REAL": getattr(types, dtype),
        "DECODE": copy(decoder.decode_axis),
        "DECODE_AXIS_GRAD": copy(decoder.decode_axis_grad),
        "PLACE": jit(place[decoder.needs_grid, decoder.needs_anchors]),
        "SETTINGS": settings,
    }
    maths_key = digest(decoder.decode_axis, decoder.decode_axis_grad)
    key = repr((scheme, settings, decoder.needs_anchors))
    return compiled(_decode_core, names, maths_key, key, core_signature(dtype))


def _nowhere(cell: Any, cells: Any, anchor: Any) -> Any:
    return ()


def _in_a_cell(cell: Any, cells: Any, anchor: Any) -> Any:
    return cell, cells


def _in_a_cell_with_anchor(cell: Any, cells: Any, anchor: Any) -> Any:
    return cell, cells, anchor


def core_signature(dtype: str) -> Any:
    """Of a core: the tile, the parameters, and how many pairs of the tile are computed."""
    return types.void(types.CPointer(getattr(types, dtype)), types.CPointer(types.float64), types.int64)


_KEPT: list[Any] = []
"""Compiled code, which must outlive its address."""


_SOURCE = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("_numba_*.py")))
).hexdigest()
"""A key of the code around the maths."""


def compiled(
    make: Callable[[str], Any], names: dict[str, Any], maths_key: str | None, key: str, signature: Any
) -> int:
    """The address of a function with further globals; from the cache on disk, where one can be written.

    Numba's cache tells functions apart by code and closure, so the key is put into the closure.

    Args:
        make: returns the function, with this key in its closure.
        names: its further globals.
        maths_key: the `digest` of the maths; None if it may not come from the cache.
        key: what else the code depends on.
        signature: the types of arguments and result.
    """
    template = make(f"{_SOURCE} {maths_key} {key}")
    core = FunctionType(
        template.__code__, {**template.__globals__, **names}, template.__name__, None, template.__closure__
    )
    core.__qualname__, core.__module__ = template.__qualname__, template.__module__
    try:
        found = numba.cfunc(signature, cache=maths_key is not None, error_model="numpy")(core)
    except Exception as error:  # a cache that cannot be read or written is no error
        logger.debug("compiled without the cache on disk: %s", error)
        found = numba.cfunc(signature, error_model="numpy")(core)
    _KEPT.append(found)
    return int(found.address)


def _set_later(*arguments: Any) -> Any:
    """Stands for a global that `loss_core` or `decode_core` sets."""
    raise NotImplementedError


PAIR = OVERLAP = PENALTY = MODE = OVERLAP_GRAD = PENALTY_GRAD = MODE_GRAD = COMBINE = PAIR_BACKWARD = (
    _set_later
)
DECODE = DECODE_AXIS_GRAD = PLACE = REAL = _set_later
OVERLAPS = PENALTIES = MODES = SETTINGS = 0
IS_LOSS = GRAD_OF_PRED = GRAD_OF_TARGET = True
INVERSION_WEIGHT = 1.0


def _loss_core(key: str) -> Callable[..., Any]:
    def loss_core(tile, values, count):
        key  # noqa: B018 - into the closure
        overlaps = take(values, 0, OVERLAPS, REAL)
        penalties = take(values, OVERLAPS, PENALTIES, REAL)
        modes = take(values, OVERLAPS + PENALTIES, MODES, REAL)
        for i in range(count):
            pair = PAIR(
                tile[i],
                tile[TILE + i],
                tile[2 * TILE + i],
                tile[3 * TILE + i],
                tile[4 * TILE + i],
                tile[5 * TILE + i],
                tile[6 * TILE + i],
                tile[7 * TILE + i],
            )
            overlap, penalty = OVERLAP(pair, *overlaps), PENALTY(pair, *penalties)
            loss = MODE(overlap, penalty, *modes)
            tile[LOSS * TILE + i] = loss + pair.inversion if IS_LOSS else loss
            if GRAD_OF_PRED or GRAD_OF_TARGET:
                at_overlap, at_penalty = MODE_GRAD(overlap, penalty, *modes)
                grads = OVERLAP_GRAD(pair, *overlaps), PENALTY_GRAD(pair, *penalties)
                grad = COMBINE(at_overlap, at_penalty, grads[0], grads[1])
                px1, py1, px2, py2, tx1, ty1, tx2, ty2 = PAIR_BACKWARD(pair, grad, INVERSION_WEIGHT)
                if GRAD_OF_PRED:
                    tile[PRED_GRAD * TILE + i] = px1
                    tile[(PRED_GRAD + 1) * TILE + i] = py1
                    tile[(PRED_GRAD + 2) * TILE + i] = px2
                    tile[(PRED_GRAD + 3) * TILE + i] = py2
                if GRAD_OF_TARGET:
                    tile[TARGET_GRAD * TILE + i] = tx1
                    tile[(TARGET_GRAD + 1) * TILE + i] = ty1
                    tile[(TARGET_GRAD + 2) * TILE + i] = tx2
                    tile[(TARGET_GRAD + 3) * TILE + i] = ty2

    return loss_core


def _decode_core(key: str) -> Callable[..., Any]:
    def decode_core(tile, values, count):
        key  # noqa: B018 - into the closure
        columns, rows = REAL(values[0]), REAL(values[1])
        x_settings = take(values, 2, SETTINGS, REAL)
        y_settings = take(values, 2 + SETTINGS, SETTINGS, REAL)
        for i in range(count):
            x, y = tile[RAW * TILE + i], tile[(RAW + 1) * TILE + i]
            w, h = tile[(RAW + 2) * TILE + i], tile[(RAW + 3) * TILE + i]
            at_x = PLACE(tile[CELL * TILE + i], columns, tile[ANCHOR * TILE + i]) + x_settings
            at_y = PLACE(tile[(CELL + 1) * TILE + i], rows, tile[(ANCHOR + 1) * TILE + i]) + y_settings
            tile[i], tile[2 * TILE + i] = DECODE(x, w, *at_x)
            tile[TILE + i], tile[3 * TILE + i] = DECODE(y, h, *at_y)
            x_grad, y_grad = DECODE_AXIS_GRAD(x, w, *at_x), DECODE_AXIS_GRAD(y, h, *at_y)
            tile[DECODE_GRAD * TILE + i] = x_grad[0]
            tile[(DECODE_GRAD + 1) * TILE + i] = x_grad[1]
            tile[(DECODE_GRAD + 2) * TILE + i] = x_grad[2]
            tile[(DECODE_GRAD + 3) * TILE + i] = x_grad[3]
            tile[(DECODE_GRAD + 4) * TILE + i] = y_grad[0]
            tile[(DECODE_GRAD + 5) * TILE + i] = y_grad[1]
            tile[(DECODE_GRAD + 6) * TILE + i] = y_grad[2]
            tile[(DECODE_GRAD + 7) * TILE + i] = y_grad[3]

    return decode_core
