"""The maths of the IoU family and of decoders as functions of Numba, for scalars of one dtype.

Everything here is written without branches and without calls into libm, so that LLVM turns a loop over pairs
into vector code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numba
import numpy
import torch as xp
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ... import _raw
from .. import geometry
from ..rebind import Language


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function so that it is always inlined: one call left in a loop stops vectorisation."""
    return numba.njit(
        error_model="numpy",
        forceinline=True,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )(function)


@intrinsic
def reinterpret(typing_context: Any, value: Any, like: Any) -> Any:
    """The bits of a number as a number of another type of the same width."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return like.instance_type(value, like), generate


@intrinsic
def offset(typing_context: Any, pointer: Any, number: Any) -> Any:
    """The pointer to what comes `number` places later."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.int64), generate


@intrinsic
def as_pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to numbers of a type."""
    pointer = types.CPointer(like.instance_type)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, like), generate


@intrinsic
def as_floats(typing_context: Any, pointer: Any) -> Any:
    """A pointer to integers as one to float64."""
    floats = types.CPointer(types.float64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(floats))

    return floats(pointer), generate


@intrinsic(prefer_literal=True)
def take(typing_context: Any, values: Any, start: Any, count: Any, like: Any) -> Any:
    """So many float64 from `start` on, as a tuple of another type."""
    found = types.UniTuple(like.instance_type, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, start = arguments[:2]
        numbers = []
        for number in range(len(found)):
            place = builder.add(start, ir.Constant(start.type, number))
            value = builder.load(builder.gep(values, [place]))
            numbers.append(context.cast(builder, value, types.float64, like.instance_type))
        return context.make_tuple(builder, found, numbers)

    return found(values, types.int64, count, like), generate


@intrinsic(prefer_literal=True)
def on_stack(typing_context: Any, count: Any, like: Any) -> Any:
    """Memory for so many numbers, for as long as the function runs."""
    pointer = types.CPointer(like.instance_type)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(like.instance_type)
        return cgutils.alloca_once(builder, kind, size=ir.Constant(ir.IntType(64), count.literal_value))

    return pointer(count, like), generate


@intrinsic
def call(typing_context: Any, address: Any, tile: Any, values: Any, count: Any) -> Any:
    """Call a core by its address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, *others = arguments
        function = ir.FunctionType(ir.VoidType(), [argument.type for argument in others])
        builder.call(builder.inttoptr(address, function.as_pointer()), others)
        return context.get_dummy_value()

    return types.void(types.int64, tile, values, types.int64), generate


