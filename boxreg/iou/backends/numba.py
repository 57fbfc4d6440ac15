"""Loss and gradient in one pass on the CPU, by kernels that Numba compiles from the shared maths.

A call is a list of addresses and numbers (`_numba_tiles.FIELDS`) for compiled code, which reads boxes tile by tile
(`_numba_tiles`) and lets the core of the loss compute them (`_numba_cores`). It runs without the GIL.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from struct import Struct
from typing import Any

import numpy
import torch
from torch import Tensor

from ..._checks import check_choice
from ..._dtypes import working_dtype
from ...boxes import FORMATS
from ...decoders import SCHEMES
from ..autograd import Result
from ..spec import FAMILY, SCORE, Spec
from . import _numba_tiles as tiles
from ._layout import as_planes
from ._numba_cores import TILE, decode_core, loss_core

MANY = 2**14
"""From so many pairs on, threads share the work: to wake one takes as long as a few thousand pairs."""

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def aligned(spec: Spec, pred: Tensor, target: Tensor, weight: Tensor | None, dim: int) -> Result:
    """The loss and its gradients in the working dtype."""
    dtype = working_dtype(pred, target)
    pred, target = pred.to(dtype), target.to(dtype)
    dim %= pred.ndim
    shape = pred.shape
    rest = shape[:dim] + shape[dim + 1 :]
    count, inner = pred.numel() // 4, shape[dim + 1 :].numel()
    reduced = spec.reduction != "none"
    loss = torch.empty(() if reduced else rest, dtype=dtype)
    pred_grad = torch.empty(shape, dtype=dtype) if spec.pred_grad else None
    target_grad = torch.empty(shape, dtype=dtype) if spec.target_grad else None
    if weight is not None:
        weight = weight.detach().contiguous()
    contiguous = (1, 0, 0, 4) if inner == 1 else (inner, 0, 4 * inner, 1)
    pred_strides = target_strides = contiguous
    if not pred.is_contiguous():
        pred, pred_strides = _strided(pred, dim)
    if not target.is_contiguous():
        target, target_strides = _strided(target, dim)
    settings = (*spec.settings[0], *spec.settings[1])
    values = tiles.VALUES + len(spec.parameters)
    decoder = SCHEMES[spec.scheme] if spec.scheme else None
    grid = decoder is not None and decoder.needs_grid
    factor = spec.factor / max(count, 1) if spec.reduction == "mean" else spec.factor
    name = DTYPES[dtype]
    arguments = (
        pred.data_ptr(),
        target.data_ptr(),
        loss.data_ptr(),
        0 if pred_grad is None else pred_grad.data_ptr(),
        0 if target_grad is None else target_grad.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        loss_core(name, spec.kind, spec.mode, spec.inner, spec.pred_grad, spec.target_grad),
        decode_core(name, spec.scheme, len(spec.settings[0])) if decoder else 0,
        count,
        count if inner == 1 else inner,
        ENDLESS,
        *pred_strides,
        *target_strides,
        *contiguous,
        reduced,
        rest[-1] if grid else 0,
        rest[-2] if grid else 0,
        max(len(spec.anchor_sides[0]), 1),
        values,
        values + 2 + len(settings),
        2,
        0,
        0,
    )
    floats = (
        *_format(spec.pred_fmt),
        *_format(spec.target_fmt),
        factor,
        *spec.parameters,
        *((rest[-1], rest[-2]) if grid else (0, 0)),
        *settings,
        *(spec.anchor_sides[0] or (0.0,)),
        *(spec.anchor_sides[1] or (0.0,)),
    )
    total = _run(tiles.losses(name), arguments, floats, -(-count // TILE), tiles.CHUNK, count, reduced)
    if total is not None:
        loss.fill_(total * factor)
    return loss, pred_grad, target_grad


ENDLESS = 2**62
"""So many rows an image has where there are no images."""


def _strided(boxes: Tensor, dim: int) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Boxes as compiled code can read them, and their strides: of coordinates, images, rows and columns."""
    planes = as_planes(boxes, dim)
    step, outer, inner = planes.stride()
    return planes, (step, 0, 0, outer) if planes.shape[2] == 1 else (step, 0, outer, inner)


@cache
def _format(fmt: str) -> tuple[float, ...]:
    """What the two ends of a side are in terms of its two coordinates: both are sums with constant factors."""
    first, second = FORMATS[fmt].to_ends(1.0, 0.0), FORMATS[fmt].to_ends(0.0, 1.0)  # type: ignore[arg-type]
    return first[0], second[0], first[1], second[1]  # type: ignore[return-value]


