"""How autograd, torch.compile and fake tensors see backends that compute loss and gradient in one pass."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._dtypes import working_dtype
from .backends import eager
from .spec import Spec

Result = tuple[Tensor, Tensor | None, Tensor | None]
"""The loss, and the gradients of pred and of target; None for those that are not needed."""


class Backend(NamedTuple):
    """Functions that compute without recording a graph.

    Attributes:
        aligned: of spec, pred, target, weight and coordinate axis: the loss and its gradients. `weight` is
            None or has the loss's dtype.
        scores: of spec and boxes (B, N, 4) and (B, M, 4): scores (B, N, M).
        scores_backward: of spec, both boxes and the upstream gradient: the gradients that the spec asks for.
    """

    aligned: Callable[[Spec, Tensor, Tensor, Tensor | None, int], Result]
    scores: Callable[[Spec, Tensor, Tensor], Tensor]
    scores_backward: Callable[[Spec, Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None]]


BACKENDS: dict[str, Callable[[], Backend]] = {}
"""Backends by name; each is imported when it is called for. Filled by `dispatch`."""

MAY_KEEP = ContextVar("MAY_KEEP", default=True)
"""Whether a backend may keep memory for its next call. Not inside of an operator: a CUDA graph may own it."""


def aligned(name: str, spec: Spec, pred: Tensor, target: Tensor, weight: Tensor | None, dim: int) -> Tensor:
    """The loss or score of aligned boxes by a backend, differentiable in pred and target."""
    traced = _is_traced()
    if torch.is_grad_enabled() and (pred.requires_grad or target.requires_grad):
        spec = spec._replace(pred_grad=pred.requires_grad, target_grad=target.requires_grad)
        if not traced:  # autograd saves no tensors that inference mode made
            target = target.clone() if target.is_inference() else target
            weight = weight.clone() if weight is not None and weight.is_inference() else weight
        loss: Tensor = _Aligned.apply(pred, target, weight, name, spec, dim, traced)
        return loss
    return _run(name, spec, pred, target, weight, dim, traced)[0]


class _Aligned(torch.autograd.Function):
    """The gradient is computed with the loss. A second derivative is computed by the eager backend."""

    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None,
        name: str,
        spec: Spec,
        dim: int,
        traced: bool,
    ) -> Tensor:
        loss, *grads = _run(name, spec, pred, target, weight, dim, traced)
        ctx.save_for_backward(pred, target, weight, *(grads if traced else ()))
        ctx.grads = None if traced else grads
        ctx.name, ctx.spec, ctx.dim, ctx.traced = name, spec, dim, traced
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        spec, dim = ctx.spec, ctx.dim
        pred, target, weight, *saved = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            loss = eager.aligned(spec, pred, target, weight, dim)
            return *_again(loss, (pred, target), (spec.pred_grad, spec.target_grad), upstream), *[None] * 5
        # They are given away, and may be changed: a second backward computes them again.
        pred_grad, target_grad = (
            saved or ctx.grads or _run(ctx.name, spec, pred, target, weight, dim, ctx.traced)[1:]
        )
        ctx.grads = None
        if spec.reduction == "none":
            factor: Tensor | None = upstream.unsqueeze(dim)
        else:
            factor = None if not ctx.traced and _is_one(upstream) else upstream
        of_pred = None if pred_grad is None else _scaled(pred_grad, factor, pred.dtype)
        of_target = None if target_grad is None else _scaled(target_grad, factor, target.dtype)
        return of_pred, of_target, *[None] * 5


def _again(
    result: Tensor, sides: tuple[Tensor, Tensor], needed: tuple[bool, bool], upstream: Tensor
) -> list[Tensor | None]:
    """The gradients of two sides as a graph that can be differentiated again."""
    asked = [side for side, need in zip(sides, needed, strict=True) if need]
    found = iter(torch.autograd.grad(result, asked, upstream, create_graph=True))
    return [next(found) if need else None for need in needed]


def _is_one(upstream: Tensor) -> bool:
    """Whether a scalar is known to be 1, as in `loss.backward()`. On a GPU, looking would wait."""
    return upstream.is_cpu and not _is_batched(upstream) and upstream.item() == 1.0


def _is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for several, as under `is_grads_batched`."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def _scaled(grad: Tensor, upstream: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The gradient times the upstream gradient, in the dtype of the boxes; infinite beyond its range."""
    if upstream is None:
        return grad.to(dtype)
    if dtype == grad.dtype or torch.compiler.is_compiling() or _is_batched(upstream):
        return (grad * upstream).to(dtype)
    # Multiplied and rounded in one launch.
    return torch.mul(grad, upstream.detach(), out=torch.empty_like(grad, dtype=dtype))


