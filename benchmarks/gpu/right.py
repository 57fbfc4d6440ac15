"""Right? Every kernel against eager in float64, on the same boxes.

Compiling is what costs time here, so many processes share the cases. One that an error of a kernel has
broken, or that dies, is replaced by one that goes on with the next case.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch

from .compiling import CompileTimes
from .device import Cuda, open_device
from .report import FAILED, LEFT_OUT, OK, Figures, LeftOutError, Record, Report
from .right_cases import CASES, check
from .right_others import ALONE, OTHERS

SECTION = "right"
BROKEN = 3
"""Exit code of a process that an error of a kernel has broken."""

Task = tuple[str, Callable[[Cuda], Figures]]


def tasks(rehearsal: bool) -> list[Task]:
    """All that the processes share, by name; for a rehearsal one case in eight."""
    cases = CASES[:: 8 if rehearsal else 1]
    named: list[Task] = [(f"case: {case}", partial(check, case)) for case in cases]
    return [*OTHERS.items(), *named]


def main(device: Cuda, report: Report) -> None:
    """Share the tasks among processes and write down what they find; what needs all memory comes last."""
    found: queue.Queue[Record] = queue.Queue()
    workers = max(1, min((os.cpu_count() or 1) - 1, 15) if not device.rehearsal else 2)
    every = tasks(device.rehearsal)
    command = [sys.executable, "-m", "benchmarks.gpu.right", *(["--rehearse"] if device.rehearsal else [])]
    for number in range(workers):
        arguments = (command, number, workers, len(every), found)
        threading.Thread(target=work_off, args=arguments, daemon=True).start()
    missing = {name for name, _ in every}
    while missing and report.left > 0:
        try:
            record = found.get(timeout=min(1.0, max(report.left, 0.01)))
        except queue.Empty:
            continue
        missing.discard(record.name)
        report.add(record)
    if missing:
        report.add(Record(SECTION, f"{len(missing)} more", LEFT_OUT, detail="the time was over"))
    for name, alone in ALONE.items():
        report.step(name, partial(alone, device))


def work_off(command: list[str], place: int, workers: int, count: int, found: queue.Queue[Record]) -> None:
    """Run every `workers`th task in a process of its own, and a new one behind each task that it died of."""
    while place < count:
        child = subprocess.Popen([*command, str(place), str(workers)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        name = ""
        for line in child.stdout:
            message = json.loads(line)
            if "begins" in message:
                place, name = message["begins"], message["name"]
            else:
                found.put(Record(**message))
                name = ""
        code = child.wait()
        if name or code not in (0, BROKEN):
            detail = f"the process ended with code {code}"
            found.put(Record(SECTION, name or f"the task after number {place}", FAILED, detail=detail))
        place = count if code == 0 else place + workers


def worker() -> int:
    """What such a process does: the tasks from a place on, in steps, each message in a line."""
    place, workers = map(int, sys.argv[-2:])
    rehearsal = "--rehearse" in sys.argv
    torch.set_num_threads(1)
    device, every = open_device(rehearsal), tasks(rehearsal)
    for number in range(place, len(every), workers):
        name, work = every[number]
        say({"begins": number, "name": name})
        record, broken = carry_out(device, name, work)
        say(asdict(record))
        if broken:
            return BROKEN
    return 0


def carry_out(device: Cuda, name: str, work: Callable[[Cuda], Figures]) -> tuple[Record, bool]:
    """A task, what came of it, and whether the process can go on."""
    began, figures, outcome, detail, broken = time.perf_counter(), {}, OK, "", False
    with CompileTimes() as compiled:
        try:
            figures = dict(work(device))
            device.synchronize()
        except LeftOutError as error:
            outcome, detail = LEFT_OUT, str(error)
        except Exception:
            outcome, detail = FAILED, traceback.format_exc()
            broken = not usable(device)
    seconds = round(time.perf_counter() - began, 3)
    return Record(SECTION, name, outcome, seconds, figures | compiled.figures(), detail), broken


def usable(device: Cuda) -> bool:
    """Whether the GPU still computes in this process."""
    try:
        torch.ones(1, device=device.torch).sum()
        device.synchronize()
    except Exception:
        return False
    return True


def say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    sys.exit(worker())
