"""The shared maths as functions of Triton's language, for the kernels.

Imported only when a tensor on a GPU asks for it.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import math
import textwrap
from itertools import count
from types import FunctionType, ModuleType
from typing import Any

import triton
import triton.language as tl

from ... import _raw
from .. import geometry
from ..rebind import Language

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
def _power(base, exponent):
    # One of the two may be a constant.
    return tl.exp2(exponent * tl.log2(base + 0.0 * exponent))


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


@triton.jit
def _stop_gradient(value):
    return value


@triton.jit
def _measure(length, unit):
    return length / unit.divisor


@triton.jit
def _ordered(first, second, inverted):
    return tl.where(inverted, second, first), tl.where(inverted, first, second)


class _ForTriton(ast.NodeTransformer):
    """Takes out what Triton has not: annotations, which it would look up, and powers."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list, node.returns = [], None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        return node.value and ast.Assign([node.target], node.value)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Pow):
            return node
        exponent = ast.unparse(node.right)
        if exponent in ("0.5", "-0.5"):
            root = _called("sqrt", node.left)
            return root if exponent == "0.5" else ast.BinOp(ast.Constant(1.0), ast.Div(), root)
        return _called("power", node.left, node.right)


def _called(operation: str, *arguments: ast.expr) -> ast.expr:
    function = ast.Attribute(ast.Name(_OPERATIONS, ast.Load()), operation, ast.Load())
    return ast.Call(function, list(arguments), [])


_OPERATIONS = "_boxreg_operations"
"""The global of a copy that has the operations above; its own `xp` may have another name."""

_NUMBERS = count()


def jit(function: FunctionType) -> Any:
    """A copy of the maths as a function of Triton, which reads the source: it is rewritten for it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    text = ast.unparse(ast.fix_missing_locations(_ForTriton().visit(tree))) + "\n"
    place = f"<boxreg: {function.__module__}.{function.__qualname__}, {next(_NUMBERS)}>"
    linecache.cache[place] = len(text), None, text.splitlines(keepends=True), place
    names, cells = function.__globals__, function.__closure__ or ()
    # The interpreter looks for a name that Triton's language has.
    names |= {"__name__": function.__module__, _OPERATIONS: _XP, "_triton_language": tl}
    free = function.__code__.co_freevars
    names |= {name: cell.cell_contents for name, cell in zip(free, cells, strict=True)}
    found: dict[str, Any] = {}
    exec(compile(text, place, "exec"), names, found)
    rewritten: FunctionType = found[function.__name__]
    rewritten.__qualname__, rewritten.__defaults__ = function.__qualname__, function.__defaults__
    return triton.jit(rewritten)


# What the shared maths calls `xp`: a module, because a kernel's globals may be no other object.
_XP = ModuleType("operations")
vars(_XP).update(
    where=_where,
    abs=_abs,
    exp=_exp,
    log=_log,
    sqrt=_sqrt,
    power=_power,
    zeros_like=_zeros_like,
    maximum=_maximum,
    minimum=_minimum,
    atan2=_atan2,
)

# And what a user's decoder may call `math`.
_MATH = ModuleType("math")
vars(_MATH).update(
    {name: tl.constexpr(value) for name, value in vars(math).items() if isinstance(value, float)}
)
vars(_MATH).update(exp=_exp, log=_log, sqrt=_sqrt, pow=_power)

MATHS = Language(
    _XP,
    jit,
    (lambda number: number) if INTERPRETED else tl.constexpr,  # the interpreter multiplies these wrongly
    replaced={
        math: _MATH,
        geometry.stop_gradient: _stop_gradient,
        geometry.measure: _measure,
        geometry.ordered: _ordered,
        _raw.sigmoid: _sigmoid,
        _raw.softplus: _softplus,
    },
    numbers=(float, int),
)
