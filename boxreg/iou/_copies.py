"""Copies of the shared maths for backends that do not compute with torch tensors.

The functions of `family` and `boxes` are written with operators and a module called `xp`. A copy is the same
code with other globals: another `xp`, and other versions of the few functions that a backend must replace.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from .. import boxes
from . import family

SHARED = (family, boxes)


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
            copy = FunctionType(value.__code__, names, name, value.__defaults__, value.__closure__)
            copy.__module__ = value.__module__
            names[name] = wrap(copy)
    names.update(replaced)
    return names
