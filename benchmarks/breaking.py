"""Breaks training runs on purpose, in child processes, and tells whether the end is the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference_trainer import report
from reference_trainer.__main__ import main
from reference_trainer.checkpoint import newest_state
from reference_trainer.grid import Grid
from reference_trainer.meter import TIMES
from reference_trainer.tasks import SingleBox

SETTINGS = ["--data.images", "80", "--data.size", "64", "--model.width", "8", "--model.dropout", "0.3"]
SETTINGS += ["--device", "cpu", "--validate-every", "1", "--batch-size", "8"]
"""A run of eight steps an epoch and two batches a validation that draws random numbers in each step."""

LEARNED = ("model", "ema", "optimizer", "schedule", "scaler", "random", "step")
"""The parts of a state that are compared."""

STEPS = 8
"""Optimizer steps of an epoch of that run."""


def fingerprint(folder: Path) -> str:
    """A digest of all that a run has learned and written down, but for the times."""
    found = newest_state(folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    learned = {name: found.state[name] for name in LEARNED}
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes())
    for part in _flat([learned, [{k: v for k, v in row.items() if k not in TIMES} for row in rows]]):
        digest.update(part)
    return digest.hexdigest()


def _flat(value: Any) -> Iterator[bytes]:
    """The parts of a tree, each where it stands."""
    if isinstance(value, Tensor):
        yield repr((value.dtype, value.shape)).encode() + value.contiguous().numpy().tobytes()
    elif isinstance(value, dict):
        for key in value:
            yield repr(key).encode()
            yield from _flat(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield repr(value).encode()


def undraw(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Draw nothing: it takes longer than these runs train."""
    patch(report, "draw_curves", lambda *_: b"curves")
    for task in (SingleBox, Grid):
        patch(task, "draw_batch", lambda *_: b"batch")
        patch(task, "draw_predictions", lambda *_: b"predictions")


def start(arguments: list[str], ready: Callable[[], None], log: Path) -> multiprocessing.Process:
    """The command line in a child that is forked, which saves the imports; `ready` is called in it first."""

    def child() -> None:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            torch.set_num_threads(1)
            undraw()
            ready()
            code = main(arguments)
            sys.stdout.flush()
            os._exit(code)

    process: Any = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    started: multiprocessing.Process = process
    return started


def finish(process: multiprocessing.Process, seconds: float = 120.0) -> int | None:
    """The exit code of a child."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"a child ran for more than {seconds} s")
    return process.exitcode


def counted(original: Callable[..., Any], at: int, act: Callable[[], None]) -> Callable[..., Any]:
    """A function that calls `act` before its call number `at`, counted from 1."""
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            act()
        return original(*arguments, **named)

    return wrapped


def run_folder(parent: Path) -> Path:
    """The only run in a folder."""
    (folder,) = parent.iterdir()
    return folder


def kill_after_a_state(process: multiprocessing.Process, parent: Path, delay: float) -> bool:
    """SIGKILL, `delay` seconds after the first state is there; whether the child was still alive."""
    while process.is_alive() and not list(parent.glob("*/checkpoints/step-*.pt")):
        time.sleep(0.01)
    time.sleep(delay)
    alive = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.join()
    return alive
