"""What a run shows: progress while it trains, and the files of its folder."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import nn

from . import ranks
from .config import TrainConfig
from .data.loading import Squares, task_name
from .data.sample import LeftOut
from .drawing import draw_curves
from .errors import UserError
from .files import RunFolder, as_json
from .meter import Step
from .progress import Progress
from .tasks import Task

console = Console(stderr=True, highlight=False, markup=False)
"""Where people read; standard output is kept for the result."""

BATCH_DRAWING, PROBLEMS = "train_batch.png", "data_problems.txt"


def say(text: str) -> None:
    """Show a message to people; only rank 0 does."""
    if ranks.rank() == 0:
        console.print(text, soft_wrap=True)


class RunReport:
    """The folder of a run, and what people see while it trains; only rank 0 says and writes.

    Args:
        config: the run's configuration.
        task: what is learned.
        steps_per_epoch: optimizer steps of a whole epoch.
        folder: the folder of a run that goes on; without one a new folder is made.

    Attributes:
        batch_drawn: whether the first batch has been drawn, or is not to be.
    """

    def __init__(
        self, config: TrainConfig, task: Task, steps_per_epoch: int, folder: Path | None = None
    ) -> None:
        self.task, self.epochs, self.steps_per_epoch = task, config.epochs, steps_per_epoch
        self.name = task_name(config.data.path)
        name = f"{self.name}-{task.label}-seed{config.seed}"
        self.folder = folder or ranks.from_rank_zero(lambda: new_folder(config.out, name))
        self.files = RunFolder(self.folder, say, writes=ranks.rank() == 0)
        self._width = len("  ".join(f"{label} 0.0000" for label in task.shown.values()))
        self.batch_drawn = not self.files.writes or (self.folder / BATCH_DRAWING).exists()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[state]}"),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and self.files.writes),
            transient=True,
        )

    def start(
        self,
        model: nn.Module,
        datasets: dict[str, Squares],
        left_out: dict[str, LeftOut],
        problems: Sequence[str],
    ) -> None:
        """Say what is about to be trained, on what, and what of it was skipped."""
        self._names = datasets["train"].source.names
        self._data: dict[str, Any] = {
            "images": {split: len(squares) for split, squares in datasets.items()},
            "left_out": {split: left._asdict() for split, left in left_out.items()},
            "clipped_boxes": {split: squares.source.clipped for split, squares in datasets.items()},
            "data_problems": len(problems),
        }
        parameters = sum(parameter.numel() for parameter in model.parameters())
        counts = ", ".join(f"{len(squares)} {split}" for split, squares in datasets.items())
        boxes = sum(int(squares.source.box_counts.sum()) for squares in datasets.values())
        classes = "1 class" if len(self._names) == 1 else f"{len(self._names)} classes"
        shared = f"; shared by {ranks.world_size()} ranks" if ranks.world_size() > 1 else ""
        say(
            f"{self.name}: {counts} images; {boxes} boxes, {classes}; {parameters:,} parameters; "
            f"{self.epochs} epochs of {self.steps_per_epoch} steps{shared}; run {self.folder}"
        )
        if problems:
            self.files.write(PROBLEMS, "".join(f"{problem}\n" for problem in problems).encode())
            say(f"skipped {len(problems)} bad boxes or images; see {self.folder / PROBLEMS}")
        for split, left in left_out.items():
            if any(left):
                several, none = left.several_boxes, left.no_box
                say(
                    f"{split}: left out {several} images with several boxes, {none} with none; "
                    "--task grid learns all"
                )
        for split, clipped in self._data["clipped_boxes"].items():
            if clipped:
                say(f"{split}: clipped {clipped} boxes that stuck out of their image by up to 1 %")

    def bar(self, step: int = 0) -> Bar:
        """The bar over the whole run, shown while it is entered; nothing where there is no terminal."""
        total = self.epochs * self.steps_per_epoch
        self._task = self._bar.add_task("epoch 1", total=total, completed=step, state="")
        return self._bar

    def first_batch(self, batch: Any) -> None:
        """Draw the first batch, so that wrong boxes are seen before the run has gone far."""
        if not self.batch_drawn:
            self.files.write(BATCH_DRAWING, self.task.draw_batch(batch, self._names))
            self.batch_drawn = True

    def step(self, epoch: int, step: Step, lr: float, speed: float) -> None:
        """Move the bar by one optimizer step."""
        if not self._bar.disable:
            terms = " ".join(f"{name} {value.item():.2f}" for name, value in step.objective.weighted.items())
            figures = {f"train_{name}": value.mean().item() for name, value in step.figures.items()}
            state = f"{self._shown(figures, '.3f')} lr {lr:.1e} {speed:.0f} images/s\n{terms}"
            self._bar.update(self._task, advance=1, description=f"epoch {epoch}", state=state)

    def metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl."""
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        self.files.write("metrics.jsonl", "".join(lines).encode())

    def epoch(self, row: Mapping[str, Any]) -> None:
        """A line for people to read."""
        terms = ", ".join(f"{name} {value:.3f}" for name, value in row["weighted"].items())
        left = row["seconds"] / row["epoch"] * (self.epochs - row["epoch"])
        say(
            f"epoch {row['epoch']:3d}  {self._shown(row).rjust(self._width)}  "
            f"loss {row['loss']:.3f} ({terms})  lr {row['lr']:.1e}  "
            f"{row['images_per_second']:.0f} images/s  {row['seconds']:.0f} s  eta {left:.0f} s"
        )

    def _shown(self, row: Mapping[str, Any], spec: str = ".4f") -> str:
        """The figures of the task that a row has."""
        return "  ".join(f"{label} {row[key]:{spec}}" for key, label in self.task.shown.items() if key in row)

    def finish(
        self,
        result: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        model: nn.Module,
        validation: Squares,
        device: torch.device,
    ) -> dict[str, Any]:
        """Draw the curves and what `model` finds, write summary.json and return it."""
        if rows:
            self.files.write("curves.png", draw_curves(rows, self.task.shown))
        scores = result["scores"] or {}
        drawing = self.task.draw_predictions(model, validation, device, scores)
        self.files.write("val_predictions.png", drawing)
        summary = {"run": str(self.folder), "task": self.name, **result, **self._data, "machine": machine()}
        self.files.write("summary.json", as_json(summary))
        reached = {f"val_{name}": value for name, value in scores.items()}
        if reached:
            say(
                f"{self._shown(reached)} (epoch {result['best_epoch']}); see {self.folder}\n"
                f"next: {self.command('evaluate')}\n      {self.command('predict')} IMAGE ..."
            )
        else:
            # There are no best weights to do anything else with.
            say(f"not validated yet; see {self.folder}")
        return summary

    def command(self, name: str) -> str:
        """What to type for a command on this run; where the program is off the path, as it was called."""
        called = program = "reference_trainer"
        if Path(sys.argv[0]).name == program and not shutil.which(program):
            called = shlex.quote(sys.argv[0])
        return f"{called} {name} {shlex.quote(str(self.folder))}"

    def resumed(self, progress: Progress, complete: bool) -> None:
        """Say where a run goes on, or that there is nothing left of it."""
        if complete:
            why = f"all {self.epochs} epochs are done"
            if progress.epoch < self.epochs:
                why = f"stopped early after epoch {progress.epoch} of {self.epochs}"
            say(f"complete: {why}; {self.command('resume')} --epochs N trains further")
        else:
            done = progress.step - progress.epoch * self.steps_per_epoch
            say(
                f"resuming in epoch {progress.epoch + 1} of {self.epochs} after {done} of its "
                f"{self.steps_per_epoch} steps; step {progress.step} of {self.epochs * self.steps_per_epoch}"
            )

    def stopped(self, by: str, progress: Progress) -> None:
        """Say how to go on with a run that a signal stopped, or the end of another rank."""
        say(f"stopped by {by} after step {progress.step}; go on with: {self.command('resume')}")

    def lost(self, names: Sequence[str], newest: str | None) -> None:
        """Say what of a run is not on the disk."""
        left = f"the newest state saved is {newest}" if newest else "no state is saved"
        say(f"NOT SAVED: {', '.join(names)}; {left}. Make room, then: {self.command('resume')}")


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
