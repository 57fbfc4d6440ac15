"""Copies of the shared maths for backends that do not compute with torch tensors.

The functions of the modules in `SHARED`, and what a decoder states of an axis, are written with operators and
a module called `xp`. A copy is the same code with other globals: another `xp`, and other versions of the few
functions that a backend must replace.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from .. import _raw, boxes
from . import family, modes, overlaps, penalties

SHARED = (family, overlaps, penalties, modes, boxes, _raw)


def copy_maths(
    wrap: Callable[[FunctionType], Any] = lambda function: function, **replaced: object
) -> dict[str, Any]:
    """The globals of the shared maths, each function copied so that it reads them.

    Args:
        wrap: what is done to each copy, such as `triton.jit`.
        **replaced: globals to put in place of the originals.
    """
    names: dict[str, Any] = {}
    for module in SHARED:
        names.update(vars(module))
    for name, value in list(names.items()):
        if isinstance(value, FunctionType) and value.__module__ in {module.__name__ for module in SHARED}:
            names[name] = wrap(copied(value, names))
    names.update(replaced)
    return names


def copied(function: Callable[..., Any], names: dict[str, Any]) -> FunctionType:
    """The same code with other globals."""
    assert isinstance(function, FunctionType)
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    return copy
