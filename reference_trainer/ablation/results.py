"""What the lines say of each row: means, differences seed by seed, and whether a claim held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .intervals import Interval, mean_interval
from .lines import Line
from .rows import Row


@dataclass(frozen=True)
class Result:
    """What came of a row.

    Attributes:
        finals: the mean IoU after the last epoch, by seed.
        errors: the errors of the runs that ended with one.
        level: the mean over the seeds.
        best: the mean of the best epochs.
        difference: to the base, over the seeds that both have; None for a preset itself.
    """

    row: Row
    finals: dict[int, float]
    errors: dict[int, str]
    level: Interval
    best: float
    difference: Interval | None

    @property
    def held(self) -> bool | None:
        """Whether the difference is surely on the claimed side; None if nothing is claimed, or known."""
        sign = self.difference.sign if self.difference else None
        return None if sign is None or not self.row.claim else sign == self.row.claim

    @property
    def reading(self) -> str:
        """The difference in a word."""
        if self.difference is None or self.difference.sign is None:
            return ""
        return {1: "better", 0: "no difference shown", -1: "worse"}[self.difference.sign]


def difference(finals: Mapping[int, float], base: Mapping[int, float]) -> Interval:
    """The mean difference over the seeds that both have."""
    return mean_interval([finals[seed] - base[seed] for seed in sorted(finals.keys() & base.keys())])


def results_of(rows: Iterable[Row], lines: Mapping[tuple[str, int], Line]) -> dict[str, Result]:
    """The results of the rows that have any, by name."""
    finals: dict[str, dict[int, float]] = {}
    for (name, seed), line in sorted(lines.items()):
        if "final" in line:
            finals.setdefault(name, {})[seed] = line["final"]
    results = {}
    for row in rows:
        own = {seed: line for (name, seed), line in lines.items() if name == row.name}
        if not own:
            continue
        results[row.name] = Result(
            row,
            finals.get(row.name, {}),
            {seed: line["error"] for seed, line in own.items() if "error" in line},
            mean_interval(list(finals.get(row.name, {}).values())),
            mean_interval([line["best"] for line in own.values() if "best" in line]).mean,
            None if row.base is None else difference(finals.get(row.name, {}), finals.get(row.base, {})),
        )
    return results