def pairwise(name: str, spec: Spec, a: Tensor, b: Tensor) -> Tensor:
    """Scores (..., N, M) of boxes in one working dtype by a backend, differentiable in both."""
    flat = [side.reshape(side.shape[:-2].numel(), *side.shape[-2:]) for side in (a, b)]
    if not torch.compiler.is_compiling():
        flat = [side.clone() if side.is_inference() else side for side in flat]
    scores: Tensor = _Pairwise.apply(*flat, name, spec)
    return scores.reshape(*a.shape[:-1], b.shape[-2])


class _Pairwise(torch.autograd.Function):
    """Keeps the boxes alone; pairs are computed again in backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, name: str, spec: Spec) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.name, ctx.spec = name, spec
        if _is_traced():
            scores: Tensor = torch.ops.boxreg.pairwise(a, b, name, *_as_arguments(spec))
            return scores
        return BACKENDS[name]().scores(spec, _in_memory(a.detach()), _in_memory(b.detach()))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or _is_batched(upstream)):
            with torch.enable_grad():
                scores = eager.pairwise(ctx.spec, a, b)
            return *_again(scores, (a, b), needed, upstream), None, None
        spec = ctx.spec._replace(pred_grad=needed[0], target_grad=needed[1])
        if _is_traced():
            arguments = a, b, upstream, ctx.name, *_as_arguments(spec)
            grads = torch.ops.boxreg.pairwise_backward(*arguments)
            return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None
        sides = map(_in_memory, (a, b, upstream))
        return *BACKENDS[ctx.name]().scores_backward(spec, *sides), None, None


def _is_traced() -> bool:
    """Whether torch.compile or a tensor mode looks on, to which a backend's work is one operator."""
    return bool(torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack())


def _in_memory(tensor: Tensor) -> Tensor:
    """A copy if the tensor is a lazy negation, or zeros without memory: kernels read memory."""
    return tensor.clone() if tensor.is_neg() or tensor._is_zerotensor() else tensor


def _run(
    name: str, spec: Spec, pred: Tensor, target: Tensor, weight: Tensor | None, dim: int, traced: bool
) -> Result:
    if not traced:
        known = pred.is_neg() or pred._is_zerotensor() or target.is_neg() or target._is_zerotensor()
        if known or (weight is not None and (weight.is_neg() or weight._is_zerotensor())):
            pred, target = _in_memory(pred), _in_memory(target)
            weight = None if weight is None else _in_memory(weight)
        return BACKENDS[name]().aligned(spec, pred, target, weight, dim)
    arguments = pred, target, weight, dim, name, *_as_arguments(spec)
    loss, pred_grad, target_grad = torch.ops.boxreg.aligned(*arguments)
    return loss, pred_grad if spec.pred_grad else None, target_grad if spec.target_grad else None


_SPEC = (
    "str backend, str kind, str mode, bool inner, str pred_fmt, str target_fmt, str reduction, str scheme, "
    "bool pred_grad, bool target_grad, float[] parameters, float[] settings, float[] anchor_sides, "
    "float factor"
)
_BY_AXIS = ("settings", "anchor_sides")
"""What a spec has for the x and the y axis."""

