"""Takes the results of a run on a GPU into benchmarks/results."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .report import PAGE, RECORDS, STARTED, read, write_page

RESULTS = Path(__file__).parents[1] / "results"


def keep(folder: Path, results: Path = RESULTS) -> int:
    """Copy the records, make their page, and merge rows of time into those of `python -m benchmarks`.

    Returns:
        The exit code: 2, and nothing is written, if the folder has no run on a GPU.
    """
    from ..figure import draw
    from ..report import markdown
    from ..rows import merge
    from .page import rows_of

    records = read(folder)
    started = [record for record in records if record.outcome == STARTED]
    if not started or any("gpu" not in record.figures for record in started):
        why = "is a rehearsal" if started else f"has no {RECORDS} with a section that has started"
        print(f"--keep: {folder} {why}; expected the --out of a run on a GPU", file=sys.stderr)
        return 2
    shutil.copyfile(folder / RECORDS, results / RECORDS)
    write_page(results)
    written = [results / RECORDS, results / PAGE]
    rows = [row for row in rows_of(records) if row.device == "cuda"]
    if rows:
        (results / "losses.md").write_text(markdown(merge(rows, results / "losses.json")))
        draw(rows, results / "scaling-cuda.png")
        written += [results / name for name in ("losses.json", "losses.md", "scaling-cuda.png")]
    print(*written, sep="\n")
    print("Now say what was measured in README.md, docs/guide/gpu.md and benchmarks/gpu/README.md.")
    return 0
