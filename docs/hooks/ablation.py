"""What each recommendation was worth, from the ablation's own lines."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from results import RESULTS

if TYPE_CHECKING:
    from pathlib import Path

    from reference_trainer.ablation.plan import Common
    from reference_trainer.ablation.results import Result


@cache
def results() -> list[tuple[Path, Common, dict[str, Result]]]:
    """Each ablation's folder, what is common to its rows, and the rows that were trained, by name."""
    from reference_trainer.ablation.lines import ABOUT, Lines
    from reference_trainer.ablation.plan import chosen, jobs_of
    from reference_trainer.ablation.results import results_of

    found = []
    for about in sorted(RESULTS.glob(f"*/{ABOUT}")):
        lines = Lines(about.parent)
        assert lines.common is not None
        rows = chosen(lines.common.rows)
        trained = lines.of_jobs(jobs_of(rows, lines.common), lines.common.threads)
        found.append((about.parent, lines.common, results_of(rows, trained)))
    return sorted(found, key=lambda one: one[1].epochs)


def ablation(notes: str) -> str:
    """The rows that serve some of the recommendations, `"quick 1; point 3"`, with their differences."""
    asked = set(notes.split("; "))
    rows = [
        (folder, common, one)
        for folder, common, trained in results()
        for one in trained.values()
        if asked & set(one.row.notes)
    ]
    if not rows:
        return ""
    from reference_trainer.ablation.table import show

    lines = [
        "**Measured.** Each change by itself; the epochs lead to all rows, and to how they were trained.",
        "",
        "| set-up | against | epochs | its IoU | difference, 95 % interval | |",
        "|---|---|---|---|---|---|",
        *(
            f"| {one.row.name} | {one.row.base} "
            f"| [{common.epochs}](benchmarks/{folder.name}/ablation.md) "
            f"| {one.level.mean:.3f} | {show(one.difference)} | {one.reading} |"
            for folder, common, one in rows
        ),
    ]
    return "\n".join(lines)
