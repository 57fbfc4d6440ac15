"""What a run shows: progress while it trains, and the files of its folder."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from boxreg import convert

from .config import TrainConfig
from .data.loading import Batch, Squares
from .data.sample import LeftOut
from .errors import UserError
from .evaluate import Scores
from .objective import Objective

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle

console = Console(stderr=True, highlight=False, markup=False)
"""Where people read; standard output is kept for the result."""

TARGET, PREDICTION = "lime", "red"
MEANINGS = {TARGET: "target", PREDICTION: "prediction"}
PICTURES_SHOWN = 24


class RunReport:
    """The folder of a run, and what people see while it trains.

    Args:
        config: of the run.
        task: a short name of what is trained on.
        steps_per_epoch: optimizer steps of a whole epoch.
    """

    def __init__(self, config: TrainConfig, task: str, steps_per_epoch: int) -> None:
        self.task, self.epochs, self.steps_per_epoch = task, config.epochs, steps_per_epoch
        self.folder = new_folder(config.out, f"{task}-{config.model.head}-seed{config.seed}")
        self._rows: list[dict[str, Any]] = []
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
            f"{self.task}: {counts} pictures; {parameters:,} parameters; "
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

    def first_batch(self, batch: Batch) -> None:
        """Draw the first batch, so that wrong boxes are seen before the run has gone far."""
        if not self._batch_drawn:
            draw_batch(batch.images, batch.targets, self.folder / "train_batch.png")
            self._batch_drawn = True

    def step(self, epoch: int, objective: Objective, iou: Tensor, lr: float, speed: float) -> None:
        """Move the bar by one optimizer step."""
        if not self._bar.disable:
            terms = " ".join(f"{name} {value.item():.2f}" for name, value in objective.weighted.items())
            state = f"IoU {iou.mean().item():.3f} lr {lr:.1e} {speed:.0f} pictures/s\n{terms}"
            self._bar.update(self._task, advance=1, description=f"epoch {epoch}", state=state)

    def epoch(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and one to what people read."""
        self._rows.append(row)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        terms = ", ".join(f"{name} {value:.3f}" for name, value in row["weighted"].items())
        validated = f"val IoU {row['val_mean_iou']:.4f}" if "val_mean_iou" in row else " " * 14
        left = row["seconds"] / row["epoch"] * (self.epochs - row["epoch"])
        cut = row["steps"] < self.steps_per_epoch
        part = f" (its first {row['steps']} steps)" if cut else ""
        console.print(
            f"epoch {row['epoch']:3d}{part}  {validated}  train IoU {row['train_iou']:.4f}  "
            f"loss {row['loss']:.3f} ({terms})  lr {row['lr']:.1e}  "
            f"{row['pictures_per_second']:.0f} pictures/s  {row['seconds']:.0f} s  eta {left:.0f} s",
            soft_wrap=True,
        )

    def finish(self, result: dict[str, Any], validation: Squares, best: Scores) -> dict[str, Any]:
        """Draw the pictures, write summary.json and return it."""
        draw_curves(self._rows, self.folder / "curves.png")
        shown = range(min(PICTURES_SHOWN, len(validation)))
        images = torch.stack([validation[index][0] for index in shown])
        draw_predictions(images, best.targets, best.boxes, best.iou, self.folder / "val_predictions.png")
        summary = {"run": str(self.folder), "task": self.task} | result | self._data | {"machine": machine()}
        write_json(self.folder / "summary.json", summary)
        if result["stopped_by"]:
            console.print(f"stopped by {result['stopped_by']}; the best weights so far are kept")
        console.print(
            f"mean IoU {result['mean_iou']:.4f} (epoch {result['best_epoch']}); see {self.folder}\n"
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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; the old one stays until the new one is whole."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(unfinished, path)


def print_result(result: dict[str, Any]) -> None:
    """The last line of standard output: one JSON object."""
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    sys.stdout.flush()


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss terms, validation IoU and learning rate over the epochs."""
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for name in rows[0]["weighted"]:
        left.plot(epochs, [row["weighted"][name] for row in rows], label=name)
    left.plot(epochs, [row["loss"] for row in rows], "k", label="total")
    left.set(title="training loss, terms times their lambda", xlabel="epoch", yscale="log")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    validated = [row for row in rows if "val_mean_iou" in row]
    middle.plot(epochs, [row["train_iou"] for row in rows], color="0.6", label="training pictures, augmented")
    val_iou = [row["val_mean_iou"] for row in validated]
    middle.plot([row["epoch"] for row in validated], val_iou, "C2.-", label="validation")
    middle.set(title="mean IoU", xlabel="epoch", ylim=(0, 1))
    middle.grid(alpha=0.3)
    middle.legend(loc="lower right")
    right.plot(epochs, [row["lr"] for row in rows], "C3")
    right.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    _save(figure, path)


def draw_batch(images: Tensor, targets: Tensor, path: Path) -> None:
    """Training pictures as the network sees them, with their target boxes."""
    titles = [""] * len(images)
    _draw_grid(images, [[(box, TARGET)] for box in targets], titles, path)


def draw_predictions(images: Tensor, targets: Tensor, boxes: Tensor, iou: Tensor, path: Path) -> None:
    """Validation pictures with target, prediction and their IoU."""
    pairs = [[(target, TARGET), (box, PREDICTION)] for target, box in zip(targets, boxes, strict=True)]
    _draw_grid(images, pairs, [f"IoU {value:.2f}" for value in iou.tolist()], path)


def draw_found(image: Tensor, box: Sequence[float], title: str, path: Path) -> None:
    """One picture of any size with the box found in it, xyxy in pixels."""
    height, width = image.shape[-2:]
    tall = min(max(6 * height / width, 1), 60)
    figure = pyplot.figure(figsize=(6, tall), layout="constrained")
    axes = figure.subplots()
    _draw_picture(axes, image, title)
    _draw_box(axes, box, PREDICTION)
    _save(figure, path)


def _draw_grid(images: Tensor, boxes: list[list[tuple[Tensor, str]]], titles: list[str], path: Path) -> None:
    count = min(len(images), PICTURES_SHOWN)
    columns = min(count, 8)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(1.8 * columns, 2.0 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, drawn, title in zip(axes.flat, images, boxes, titles, strict=False):
        _draw_picture(axis, image, title)
        for box, colour in drawn:
            _draw_box(axis, (convert(box, "cxcywh", "xyxy") * image.shape[-1]).tolist(), colour)
    colours = [colour for _, colour in boxes[0]]
    handles = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=colour) for colour in colours]
    names = [MEANINGS[colour] for colour in colours]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    _save(figure, path)


def _draw_picture(axes: Any, image: Tensor, title: str) -> None:
    height, width = image.shape[-2:]
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(0, width, height, 0), interpolation="nearest")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))


def _draw_box(axes: Any, box: Sequence[float], colour: str) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.5))


def _save(figure: Any, path: Path) -> None:
    unfinished = path.with_suffix(".unfinished")
    figure.savefig(unfinished, format="png", dpi=100)
    pyplot.close(figure)
    os.replace(unfinished, path)


def machine() -> dict[str, Any]:
    """Where a figure was measured: versions, threads, device names."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
    }
