"""Which backend computes what is asked: the only table of backends.

- `eager`: autograd through the maths. The reference; differentiable as often as one likes, and by torch.func.
- `numba`: loss and gradient in one vectorised kernel on the CPU.
- `triton`: the same in one kernel on a GPU.
- `auto`: triton on a GPU and numba on a CPU where they are installed, and eager everywhere else: under
  torch.compile, which makes kernels of the maths itself, under torch.func and torch.jit.trace, and for
  tensor subclasses.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from ..decoders import SCHEMES
from .autograd import BACKENDS, Backend
from .spec import Spec

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_NUMBA = importlib.util.find_spec("numba") is not None
"""Whether they are installed; nothing is imported to find out."""


def choose(name: str, pred: Tensor, target: Tensor) -> str:
    """The backend that computes boxes like these: the named one, or what `auto` comes to.

    Raises:
        ValueError: if the named one cannot compute them; the message says why.
    """
    if name == "eager":
        return name
    compiling = torch.compiler.is_compiling()
    traced = None if compiling else _traced(pred, target)
    if name == "auto":
        if compiling or traced:
            return "eager"
        for backend, kernels in KERNELS.items():
            if kernels.is_automatic(pred, target):
                return backend
        return "eager"
    reason = traced or KERNELS[name].refusal(pred, target)
    if reason:
        raise ValueError(f"backend: got {name!r}, but {reason}; use 'auto' or 'eager'")
    return name


def _traced(*tensors: Tensor) -> str | None:
    """Why only torch operators may run here, such as a torch.func transform; None if kernels may."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if fwAD._current_level >= 0:
        return "forward-mode derivatives are being computed"
    if torch._C._len_torch_dispatch_stack():
        return None  # there it is an operator
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is recording"
    for tensor in tensors:
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            return "a tensor is of a class of its own"
    return None


def no_numba(pred: Tensor, target: Tensor) -> str | None:
    """Why the Numba backend cannot compute such boxes; None if it can."""
    if not HAS_NUMBA:
        return "numba is not installed (pip install 'boxreg[cpu]')"
    if not (pred.is_cpu and target.is_cpu):
        return f"the boxes are on {pred.device.type}"
    return None if torch.compiler.is_compiling() else _numba_error()


def no_triton(pred: Tensor, target: Tensor) -> str | None:
    """Why the Triton backend cannot compute such boxes; None if it can."""
    if not HAS_TRITON:
        return "triton is not installed"
    if torch.float64 in (pred.dtype, target.dtype):
        return "it computes in float32 and a tensor is float64"
    if not (pred.is_cuda or torch.compiler.is_compiling() or _is_interpreted()):
        return f"the boxes are on {pred.device.type}"
    return None


def cannot_decode(name: str, spec: Spec, raw: Tensor) -> str | None:
    """Why a backend cannot decode raw outputs as a spec says; None if it can."""
    if name == "eager" or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return None
    counts = len(spec.settings[0]), len(spec.anchor_sides[0])
    return _decode_error(name, spec.scheme, *counts, raw.dtype, raw.device)


@lru_cache(1024)
def _decode_error(
    name: str, scheme: str, settings: int, anchors: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """The error of compiling a user's decoder for a backend; None if it compiles."""
    if SCHEMES[scheme].__module__.startswith("boxreg."):
        return None
    numbers, sides = (1.0,) * settings, (1.0,) * anchors
    raw = torch.zeros(1, 4, max(anchors, 1), 1, 1, dtype=dtype, device=device)
    spec = Spec("iou", "linear", False, "cxcywh", "cxcywh", scheme=scheme, pred_grad=True)
    spec = spec._replace(settings=(numbers, numbers), anchor_sides=(sides, sides))
    try:
        BACKENDS[name]().aligned(spec, raw, raw, None, 1)
    except Exception as error:
        return str(error)
    return None


@cache
def _numba_error() -> str | None:
    """Why Numba cannot be imported; None if it can."""
    try:
        _numba()
    except Exception as error:  # it refuses a NumPy that is too new for it, among other things
        return f"numba cannot be imported: {error}"
    return None


@cache
def _numba_or_warning() -> bool:
    error = _numba_error()
    if error:
        warnings.warn(
            f"boxreg: {error}; boxes on the CPU are computed by the slower eager backend", stacklevel=2
        )
    return error is None


def _is_for_numba(pred: Tensor, target: Tensor) -> bool:
    return HAS_NUMBA and pred.is_cpu and target.is_cpu and _numba_or_warning()


def _is_for_triton(pred: Tensor, target: Tensor) -> bool:
    return pred.is_cuda and no_triton(pred, target) is None


def _is_interpreted() -> bool:
    from .backends import _triton_maths

    return _triton_maths.INTERPRETED


@cache
def _numba() -> Backend:
    from .backends import numba

    return Backend(numba.aligned, numba.scores, numba.scores_backward)


@cache
def _triton() -> Backend:
    from .backends import triton, triton_pairwise

    return Backend(triton.aligned, triton_pairwise.scores, triton_pairwise.scores_backward)


class Kernels(NamedTuple):
    """A backend beside eager.

    Attributes:
        load: imports it.
        refusal: why it cannot compute boxes like these; None if it can.
        is_automatic: whether `auto` takes it for boxes like these.
    """

    load: Callable[[], Backend]
    refusal: Callable[[Tensor, Tensor], str | None]
    is_automatic: Callable[[Tensor, Tensor], bool]


KERNELS = {
    "numba": Kernels(_numba, no_numba, _is_for_numba),
    "triton": Kernels(_triton, no_triton, _is_for_triton),
}
"""The backends. Each is imported when it is called for."""

NAMES = ("auto", "eager", *KERNELS)
"""What `backend` may be."""

BACKENDS.update({name: kernels.load for name, kernels in KERNELS.items()})
