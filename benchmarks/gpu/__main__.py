"""Runs the sections one after the other, each in a process of its own and within its share of the time.

    python -m benchmarks.gpu --minutes 8 --out FOLDER     all of it, on a GPU
    python -m benchmarks.gpu --rehearse --out FOLDER      the same code on tiny sizes, without a GPU
    python -m benchmarks.gpu --only fast --out FOLDER     one section
    python -m benchmarks.gpu --keep FOLDER                take the results of a run into benchmarks/results

Results are in FOLDER/gpu.jsonl and FOLDER/gpu.md from the first step on. Exit code: 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

from .report import ENDED, FAILED, PAGE, RECORDS, STARTED, Record, Report, add, failures, read
from .sections import SECTIONS

GRACE = 5.0
"""Seconds that a section has to end by itself once its time is over."""

RESULTS = Path(__file__).parents[1] / "results"

NO_GPU = 2
"""Exit code where there is none."""


def main() -> int:
    options = arguments()
    if options.keep:
        return keep(options.keep, RESULTS)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.section:
        return carry_out(options.section, options)
    (options.out / RECORDS).unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    end = time.monotonic() + 60 * options.minutes
    chosen = [name for name in SECTIONS if not options.only or name in options.only]
    for number, name in enumerate(chosen):
        later = sum(SECTIONS[other].share for other in chosen[number:])
        seconds = (end - time.monotonic() - GRACE) * SECTIONS[name].share / later
        if run(name, max(seconds, 1.0), options) == NO_GPU:
            return NO_GPU
    wrong = failures(read(options.out))
    print(f"{len(wrong)} failed: {options.out / 'gpu.md'}")
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all sections together (default: 8)")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder to write to")
    where.add_argument("--keep", type=Path, help="folder of a run on a GPU whose results are to be kept")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="sections to run; by default all")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the CPU, in Triton's interpreter, with tiny sizes"
    )
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(name: str, seconds: float, options: argparse.Namespace) -> int | None:
    """One section in a process of its own, which is ended with all its children once its time is over."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--seconds", str(seconds)]
    command += ["--out", str(options.out), *(["--rehearse"] if options.rehearse else [])]
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if options.rehearse else {})
    began = time.monotonic()
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    code, why = None, ""
    try:
        code = child.wait(seconds + GRACE)
        why = "" if code in (0, NO_GPU) else f"the section's process ended with code {code}"
    except subprocess.TimeoutExpired:
        why = f"cut off after {seconds + GRACE:.0f} s"
    finally:
        kill_group(child)
    if why:
        add(options.out, Record(name, "the section", FAILED, detail=why))
    taken = time.monotonic() - began
    add(options.out, Record(name, "the section", ENDED, round(taken, 1), {"of": round(seconds, 1)}))
    return code


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """End a section's process and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def keep(folder: Path, results: Path) -> int:
    """Take the page and the records of a run on a GPU into the results, and its rows into theirs."""
    from ..picture import draw
    from ..report import markdown
    from ..rows import merge
    from .page import rows_of

    rows = [row for row in rows_of(read(folder)) if row.device == "cuda"]
    if not rows:
        print(f"--keep: {folder / RECORDS} has no row that was measured on a GPU", file=sys.stderr)
        return 2
    for name in (RECORDS, PAGE):
        shutil.copyfile(folder / name, results / name)
    merged = merge(rows, results / "losses.json")
    (results / "losses.md").write_text(markdown(merged))
    draw(rows, results / "scaling-cuda.png")
    return 0


def carry_out(name: str, options: argparse.Namespace) -> int:
    """What the process of a section does."""
    from ..machine import describe
    from .device import NoGpuError, open_device

    report = Report(options.out, name, options.seconds)
    try:
        device = open_device(options.rehearse)
        report.add(Record(name, "the section", STARTED, figures=describe(device.torch)))
        import_module(f"benchmarks.gpu.{name}").main(device, report)
    except NoGpuError as error:
        report.add(Record(name, "the section", FAILED, detail=str(error)))
        return NO_GPU
    except Exception:
        report.add(Record(name, "the section", FAILED, detail=traceback.format_exc()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
