"""Running the real command line, and what is asked of every run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor

from reference_trainer.__main__ import main

ROOT = Path(__file__).parents[2]
SIZE = 64
# Two epochs of two steps.
SMALL = ["--epochs", "2", "--data.images", "40", "--data.size", str(SIZE), "--data.workers", "0"]
SMALL += ["--model.width", "8", "--validate-every", "1", "--device", "cpu"]
LEARN = ["--epochs", "16", "--data.images", "300", "--data.size", str(SIZE), "--data.workers", "0"]
LEARN += ["--validate-every", "4", "--device", "cpu"]
FILES = {"config.yaml", "metrics.jsonl", "summary.json", "model.safetensors", "checkpoints"}
DRAWINGS = {"curves.png", "train_batch.png", "val_predictions.png"}


class Done(NamedTuple):
    """A command that has ended: its result, from the last line that it printed, and what it said."""

    result: dict[str, Any]
    messages: str

    @property
    def folder(self) -> Path:
        return Path(self.result["run"])

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "reference_trainer", *map(str, arguments)]


def call(*arguments: str | Path) -> Done:
    """Run a command in a process of its own; it must succeed."""
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Done(json.loads(done.stdout.splitlines()[-1]), done.stderr)


def call_here(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Done:
    """Run a command in this process; it must succeed."""
    assert main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    return Done(json.loads(captured.out.splitlines()[-1]), captured.err)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command says that ends with code 2; an exception that is not caught fails the test."""
    try:
        code: Any = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def from_a_folder(settings: list[str]) -> list[str]:
    """The settings without those of generated images."""
    at = settings.index("--data.images")
    return settings[:at] + settings[at + 2 :]
