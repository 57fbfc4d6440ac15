"""Loss and gradient in one pass on the CPU, by kernels that Numba compiles from the shared maths.

A call is a list of addresses and numbers for compiled code, which reads boxes tile by tile (`_numba_tiles`)
and lets the core of the loss compute them (`_numba_cores`). It runs without the GIL.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Iterable
from functools import cache, lru_cache
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
from ._numba_threads import share

MANY = 2**16
"""From so many pairs on, threads share the work; with gradients, which take twice as long, from half."""

DTYPES = {torch.float32: "float32", torch.float64: "float64"}

Strides = tuple[int, int, int, int]
"""Of coordinates, images, rows and columns."""

ENDLESS = 2**62
"""Rows of an image for aligned boxes, which have no images: more than there can be."""


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
    grads = [torch.empty(shape, dtype=dtype) if need else None for need in (spec.pred_grad, spec.target_grad)]
    if weight is not None:
        weight = weight.detach().contiguous()
    contiguous = (1, 0, 0, 4) if inner == 1 else (inner, 0, 4 * inner, 1)
    pred, pred_strides = (pred, contiguous) if pred.is_contiguous() else _strided(pred, dim)
    target, target_strides = (target, contiguous) if target.is_contiguous() else _strided(target, dim)
    name = DTYPES[dtype]
    core = loss_core(name, spec.kind, spec.mode, spec.inner, spec.pred_grad, spec.target_grad)
    decode, integers, decode_floats = _decoding(spec, name, rest) if spec.scheme else (0, NOT_DECODED, ())
    factor = spec.factor / max(count, 1) if spec.reduction == "mean" else spec.factor
    tensors = pred, target, loss, *grads, weight
    layout = ENDLESS, *pred_strides, *target_strides, *contiguous
    arguments = (
        core,
        decode,
        count,
        count if inner == 1 else inner,
        *layout,
        reduced,
        *integers,
        2,
        *_converted(spec.pred_fmt, spec.target_fmt),
        0,
        0,
    )
    floats = *_format(spec.pred_fmt), *_format(spec.target_fmt), factor, *spec.parameters, *decode_floats
    work = 2 * count if spec.pred_grad or spec.target_grad else count
    total = _run(tiles.losses(name), tensors, arguments, floats, -(-count // TILE), tiles.CHUNK, work)
    if total is not None and reduced:
        loss.fill_(total * factor)
    return loss, grads[0], grads[1]


NOT_DECODED = 0, 0, 1, 0, 0
"""Columns and rows of a grid, anchors, and where the numbers of a decoder begin, without one."""


def _decoding(spec: Spec, dtype: str, shape: torch.Size) -> tuple[int, tuple[int, ...], tuple[float, ...]]:
    """The code of a decoder, and what a call says about it: integers and floats."""
    grid = (shape[-1], shape[-2]) if SCHEMES[spec.scheme].needs_grid else (0, 0)
    widths, heights = spec.anchor_sides
    settings = *spec.settings[0], *spec.settings[1]
    first = tiles.VALUES + len(spec.parameters)
    integers = *grid, max(len(widths), 1), first, first + 2 + len(settings)
    floats = *grid, *settings, *(widths or (0.0,)), *(heights or (0.0,))
    return decode_core(dtype, spec.scheme, len(spec.settings[0])), integers, floats


def _strided(boxes: Tensor, dim: int) -> tuple[Tensor, Strides]:
    """Boxes as compiled code can read them, and their strides."""
    planes = as_planes(boxes, dim)
    step, outer, inner = planes.stride()
    return planes, (step, 0, 0, outer) if planes.shape[2] == 1 else (step, 0, outer, inner)


@cache
def _format(fmt: str) -> tuple[float, ...]:
    """The two ends of a side as sums of its two coordinates with constant factors: these four."""
    to_ends: Any = FORMATS[fmt].to_ends
    first, second = to_ends(1.0, 0.0), to_ends(0.0, 1.0)
    return first[0], second[0], first[1], second[1]


@cache
def _converted(*formats: str) -> tuple[bool, ...]:
    """Whether each side is in another format than corners."""
    return tuple(fmt != "xyxy" for fmt in formats)


def scores(spec: Spec, a: Tensor, b: Tensor) -> Tensor:
    """Scores (B, N, M) of boxes (B, N, 4) and (B, M, 4) in one working dtype."""
    a, b = a.contiguous(), b.contiguous()
    found = torch.empty(*a.shape[:2], b.shape[1], dtype=a.dtype)
    count, name = found.numel(), DTYPES[a.dtype]
    core = loss_core(name, spec.kind, SCORE, spec.inner, False, False)
    arguments = *_pairwise(spec, a, b, core, count), 0, 0
    tensors = a, b, found, None, None, None
    _run(tiles.losses(name), tensors, arguments, _floats(spec), -(-count // TILE), tiles.CHUNK, count)
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
    a_grad = torch.zeros_like(a) if spec.pred_grad else None
    parts = a.new_zeros(images, max(-(-rows // step), 1), 4, columns) if spec.target_grad else None
    core = loss_core(name, spec.kind, SCORE, spec.inner, True, True)
    arguments = *_pairwise(spec, a, b, core, upstream.numel()), step, chunks
    tensors = a, b, None, a_grad, parts, upstream
    work = 2 * upstream.numel()
    _run(tiles.pairwise_backward(name), tensors, arguments, _floats(spec), chunks, 1, work, counted=True)
    return a_grad, None if parts is None else parts.sum(1).mT.contiguous()


def _pairwise(spec: Spec, a: Tensor, b: Tensor, core: int, count: int) -> tuple[int, ...]:
    """The arguments of a call about pairs of all boxes with all, but for the last two."""
    rows, columns = a.shape[1], b.shape[1]
    of_a, of_b, of_grad = (1, 4 * rows, 4, 0), (1, 4 * columns, 0, 4), (0, 0, 0, 0)
    layout = columns, rows, *of_a, *of_b, *of_grad
    return core, 0, count, *layout, 0, *NOT_DECODED, 2, *_converted(spec.pred_fmt, spec.target_fmt)


def _floats(spec: Spec) -> tuple[float, ...]:
    return *_format(spec.pred_fmt), *_format(spec.target_fmt), 1.0, *spec.parameters


@lru_cache(64)
def _struct(floats: int) -> Struct:
    return Struct(f"{tiles.FIELDS}q{floats}d")


@cache
def _function(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)


def _run(
    address: int,
    tensors: tuple[Tensor | None, ...],
    arguments: tuple[int, ...],
    floats: tuple[float, ...],
    units: int,
    chunk: int,
    work: int,
    counted: bool = False,
) -> float | None:
    """Call compiled code, with several threads if there is much work.

    Args:
        address: of the code.
        tensors: the first fields of a call.
        arguments: the fields after them and after the counters.
        floats: what comes after the fields.
        units: tiles, or other units of work.
        chunk: units that a thread takes at a time.
        work: pairs, counted twice if there are gradients; it decides whether threads share.
        counted: whether the code wants counters also for one thread.

    Returns:
        The sum of the losses if several threads have computed them; None if the code has written it.
    """
    pack, function = _struct(len(floats)).pack, _function(address)
    places = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    chunks = -(-units // chunk)
    helpers = min(torch.get_num_threads(), chunks) - 1 if work >= MANY else 0
    if helpers <= 0 and not counted:
        function(pack(*places, 0, 0, *arguments, *floats))
        return None
    counters, sums = numpy.zeros(2, numpy.int64), numpy.zeros(units)
    call = pack(*places, sums.ctypes.data, counters.ctypes.data, *arguments, *floats)

    def compute(kept: object = (tensors, sums)) -> None:
        function(call)

    share(compute, counters, chunks, max(helpers, 0))
    # Added one after the other, as one thread adds them.
    return float(numpy.add.accumulate(sums)[-1]) if units else 0.0


def compile_kernels(kinds: Iterable[str], dtype: torch.dtype) -> None:
    """Compile what losses and scores of these kinds need, and all decoders; or load it from the cache."""
    name = DTYPES[dtype]
    tiles.losses(name)
    tiles.pairwise_backward(name)
    for kind in kinds:
        check_choice("kinds", kind, FAMILY)
        for mode, grad in (("linear", False), ("linear", True), (SCORE, False)):
            loss_core(name, kind, mode, False, grad, False)
        loss_core(name, kind, SCORE, False, True, True)
    for scheme, decoder in SCHEMES.items():
        if decoder.__module__.startswith("boxreg.") and not inspect.isabstract(decoder):
            arguments = len(inspect.signature(decoder.decode_axis).parameters)
            decode_core(name, scheme, arguments - 2 - 2 * decoder.needs_grid - decoder.needs_anchors)
