"""Scores of every box with every other on the CPU, in blocks that stay in the cache.

What depends on one side alone is computed once a box, not once a pair: the traced maths is cut into a program
for either side, and one for pairs that reads what those found, broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..boxes import FORMATS
from ._copies import copy_maths
from ._fused import are_ordinary
from ._libraries import TORCH, Array, Library, numpy_library
from ._pairwise import Pairwise
from ._program import Compute, Program
from ._trace import Term, Trace, Value, half, in_order
from .family import Unit
from .variants import Formula

BLOCK = 2**17
"""Pairs computed at a time."""

SMALL = 2**14
"""Up to so many pairs are computed by NumPy, where it is installed."""


class Side(NamedTuple):
    """What pairs ask of the boxes on one side: terms, and the program that computes them."""

    terms: list[Term]
    compute: Program
    library: Library

    def __call__(self, planes: Array) -> list[Array]:
        """From coordinates (4, ...), what pairs read: the first ends, the second ends, and the terms."""
        shape = planes.shape[1:]
        found = [
            self.library.empty(planes, (2, *shape) if term.wide else tuple(shape), term.is_mask)
            for term in self.terms
        ]
        self.compute(shape, [planes[:2], planes[2:]], found)
        return [planes[:2], planes[2:], *found]


class Programs(NamedTuple):
    """What is computed of a box of `a`, of a box of `b`, and of a pair."""

    of_a: Side
    of_b: Side
    of_pair: Program


@cache
def programs(wanted: Pairwise, ordinary: bool, slopes: bool, library: Library) -> Programs:
    """The score of a pair; or, given what comes from above, its gradient at both boxes."""
    trace = Trace(weighs=ordinary and library.weighs)
    known = dict.fromkeys(("is_inverted", "is_zero", "is_negligible"), lambda *_: False) if ordinary else {}
    if ordinary and not slopes:
        known |= by_box(trace)
    maths = copy_maths(xp=trace, hold=lambda value: value, both=trace.both, **known)
    formula = Formula(wanted.form, maths)
    to_ends, _, pull = (maths[function.__name__] for function in FORMATS[wanted.fmt])

    inputs = [trace.term("input", i, wide=True) for i in range(4)]
    planes = [half(term, axis) for term in inputs for axis in (0, 1)]
    large = False if ordinary else maths["is_large"](*planes)
    p1, p2, t1, t2 = (maths["in_range"](term, large) for term in inputs)
    ends = (*to_ends(p1, p2), *to_ends(t1, t2))
    pair = maths["pair"](*(half(end, axis) for box in (ends[:2], ends[2:]) for end in box for axis in (0, 1)))
    given = []
    if slopes:
        given = [trace.term("input", 4)]
        x1, y1, x2, y2, u1, v1, u2, v2 = formula.gradient(pair)
        of_a = pull(trace.stack(x1, y1), trace.stack(x2, y2))
        of_b = pull(trace.stack(u1, v1), trace.stack(u2, v2))
        # A coordinate that was scaled down moves the score by as much less.
        results = [maths["in_range"](slope, large) * given[0] for slope in (*of_a, *of_b)]
    else:
        results = [formula.value(pair)]
    a, b = one_sided(results, (inputs[:2], inputs[2:]))
    of_a, of_b = (
        Side(terms, Program(library, ends, terms), library)
        for ends, terms in ((inputs[:2], a), (inputs[2:], b))
    )
    of_pair = Program(library, [*inputs[:2], *a, *inputs[2:], *b, *given], results)
    return Programs(of_a, of_b, of_pair)


def by_box(trace: Trace) -> dict[str, Callable[..., Any]]:
    """Versions of the shared maths by which more depends on one box alone.

    They round otherwise, by what a score of order 1 does not feel but a slope might.
    """
    return {
        # Lengths of ordinary boxes multiply without a unit.
        "unit_of": lambda length: Unit(1.0, 1.0),  # type: ignore[arg-type]
        "turn": lambda pair: (
            trace.atan2(pair.x.target_size, pair.y.target_size) - trace.atan2(pair.x.size, pair.y.size)
        ),
    }


def one_sided(results: Sequence[Value], inputs: Sequence[Sequence[Term]]) -> list[list[Term]]:
    """For either side, the terms of it alone from which terms of both are computed."""
    sides = {term: {side} for side, terms in enumerate(inputs) for term in terms}
    found: list[dict[Term, None]] = [{}, {}]
    order = dict.fromkeys(sides)
    for result in results:
        in_order(result, order)
    for term in order:
        arguments = [argument for argument in term.arguments if isinstance(argument, Term)]
        sides.setdefault(term, set().union(*(sides[argument] for argument in arguments)))
        for argument in arguments:
            if len(sides[argument]) == 1 < len(sides[term]):
                (side,) = sides[argument]
                owner = argument.arguments[0] if argument.operation == "half" else argument
                found[side][owner] = None
    return [[term for term in terms if term.operation != "input"] for terms in found]


def scores(wanted: Pairwise, a: Tensor, b: Tensor) -> Tensor:
    """Scores (B, N, M) of boxes (B, N, 4) and (B, M, 4) in one working dtype; nothing is differentiable."""
    values = a.new_empty(*a.shape[:2], b.shape[1])
    library, (written,) = _library(values)
    with library.silent():
        for place, compute, inputs in tiles(wanted, a, b, library, slopes=False):
            compute(inputs, [written[place]])
    return values


def gradients(
    wanted: Pairwise, a: Tensor, b: Tensor, upstream: Tensor, of_a: bool, of_b: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the boxes, from that of their scores."""
    sums = torch.zeros_like(a), torch.zeros_like(b)
    library, (above, sum_a, sum_b) = _library(upstream, *sums)
    with library.silent():
        for place, compute, inputs in tiles(wanted, a, b, library, slopes=True):
            pictures, rows, columns = place
            part = above[place]
            planes = library.empty(part, (8, *part.shape), False)
            compute([*inputs, part], [planes[i : i + 2] for i in range(0, 8, 2)])
            if of_a:
                sum_a[pictures, rows] += _rows(planes[:4].sum(-1))
            if of_b:
                sum_b[pictures, columns] += _rows(planes[4:].sum(-2))
    return (sums[0] if of_a else None), (sums[1] if of_b else None)


