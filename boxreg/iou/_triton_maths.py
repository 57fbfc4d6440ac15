"""The shared maths as functions of Triton's language, for the kernels.

Imported only when a tensor on a GPU asks for it.
"""

from __future__ import annotations

import types

import triton
import triton.language as tl

from ._copies import SHARED, copy_maths

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


@triton.jit
def _where(condition, chosen, other):
    return tl.where(condition, chosen, other)


@triton.jit
def _abs(value):
    return tl.abs(value)


@triton.jit
def _exp(value):
    return tl.exp(value)


@triton.jit
def _log(value):
    return tl.log(value)


@triton.jit
def _sqrt(value):
    return tl.sqrt_rn(value)


@triton.jit
def _zeros_like(value):
    return tl.zeros_like(value)


@triton.jit
def _maximum(a, b):
    # As in torch, NaN wins.
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _atan2(y, x):
    """The angle of a point with x >= 0, to 2 ulp in float32: reduced to |tan| < 0.42, then a polynomial."""
    side = tl.abs(y)
    steep = side > 2.414213562373095 * x
    middle = side > 0.4142135623730950 * x
    top = tl.where(steep, -x, tl.where(middle, side - x, side))
    bottom = tl.where(steep, side, tl.where(middle, side + x, x))
    t = top / tl.where(bottom == 0, 1.0, bottom)
    z = t * t
    # The odd polynomial of single-precision arctangents from the Cephes library.
    series = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
    quarter = tl.where(steep, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    angle = quarter + (series * z * t + t)
    return tl.where(y < 0, -angle, angle)


@triton.jit
def _sigmoid(t):
    small = tl.exp(-tl.abs(t))
    return tl.where(t > 0, 1.0, small) / (1.0 + small)


@triton.jit
def _softplus(t):
    """max(t, 0) + log(1 + exp(-|t|)), to 2 ulp in float32."""
    small = tl.exp(-tl.abs(t))
    # log(1 + e) = 2 artanh(e / (2 + e)), at most 2 artanh(1 / 3), where seven terms of the series are enough.
    z = small / (2.0 + small)
    s = z * z
    series = (((((s / 13 + 1 / 11) * s + 1 / 9) * s + 1 / 7) * s + 1 / 5) * s + 1 / 3) * s + 1.0
    return tl.where(t > 0, t, 0.0) + 2.0 * z * series


def numbers(values, _semantic=None):
    # A constant that is a tuple: Triton 3.9 has made a tuple of constants of it, Triton 3.6 has not.
    return tuple(map(tl.constexpr, values.value)) if isinstance(values, tl.constexpr) else values


if not INTERPRETED:
    numbers = tl.core.builtin(numbers)


@triton.jit
def _hold(value):
    return value


@triton.jit
def _both(function: tl.constexpr, x, y):
    return function(*x), function(*y)


# What the shared maths calls `xp`: a module, because a kernel's globals may be no other object.
_OPERATIONS = types.ModuleType("operations")
vars(_OPERATIONS).update(
    where=_where,
    abs=_abs,
    exp=_exp,
    log=_log,
    sqrt=_sqrt,
    zeros_like=_zeros_like,
    maximum=_maximum,
    minimum=_minimum,
    atan2=_atan2,
)

MATHS = copy_maths(
    wrap=triton.jit,
    xp=_OPERATIONS,
    hold=_hold,
    both=_both,
    sigmoid=_sigmoid,
    softplus=_softplus,
    tl=tl,
    Tensor=tl.constexpr(None),  # annotations are looked up
    **{
        name: tl.constexpr(value)
        for module in SHARED
        for name, value in vars(module).items()
        if isinstance(value, float)
    },
)
