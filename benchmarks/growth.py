"""Whether memory grows over a million calls: `python -m benchmarks.growth`.

Every call has boxes of another number and layout, and parameters of its own. After a tenth of the calls,
which fill caches that have a bound, resident memory is noted ten times; a line through these samples has a
slope, and the slope an error. Memory grows if the slope is positive beyond its error.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from boxreg import functional as F
from boxreg import pairwise_box_iou

from .machine import describe
from .measuring import resident

RESULTS = Path(__file__).parent / "results"
SAMPLES = 10
LARGEST = 300
"""Boxes of a call at most."""

T_95 = 2.306
"""How many standard errors the slope of ten samples may be from 0 by chance, once in twenty times."""


class Slope(NamedTuple):
    """Bytes a call, and how far it may be off by chance."""

    bytes: float
    error: float

    @property
    def grows(self) -> bool:
        return self.bytes > self.error


def one_call(chance: random.Random) -> None:
    """A loss with gradient, or scores, of a shape and with parameters that no other call has."""
    count, planes = chance.randint(1, LARGEST), chance.random() < 0.5
    shape = (2, 4, count) if planes else (count, 4)
    pred, target = torch.rand(shape).requires_grad_(), torch.rand(shape)
    options: dict[str, Any] = {
        "reduction": chance.choice(("none", "mean", "sum")),
        "dim": 1 if planes else -1,
    }
    options |= {"loss_weight": chance.uniform(0.5, 2.0)}
    losses: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: F.ciou_loss(pred, target, **options),
        lambda: F.iou_loss(pred, target, inner_ratio=chance.uniform(0.5, 1.5), **options),
        lambda: F.giou_loss(pred, target, mode="alpha", alpha=chance.uniform(1.0, 4.0), **options),
        lambda: F.mpdiou_loss(
            pred, target, image_width=chance.uniform(1, 9), image_height=chance.uniform(1, 9), **options
        ),
        lambda: F.shapeiou_loss(pred, target, scale=chance.uniform(0, 2), **options),
        lambda: F.nwd_loss(pred, target, constant=chance.uniform(1, 9), **options),
        lambda: F.siou_loss(
            pred, target, weight=torch.rand(target.select(options["dim"], 0).shape), **options
        ),
        lambda: pairwise_box_iou(pred.reshape(-1, 4), target.reshape(-1, 4)[:20]),
    )
    loss = chance.choice(losses)().sum()
    loss.backward()  # type: ignore[no-untyped-call]


def samples(calls: int) -> list[tuple[int, int]]:
    """Calls made so far and bytes in memory, ten times after the first tenth of the calls."""
    chance, found = random.Random(0), []
    times = [calls // 10 + calls * 9 // 10 * turn // (SAMPLES - 1) for turn in range(SAMPLES)]
    for call in range(calls + 1):
        if call in times:
            found.append((call, resident("VmRSS")))
        one_call(chance)
    return found


def slope(found: list[tuple[int, int]]) -> Slope:
    """The slope of the line through the samples, and its error by Student's t."""
    calls, memory = zip(*found, strict=True)
    line = statistics.linear_regression(calls, memory)
    rest = [y - line.intercept - line.slope * x for x, y in found]
    spread = sum((x - statistics.fmean(calls)) ** 2 for x in calls)
    variance = sum(error * error for error in rest) / (len(found) - 2)
    return Slope(line.slope, T_95 * (variance / spread) ** 0.5)


def report(found: list[tuple[int, int]], seconds: float, machine: dict[str, str | int]) -> str:
    """The page."""
    calls, measured = found[-1][0], slope(found)
    verdict = "missed" if measured.grows else "reached"
    lines = [
        "# A million calls: memory",
        "",
        "Written by `python -m benchmarks.growth`. Every call has another number of boxes, rows or planes,",
        "another loss or score, and parameters that no other call has, with gradient, on a CPU. Memory is",
        "that of the process, noted ten times after the first tenth of the calls; the error of the slope is",
        "Student's, 95 in 100.",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()) + ".",
        "",
        "| calls | aim | slope | seconds | measured |",
        "|---|---|---|---|---|",
        f"| {calls:,} | no growth: a slope not above its error | {measured.bytes:+.3f} bytes a call, error "
        f"{measured.error:.3f} | {seconds:.0f} | {verdict} |",
        "",
        "| calls made | in memory |",
        "|---|---|",
        *(f"| {call:,} | {memory / 2**20:.1f} MiB |" for call, memory in found),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10**6)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    begin = time.perf_counter()
    found = samples(options.calls)
    options.out.mkdir(parents=True, exist_ok=True)
    page = report(found, time.perf_counter() - begin, describe(torch.device("cpu")))
    (options.out / "growth.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
