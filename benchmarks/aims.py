"""What is to be reached, and whether it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    against: str = "torchvision"
    at_most: bool = False

    def worst(self, rows: list[Row]) -> float | None:
        """The figure that is farthest from the aim, None if there is none."""
        rows = [row for row in rows if row.device == self.device]
        others = {row.place: row for row in rows if row.provider == self.against}
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


def losses(least: int, most: int, *layouts: str) -> Callable[[Row], bool]:
    """Rows of the loss, of so many pairs; of all layouts if none is named."""
    return lambda row: (
        row.job == "loss" and least <= row.pairs <= most and (not layouts or row.layout in layouts)
    )


def pairwise(row: Row) -> bool:
    return row.job == "pairwise"


MILLION = 10**6
AIMS = (
    Aim("times as fast as torchvision, up to 8,400 pairs", "cpu", 3, speed, losses(0, 8_400)),
    Aim("the same, 134,400 pairs or more, rows", "cpu", 3, speed, losses(134_400, MILLION, "rows")),
    Aim("the same, 134,400 pairs or more, planes", "cpu", 6, speed, losses(134_400, MILLION, "planes")),
    Aim(
        "the same, 1,000,000 pairs, planes",
        "cpu",
        15,
        speed,
        losses(MILLION, MILLION, "planes"),
        provider="boxreg compile",
    ),
    Aim("the same, pairwise", "cpu", 5, speed, pairwise),
    Aim("torchvision's peak memory by ours, 1,000,000 pairs", "cpu", 5, thrift, losses(MILLION, MILLION)),
    Aim("times as fast as torchvision, up to 100,000 pairs", "cuda", 10, speed, losses(0, MILLION // 10)),
    Aim(
        "times as fast as torchvision through torch.compile, up to 100,000 pairs",
        "cuda",
        2,
        speed,
        losses(0, MILLION // 10),
        against="torchvision, torch.compile",
    ),
    Aim(
        "times as fast as the textbook's formula through torch.compile, up to 100,000 pairs",
        "cuda",
        1,
        speed,
        losses(0, MILLION // 10),
        against="textbook, torch.compile",
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
    Aim("times as fast as torchvision, pairwise", "cuda", 5, speed, pairwise),
)