@intrinsic
def fetch_add(typing_context: Any, counters: Any, number: Any) -> Any:
    """Add 1 to a counter that threads share, and return what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(arguments[0], [arguments[1]])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(counters, types.int64), generate


@cache
def tile_language(dtype: str, called_once: tuple[Callable[..., Any], ...]) -> Language:
    """The language of the code around the maths.

    A function of `called_once` is inlined by Numba. LLVM would inline it too, but would first compile it
    alone, which takes longer.
    """
    maths = language(dtype)

    def compile_function(function: Callable[..., Any]) -> Any:
        inline = "always" if function.__name__ in {other.__name__ for other in called_once} else "never"
        options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        return numba.njit(error_model="numpy", inline=inline, **options)(function)

    own = {function: maths.copy(function) for function in (geometry.is_large, _raw.raw_backward)}
    own[types.float64] = getattr(types, dtype)
    return Language(maths.xp, compile_function, maths.constant, own, in_code=True)


@cache
def language(dtype: str) -> Language:
    """The language of scalars of a dtype, `"float32"` or `"float64"`."""
    real = getattr(numpy, dtype)
    xp = ModuleType("xp")
    axis_grad, pair_grad = _gradients(real(0))
    found = Language(
        xp, jit, real, {geometry.AxisGrad: axis_grad, geometry.PairGrad: pair_grad}, in_code=True
    )
    operations: dict[str, Callable[..., Any]] = {
        "where": _where,
        "maximum": _maximum,
        "minimum": _minimum,
        "zeros_like": _zeros_like,
    }
    vars(xp).update({name: found.copy(operation) for name, operation in operations.items()})
    vars(xp).update(abs=abs, sqrt=math.sqrt, exp=_exp(dtype), log=_log(dtype), atan2=_atan2(real))
    found.replace(
        {
            geometry.stop_gradient: _stop_gradient,
            geometry.measure: _measure,
            geometry.ordered: _ordered,
            _raw.sigmoid: _sigmoid,
            _raw.softplus: _softplus,
        }
    )
    return found


# These are copied, as the maths of the family is: floats become those of the dtype.


def _where(condition: Any, chosen: Any, other: Any) -> Any:
    return chosen if condition else other


def _maximum(a: Any, b: Any) -> Any:
    return a if (a > b) | (a != a) else b  # as in torch, NaN wins


def _minimum(a: Any, b: Any) -> Any:
    return a if (a < b) | (a != a) else b


def _zeros_like(value: Any) -> Any:
    return 0.0


def _stop_gradient(value: Any) -> Any:
    return value


def _measure(length: Any, unit: Any) -> Any:
    return length / unit.divisor


def _ordered(first: Any, second: Any, inverted: Any) -> Any:
    return (second if inverted else first), (first if inverted else second)


def _sigmoid(t: Any) -> Any:
    small = xp.exp(-xp.abs(t))
    return (1.0 if t > 0.0 else small) / (1.0 + small)


def _softplus(t: Any) -> Any:
    small = xp.exp(-xp.abs(t))
    # log(1 + small), with what rounding has taken from 1 + small.
    total = 1.0 + small
    return (t if t > 0.0 else 0.0) + (xp.log(total) + (small - (total - 1.0)) / total)


LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860682030941723212e-6
"""ln 2 in two parts, of which the first has few bits: its product with a small whole number is exact."""


class _Format(NamedTuple):
    """A floating-point format: types of numbers and of their bits, bits of the fraction, exponent's bias."""

    real: Any
    integer: Any
    real_type: Any
    integer_type: Any
    bits: int
    bias: int


_FORMATS = {
    "float32": _Format(numpy.float32, numpy.int32, types.float32, types.int32, 23, 127),
    "float64": _Format(numpy.float64, numpy.int64, types.float64, types.int64, 52, 1023),
}


