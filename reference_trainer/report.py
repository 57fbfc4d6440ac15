"""What a run shows: progress while it trains, and the files of its folder."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from .config import TrainConfig
from .data.loading import Squares, task_name
from .data.sample import LeftOut
from .drawing import draw_curves
from .errors import UserError
from .files import as_json, write_whole
from .meter import Step
from .tasks import Task

console = Console(stderr=True, highlight=False, markup=False)
"""Where people read; standard output is kept for the result."""


class RunReport:
    """The folder of a run, and what people see while it trains.

    Args:
        config: of the run.
        task: what is learned.
        steps_per_epoch: optimizer steps of a whole epoch.
    """

    def __init__(self, config: TrainConfig, task: Task, steps_per_epoch: int) -> None:
        self.task, self.epochs, self.steps_per_epoch = task, config.epochs, steps_per_epoch
        self.name = task_name(config.data.path)
        self.folder = new_folder(config.out, f"{self.name}-{config.model.head}-seed{config.seed}")
        self._rows: list[dict[str, Any]] = []
        self._width = len("  ".join(f"{label} 0.0000" for label in task.shown.values()))
        self._batch_drawn = False
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[state]}"),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def start(
        self,
        model: nn.Module,
        pictures: dict[str, Squares],
        left_out: dict[str, LeftOut],
        problems: Sequence[str],
    ) -> None:
        """Say what is about to be trained, on what, and what of it was skipped."""
        self._data: dict[str, Any] = {
            "pictures": {split: len(squares) for split, squares in pictures.items()},
            "left_out": {split: left._asdict() for split, left in left_out.items()},
            "clipped_boxes": {split: squares.source.clipped for split, squares in pictures.items()},
            "data_problems": len(problems),
        }
        parameters = sum(parameter.numel() for parameter in model.parameters())
        counts = ", ".join(f"{len(squares)} {split}" for split, squares in pictures.items())
        console.print(
            f"{self.name}: {counts} pictures; {parameters:,} parameters; "
            f"{self.epochs} epochs of {self.steps_per_epoch} steps; run {self.folder}",
            soft_wrap=True,
        )
        if problems:
            listing = self.folder / "data_problems.txt"
            listing.write_text("".join(f"{problem}\n" for problem in problems))
            console.print(f"skipped {len(problems)} bad boxes or pictures; see {listing}", soft_wrap=True)
        for split, left in left_out.items():
            if any(left):
                several, none = left.several_boxes, left.no_box
                console.print(f"{split}: left out {several} pictures with several boxes, {none} with none")
        for split, clipped in self._data["clipped_boxes"].items():
            if clipped:
                console.print(
                    f"{split}: clipped {clipped} boxes that stuck out of their picture by up to 1 %"
                )

    def progress(self) -> Progress:
        """The bar over the whole run, shown while it is entered; nothing where there is no terminal."""
        self._task = self._bar.add_task("epoch 1", total=self.epochs * self.steps_per_epoch, state="")
        return self._bar

    def first_batch(self, batch: Any) -> None:
        """Draw the first batch, so that wrong boxes are seen before the run has gone far."""
        if not self._batch_drawn:
            write_whole(self.folder / "train_batch.png", self.task.draw_batch(batch))
            self._batch_drawn = True

    def step(self, epoch: int, step: Step, lr: float, speed: float) -> None:
        """Move the bar by one optimizer step."""
        if not self._bar.disable:
            terms = " ".join(f"{name} {value.item():.2f}" for name, value in step.objective.weighted.items())
            figures = {f"train_{name}": value.mean().item() for name, value in step.figures.items()}
            state = f"{self._shown(figures, '.3f')} lr {lr:.1e} {speed:.0f} pictures/s\n{terms}"
            self._bar.update(self._task, advance=1, description=f"epoch {epoch}", state=state)

    def epoch(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and one to what people read."""
        self._rows.append(row)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        terms = ", ".join(f"{name} {value:.3f}" for name, value in row["weighted"].items())
        left = row["seconds"] / row["epoch"] * (self.epochs - row["epoch"])
        cut = row["steps"] < self.steps_per_epoch
        part = f" (its first {row['steps']} steps)" if cut else ""
        console.print(
            f"epoch {row['epoch']:3d}{part}  {self._shown(row).rjust(self._width)}  "
            f"loss {row['loss']:.3f} ({terms})  lr {row['lr']:.1e}  "
            f"{row['pictures_per_second']:.0f} pictures/s  {row['seconds']:.0f} s  eta {left:.0f} s",
            soft_wrap=True,
        )

    def _shown(self, row: Mapping[str, Any], form: str = ".4f") -> str:
        """Those of the task's figures that a row has."""
        return "  ".join(f"{label} {row[key]:{form}}" for key, label in self.task.shown.items() if key in row)

    def finish(
        self, result: dict[str, Any], model: nn.Module, validation: Squares, device: torch.device
    ) -> dict[str, Any]:
        """Draw the pictures, of what `model` finds too, write summary.json and return it."""
        write_whole(self.folder / "curves.png", draw_curves(self._rows, self.task.shown))
        found = self.task.draw_predictions(model, validation, device)
        write_whole(self.folder / "val_predictions.png", found)
        summary = {"run": str(self.folder), "task": self.name} | result | self._data | {"machine": machine()}
        write_whole(self.folder / "summary.json", as_json(summary))
        if result["stopped_by"]:
            console.print(f"stopped by {result['stopped_by']}; the best weights so far are kept")
        console.print(
            f"{self._shown({f'val_{name}': value for name, value in result['scores'].items()})} "
            f"(epoch {result['best_epoch']}); see {self.folder}\n"
            f"next: reference_trainer evaluate {shlex.quote(str(self.folder))}\n"
            f"      reference_trainer predict {shlex.quote(str(self.folder))} PICTURE ...",
            soft_wrap=True,
        )
        return summary


def new_folder(parent: Path, name: str) -> Path:
    """Make a folder of its own for a run: `name` and the time, numbered if that is taken."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = parent / (f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"out: cannot make {folder}: {error.strerror}") from error
        return folder
    raise AssertionError("unreachable")


def print_result(result: dict[str, Any]) -> None:
    """The last line of standard output: one JSON object."""
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    sys.stdout.flush()


def machine() -> dict[str, Any]:
    """Where a figure was measured: versions, threads, device names."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
    }
