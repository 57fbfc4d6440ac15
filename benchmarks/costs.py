"""What is no step over boxes: the first call, the import, and the calls of Python functions in a step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import FrameType

import torch

import boxreg

from .measuring import spread
from .rows import Row
from .startup import IMPORT as IMPORT_CODE

FIRST_CALL = """
import time, torch, boxreg
pred = torch.tensor([[0.0, 0.0, 2.0, 1.0]], requires_grad=True)
(pred * pred).mean().backward()  # what torch does once
pred.grad = None
start = time.perf_counter()
boxreg.CIoULoss()(pred, torch.tensor([[0.0, 0.0, 1.0, 2.0]])).backward()
print(time.perf_counter() - start)
"""

COMPILE = "first call on a machine"
CACHED = "first call of a process"
IMPORT = "import boxreg, after torch"
CALL = "a step of CIoULoss, one box"


def rows(machine: dict[str, str | int], bandwidth: float, quick: bool) -> list[Row]:
    """A row for each cost, in seconds of fresh processes, or in calls."""
    found = []
    fresh(IMPORT_CODE)  # leaves the bytecode, which an installed package has
    for name, times, seconds in (
        (COMPILE, 3, compile_seconds),
        (CACHED, 7, cached_seconds()),
        (IMPORT, 7, lambda: fresh(IMPORT_CODE)),
    ):
        row = Row(name, "cost", "", 1, "boxreg auto", "cpu", machine, bandwidth)
        taken = [seconds() for _ in range(2 if quick else times)]
        row.turns = len(taken)
        row.median_us, row.p20_us, row.p80_us = (1e6 * figure for figure in spread(taken))
        found.append(row)
    row = Row(CALL, "cost", "", 1, "boxreg auto", "cpu", machine, bandwidth)
    row.python_calls, row.python_files = python_calls(one_step)
    return [*found, row]


def compile_seconds() -> float:
    """The first call where no code has been compiled."""
    with tempfile.TemporaryDirectory() as folder:
        return first_call(folder)


def cached_seconds() -> Callable[[], float]:
    """What measures the first call of a process where another one has compiled the code."""
    folder = tempfile.TemporaryDirectory()
    first_call(folder.name)
    return lambda: first_call(folder.name)


def first_call(folder: str) -> float:
    """Seconds of the first CIoU with gradient of a process, Numba's import included."""
    return fresh(FIRST_CALL, NUMBA_CACHE_DIR=folder)


def fresh(code: str, **environment: str) -> float:
    """What code prints in a process of its own, which may write bytecode as Python does by default."""
    environment = os.environ | environment
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def one_step() -> None:
    loss: torch.Tensor = LOSS(PRED, TARGET)
    loss.backward()  # type: ignore[no-untyped-call]


LOSS = boxreg.CIoULoss()
PRED, TARGET = torch.rand(1, 4, requires_grad=True), torch.rand(1, 4)


def python_calls(step: Callable[[], object]) -> tuple[int, int]:
    """Calls of Python functions that a step makes once it is warm, and the files that they are in."""
    for _ in range(3):
        step()
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    called = called[1:]  # the step itself
    return len(called), len(set(called))
