"""Launches Triton kernels, with less of the host's time for a kernel that was launched before."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from ._triton_maths import INTERPRETED

REGISTERS = 255
"""Register limit per thread. Without an explicit limit, ptxas may spill registers to fit more threads."""

INT32 = 2**31 - 1

_COMPILED: dict[tuple[object, ...], tuple[Any, tuple[Any, ...]]] = {}
"""Compiled kernels and their constants, by all that Triton's choice of a kernel depends on."""

_MOST_COMPILED = 4096


def launch(
    kernel: Any, programs: int, key: object, arguments: tuple[Any, ...], constants: dict[str, Any], warps: int
) -> None:
    """Launch a kernel.

    Triton's own lookup examines every argument, constants too, and takes longer than the rest of the call.
    This one examines only what the choice of a kernel depends on.

    Args:
        kernel: what Triton compiles.
        programs: how many programs run.
        key: hashable, a different one for different constants.
        arguments: all that are not constants, in order.
        constants: by name.
        warps: for each program.
    """
    if INTERPRETED:
        kernel[(programs,)](*arguments, **constants)
        return
    device = triton.runtime.driver.active.get_current_device()
    place = (kernel, device, key, warps, *map(_specialization, arguments))
    found = _COMPILED.get(place)
    if found is not None:
        compiled, values = found
        compiled[(programs, 1, 1)](*arguments, *values)
        return
    if len(_COMPILED) >= _MOST_COMPILED:
        _COMPILED.clear()
    compiled = kernel[(programs,)](*arguments, **constants, num_warps=warps, maxnreg=REGISTERS)
    _COMPILED[place] = compiled, tuple(constants[name] for name in kernel.arg_names if name in constants)


def _specialization(argument: Any) -> object:
    """What Triton specializes on: a tensor's dtype and alignment; whether an int is 1, 16 n or 64-bit.

    The value of a float decides nothing, nor do those of a tuple, which are floats.
    """
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument > INT32
    return len(argument) if isinstance(argument, tuple) else None
