"""The backends of the IoU family: which there are, and which of them serves what is asked.

- `eager`: autograd through the shared maths. The reference; differentiable twice, and by torch.func.
- `fused`: loss and gradient in one pass from the closed-form slopes, by a program of few torch calls.
- `triton`: the same in one kernel on a GPU.
- `compile`: the same through `torch.compile`. The fastest on a CPU once it is compiled, which takes half a
  minute and a C++ compiler.
- `auto`: triton on a GPU where it is installed, fused otherwise, and eager wherever something must look
  inside: torch.compile, torch.func, tensor subclasses, a second derivative.

All of them compute scores too, aligned and pairwise; those of pairs keep the boxes alone for the way back.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from .._dtypes import promote
from .._raw import raw_backward
from ..boxes import FORMATS, Planes
from ..decoders import SCHEMES, axis_arguments, decode_planes
from ..reduction import reduce_loss
from . import _fused, _pairs, family
from ._eager import eager
from ._one_pass import RUNS, Run, differentiable, divisor, saturated
from ._pairwise import RUNS as PAIRWISE_RUNS
from ._pairwise import Pairwise
from ._pass import Backend, Pass, Result
from .variants import Formula

MANY = 2**16
"""Numbers of boxes from which compiled code is made for all threads."""

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed; it is not imported to find out."""


def pick(name: str, pred: Tensor, target: Tensor) -> Backend:
    """The backend of a name, for aligned boxes like these; raises as `choose` does."""
    chosen = choose(name, pred, target)
    return eager if chosen == "eager" else partial(differentiable, chosen, name == "auto")


def choose(name: str, pred: Tensor, target: Tensor) -> str:
    """The backend that serves boxes like these: the named one, or what `auto` comes to.

    Raises:
        ValueError: if the named one cannot serve them; the message says why.
    """
    if name == "eager" or (name == "compile" and torch.compiler.is_compiling()):
        return "eager"
    if name == "auto":
        if torch.compiler.is_compiling() or _looked_into(pred, target) or no_fused(pred, target):
            return "eager"
        return "triton" if pred.is_cuda and not no_triton(pred, target) else "fused"
    reason = _looked_into(pred, target) or BACKENDS[name](pred, target)
    if reason:
        raise ValueError(f"backend: got {name!r}, but {reason}; use 'auto' or 'eager'")
    return name


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
    from . import _triton_maths

    return _triton_maths.INTERPRETED


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
        return _compiled(wanted, pred.numel() > MANY)(pred.detach(), target.detach(), dim)


@cache
def _compiled(wanted: Pass, many: bool) -> Callable[[Tensor, Tensor, int], Result]:
    """The pass as compiled code: of few boxes, or of many, because the first number decides the threads."""
    formula = Formula(wanted.form)

    def one_pass(pred: Tensor, target: Tensor, dim: int) -> Result:
        raw, t = (side.unbind(dim) for side in promote(pred, target))
        of_scheme = (wanted.scheme, wanted.settings, wanted.anchor_sides)
        p = decode_planes(*of_scheme, raw) if wanted.scheme else raw
        large = family.is_large(*p, *t)
        pair = family.pair(*_corners(p, large, wanted.pred_fmt), *_corners(t, large, wanted.target_fmt))
        loss, slopes = formula.value(pair), formula.gradient(pair)
        count = divisor(wanted, loss.numel())
        of_pred = of_target = None
        if wanted.of_pred:
            parts = _pulled(slopes[:4], large, wanted.pred_fmt)
            parts = _pulled_to_raw(wanted, raw, parts) if wanted.scheme else parts
            of_pred = torch.stack([part / count for part in parts], dim)
        if wanted.of_target:
            parts = _pulled(slopes[4:], large, wanted.target_fmt)
            of_target = torch.stack([part / count for part in parts], dim)
        return reduce_loss(loss, wanted.reduction), of_pred, of_target

    # The option, which changes nothing, keeps the two apart in the compiler's cache on disk.
    options: dict[str, Any] | None = {"cpp.min_chunk_size": 511} if many else None
    return torch.compile(one_pass, fullgraph=True, dynamic=True, options=options)


def _corners(boxes: tuple[Tensor, ...], large: Tensor, fmt: str) -> Planes:
    a, b, c, d = (family.in_range(plane, large) for plane in boxes)
    (x1, x2), (y1, y2) = FORMATS[fmt].to_ends(a, c), FORMATS[fmt].to_ends(b, d)
    return x1, y1, x2, y2


def _pulled(at_corners: tuple[Tensor, ...], large: Tensor, fmt: str) -> tuple[Tensor, ...]:
    """Slopes at corners to slopes at the numbers of a format; what was scaled down moves the loss by less."""
    x1, y1, x2, y2 = (family.in_range(slope, large) for slope in at_corners)
    (a, c), (b, d) = FORMATS[fmt].backward(x1, x2), FORMATS[fmt].backward(y1, y2)
    return a, b, c, d


def _pulled_to_raw(wanted: Pass, raw: tuple[Tensor, ...], slopes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Slopes at centre and size to slopes at a decoder's raw numbers."""
    decode_axis_grad = SCHEMES[wanted.scheme].decode_axis_grad
    axes = axis_arguments(wanted.scheme, wanted.settings, wanted.anchor_sides, raw[0])
    (a, c), (b, d) = (
        raw_backward(slopes[axis], slopes[axis + 2], *decode_axis_grad(*raw[axis::2], *arguments))
        for axis, arguments in enumerate(axes)
    )
    return a, b, c, d


def _triton_scores(wanted: Pairwise, a: Tensor, b: Tensor) -> Tensor:
    from . import _triton_pairs

    return _triton_pairs.scores(wanted, a, b)


def _triton_gradients(
    wanted: Pairwise, a: Tensor, b: Tensor, upstream: Tensor, of_a: bool, of_b: bool
) -> tuple[Tensor | None, Tensor | None]:
    from . import _triton_pairs

    return _triton_pairs.gradients(wanted, a, b, upstream, of_a, of_b)


def _saturating(run: Run) -> Run:
    """A pass whose gradients fit into float16 where the boxes are; the Triton kernel sees to that itself."""

    def one_pass(wanted: Pass, pred: Tensor, target: Tensor, dim: int) -> Result:
        loss, of_pred, of_target = run(wanted, pred, target, dim)
        return loss, saturated(of_pred, pred.dtype), saturated(of_target, target.dtype)

    return one_pass


RUNS.update(fused=_saturating(_fused.one_pass), triton=_triton_pass, compile=_saturating(_compiled_pass))
PAIRWISE_RUNS.update(fused=(_pairs.scores, _pairs.gradients), triton=(_triton_scores, _triton_gradients))
