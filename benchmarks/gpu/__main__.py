"""Runs the sections one after the other, each in a process of its own and within its share of the time.

    python -m benchmarks.gpu --minutes 8 --out FOLDER     all of it, on a GPU
    python -m benchmarks.gpu --rehearse --out FOLDER      the same code on tiny sizes, without a GPU
    python -m benchmarks.gpu --only fast --out FOLDER     one section; what FOLDER has of others stays
    python -m benchmarks.gpu --keep FOLDER                take the results of a run into benchmarks/results

Results are in FOLDER/gpu.jsonl and FOLDER/gpu.md from the first step on; those of an earlier run are renamed.
Exit code: 0 if nothing failed, 1 if something did, 2 for wrong arguments or without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType

from .keeping import keep
from .report import (
    ENDED,
    FAILED,
    LEFT_OUT,
    OK,
    PAGE,
    RECORDS,
    STARTED,
    Record,
    Report,
    add,
    read,
    set_aside,
)
from .sections import SECTIONS, missing_packages

GRACE = 5.0
"""Seconds that a section has to end by itself once its time is over."""

NO_GPU = 2
"""Exit code where there is none."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """A signal has asked the run to end."""


def main() -> int:
    parser = arguments()
    options = parser.parse_args()
    if options.keep:
        return keep(options.keep)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / RECORDS).open("a").close()
    except OSError as error:
        parser.error(f"--out: {error}")
    if options.section:
        return carry_out(options.section, options)
    with only_run_in(options.out) as alone:
        if not alone:
            parser.error(f"--out: another run writes to {options.out}")
        return run_all(options)


def run_all(options: argparse.Namespace) -> int:
    """All chosen sections, and a last line that counts their steps."""
    chosen = [name for name in SECTIONS if not options.only or name in options.only]
    set_aside(options.out, chosen, options.rehearse)
    for number in STOPPING:
        signal.signal(number, stop)
    end = time.monotonic() + 60 * options.minutes
    shares = {name: SECTIONS[name].share for name in chosen}
    if "trainer" in chosen and missing_packages():
        shares["trainer"] /= 20  # it will be left out
    try:
        for place, name in enumerate(chosen):
            later = sum(shares[other] for other in chosen[place:])
            seconds = (end - time.monotonic() - GRACE) * shares[name] / later
            if run(name, max(seconds, 1.0), options) == NO_GPU:
                return NO_GPU
    except Stopped as stopped:
        print(f"stopped; what was measured is in {options.out / PAGE}")
        return int(str(stopped.code))
    records = [record for record in read(options.out) if record.section in chosen]
    counts = {
        outcome: sum(record.outcome == outcome for record in records) for outcome in (OK, FAILED, LEFT_OUT)
    }
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + f": {options.out / PAGE}")
    return 1 if counts[FAILED] else 0


def stop(number: int, frame: FrameType | None) -> None:
    """End the run at a signal."""
    raise Stopped(128 + number)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[bool]:
    """Whether no other run writes to a folder while this one does."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield True
        return
    with open(folder / RECORDS, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def minutes(text: str) -> float:
    """A number of minutes above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number of minutes above 0")
    return value


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=minutes, default=8.0, help="time limit for all sections together (default: 8)"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder to write to")
    where.add_argument("--keep", type=Path, help="folder of a run on a GPU whose results are to be kept")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to run; by default all")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the CPU, in Triton's interpreter, with tiny sizes"
    )
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


def run(name: str, seconds: float, options: argparse.Namespace) -> int | None:
    """One section in a process of its own, which is ended with all its children once its time is over."""
    # The monotonic clock is one for all processes: what starting takes counts, too.
    until = time.monotonic() + seconds
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--until", str(until)]
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
    except Stopped:
        why = "stopped by a signal"
        raise
    finally:
        for number in STOPPING:  # nothing may interrupt what comes now
            signal.signal(number, signal.SIG_IGN)
        kill_all(child)
        if why:
            add(options.out, Record(name, "the section", FAILED, detail=why))
        taken = time.monotonic() - began
        add(options.out, Record(name, "the section", ENDED, round(taken, 1), {"of": round(seconds, 1)}))
        for number in STOPPING:
            signal.signal(number, stop)
    return code


def kill_all(child: subprocess.Popen[bytes]) -> None:
    """End a section's process and all that descends from it, in whatever session; torchrun makes new ones."""
    for pid in (*descendants(child.pid), child.pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs, where /proc tells."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which is in brackets and may hold anything: state, parent.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]


def end_with_parent() -> None:
    """On Linux, end this process when the one that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def carry_out(name: str, options: argparse.Namespace) -> int:
    """What the process of a section does."""
    end_with_parent()
    from ..machine import describe
    from .device import NoGpuError, open_device

    report = Report(options.out, name, options.until - time.monotonic())
    try:
        device = open_device(options.rehearse)
        figures = describe(device.torch) | {"rehearsal": options.rehearse}
        report.add(Record(name, "the section", STARTED, figures=figures))
        import_module(f"benchmarks.gpu.{name}").main(device, report)
    except NoGpuError as error:
        report.add(Record(name, "the section", FAILED, detail=str(error)))
        return NO_GPU
    except Exception:
        report.add(Record(name, "the section", FAILED, detail=traceback.format_exc()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
