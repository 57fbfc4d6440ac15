"""Scores of every box with every other, and how autograd and tracing see the backends that compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._dtypes import promote
from ._eager import eager
from ._pass import Pass
from .variants import Form

PAIRS_PER_BLOCK = 2**18
"""The eager backend works in blocks of this many pairs, so that temporaries do not grow with the output."""


class Pairwise(NamedTuple):
    """What is computed: scores of a form between boxes of a format."""

    form: Form
    fmt: str


Scores = Callable[[Pairwise, Tensor, Tensor], Tensor]
"""Boxes (B, N, 4) and (B, M, 4) in one working dtype in, scores (B, N, M) out; nothing is differentiable."""

Gradients = Callable[[Pairwise, Tensor, Tensor, Tensor, bool, bool], tuple[Tensor | None, Tensor | None]]
"""The boxes, what comes from above, and whose gradient is wanted in; those gradients out."""

RUNS: dict[str, tuple[Scores, Gradients]] = {}
"""The backends that keep nothing for the way back, but compute pairs again where a gradient is asked for."""


def pairwise(backend: str, wanted: Pairwise, a: Tensor, b: Tensor) -> Tensor:
    """Scores (..., N, M) by a backend that serves such boxes."""
    a, b = promote(a, b)
    if backend == "eager":
        return in_blocks(wanted, a, b)
    if backend == "compile":
        scores: Tensor = _compiled(wanted)(a, b)
        return scores
    flat = (side.reshape(side.shape[:-2].numel(), *side.shape[-2:]) for side in (a, b))
    scores = _Pairwise.apply(*flat, backend, wanted)
    return scores.reshape(*a.shape[:-1], b.shape[-2])


def in_blocks(wanted: Pairwise, a: Tensor, b: Tensor) -> Tensor:
    """Scores by the eager maths, in blocks of rows that are computed again where a gradient is asked for."""
    block = partial(_block, wanted, b)
    pairs_per_row = max(b[..., 0].numel(), 1)
    rows_per_block = max(PAIRS_PER_BLOCK // pairs_per_row, 1)
    blocks = torch.split(a, rows_per_block, dim=-2)
    if len(blocks) == 1:
        return block(a)
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        # torch.func's transforms cannot compute a block again; there its temporaries are kept.
        kept = torch._C._are_functorch_transforms_active()
        again = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([(block if kept else again)(rows) for rows in blocks], dim=-2)
    first = block(blocks[0])
    scores = first.new_empty((*a.shape[:-1], b.shape[-2]))  # of `first`: under vmap, mapped over a and b
    for rows, out in zip(blocks, torch.split(scores, rows_per_block, dim=-2), strict=True):
        out.copy_(first if rows is blocks[0] else block(rows))
    return scores


def _block(wanted: Pairwise, b: Tensor, rows: Tensor) -> Tensor:
    aligned = Pass(wanted.form, wanted.fmt, wanted.fmt)
    return eager(aligned, rows.unsqueeze(-2), b.unsqueeze(-3), -1)


@cache
def _compiled(wanted: Pairwise) -> Callable[[Tensor, Tensor], Tensor]:
    def scores(a: Tensor, b: Tensor) -> Tensor:
        return _block(wanted, b, a)

    return torch.compile(scores, fullgraph=True, dynamic=True)


class _Pairwise(torch.autograd.Function):
    """Keeps the boxes alone."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, backend: str, wanted: Pairwise) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.backend, ctx.wanted = backend, wanted
        if _is_traced():
            scores: Tensor = torch.ops.boxreg.pairwise(a, b, backend, *as_arguments(wanted))
            return scores
        return RUNS[backend][0](wanted, a.detach(), b.detach())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        asked = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            sides = [side for side, asks in zip((a, b), asked, strict=True) if asks]
            scores = in_blocks(ctx.wanted, a, b)
            found = iter(torch.autograd.grad(scores, sides, upstream, create_graph=True))
            return *(next(found) if asks else None for asks in asked), None, None
        if _is_traced():
            arguments = (a, b, upstream, *asked, ctx.backend, *as_arguments(ctx.wanted))
            both = torch.ops.boxreg.pairwise_gradients(*arguments)
            return *(side if asks else None for side, asks in zip(both, asked, strict=True)), None, None
        return *RUNS[ctx.backend][1](ctx.wanted, a, b, upstream, *asked), None, None


def _is_traced() -> bool:
    """Whether torch.compile or a tensor mode looks on, to which the computation is one operator."""
    return bool(torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack())


_LIBRARY = torch.library.Library("boxreg", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "pairwise(Tensor a, Tensor b, str backend, str kind, str mode, bool inner, float[] values, str fmt) "
    "-> Tensor"
)
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "pairwise_gradients(Tensor a, Tensor b, Tensor upstream, bool of_a, bool of_b, "
    "str backend, str kind, str mode, bool inner, float[] values, str fmt) -> (Tensor, Tensor)"
)


def as_arguments(wanted: Pairwise) -> tuple[Any, ...]:
    """What is computed as an operator takes it."""
    return *wanted.form, wanted.fmt


def _from_arguments(kind: str, mode: str, inner: bool, values: Sequence[float], fmt: str) -> Pairwise:
    return Pairwise(Form(kind, mode, inner, tuple(values)), fmt)


def _scores(a: Tensor, b: Tensor, backend: str, *wanted: Any) -> Tensor:
    return RUNS[backend][0](_from_arguments(*wanted), a, b)


def _gradients(
    a: Tensor, b: Tensor, upstream: Tensor, of_a: bool, of_b: bool, backend: str, *wanted: Any
) -> tuple[Tensor, ...]:
    # An operator returns tensors: an empty one stands for a gradient that was not asked for.
    found = RUNS[backend][1](_from_arguments(*wanted), a, b, upstream, of_a, of_b)
    return tuple(a.new_empty(0) if side is None else side for side in found)


def _gradients_shapes(
    a: Tensor, b: Tensor, upstream: Tensor, of_a: bool, of_b: bool, *wanted: Any
) -> tuple[Tensor, ...]:
    return a.new_empty(a.shape if of_a else (0,)), a.new_empty(b.shape if of_b else (0,))


_LIBRARY.impl("pairwise", _scores, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("pairwise_gradients", _gradients, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake(
    "boxreg::pairwise", lambda a, b, *wanted: a.new_empty(*a.shape[:-1], b.shape[-2]), lib=_LIBRARY
)
torch.library.register_fake("boxreg::pairwise_gradients", _gradients_shapes, lib=_LIBRARY)
