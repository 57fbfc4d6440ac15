"""Errors for bad arguments: each names the argument, what came and what was expected."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`; suggests the nearest one."""
    if value in (options := list(choices)):
        return
    near = difflib.get_close_matches(str(value).lower(), options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, options))}{hint}")


def unknown_keyword(function: str, name: str, names: Iterable[str]) -> TypeError:
    """The error for a keyword argument that a function does not take; suggests the nearest name."""
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")


def suggests_keywords(function: Function) -> Function:
    """The function with an error that suggests the right name for a misspelt keyword argument."""
    names = frozenset(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        for name in keywords:
            if name not in names:
                called = type(arguments[0]) if function.__name__ == "__init__" else function
                raise unknown_keyword(called.__name__, name, names)
        return function(*arguments, **keywords)

    return cast(Function, call)


def check_number(
    name: str, value: object, *, minimum: float | None = None, maximum: float | None = None
) -> None:
    """Raise unless `value` is a finite Python number between `minimum` and `maximum`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    # Python integers have no largest; floats do.
    finite = -sys.float_info.max <= value <= sys.float_info.max
    if finite and (minimum is None or value >= minimum) and (maximum is None or value <= maximum):
        return
    bounds = [f"at least {minimum:.6g}"] if minimum is not None else []
    bounds += [f"at most {maximum:.6g}"] if maximum is not None else []
    expected = " of ".join(["a finite number", *([" and ".join(bounds)] if bounds else [])])
    raise ValueError(f"{name}: got {value}, expected {expected}")


def check_tensor(name: str, value: object, *, floating: bool, boolean: bool = False) -> None:
    """Raise unless `value` is a real tensor (`floating`: of a floating dtype; `boolean`: or of bool)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    real = not value.dtype.is_complex and (boolean or value.dtype != torch.bool)
    if not (value.dtype.is_floating_point if floating else real):
        kind = "a floating dtype (float16, bfloat16, float32, float64)" if floating else "a real dtype"
        raise TypeError(f"{name}: got a tensor of {value.dtype}, expected {kind}")


def check_boxes(name: str, boxes: object, dim: int, *, floating: bool = True, coordinates: int = 4) -> None:
    """Raise unless `boxes` is a tensor with `coordinates` coordinates along `dim`."""
    check_tensor(name, boxes, floating=floating)
    assert isinstance(boxes, Tensor)
    shape = tuple(boxes.shape)
    if not -boxes.ndim <= dim < boxes.ndim:
        raise ValueError(f"dim: got {dim}, but {name} has shape {shape}")
    if boxes.shape[dim] != coordinates:
        raise ValueError(f"{name}: got shape {shape}, expected {coordinates} coordinates along dim {dim}")


def check_same_shape(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Raise unless both tensors have one shape and one device: nothing is broadcast silently."""
    if a.shape != b.shape:
        raise ValueError(
            f"{name_a} and {name_b} must have the same shape: got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    check_same_device(name_a, a, name_b, b)


def check_same_device(name_a: str, a: Tensor, name_b: str, b: Tensor) -> None:
    """Raise `ValueError` unless both tensors are on one device."""
    if a.device != b.device:
        raise ValueError(f"{name_a} and {name_b} must be on one device: got {a.device} and {b.device}")