def _exp(dtype: str) -> Any:
    """The exponential to 2 ulp: a power of two times a Taylor series."""
    real, integer, real_type, integer_type, bits, exponent_bias = _FORMATS[dtype]
    bias, mantissa = integer(exponent_bias), integer(bits)
    shift = real(1.5 * 2.0**bits)
    shift_bits = integer(numpy.array(shift).view(integer))
    least, most = (real(-110), real(90)) if dtype == "float32" else (real(-750), real(710))
    log2e, ln2_high, ln2_low, one = real(1 / math.log(2)), real(LN2_HIGH), real(LN2_LOW), real(1)
    c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = (real(1 / math.factorial(k)) for k in range(2, 14))

    def exp(x: Any) -> Any:
        x = least if x < least else x
        x = most if x > most else x
        # The sum's last bits are the nearest whole number of x / ln 2.
        shifted = x * log2e + shift
        power = shifted - shift
        r = (x - power * ln2_high) - power * ln2_low
        series = ((((c13 * r + c12) * r + c11) * r + c10) * r + c9) * r + c8
        series = ((((((series * r + c7) * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * (r * r) + r + one
        whole = integer(reinterpret(shifted, integer_type) - shift_bits)
        first = whole >> integer(1)
        # In two factors, because 2^power may lie outside of the normal numbers.
        low = reinterpret(integer(integer(first + bias) << mantissa), real_type)
        high = reinterpret(integer(integer(whole - first + bias) << mantissa), real_type)
        return series * low * high

    return jit(exp)


def _log(dtype: str) -> Any:
    """The logarithm to 2 ulp: that of the power of two, and the series of artanh for the rest."""
    real, integer, real_type, integer_type, bits, _ = _FORMATS[dtype]
    mantissa, fraction = integer(bits), integer((1 << bits) - 1)
    half_bits = integer(numpy.array(real(0.5)).view(integer))
    normal, lift, lift_bits = real(numpy.finfo(real).tiny), real(2.0**bits), real(bits)
    ln2_high, ln2_low, root_half = real(LN2_HIGH), real(LN2_LOW), real(0.5**0.5)
    zero, one, two = real(0), real(1), real(2)
    infinity, minus_infinity, nan = real(math.inf), real(-math.inf), real(math.nan)
    o3, o5, o7, o9, o11, o13, o15, o17, o19, o21, o23 = (real(1 / k) for k in range(3, 25, 2))

    def log(x: Any) -> Any:
        small = x < normal
        lifted = x * lift if small else x
        pattern = integer(reinterpret(lifted, integer_type) - half_bits)
        exponent = real(integer(pattern >> mantissa)) - (lift_bits if small else zero)
        m = reinterpret(integer(integer(pattern & fraction) + half_bits), real_type)
        low = m < root_half
        m = m + m if low else m
        exponent = exponent - (one if low else zero)
        s = (m - one) / (m + one)
        z = s * s
        series = ((((o23 * z + o21) * z + o19) * z + o17) * z + o15) * z + o13
        series = (((((series * z + o11) * z + o9) * z + o7) * z + o5) * z + o3) * z
        found = exponent * ln2_high + (two * s + (two * s * series + exponent * ln2_low))
        found = found if x > zero else (minus_infinity if x == zero else nan)
        return x if x == infinity else found

    return jit(log)


def _atan2(real: Any) -> Any:
    """The angle of a point with x >= 0: reduced to a tangent below 0.42, then a polynomial."""
    zero, one = real(0), real(1)
    high, low = real(math.tan(3 * math.pi / 8)), real(math.tan(math.pi / 8))
    right, diagonal = real(math.pi / 2), real(math.pi / 4)
    # From the Cephes library, for single and for double precision.
    s0, s1, s2, s3 = map(real, (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1))
    p0, p1, p2, p3, p4 = (
        -8.750608600031904122785e-1,
        -1.615753718733365076637e1,
        -7.500855792314704667340e1,
        -1.228866684490136173410e2,
        -6.485021904942025371773e1,
    )
    q0, q1, q2, q3, q4 = (
        2.485846490142306297962e1,
        1.650270098316988542046e2,
        4.328810604912902668951e2,
        4.853903996359136964868e2,
        1.945506571482613964425e2,
    )

    def single(z: Any) -> Any:
        return (((s0 * z + s1) * z + s2) * z + s3) * z

    def double(z: Any) -> Any:
        above = ((((p0 * z + p1) * z + p2) * z + p3) * z + p4) * z
        return above / (((((z + q0) * z + q1) * z + q2) * z + q3) * z + q4)

    series = jit(single if real is numpy.float32 else double)

    def atan2(y: Any, x: Any) -> Any:
        side = abs(y)
        steep = side > high * x
        middle = side > low * x
        above = -x if steep else (side - x if middle else side)
        below = side if steep else (side + x if middle else x)
        t = above / (one if below == zero else below)
        quarter = right if steep else (diagonal if middle else zero)
        angle = quarter + (series(t * t) * t + t)
        return -angle if y < zero else angle

    return jit(atan2)


def _gradients(zero: Any) -> tuple[Any, Any]:
    """The constructors of gradients: Numba cannot leave out a default in the middle of a named tuple."""
    axis_type, pair_type = geometry.AxisGrad, geometry.PairGrad

    def axis_grad(size: Any = zero, target_size: Any = zero, span: Any = zero, offset: Any = zero) -> Any:
        return axis_type(size, target_size, span, offset)

    def pair_grad(x: Any, y: Any, iou: Any = zero, fill: Any = zero) -> Any:
        return pair_type(x, y, iou, fill)

    return jit(axis_grad), jit(pair_grad)
