"""What backends that find loss and gradient in one pass have in common: how autograd and tracing see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..decoders import Settings
from ._eager import eager
from ._pass import Pass, Result
from .variants import Form

Run = Callable[[Pass, Tensor, Tensor, int], Result]
"""A backend's pass over pred and target with their coordinate axis; nothing of it is differentiable."""

RUNS: dict[str, Run] = {}
"""The passes by their backend's name."""

MAY_KEEP = ContextVar("MAY_KEEP", default=True)
"""Whether a run may keep memory for the next: not as an operator, whose memory may be a CUDA graph's."""


def differentiable(backend: str, again: bool, wanted: Pass, pred: Tensor, target: Tensor, dim: int) -> Tensor:
    """The loss by one pass.

    Args:
        backend: a name in `RUNS`.
        again: whether a second derivative is served, by the eager backend; it keeps the boxes alive.
        wanted: what is computed; the gradients are filled in here.
        pred: predicted boxes, or their raw numbers.
        target: target boxes.
        dim: the coordinate axis.
    """
    recorded = torch.is_grad_enabled()
    wanted = wanted._replace(
        of_pred=recorded and pred.requires_grad, of_target=recorded and target.requires_grad
    )
    if wanted.of_pred or wanted.of_target:
        loss: Tensor = _OnePass.apply(pred, target, backend, dim, again, wanted)
        return loss
    return _run(backend, wanted, pred, target, dim)[0]


class _OnePass(torch.autograd.Function):
    """The gradient is there when the loss is; what is left for the way back is a product."""

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, target: Tensor, backend: str, dim: int, again: bool, wanted: Pass
    ) -> Tensor:
        loss, *gradients = _run(backend, wanted, pred, target, dim)
        ctx.save_for_backward(*gradients, *((pred, target) if again else ()))
        ctx.dtypes, ctx.dim, ctx.wanted = (pred.dtype, target.dtype), dim, wanted
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_pred, of_target, *boxes = ctx.saved_tensors
        wanted: Pass = ctx.wanted
        gradients: list[Tensor | None] = [None] * 6
        differentiated_again = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if differentiated_again and boxes:
            loss = eager(wanted, boxes[0], boxes[1], ctx.dim)
            needed = [i for i, asked in enumerate((wanted.of_pred, wanted.of_target)) if asked]
            again = torch.autograd.grad(loss, [boxes[i] for i in needed], upstream, create_graph=True)
            for i, gradient in zip(needed, again, strict=True):
                gradients[i] = gradient
            return tuple(gradients)
        product = _refuse_to_go_on if differentiated_again else scaled
        if wanted.reduction == "none":
            upstream = upstream.unsqueeze(ctx.dim)
        for i, gradient in enumerate((of_pred, of_target)):
            if gradient is not None:
                gradients[i] = product(gradient, upstream, ctx.dtypes[i])
        return tuple(gradients)


def saturated(gradient: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A gradient that float16 can hold, where the boxes are float16: what is scaled later may leave it."""
    if gradient is None or dtype != torch.float16:
        return gradient
    most = torch.finfo(dtype).max
    return gradient.clamp(-most, most)


def scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient times the upstream gradient, in the dtype of the boxes; infinite beyond its range."""
    if dtype == gradient.dtype or torch.compiler.is_compiling():
        return (gradient * upstream).to(dtype)
    # Multiplied and rounded in one launch.
    return torch.mul(gradient, upstream.detach(), out=torch.empty_like(gradient, dtype=dtype))


def _refuse_to_go_on(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """`scaled`, for a graph of the gradient itself: an error if anybody differentiates it."""
    on_the_graph = torch.ones((), requires_grad=True)
    product: Tensor = _End.apply(scaled(gradient, upstream, dtype), on_the_graph)
    return product


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, on_the_graph: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, ...]:
        raise RuntimeError("this backend has no second derivative: use backend='auto' or backend='eager'")


def _run(backend: str, wanted: Pass, pred: Tensor, target: Tensor, dim: int) -> Result:
    """The backend's pass; while torch.compile or a fake tensor mode looks on, as an operator of its own."""
    if not (torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()):
        return RUNS[backend](wanted, pred, target, dim)
    arguments = (pred, target, backend, dim, *as_arguments(wanted))
    loss, of_pred, of_target = torch.ops.boxreg.one_pass(*arguments)
    return loss, of_pred if wanted.of_pred else None, of_target if wanted.of_target else None


_LIBRARY = torch.library.Library("boxreg", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "one_pass(Tensor pred, Tensor target, str backend, int dim, str kind, str mode, bool inner, "
    "float[] values, str pred_fmt, str target_fmt, str reduction, str scheme, float[] settings, "
    "float[] anchor_sides, bool of_pred, bool of_target) -> (Tensor, Tensor, Tensor)"
)


_BY_AXIS = ("settings", "anchor_sides")
"""What of a pass has numbers of the x and of the y axis."""


def as_arguments(wanted: Pass) -> tuple[Any, ...]:
    """A pass as the operator takes it: its form and the numbers of its scheme flat."""
    flat: dict[str, Any] = {
        name: [number for axis in getattr(wanted, name) for number in axis] for name in _BY_AXIS
    }
    _, *others = wanted._replace(**flat)
    return *wanted.form, *others


def _from_arguments(*arguments: Any) -> Pass:
    kind, mode, inner, values, *others = arguments
    wanted = Pass(Form(kind, mode, inner, tuple(values)), *others)
    by_axis: dict[str, Any] = {name: _halved(getattr(wanted, name)) for name in _BY_AXIS}
    return wanted._replace(**by_axis)


def _halved(numbers: Sequence[float]) -> Settings:
    middle = len(numbers) // 2
    return tuple(numbers[:middle]), tuple(numbers[middle:])


def _operator(pred: Tensor, target: Tensor, backend: str, dim: int, *arguments: Any) -> tuple[Tensor, ...]:
    # An operator returns tensors: an empty one stands for a gradient that was not asked for.
    kept = MAY_KEEP.set(False)
    try:
        results = RUNS[backend](_from_arguments(*arguments), pred, target, dim)
    finally:
        MAY_KEEP.reset(kept)
    return tuple(results[0].new_empty(0) if result is None else result for result in results)


def _shapes(pred: Tensor, target: Tensor, backend: str, dim: int, *arguments: Any) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    wanted = _from_arguments(*arguments)
    loss = pred.new_empty(pred.select(dim, 0).shape if wanted.reduction == "none" else (), dtype=dtype)
    return loss, *(
        loss.new_empty(pred.shape if wants else (0,)) for wants in (wanted.of_pred, wanted.of_target)
    )


_LIBRARY.impl("one_pass", _operator, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("boxreg::one_pass", _shapes, lib=_LIBRARY)


def as_planes(boxes: Tensor, dim: int) -> Tensor:
    """Boxes of any layout as (4, outer, inner): a view, or a copy where the strides allow none."""
    dim %= boxes.ndim
    return boxes.reshape(boxes.shape[:dim].numel(), 4, boxes.shape[dim + 1 :].numel()).movedim(1, 0)


def divisor(wanted: Pass, pairs: int) -> int:
    """What the sum of the loss over so many pairs is divided by."""
    return max(pairs, 1) if wanted.reduction == "mean" else 1
