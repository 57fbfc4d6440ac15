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
    rows = [result for result in results().values() if wanted & set(result.row.notes)]
    if not rows:
        return ""
    lines = [
        "**Measured.** Each change by itself; [all rows, and how they were trained](benchmarks/ablation.md).",
        "",
        "| set-up | against | its IoU | difference, 95 % interval | |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(cells(result))} |" for result in rows),
    ]
    return "\n".join(lines)


def cells(result: Result) -> tuple[str, ...]:
    """A row's name and figures."""
    change = result.difference
    known = change is not None and change.low is not None
    shown = f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f})" if change and known else ""
    return result.row.name, result.row.base or "", f"{result.level.mean:.3f}", shown, result.reading
