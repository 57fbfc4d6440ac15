"""What each recommendation was worth, from the ablation's own lines."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from results import RESULTS

if TYPE_CHECKING:
    from reference_trainer.ablation.results import Result


@cache
def results() -> dict[str, Result]:
    """The rows that were trained, by name; none before there has been an ablation."""
    if not (RESULTS / "ablation.json").exists():
        return {}
    from reference_trainer.ablation.lines import Lines
    from reference_trainer.ablation.plan import chosen, jobs_of
    from reference_trainer.ablation.results import results_of

    lines = Lines(RESULTS)
    assert lines.common is not None
    rows = chosen(lines.common.rows)
    return results_of(rows, lines.of_jobs(jobs_of(rows, lines.common), lines.common.threads))


def ablation(notes: str) -> str:
    """The rows that serve one of the recommendations, `"quick 1; point 3"`, with their differences."""
    wanted = set(notes.split("; "))
    rows = [(one.row, one) for one in results().values() if wanted & set(one.row.notes)]
    if not rows:
        return ""
    from reference_trainer.ablation.table import show

    lines = [
        "**Measured.** Each change by itself; [all rows, and how they were trained](benchmarks/ablation.md).",
        "",
        "| set-up | against | its IoU | difference, 95 % interval | |",
        "|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.base} | {one.level.mean:.3f} | {show(one.difference)} | {one.reading} |"
            for row, one in rows
        ),
    ]
    return "\n".join(lines)
