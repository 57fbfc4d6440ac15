"""What a program's calls are made of: torch, or NumPy, whose calls cost a third as much on small arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._raw import SOFTPLUS_THRESHOLD

Array = Any
"""A tensor, or a NumPy array."""


class Library(NamedTuple):
    """Elementwise operations on arrays of one kind.

    Attributes:
        operation: a function by the name that torch has for it, called with `out=`; and `assign(out, value)`.
        empty: an array of a shape that is not filled, with the dtype of another one, or of truth values.
        number: a number as an array without axes, with the dtype of another one.
        rows: the entries of an array along its first axis.
        weighs: whether choosing by a weighted sum is faster than by truth values.
        silent: a context in which nobody is warned of infinities and NaN.
    """

    operation: Callable[[str], Callable[..., Any]]
    empty: Callable[[Array, tuple[int, ...], bool], Array]
    number: Callable[[Array, float], Array]
    rows: Callable[[Array], Sequence[Array]]
    weighs: bool
    silent: Callable[[], AbstractContextManager[Any]]


def _softplus(t: Tensor, out: Tensor) -> None:
    write: Any = torch._C._nn.softplus  # the public one cannot write into a tensor
    write(t, 1, SOFTPLUS_THRESHOLD, out=out)


def _torch_operation(name: str) -> Callable[..., Any]:
    own: dict[str, Callable[..., Any]] = {"assign": Tensor.copy_, "softplus": _softplus}
    return own[name] if name in own else getattr(torch, name)


TORCH = Library(
    operation=_torch_operation,
    empty=lambda like, shape, truth: like.new_empty(shape, dtype=torch.bool if truth else None),
    number=lambda like, value: like.new_tensor(value),
    rows=Tensor.unbind,
    weighs=True,
    silent=nullcontext,
)


@cache
def numpy_library() -> Library | None:
    """The library of NumPy arrays; None where NumPy is not installed."""
    try:
        import numpy
    except ImportError:
        return None

    def where(condition: Array, chosen: Array, other: Array, out: Array) -> None:
        if out is not other:
            numpy.copyto(out, other)
        if condition.shape == out.shape:
            numpy.putmask(out, condition, chosen)  # a fifth of what copyto takes; repeats what is too short
        else:
            numpy.copyto(out, chosen, where=condition)

    def by_torch(name: str) -> Callable[..., Any]:
        operation = _torch_operation(name)

        def run(*arrays: Array, out: Array) -> None:
            operation(*map(torch.from_numpy, arrays), out=torch.from_numpy(out))

        return run

    names = {"sub": "subtract", "mul": "multiply", "div": "divide", "neg": "negative", "assign": "copyto"}
    names |= {"lt": "less", "gt": "greater", "le": "less_equal", "ge": "greater_equal", "eq": "equal"}
    own: dict[str, Callable[..., Any]] = {"where": where}
    # NumPy has no others of these; arctangents it takes one at a time, torch eight.
    own |= {name: by_torch(name) for name in ("atan2", "sigmoid", "softplus")}

    def operation(name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = own[name] if name in own else getattr(numpy, names.get(name, name))
        return found

    return Library(
        operation=operation,
        empty=lambda like, shape, truth: numpy.empty(shape, bool if truth else like.dtype),
        number=lambda like, value: numpy.array(value, like.dtype),
        rows=list,
        weighs=False,
        silent=lambda: numpy.errstate(all="ignore"),
    )
