"""Which recommendation helps: each added alone to a set-up that is stuck, and taken from one that is not."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..report import say
from ..tasks import build_task
from .lines import Lines
from .plan import Common, Job, chosen, config_of, jobs_of
from .results import Result, results_of
from .rows import ROWS
from .running import run_all, terminable

if TYPE_CHECKING:
    from boxreg import AuditReport

TABLE, FIGURE, KEPT = "ablation.md", "ablation.png", "runs"


def ablate(
    folder: Path, common: Common, side_by_side: int, table_only: bool = False, keep: bool = False
) -> dict[str, Any]:
    """Train every run that the folder does not hold yet, then write its table and its figure.

    Args:
        folder: the folder of the lines, the table and the figure.
        common: what is the same for all rows.
        side_by_side: runs at a time.
        table_only: train nothing; make table and figure of what is there.
        keep: leave the folders of the runs in `runs`.

    Raises:
        DataError: if the data is broken; nothing has been trained then.
        UserError: if a row cannot be trained so, or there is nothing to make a table of.
    """
    from .figure import draw
    from .table import write_table

    rows = chosen(common.rows)
    jobs = jobs_of(rows, common)
    lines = Lines(folder)
    if not table_only:
        if common.data:
            # What is wrong with it would be said by every run.
            build_task(jobs[0].config).open_data()
        train_missing(lines, jobs, common, side_by_side, folder / KEPT if keep else None)
    found = lines.of_jobs(jobs, common.threads)
    if not found:
        raise UserError(f"out: {folder} has no run of these rows with these settings")
    results = results_of(rows, found)
    write_table(folder / TABLE, results, common, found, FIGURE, _audit_of_baseline(results, common))
    draw(folder / FIGURE, results, common)
    return {
        "out": str(folder),
        "rows": len(rows),
        "runs": len(found),
        "missing": len(jobs) - len(found),
        "failed": sum("error" in line for line in found.values()),
        "table": str(folder / TABLE),
        "figure": str(folder / FIGURE),
    }


def _audit_of_baseline(results: Mapping[str, Result], common: Common) -> AuditReport | None:
    if "baseline" not in results:
        return None
    from ..audit import audit_config

    return audit_config(config_of(ROWS["baseline"], common))


def train_missing(
    lines: Lines, jobs: list[Job], common: Common, side_by_side: int, keep: Path | None
) -> None:
    """Train the jobs without a line; one whose process died is tried again the next time."""
    lines.describe(common, jobs)
    done = lines.of_jobs(jobs, common.threads)
    missing = {
        (job.digest, job.seed): job
        for job in jobs
        if (job.row, job.seed) not in done or done[job.row, job.seed].get("died")
    }
    say(f"{len(done)} of {len(jobs)} runs are there; {len(missing)} to train, {side_by_side} at a time")
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(terminable())
        runs = keep or Path(stack.enter_context(TemporaryDirectory(prefix="ablate-")))
        runs.mkdir(exist_ok=True)
        endings = run_all(list(missing.values()), side_by_side, common.threads, runs)
        stack.enter_context(closing(endings))
        for number, (job, result, place) in enumerate(endings, 1):
            lines.add(job, result)
            if not keep:
                shutil.rmtree(place)
            left = (time.perf_counter() - started) / number * (len(missing) - number)
            came = (
                f"IoU {result['final']:.3f}"
                if "final" in result
                else f"FAILED: {result['error'].splitlines()[0]}"
            )
            say(f"[{number}/{len(missing)}] seed {job.seed}  {job.row}: {came}  eta {left / 60:.0f} min")
