"""Adversarial search: numbers of every size, and numbers chosen to collide, in every loss and backend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from boxreg.boxes import FORMATS, convert
from tests.cases import (
    BACKENDS,
    DTYPES,
    KINDS,
    MOST_PENALTY,
    WORKING_DTYPES,
    Pairs,
    aligned_loss,
    eps,
    sorted_corners,
    wild_pairs,
)

CHUNK = 2**14
"""Pairs in one call."""

every_kind = pytest.mark.parametrize("kind", KINDS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def chunks(total: int) -> Iterator[tuple[Pairs, str]]:
    """Wild pairs and the format to read them in; dtypes and formats take turns."""
    turns = list(itertools.product(DTYPES, FORMATS))
    for number in range(max(total // CHUNK, len(turns))):
        dtype, fmt = turns[number % len(turns)]
        yield wild_pairs(CHUNK, dtype, seed=1000 + number), fmt


def upright(boxes: Tensor, fmt: str) -> Tensor:
    """Whether boxes have neither side inverted."""
    first, second = boxes.chunk(2, -1)
    return (second >= (first if fmt == "xyxy" else 0)).all(-1)


def is_coarse(sides: Pairs, fmt: str, dtype: torch.dtype) -> Tensor:
    """Whether pairs span so little that half of the smallest number, which a centre is rounded by, counts."""
    corners = torch.stack([convert(side.to(dtype), fmt, "xyxy") for side in sides]).unflatten(-1, (2, 2))
    span = corners.amax((0, 2)) - corners.amin((0, 2))
    return span.amax(-1) < torch.finfo(dtype).smallest_normal


def broken(kind: str, fmt: str, sides: Pairs, loss: Tensor, *grads: Tensor) -> Tensor:
    """Which pairs break a promise: numbers that are not finite, a loss of upright boxes out of its bounds."""
    slack = 64 * eps(loss.dtype)
    bounded = upright(sides[0], fmt) & upright(sides[1], fmt)
    above = bounded & ~is_coarse(sides, fmt, loss.dtype) & (loss > 1 + MOST_PENALTY[kind] + slack)
    finite = loss.isfinite() & torch.stack([side.isfinite().all(-1) for side in grads]).all(0)
    return ~finite | (loss < -slack) | above


def examine(kind: str, backend: str, fmt: str, pred: Tensor, target: Tensor) -> Tensor:
    """Compute loss and both gradients, complain about the first pair that breaks a promise; the losses."""
    sides = (pred.clone().requires_grad_(), target.clone().requires_grad_())
    loss = aligned_loss(kind, *sides, fmt=fmt, backend=backend)
    grads = torch.autograd.grad(loss.sum(), sides)
    if pred.dtype == torch.float16:  # whose range the gradient of a tiny box leaves
        wide = [side.detach().float().requires_grad_() for side in sides]
        loss = aligned_loss(kind, *wide, fmt=fmt, backend=backend)
        in_half, grads = grads, torch.autograd.grad(loss.sum(), wide)
        for found, expected in zip(in_half, grads, strict=True):
            assert torch.equal(found, expected.half())
    bad = broken(kind, fmt, (pred, target), loss.detach(), *grads)
    if bad.any():
        i = int(bad.nonzero()[0])
        numbers = {"pred": pred, "target": target, "loss": loss, "gradient": grads[0], "target's": grads[1]}
        shown = "; ".join(f"{name} {part[i].tolist()}" for name, part in numbers.items())
        pytest.fail(f"{int(bad.sum())} of {len(pred)} pairs, {pred.dtype}, {fmt}: {shown}")
    return loss.detach()


@every_backend
@every_kind
class TestSweep:
    def test_finite_and_within_bounds(self, kind: str, backend: str, pytestconfig: pytest.Config) -> None:
        for (pred, target), fmt in chunks(pytestconfig.getoption("--sweep")):
            examine(kind, backend, fmt, pred, target)

    def test_inverting_never_pays(self, kind: str, backend: str, pytestconfig: pytest.Config) -> None:
        for (pred, target), _ in chunks(pytestconfig.getoption("--sweep") // 4):
            target = sorted_corners(target)
            loss = aligned_loss(kind, pred, target, backend=backend)
            missing = aligned_loss(kind, sorted_corners(pred), target, backend=backend) - loss
            missing /= loss.clamp(min=1)
            worst = int(missing.argmax())
            # A surcharge below one rounding of the loss may be rounded away.
            assert missing[worst] <= 2 * eps(loss.dtype), (pred[worst].tolist(), target[worst].tolist())


LIMITS = [torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max]
EXPONENTS = (-149, -101, -100, -99, -75, -62, 62, 100, 120, 124, 125, 126, 127)
TURNING_POINTS = [0.0, 1.0, *LIMITS, *(2.0**exponent for exponent in EXPONENTS)]
"""Zero, one, the ends of float32's range, and where squares leave it or the maths changes its mind."""

NUMBERS = st.one_of(
    st.sampled_from([sign * value for value in TURNING_POINTS for sign in (1, -1)]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@every_backend
@every_kind
@settings(max_examples=40, deadline=None)
@given(
    pool=st.lists(NUMBERS, min_size=4, max_size=4),
    places=st.lists(st.integers(0, 3), min_size=8, max_size=8),
    nudges=st.lists(st.sampled_from([0.0, -math.inf, math.inf]), min_size=8, max_size=8),
    fmt=st.sampled_from(list(FORMATS)),
)
def test_numbers_chosen_to_collide(
    kind: str, backend: str, pool: list[float], places: list[int], nudges: list[float], fmt: str
) -> None:
    """Eight coordinates from four numbers, some moved by an ulp: ties and all but ties."""
    numbers, toward = torch.tensor(pool)[places], torch.tensor(nudges)
    moved = torch.where(toward == 0, numbers, torch.nextafter(numbers, toward))
    boxes = torch.where(moved.isfinite(), moved, numbers).view(2, 1, 4)
    for dtype in WORKING_DTYPES:
        loss = examine(kind, backend, fmt, *boxes.to(dtype))
        hypothesis.target(loss.item(), label=f"loss in {dtype}")  # the search climbs towards the bound
