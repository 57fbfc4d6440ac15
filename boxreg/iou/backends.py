"""The backends of the IoU family: which there are, and which of them serves what is asked.

- `eager`: autograd through the shared maths. The reference; differentiable twice, and by torch.func.
- `fused`: loss and gradient in one pass from the closed-form slopes, by a program of few torch calls.
- `triton`: the same in one kernel on a GPU.
- `compile`: the same through `torch.compile`. The fastest on a CPU once it is compiled, which takes half a
  minute and a C++ compiler.
- `auto`: triton on a GPU where it is installed, fused otherwise, and eager wherever something must look
  inside: torch.compile, torch.func, tensor subclasses, a second derivative.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from .._dtypes import promote
from ..boxes import FORMATS
from . import _fused, family
from ._eager import eager, planes
from ._one_pass import RUNS, Pass, Result, differentiable

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed; it is not imported to find out."""

Backend = Callable[[str, Tensor, Tensor, str, int], Tensor]
"""Row, pred, target, format and coordinate axis in, a loss per pair out."""


def pick(name: str, pred: Tensor, target: Tensor) -> Backend:
    """The backend of a name, for boxes like these.

    Raises:
        ValueError: if it cannot serve them; the message says why.
    """
    if name == "eager" or (name == "compile" and torch.compiler.is_compiling()):
        return eager
    if name == "auto":
        if torch.compiler.is_compiling() or _looked_into(pred, target) or no_fused(pred, target):
            return eager
        on_gpu = pred.is_cuda and not no_triton(pred, target)
        return partial(differentiable, "triton" if on_gpu else "fused", True)
    reason = _looked_into(pred, target) or BACKENDS[name](pred, target)
    if reason:
        raise ValueError(f"backend: got {name!r}, but {reason}; use 'auto' or 'eager'")
    return partial(differentiable, name, False)


def _looked_into(*tensors: Tensor) -> str | None:
    """What wants to follow the computation step by step, which one pass does not allow; None if nothing."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if fwAD._current_level >= 0:
        return "forward-mode derivatives are being computed"
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None  # there it is an operator
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
        return "a tensor is of a class of its own"
    return None


def no_fused(pred: Tensor, target: Tensor) -> str | None:
    """Why the fused pass cannot compute with such boxes; None if it can."""
    return None if pred.device.type in ("cpu", "cuda") else f"the boxes are on {pred.device.type}"


def no_triton(pred: Tensor, target: Tensor) -> str | None:
    """Why the Triton kernel cannot compute with such boxes; None if it can."""
    if not HAS_TRITON:
        return "triton is not installed"
    if torch.float64 in (pred.dtype, target.dtype):
        return "it computes in float32 and a tensor is float64"
    if not (pred.is_cuda or torch.compiler.is_compiling() or _interpreted()):
        return f"the boxes are on {pred.device.type}"
    return None


def _interpreted() -> bool:
    from . import _triton

    return _triton.INTERPRETED


BACKENDS: dict[str, Callable[[Tensor, Tensor], str | None]] = {
    "eager": lambda pred, target: None,
    "fused": no_fused,
    "triton": no_triton,
    "compile": lambda pred, target: None,
}
"""The backends by name, each with why it cannot serve boxes like these, or None."""


def _triton_pass(wanted: Pass, pred: Tensor, target: Tensor, dim: int) -> Result:
    from . import _triton

    return _triton.one_pass(wanted, pred, target, dim)


def _compiled_pass(wanted: Pass, pred: Tensor, target: Tensor, dim: int) -> Result:
    with torch.no_grad():
        return _compiled(wanted)(pred.detach(), target.detach(), dim)


@cache
def _compiled(wanted: Pass) -> Callable[[Tensor, Tensor, int], Result]:
    variant, form = family.VARIANTS[wanted.kind], FORMATS[wanted.fmt]

    def one_pass(pred: Tensor, target: Tensor, dim: int) -> Result:
        pred, target = promote(pred, target)
        large = family.is_large(*pred.unbind(dim), *target.unbind(dim))
        a, b = planes(pred, target, wanted.fmt, dim)
        pair = family.pair(*a, *b)
        slopes = family.pullback(pair, variant.slopes(pair))

        def gradient(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
            (first_x, second_x), (first_y, second_y) = form.pull(x1, x2), form.pull(y1, y2)
            parts = (family.in_range(part, large) for part in (first_x, first_y, second_x, second_y))
            return torch.stack(tuple(parts), dim)

        of_pred = gradient(*slopes[:4]) if wanted.of_pred else None
        of_target = gradient(*slopes[4:]) if wanted.of_target else None
        return family.loss(pair, variant.penalty(pair)), of_pred, of_target

    return torch.compile(one_pass, fullgraph=True, dynamic=True)


RUNS.update(fused=_fused.one_pass, triton=_triton_pass, compile=_compiled_pass)