def _library(*tensors: Tensor) -> tuple[Library, list[Array]]:
    """What computes so many pairs as the first tensor has, and the tensors as it knows them."""
    library = numpy_library() if tensors[0].is_cpu and tensors[0].numel() <= SMALL else None
    if library is None:
        return TORCH, list(tensors)
    return library, [tensor.numpy() for tensor in tensors]


Place = tuple[slice, slice, slice]
"""Which pictures, boxes of `a` and boxes of `b`."""


def tiles(
    wanted: Pairwise, a: Tensor, b: Tensor, library: Library, slopes: bool
) -> Iterator[tuple[Place, Compute, list[Array]]]:
    """All pairs in blocks: their place, what computes them, and what it reads of both sides."""
    prepared: dict[tuple[bool, tuple[int, ...]], Compute] = {}
    for pictures, columns in blocks(b.shape[:2], BLOCK):
        of_b = _planes(b[pictures, columns], library)
        for (rows,) in blocks(a.shape[1:2], BLOCK // of_b.shape[1]):
            of_a = _planes(a[pictures, rows], library)
            # Elsewhere than on the CPU the answer would have to be waited for.
            ordinary = a.is_cpu and all(
                are_ordinary(side.reshape(4, -1), wanted.fmt) for side in (of_a, of_b)
            )
            side_a, side_b, of_pair = programs(wanted, ordinary, slopes, library)
            found_a, found_b = side_a(of_a[..., None]), side_b(of_b[..., None, :])
            for p, r, c in blocks((*of_a.shape[1:], of_b.shape[2]), BLOCK):
                shape = tuple(part.stop - part.start for part in (p, r, c))
                key = ordinary, shape
                if key not in prepared:
                    prepared[key] = of_pair.prepared(shape, of_a)
                inputs = [term[..., p, r, :] for term in found_a] + [term[..., p, :, c] for term in found_b]
                yield (_within(pictures, p), _within(rows, r), _within(columns, c)), prepared[key], inputs


def _planes(boxes: Tensor, library: Library) -> Array:
    """Boxes (..., 4) plane by plane."""
    planes = torch.stack(boxes.unbind(-1))
    return planes if library is TORCH else planes.numpy()


def _rows(planes: Array) -> Array:
    """Planes (4, p, n) as boxes (p, n, 4)."""
    return planes.swapaxes(0, 1).swapaxes(1, 2)


def _within(outer: slice, inner: slice) -> slice:
    return slice(outer.start + inner.start, outer.start + inner.stop)


def blocks(shape: Sequence[int], most: int) -> Iterator[tuple[slice, ...]]:
    """Cut a shape into parts of at most `most` places, of its last axes as much as fits."""
    cuts: list[list[slice]] = []
    for length in reversed(shape):
        step = max(min(length, most), 1)
        most //= step
        cuts.insert(0, [slice(start, min(start + step, length)) for start in range(0, length, step)])
    return product(*cuts)
