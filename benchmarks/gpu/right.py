"""Right? Every kernel against eager in float64, on the same boxes.

Compiling is what costs time here, so the cases are divided among several processes. If a kernel error breaks
a process, or it dies, a new process continues with the next case.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TextIO

import torch

from .compiling import CompileTimes
from .device import Cuda, open_device
from .report import FAILED, LEFT_OUT, OK, Figures, LeftOutError, Record, Report
from .right_cases import CASES, check
from .right_others import ALONE, OTHERS

SECTION = "right"
BROKEN = 3
"""Exit code of a process that can no longer use the GPU after a kernel error."""

LONGEST = 60.0
"""Seconds after which a task counts as hanging."""

Task = tuple[str, Callable[[Cuda], Figures]]


def tasks(rehearsal: bool) -> list[Task]:
    """All that the processes share, by name; for a rehearsal one case in eight."""
    cases = CASES[:: 8 if rehearsal else 1]
    named: list[Task] = [(f"case: {case}", partial(check, case)) for case in cases]
    return [*OTHERS.items(), *named]


def main(device: Cuda, report: Report) -> None:
    """Share the tasks among processes and write down what they find; what needs all memory comes last."""
    report.step("a C compiler, which Triton needs", lambda: find_compiler(device))
    found: queue.Queue[Record] = queue.Queue()
    workers = max(1, min((os.cpu_count() or 1) - 1, 15) if not device.rehearsal else 2)
    every = tasks(device.rehearsal)
    command = [sys.executable, "-m", "benchmarks.gpu.right", *(["--rehearse"] if device.rehearsal else [])]
    shares = [Share(command, number, workers, len(every), found) for number in range(workers)]
    for share in shares:
        threading.Thread(target=share.work_off, daemon=True).start()
    missing = {name for name, _ in every}
    while missing and report.left > 0:
        for share in shares:
            share.end_what_hangs()
        with contextlib.suppress(queue.Empty):
            record = found.get(timeout=0.5)
            missing.discard(record.name)
            report.add(record)
    with contextlib.suppress(queue.Empty):
        while True:
            record = found.get_nowait()
            missing.discard(record.name)
            report.add(record)
    for share in shares:
        if (task := share.task) in missing:
            report.add(Record(SECTION, task, FAILED, detail="it had not ended when the time was over"))
            missing.discard(task)
    if missing:
        report.add(Record(SECTION, f"{len(missing)} more", LEFT_OUT, detail="the time was over"))
    for name, alone in ALONE.items():
        report.step(name, partial(alone, device))


def find_compiler(device: Cuda) -> Figures:
    """Without one no kernel can be launched."""
    path = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    assert path or device.rehearsal, "no cc, gcc or clang on the PATH"
    return {"compiler": str(path)}


class Share:
    """Runs every N-th task in one child process; if a task kills the process, a new one continues.

    Args:
        command: starts such a process, with the number of its first task and the step to the next.
        place: the number of the first task.
        step: how many processes share the tasks.
        count: the number of all tasks.
        found: where the records go.
    """

    def __init__(
        self, command: list[str], place: int, step: int, count: int, found: queue.Queue[Record]
    ) -> None:
        self.command, self.place, self.step, self.count, self.found = command, place, step, count, found
        self.task, self.began = "", 0.0
        self.child: subprocess.Popen[str] | None = None

    def work_off(self) -> None:
        """Run the tasks to their end."""
        while self.place < self.count:
            command = [*self.command, str(self.place), str(self.step)]
            self.child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self.child.stdout is not None
            for line in self.child.stdout:
                self.hear(line)
            code = self.child.wait()
            if self.task or code not in (0, BROKEN):
                detail = f"the process ended with code {code} after {time.monotonic() - self.began:.0f} s"
                name = self.task or f"the task after number {self.place}"
                self.found.put(Record(SECTION, name, FAILED, detail=detail))
            self.task = ""
            self.place = self.count if code == 0 else self.place + self.step

    def hear(self, line: str) -> None:
        """What a process says of a task: that it begins, or its record."""
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            return  # something else was printed
        if not isinstance(message, dict) or not {"begins", "section"} & message.keys():
            return
        if "begins" in message:
            self.place, self.task, self.began = message["begins"], message["name"], time.monotonic()
        else:
            self.task = ""
            self.found.put(Record(**message))

    def end_what_hangs(self) -> None:
        """End the process if its task takes too long."""
        if self.task and self.child and time.monotonic() - self.began > LONGEST:
            self.child.kill()


def worker() -> int:
    """What such a process does: the tasks from a place on, in steps, each message in a line."""
    place, workers = map(int, sys.argv[-2:])
    rehearsal = "--rehearse" in sys.argv
    torch.set_num_threads(1)
    # What others print, as Triton does when its assembler fails, goes to the error output.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    device, every = open_device(rehearsal), tasks(rehearsal)
    for number in range(place, len(every), workers):
        name, work = every[number]
        say(channel, {"begins": number, "name": name})
        record, broken = carry_out(device, name, work)
        say(channel, asdict(record))
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


def say(channel: TextIO, message: dict[str, object]) -> None:
    print(json.dumps(message), file=channel, flush=True)


if __name__ == "__main__":
    sys.exit(worker())
