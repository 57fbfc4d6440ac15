"""Copies of the maths for another language of arrays: Numba's scalars, Triton's blocks.

The functions of the IoU family and of decoders are written with operators and a module called `xp`. A copy is
the same code with other globals: another `xp`, other constants, and copies of the functions that it calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import torch


class Language:
    """What a backend puts in place of the globals of the maths.

    Args:
        xp: the module in place of torch.
        compile: what is done to each copy, such as `triton.jit`.
        constant: what is done to each float, such as `numpy.float32`.
        replaced: functions that the language has in a version of its own.
        in_code: whether the floats inside of functions are replaced too.
        numbers: the types of globals that `constant` is done to.
    """

    def __init__(
        self,
        xp: ModuleType,
        compile: Callable[[FunctionType], Any],
        constant: Callable[[float], Any],
        replaced: Mapping[Any, Any],
        in_code: bool = False,
        numbers: tuple[type[float], ...] = (float,),
    ) -> None:
        self.xp, self._compile, self.constant, self._in_code = xp, compile, constant, in_code
        self._numbers = numbers
        self._known: dict[Any, Any] = dict(replaced)

    def replace(self, functions: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        """Put copies of functions of the language's own in the place of others."""
        self._known |= {function: self.copy(own) for function, own in functions.items()}

    def copy(self, function: Callable[..., Any]) -> Any:
        """The compiled copy of a function; functions that it calls are copied with it."""
        if function not in self._known:
            assert isinstance(function, FunctionType)
            names: dict[str, Any] = {}
            code = self._code(function.__code__) if self._in_code else function.__code__
            defaults = function.__defaults__ and tuple(map(self._value, function.__defaults__))
            cells = function.__closure__ and tuple(
                CellType(self._value(cell.cell_contents)) for cell in function.__closure__
            )
            copied = FunctionType(code, names, function.__name__, defaults, cells)
            copied.__module__, copied.__qualname__ = function.__module__, function.__qualname__
            copied.__kwdefaults__ = function.__kwdefaults__
            self._known[function] = self._compile(copied)
            names |= self.names(function)
        return self._known[function]

    def names(self, function: FunctionType) -> dict[str, Any]:
        """The globals that a function reads, as a copy of it has them."""
        return {name: self._value(value) for name, value in _globals(function)}

    def _value(self, value: Any) -> Any:
        if value is torch:
            return self.xp
        if isinstance(value, self._numbers):
            return self.constant(value)
        if isinstance(value, FunctionType):
            return self.copy(value)
        return self._known[value] if _is_known(value, self._known) else value

    def _code(self, code: CodeType) -> CodeType:
        return code.replace(co_consts=self._constants(code.co_consts))

    def _constants(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._constants, value))
        return self.constant(value) if isinstance(value, float) else value


def digest(*functions: Callable[..., Any]) -> str | None:
    """A key of the code of functions, of all that they call, and of the constants that they read.

    Returns:
        The key; None if they read something whose value cannot be told from its text.
    """
    found = hashlib.sha256()
    done: set[Any] = set()
    known = True

    def add(value: Any, names: tuple[str, ...] = ()) -> None:
        nonlocal known
        if isinstance(value, FunctionType):
            found.update(value.__qualname__.encode())
            if value not in done:
                done.add(value)
                add((value.__code__, value.__defaults__, tuple((value.__kwdefaults__ or {}).items())))
                for name, other in _globals(value):
                    found.update(name.encode())
                    add(other, _names(value.__code__))
                for cell in value.__closure__ or ():
                    add(cell.cell_contents, _names(value.__code__))
        elif isinstance(value, CodeType):
            found.update(repr((value.co_code, value.co_names)).encode())
            add(value.co_consts)
        elif isinstance(value, tuple):
            found.update(b"(%d" % len(value))
            for part in value:
                add(part, names)
        elif isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in ("torch", "math"):
            for name in names:
                add(getattr(value, name, None))
        elif isinstance(value, type) and hasattr(value, "_fields"):
            fields: Any = value
            add((value.__qualname__, fields._fields, tuple(fields._field_defaults.values())))
        elif isinstance(value, ModuleType):
            found.update(value.__name__.encode())
        elif value is None or isinstance(value, bool | int | float | str | bytes):
            found.update(repr(value).encode())
        else:
            known = False

    for function in functions:
        add(function)
    return found.hexdigest() if known else None


def _names(code: CodeType) -> tuple[str, ...]:
    """The names that code reads, functions inside of it included."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return *code.co_names, *inner


def _globals(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals that a function reads, by name."""
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _is_known(value: Any, known: Mapping[Any, Any]) -> bool:
    try:
        return value in known
    except TypeError:  # not hashable
        return False