_LIBRARY = torch.library.Library("boxreg", "DEF")  # type: ignore[no-untyped-call]
for _signature in (
    f"aligned(Tensor pred, Tensor target, Tensor? weight, int dim, {_SPEC}) -> (Tensor, Tensor, Tensor)",
    f"pairwise(Tensor a, Tensor b, {_SPEC}) -> Tensor",
    f"pairwise_backward(Tensor a, Tensor b, Tensor upstream, {_SPEC}) -> (Tensor, Tensor)",
):
    _LIBRARY.define(_signature)  # type: ignore[no-untyped-call]


def _as_arguments(spec: Spec) -> tuple[Any, ...]:
    """A spec as an operator takes it."""
    flat: dict[str, Any] = {
        name: [number for axis in getattr(spec, name) for number in axis] for name in _BY_AXIS
    }
    return tuple(spec._replace(**flat))


def _from_arguments(*arguments: Any) -> Spec:
    spec = Spec(*arguments)
    halves: dict[str, Any] = {}
    for name in _BY_AXIS:
        numbers = tuple(getattr(spec, name))
        halves[name] = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    return spec._replace(parameters=tuple(spec.parameters), **halves)


def _aligned_operator(
    pred: Tensor, target: Tensor, weight: Tensor | None, dim: int, name: str, *spec: Any
) -> tuple[Tensor, ...]:
    kept = MAY_KEEP.set(False)
    try:
        results = BACKENDS[name]().aligned(_from_arguments(*spec), pred, target, weight, dim)
    finally:
        MAY_KEEP.reset(kept)
    return tuple(_or_empty(result, results[0]) for result in results)


def _or_empty(result: Tensor | None, like: Tensor) -> Tensor:
    """An operator returns tensors: an empty one stands for a gradient that is not needed."""
    return like.new_empty(0) if result is None else result


def _aligned_shapes(
    pred: Tensor, target: Tensor, weight: Tensor | None, dim: int, name: str, *arguments: Any
) -> tuple[Tensor, ...]:
    spec = _from_arguments(*arguments)
    shape = pred.select(dim, 0).shape if spec.reduction == "none" else ()
    loss = pred.new_empty(shape, dtype=working_dtype(pred, target))
    return loss, *(
        loss.new_empty(pred.shape if needed else (0,)) for needed in (spec.pred_grad, spec.target_grad)
    )


def _pairwise_operator(a: Tensor, b: Tensor, name: str, *spec: Any) -> Tensor:
    return BACKENDS[name]().scores(_from_arguments(*spec), a, b)


def _pairwise_backward_operator(
    a: Tensor, b: Tensor, upstream: Tensor, name: str, *spec: Any
) -> tuple[Tensor, ...]:
    grads = BACKENDS[name]().scores_backward(_from_arguments(*spec), a, b, upstream)
    return tuple(_or_empty(grad, a) for grad in grads)


def _pairwise_backward_shapes(
    a: Tensor, b: Tensor, upstream: Tensor, name: str, *arguments: Any
) -> tuple[Tensor, ...]:
    spec = _from_arguments(*arguments)
    sides = ((a, spec.pred_grad), (b, spec.target_grad))
    return tuple(side.new_empty(side.shape if needed else (0,)) for side, needed in sides)


def _pairwise_shape(a: Tensor, b: Tensor, *spec: Any) -> Tensor:
    return a.new_empty(*a.shape[:-1], b.shape[-2])


for _name, _operator, _shapes in (
    ("aligned", _aligned_operator, _aligned_shapes),
    ("pairwise", _pairwise_operator, _pairwise_shape),
    ("pairwise_backward", _pairwise_backward_operator, _pairwise_backward_shapes),
):
    _LIBRARY.impl(_name, _operator, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _shapes, "Meta")  # type: ignore[no-untyped-call]
