"""Running the trainer's command line, in this process or in one of its own."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from reference_trainer.__main__ import main
from reference_trainer.checkpoint import newest_state
from reference_trainer.learner import Learner

from ..breaking import SETTINGS, counted, run_folder
from .device import Cuda

KEPT = 3000
"""How many characters of what a command said an error contains, the last ones."""


class Done(NamedTuple):
    """A command that has ended: its exit code, its last line on standard output, and what it said."""

    code: int
    result: dict[str, Any]
    said: str

    def expect(self, code: int = 0) -> Done:
        """Raise unless it has ended with a code."""
        require(self.code == code, f"exit code {self.code}, expected {code}: {self.said[-KEPT:]}")
        return self

    def number(self, pattern: str) -> int:
        """The last number that a pattern finds in what the command said."""
        return last_number(pattern, self.said)


def require(holds: bool, message: str) -> None:
    """Raise if what should hold does not."""
    if not holds:
        raise AssertionError(message)


def last_number(pattern: str, text: str) -> int:
    """The last number that a pattern finds."""
    found = re.findall(pattern, text)
    require(bool(found), f"expected {pattern!r} in: {text[-KEPT:]}")
    return int(found[-1])


def here(*arguments: str | Path) -> Done:
    """A command in this process, which saves the start of another one."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as said:
        code = main([str(argument) for argument in arguments])
    return Done(code, last_line(out.getvalue()), said.getvalue())


def program(*arguments: str | Path, name: str = "reference_trainer") -> list[str]:
    """What starts a command in a process of its own."""
    return [sys.executable, "-m", name, *map(str, arguments)]


class Started:
    """A command in a process of its own, which has been started; what it prints goes to files.

    Args:
        command: what starts it.
        folder: a new folder for the files.
        variables: variables of its environment, beside those of this process.
    """

    def __init__(self, command: Sequence[str], folder: Path, **variables: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._out, self._said = folder / "out", folder / "said"
        with self._out.open("w") as out, self._said.open("w") as said:
            self.process = subprocess.Popen(command, stdout=out, stderr=said, env=os.environ | variables)

    def end(self, seconds: float = 90.0) -> Done:
        """Wait for the end of the command.

        Raises:
            AssertionError: if the command still runs after `seconds`.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            said = self._said.read_text()[-KEPT:]
            raise AssertionError(f"not at its end after {seconds:.0f} s: {said}") from None
        return Done(code, last_line(self._out.read_text()), self._said.read_text())

    def stop(self) -> None:
        """End the command if it still runs, at first by SIGTERM: torchrun then ends what it has started."""
        for end, seconds in ((self.process.terminate, 10), (self.process.kill, 10)):
            if self.process.poll() is None:
                end()
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(seconds)


def last_line(out: str) -> dict[str, Any]:
    """The JSON object that a command ends its output with; an empty one if there is none."""
    lines = out.splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def small(device: Cuda, epochs: int, *more: str) -> list[str]:
    """A run of eight steps an epoch that draws random numbers in each step."""
    settings = [device.torch.type if setting == "cpu" else setting for setting in SETTINGS]
    return ["train", *settings, "--epochs", str(epochs), "--data.workers", "0", *more]


def trained(out: Path, settings: list[str]) -> Path:
    """The folder of a run that was trained in this process."""
    here(*settings, "--out", out).expect()
    return run_folder(out)


@contextmanager
def stopping(step: int) -> Iterator[None]:
    """While entered, a run sends itself SIGTERM before it takes a step, counted from 1."""
    stop = counted(Learner.gradients, step, lambda: signal.raise_signal(signal.SIGTERM))
    with patch.object(Learner, "gradients", stop):
        yield


def rows_of(run: Path) -> list[dict[str, Any]]:
    """What a run has in metrics.jsonl; nothing before its first epoch."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def largest_difference(one: Path, other: Path) -> float:
    """The largest difference of a weight, averaged or not, between the last states of two runs."""
    first, second = (newest_state(run).state for run in (one, other))
    largest = 0.0
    for ours, theirs in ((first["model"], second["model"]), (first["ema"]["model"], second["ema"]["model"])):
        for name, weight in ours.items():
            difference = (weight.to(torch.float64) - theirs[name].to(torch.float64)).abs()
            largest = max(largest, float(difference.max()) if difference.numel() else 0.0)
    return largest