def scores(spec: Spec, a: Tensor, b: Tensor) -> Tensor:
    """Scores (B, N, M) of boxes (B, N, 4) and (B, M, 4) in one working dtype."""
    a, b = a.contiguous(), b.contiguous()
    found = torch.empty(*a.shape[:2], b.shape[1], dtype=a.dtype)
    count, name = found.numel(), DTYPES[a.dtype]
    core = loss_core(name, spec.kind, SCORE, spec.inner, False, False)
    arguments = _pairwise(a, b, found.data_ptr(), 0, 0, 0, core, count)
    _run(tiles.losses(name), (*arguments, 0, 0), _floats(spec), -(-count // TILE), tiles.CHUNK, count, False)
    return found


def scores_backward(
    spec: Spec, a: Tensor, b: Tensor, upstream: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the boxes, from that of their scores.

    Each chunk of rows of `a` has sums of its own for `b`. Chunks do not depend on the number of threads, so
    neither do the bits of the result.
    """
    a, b, upstream = a.contiguous(), b.contiguous(), upstream.contiguous()
    (images, rows, _), columns, name = a.shape, b.shape[1], DTYPES[a.dtype]
    step = max(-(-rows // 16), 1)
    chunks = images * -(-rows // step) if upstream.numel() else 0
    a_grad = torch.zeros_like(a)
    parts = a.new_zeros(images, max(chunks // max(images, 1), 1), 4, columns)
    core = loss_core(name, spec.kind, SCORE, spec.inner, True, True)
    places = a_grad.data_ptr() if spec.pred_grad else 0, parts.data_ptr() if spec.target_grad else 0
    arguments = _pairwise(a, b, 0, *places, upstream.data_ptr(), core, upstream.numel())
    shared = (*arguments, step, chunks)
    _run(
        tiles.pairwise_backward(name), shared, _floats(spec), chunks, 1, upstream.numel(), False, always=True
    )
    b_grad = parts.sum(1).mT.contiguous() if spec.target_grad else None
    return a_grad if spec.pred_grad else None, b_grad


def _pairwise(
    a: Tensor, b: Tensor, scores: int, a_grad: int, b_grad: int, upstream: int, core: int, count: int
) -> tuple[int, ...]:
    """The arguments of a call about pairs of all boxes with all, but for the last two."""
    rows, columns = a.shape[1], b.shape[1]
    places = a.data_ptr(), b.data_ptr(), scores, a_grad, b_grad, upstream, core, 0, count, columns, rows
    return *places, 1, 4 * rows, 4, 0, 1, 4 * columns, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2


def _floats(spec: Spec) -> tuple[float, ...]:
    return *_format(spec.pred_fmt), *_format(spec.target_fmt), 1.0, *spec.parameters


@cache
def _struct(floats: int) -> Struct:
    return Struct(f"{tiles.FIELDS}q{floats}d")


@cache
def _function(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)


_WITHOUT_THREADS = (0, 0)


def _run(
    address: int,
    arguments: tuple[int, ...],
    floats: tuple[float, ...],
    units: int,
    chunk: int,
    pairs: int,
    reduced: bool,
    always: bool = False,
) -> float | None:
    """Call compiled code; of many pairs with several threads, which return the sum of the losses.

    Args:
        address: of the code.
        arguments: `FIELDS` but for the sums and the counters, which this adds.
        floats: what comes after them.
        units: tiles, or other units of work.
        chunk: so many of which a thread takes at a time.
        pairs: how many there are.
        reduced: whether the sum of the losses is asked for.
        always: whether the code wants counters also for one thread.
    """
    pack, function = _struct(len(floats)).pack, _function(address)
    chunks = -(-units // chunk)
    helpers = min(torch.get_num_threads(), chunks) - 1 if pairs >= MANY else 0
    if helpers <= 0 and not always:
        function(pack(*arguments[:6], *_WITHOUT_THREADS, *arguments[6:], *floats))
        return None
    counters = numpy.zeros(2, numpy.int64)
    sums = numpy.empty(units if reduced else 0)
    places = sums.ctypes.data if reduced else 0, counters.ctypes.data
    call = pack(*arguments[:6], *places, *arguments[6:], *floats)

    def help_along() -> None:
        # The counters stay alive until the last thread has looked at them.
        if counters[0] < chunks:
            function(call)

    futures = [future for _ in range(helpers) if (future := _submit(help_along))]
    function(call)
    # A thread that has not begun by now need not; what others have begun is waited for.
    for future in futures:
        future.cancel()
    while counters[1] < chunks:
        time.sleep(0)
    # One after the other, as one thread adds them.
    return float(numpy.add.accumulate(sums)[-1]) if reduced else None


_POOL: list[ThreadPoolExecutor] = []


def _submit(work: Any) -> Any:
    """The future of work in another thread; None if there can be no more threads."""
    if not _POOL:
        _POOL.append(ThreadPoolExecutor(max(os.cpu_count() or 1, 1), thread_name_prefix="boxreg"))
    try:
        return _POOL[0].submit(work)
    except RuntimeError:  # the interpreter is about to exit
        return None


# A forked process has none of the threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.clear)


def compile_kernels(kinds: Iterable[str], dtype: torch.dtype) -> None:
    """Compile what losses and scores of these kinds need, and all decoders; or load it from the cache."""
    name = DTYPES[dtype]
    tiles.losses(name)
    tiles.pairwise_backward(name)
    for kind in kinds:
        check_choice("kinds", kind, FAMILY)
        for mode, grad in (("linear", False), ("linear", True), (SCORE, False)):
            loss_core(name, kind, mode, False, grad, False)
    for scheme, decoder in SCHEMES.items():
        if decoder.__module__.startswith("boxreg.") and not inspect.isabstract(decoder):
            arguments = len(inspect.signature(decoder.decode_axis).parameters)
            decode_core(name, scheme, arguments - 2 - 2 * decoder.needs_grid - decoder.needs_anchors)
