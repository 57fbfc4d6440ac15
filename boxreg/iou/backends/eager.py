"""The reference backend: autograd through the maths, differentiable as often as one likes.

Under torch.compile the first derivative is computed in closed form, in a third of the time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..._dtypes import promote
from ...boxes import Planes, corners
from ...decoders import decode_planes
from ...reduction import reduce_loss, without_ignored
from .. import geometry
from ..spec import Spec, gradient, value

PAIRS_PER_BLOCK = 2**18
"""Pairwise scores are computed in blocks of this many, so that temporaries do not grow with the output."""


def aligned(spec: Spec, pred: Tensor, target: Tensor, weight: Tensor | None, dim: int) -> Tensor:
    """The loss or score of aligned boxes."""
    pred, target = promote(pred, target)
    if weight is not None:
        pred, target = blank_ignored(pred, target, weight, dim, bool(spec.scheme))
    if spec.scheme:
        planes = decode_planes(spec.scheme, spec.settings, spec.anchor_sides, pred.unbind(dim))
        pred = torch.stack(planes, dim)
    a, b = _corners(pred, target, spec.pred_fmt, spec.target_fmt, dim)
    needed = torch.is_grad_enabled() and (pred.requires_grad or target.requires_grad)
    if needed and _is_compiled():
        per_pair = torch.ops.boxreg.closed_form([*a, *b], spec.kind, spec.mode, spec.inner, spec.parameters)
    else:
        per_pair = value(spec, geometry.pair(*a, *b))
    loss = reduce_loss(per_pair, spec.reduction, weight=weight)
    return loss if spec.factor == 1 else loss * spec.factor


def _is_compiled() -> bool:
    """Whether torch.compile looks on, neither for an export nor through a transform of torch.func."""
    return torch.compiler.is_compiling() and not (
        torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()
    )


class _ClosedForm(torch.autograd.Function):
    """The loss of pairs, and its gradients at their corners, from one pass over the geometry."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, *corners: Tensor) -> Tensor:
        pair = geometry.pair(*corners)
        ctx.spec = spec
        ctx.save_for_backward(*corners, *gradient(spec, pair))
        return value(spec, pair)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        corners, grads = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        if not torch.is_grad_enabled():
            return None, *(grad * upstream for grad in grads)
        # A second derivative is asked for.
        loss = value(ctx.spec, geometry.pair(*corners))
        asked = [corner for corner in corners if corner.requires_grad]
        found = iter(torch.autograd.grad(loss, asked, upstream, create_graph=True))
        return None, *(next(found) if corner.requires_grad else None for corner in corners)


def _closed_form(corners: list[Tensor], kind: str, mode: str, inner: bool, parameters: list[float]) -> Tensor:
    spec = Spec(kind, mode, inner, "xyxy", "xyxy", parameters=tuple(parameters))
    loss: Tensor = _ClosedForm.apply(spec, *corners)
    return loss


# An operator, because torch.compile does not look into one: Inductor sees the operators that it is made of,
# and where the graph is run as it is, second derivatives are right.
_LIBRARY = torch.library.Library("boxreg", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "closed_form(Tensor[] corners, str kind, str mode, bool inner, float[] parameters) -> Tensor"
)
_LIBRARY.impl("closed_form", _closed_form, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


def blank_ignored(
    pred: Tensor, target: Tensor, weight: Tensor, dim: int, raw: bool = False
) -> tuple[Tensor, Tensor]:
    """Pred and target with an ordinary box in place of those of weight 0; of raw outputs, with zeros."""
    # A box in any format, made on the device.
    after = -1 - dim if dim < 0 else target.ndim - 1 - dim
    place = torch.arange(4, device=pred.device).view(-1, *[1] * after)
    ordinary = (place > 1).to(target.dtype)
    return (
        without_ignored(pred, weight, dim, 0.0 if raw else ordinary.to(pred.dtype)),
        without_ignored(target, weight, dim, ordinary),
    )


def pairwise(spec: Spec, a: Tensor, b: Tensor) -> Tensor:
    """Scores (..., N, M), in blocks of rows that are computed again where a gradient is asked for."""
    block = partial(_block, spec, b)
    if torch._C._get_tracing_state() is not None:  # the number of blocks would be that of the example
        return block(a)
    rows_per_block = max(PAIRS_PER_BLOCK // max(b[..., 0].numel(), 1), 1)
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


def _block(spec: Spec, b: Tensor, rows: Tensor) -> Tensor:
    return aligned(spec, rows.unsqueeze(-2), b.unsqueeze(-3), None, -1)


def _corners(pred: Tensor, target: Tensor, pred_fmt: str, target_fmt: str, dim: int) -> tuple[Planes, Planes]:
    """The corners of both, scaled together where their lengths would overflow."""
    large = geometry.is_large(*pred.unbind(dim), *target.unbind(dim)).unsqueeze(dim)
    return (
        corners(geometry.in_range(pred, large), pred_fmt, dim),
        corners(geometry.in_range(target, large), target_fmt, dim),
    )
