"""What is to be reached, and whether it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .costs import CACHED, CALL, COMPILE, IMPORT
from .providers import RIVAL
from .rows import DEVICES, Row

Figure = Callable[[Row, Row | None], float | None]
"""A figure of a row, given the row that it is held against in the same case; None where there is none."""


@dataclass(frozen=True)
class Aim:
    """A bound that a provider's figure is to keep in all the rows that are meant."""

    text: str
    device: str
    bound: float
    figure: Figure
    meant: Callable[[Row], bool]
    provider: str = "boxreg auto"
    against: tuple[str, ...] = ("torchvision",)
    """The providers that the figure is compared with; the fastest of them counts."""
    at_most: bool = False

    def worst(self, rows: list[Row]) -> float | None:
        """The figure that is farthest from the aim, None if there is none."""
        rows = [row for row in rows if row.device == self.device]
        rivals = [row for row in rows if row.provider in self.against]
        others = {row.place: row for row in sorted(rivals, key=slowness)}
        mine = [row for row in rows if row.provider == self.provider and self.meant(row)]
        figures = [self.figure(row, others.get(row.place)) for row in mine]
        known = [figure for figure in figures if figure is not None]
        return None if not known else max(known) if self.at_most else min(known)

    def line(self, rows: list[Row]) -> str:
        """The aim and what was measured, as a row of a table."""
        worst = self.worst(rows)
        bound = f"{'at most' if self.at_most else 'at least'} {self.bound:g}"
        if worst is None:
            measured = "not measured"
        else:
            reached = worst <= self.bound if self.at_most else worst >= self.bound
            measured = f"{worst:.3g}: {'reached' if reached else 'missed'}"
        return f"| {DEVICES[self.device]} | {self.provider} | {self.text} | {bound} | {measured} |"


def speed(row: Row, other: Row | None) -> float | None:
    if other is None or row.median_us is None or other.median_us is None:
        return None
    return other.median_us / row.median_us


def thrift(row: Row, other: Row | None) -> float | None:
    if other is None or row.peak_bytes is None or other.peak_bytes is None:
        return None
    return other.peak_bytes / max(row.peak_bytes, 1)


def launches(row: Row, other: Row | None) -> float | None:
    return row.launches


def synchronisations(row: Row, other: Row | None) -> float | None:
    return row.synchronisations


def share(row: Row, other: Row | None) -> float | None:
    return row.share_of_bandwidth


def slowness(row: Row) -> float:
    """What sorts rows from slow to fast, those without a time first."""
    return -math.inf if row.median_us is None else -row.median_us


def cost(row: Row, other: Row | None) -> float | None:
    times = speed(row, other)
    return None if times is None else 1 / times


def busy(row: Row, other: Row | None) -> float | None:
    return row.busy_us / row.median_us if row.busy_us and row.median_us else None


def seconds(row: Row, other: Row | None) -> float | None:
    return None if row.median_us is None else row.median_us / 1e6


def python_calls(row: Row, other: Row | None) -> float | None:
    return row.python_calls


def losses(least: int, most: int, *layouts: str) -> Callable[[Row], bool]:
    """Selects rows of mean CIoU with `least` to `most` pairs, in the layouts named, or in any if none is."""
    return lambda row: (
        (row.job, row.kind) == ("loss", "ciou")
        and least <= row.pairs <= most
        and (not layouts or row.layout in layouts)
    )


def job(job: str) -> Callable[[Row], bool]:
    return lambda row: row.job == job


def case(name: str) -> Callable[[Row], bool]:
    return lambda row: row.case == name


def other_losses(row: Row) -> bool:
    return row.job == "loss" and row.kind != "ciou"


MILLION = 10**6
EAGER = ("boxreg eager",)
BOXES_IN_RUST = ("powerboxes", "powerboxes, parallel")
AIMS = (
    Aim("times as fast as torchvision, up to 8,400 pairs", "cpu", 8, speed, losses(0, 8_400)),
    Aim("the same, 134,400 pairs or more", "cpu", 10, speed, losses(134_400, MILLION)),
    Aim("the same, 1,000,000 pairs, planes", "cpu", 15, speed, losses(MILLION, MILLION, "planes")),
    Aim(
        "times as fast as the textbook's formula through torch.compile",
        "cpu",
        1.5,
        speed,
        losses(0, MILLION),
        against=(RIVAL,),
    ),
    Aim("other losses: times as fast as by autograd", "cpu", 10, speed, other_losses, against=EAGER),
    Aim("raw outputs to loss: times as fast as torchvision", "cpu", 8, speed, job("from_raw")),
    Aim(
        "one core busy: time by that of a quiet machine",
        "cpu",
        3,
        busy,
        lambda row: row.job != "cost",
        at_most=True,
    ),
    Aim(
        "pairwise IoU, 16 x 50 x 8,400: times as fast as torchvision",
        "cpu",
        8,
        speed,
        case("assigner by IoU"),
    ),
    Aim(
        "pairwise IoU and gradient, 2,000 x 2,000: times as fast as torchvision",
        "cpu",
        5,
        speed,
        case("pairwise IoU with gradient"),
    ),
    Aim(
        "pairwise IoU, 800 x 8,400: times as fast as powerboxes",
        "cpu",
        1.5,
        speed,
        case("pairwise IoU of an image"),
        against=BOXES_IN_RUST,
    ),
    Aim("torchvision's peak memory by ours, 1,000,000 pairs", "cpu", 5, thrift, losses(MILLION, MILLION)),
    Aim(f"{COMPILE}, s", "cpu", 4, seconds, case(COMPILE), at_most=True),
    Aim(f"{CACHED}, s", "cpu", 0.5, seconds, case(CACHED), at_most=True),
    Aim(f"{IMPORT}, s", "cpu", 0.05, seconds, case(IMPORT), at_most=True),
    Aim(
        "weighted loss: time by that of the unweighted one times weight",
        "cpu",
        1,
        cost,
        job("weighted"),
        against=("boxreg auto, loss times weight",),
        at_most=True,
    ),
    Aim(
        "half of the weights 0: time by that of others",
        "cpu",
        1.05,
        cost,
        job("weighted"),
        provider="boxreg auto, half the weights 0",
        against=("boxreg auto",),
        at_most=True,
    ),
    Aim(f"Python calls, {CALL}", "cpu", 53, python_calls, case(CALL), at_most=True),
    Aim("times as fast as torchvision, up to 100,000 pairs", "cuda", 10, speed, losses(0, MILLION // 10)),
    Aim(
        "times as fast as torchvision through torch.compile, up to 100,000 pairs",
        "cuda",
        2,
        speed,
        losses(0, MILLION // 10),
        against=("torchvision, torch.compile",),
    ),
    Aim(
        "times as fast as the textbook's formula through torch.compile, up to 100,000 pairs",
        "cuda",
        1,
        speed,
        losses(0, MILLION // 10),
        against=(RIVAL,),
    ),
    Aim("launches a step", "cuda", 2, launches, losses(0, 10 * MILLION), at_most=True),
    Aim("waits for the device a step", "cuda", 0, synchronisations, losses(0, 10 * MILLION), at_most=True),
    Aim(
        "share of a copy's bandwidth, 10,000,000 pairs",
        "cuda",
        0.8,
        share,
        losses(10 * MILLION, 10 * MILLION),
    ),
    Aim("times as fast as torchvision, pairwise", "cuda", 5, speed, job("pairwise")),
)
