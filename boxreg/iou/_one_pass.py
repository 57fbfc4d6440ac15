"""What backends that find loss and gradient in one pass have in common: how autograd sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._eager import eager


class Pass(NamedTuple):
    """What is computed: the loss of a row between boxes of a format, and whose gradient."""

    kind: str
    fmt: str
    of_pred: bool
    of_target: bool


Run = Callable[[Pass, Tensor, Tensor, int], tuple[Tensor, Tensor | None, Tensor | None]]
"""A pass over pred and target with their coordinate axis: the loss per pair, and the gradients of its sum."""


def differentiable(
    run: Run, again: bool, kind: str, pred: Tensor, target: Tensor, fmt: str, dim: int
) -> Tensor:
    """The loss per pair by one pass.

    Args:
        run: the backend.
        again: whether a second derivative is served, by the eager backend; it keeps the boxes alive.
        kind: a row of the family.
        pred: predicted boxes.
        target: target boxes.
        fmt: format of both.
        dim: the coordinate axis.
    """
    if torch.is_grad_enabled() and (pred.requires_grad or target.requires_grad):
        loss: Tensor = _OnePass.apply(pred, target, run, again, kind, fmt, dim)
        return loss
    return run(Pass(kind, fmt, False, False), pred, target, dim)[0]


class _OnePass(torch.autograd.Function):
    """The gradient is there when the loss is; what is left for the way back is a product."""

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, target: Tensor, run: Run, again: bool, kind: str, fmt: str, dim: int
    ) -> Tensor:
        loss, *gradients = run(Pass(kind, fmt, *ctx.needs_input_grad[:2]), pred, target, dim)
        ctx.save_for_backward(*gradients, *((pred, target) if again else ()))
        ctx.dtypes, ctx.settings = (pred.dtype, target.dtype), (kind, fmt, dim)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_pred, of_target, *boxes = ctx.saved_tensors
        kind, fmt, dim = ctx.settings
        needed = [i for i, gradient in enumerate((of_pred, of_target)) if gradient is not None]
        gradients: list[Tensor | None] = [None] * 7
        if torch.is_grad_enabled() and boxes:
            loss = eager(kind, boxes[0], boxes[1], fmt, dim)
            again = torch.autograd.grad(loss, [boxes[i] for i in needed], upstream, create_graph=True)
            for i, gradient in zip(needed, again, strict=True):
                gradients[i] = gradient
            return tuple(gradients)
        product = _Product.apply if torch.is_grad_enabled() else scaled
        for i in needed:
            gradients[i] = product((of_pred, of_target)[i], upstream.unsqueeze(dim), ctx.dtypes[i])
        return tuple(gradients)


def scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient times what comes from above, in the dtype of the boxes; float16 saturates."""
    product = gradient * upstream
    if dtype == torch.float16:
        product.clamp_(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return product.to(dtype)


class _Product(torch.autograd.Function):
    """`scaled`, for a graph of the gradient itself: the end of the line."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
        return scaled(gradient, upstream, dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, ...]:
        raise RuntimeError("this backend has no second derivative: use backend='auto' or backend='eager'")
