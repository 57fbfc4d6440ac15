"""What is wrong with a configuration or a run: `boxreg.audit` on what the trainer would train."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import boxreg
from boxreg import (
    AuditReport,
    DensePrediction,
    Finding,
    YOLOLossTerms,
    convert,
    pad_targets,
    pairwise_box_iou,
)

from .checkpoint import load_run, pick_device
from .config import TrainConfig
from .data.loading import Sample, Squares, TrainingSamples, to_batch, to_object_batch, train_loader
from .grid import Grid
from .model import Prediction, answer, prepare_images
from .objective import Objective
from .recipe import build_optimizer
from .schedules import lr_factor, warmup_steps
from .tasks import SingleBox, build_task

Targeted = tuple[Tensor, Any]
"""Images, and their targets."""

ListedObjects = tuple[list[Tensor], list[Tensor]]
"""Boxes and labels of each image."""

EXIT_CODES = {None: 0, "info": 0, "warning": 3, "error": 4}
"""By the worst that was found; 2 is a command that cannot be understood."""

VAL_IMAGES = 64


class View(Protocol):
    """A task's samples, predictions and targets as `boxreg.audit` takes them."""

    fmt: str
    """The format of the target boxes."""
    image_size: tuple[float, float]
    """In their unit."""

    def batch(self, samples: list[Sample]) -> Targeted:
        """Images of one size and their targets."""
        ...

    def loss(self, prediction: Any, targets: Any) -> Objective | YOLOLossTerms:
        """The training loss."""
        ...

    def predicted(self, prediction: Any, targets: Any) -> Tensor:
        """A predicted box (N, 4) for each target box."""
        ...

    def target_boxes(self, targets: Any) -> Tensor:
        """The target boxes (N, 4)."""
        ...


class OneBox:
    """Task single: the targets are a tensor (B, 4), cxcywh as fractions."""

    fmt, image_size = "cxcywh", (1.0, 1.0)

    def __init__(self, task: SingleBox) -> None:
        self.loss = task.criterion

    def batch(self, samples: list[Sample]) -> Targeted:
        """See `View`."""
        images, targets = to_batch(samples)
        return prepare_images(images), targets

    def predicted(self, prediction: Prediction, targets: Tensor) -> Tensor:
        """The answer for each image."""
        return answer(prediction)[0]

    def target_boxes(self, targets: Tensor) -> Tensor:
        """The targets are the boxes."""
        return targets


class ManyBoxes:
    """Task grid: the targets are the boxes (K, 4) of each image, xyxy in pixels, and the labels of each."""

    fmt = "xyxy"

    def __init__(self, task: Grid) -> None:
        self.criterion = task.criterion
        self.image_size = (float(task.config.data.size),) * 2

    def batch(self, samples: list[Sample]) -> Targeted:
        """See `View`."""
        images, boxes, labels = to_object_batch(samples)
        return prepare_images(images), (boxes, labels)

    def loss(self, prediction: DensePrediction, targets: ListedObjects) -> YOLOLossTerms:
        """See `View`."""
        terms: YOLOLossTerms = self.criterion(prediction, pad_targets(*targets))
        return terms

    def predicted(self, prediction: DensePrediction, targets: ListedObjects) -> Tensor:
        """For each object the box that is nearest to it, by GIoU: what assigners choose from."""
        nearest = []
        for boxes, objects in zip(prediction.boxes, targets[0], strict=True):
            found = convert(boxes.T, "cxcywh", "xyxy")
            best = pairwise_box_iou(objects, found.detach(), kind="giou").argmax(1)
            nearest.append(found[best])
        return torch.cat(nearest)

    def target_boxes(self, targets: ListedObjects) -> Tensor:
        """See `View`."""
        return torch.cat(targets[0])


class Labelled:
    """Squares as pairs of an image and its targets."""

    def __init__(self, squares: Squares, view: View) -> None:
        self.squares, self.view = squares, view

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        sample = self.squares[index]
        return sample.image, self.view.batch([sample])[1]


def audit_config(config: TrainConfig) -> AuditReport:
    """Audit what `config` would train, before its first step.

    Raises:
        UserError: if the configuration or its data cannot be used.
    """
    return _audit(config, None)


def audit_run(folder: Path) -> AuditReport:
    """Audit a run with its best weights.

    Raises:
        UserError: if the run or its data cannot be used.
    """
    config, model, _ = load_run(folder)
    return _audit(config, model)


def _audit(config: TrainConfig, trained: nn.Module | None) -> AuditReport:
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    task = build_task(config)
    view: View = OneBox(task) if isinstance(task, SingleBox) else ManyBoxes(cast("Grid", task))
    opened = task.open_data()
    squares = {split: Squares(source, config.data.size) for split, source in opened.splits.items()}
    loader, _ = train_loader(squares["train"], config)  # its workers never start: batches are drawn here
    total_steps = config.epochs * len(loader)
    warmup = warmup_steps(config.schedule, total_steps, config.epochs)
    model = trained or task.build_model(squares["train"].source.names, squares["train"])
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    images = torch.randperm(len(squares["train"]))[: config.batch_size].tolist()
    redraw = _drawer(loader.dataset, images, view, device)  # type: ignore[arg-type]
    batch = redraw()
    with torch.no_grad():
        loss = view.loss(model.eval()(batch[0]), batch[1])
    report = boxreg.audit(
        model.train(),
        view.loss,
        build_optimizer(config.optimizer, model),
        batch,
        fmt=view.fmt,
        image_size=view.image_size,
        boxes=lambda prediction: view.predicted(prediction, batch[1]),
        target_boxes=view.target_boxes,
        declared=_declared(config, len(images), loss),
        schedule=lambda step: lr_factor(config.schedule, warmup, step, total_steps),
        epochs=config.epochs,
        images=len(squares["train"]),
        patience=config.patience_epochs(len(loader)),
        clip_norm=config.clip_norm or math.inf,
        ema_decay=config.ema_decay,
        redraw=redraw,
        val_batch=_validation(squares["val"], view, device) if config.task == "single" else None,
        train_data=Labelled(squares["train"], view),  # type: ignore[arg-type]
        val_data=Labelled(squares["val"], view),  # type: ignore[arg-type]
        trained=trained is not None,
    )
    return _with_skipped(report, opened.problems)


def _validation(squares: Squares, view: View, device: torch.device) -> Targeted:
    return _moved(view.batch([squares[index] for index in range(min(len(squares), VAL_IMAGES))]), device)


def _drawer(
    samples: TrainingSamples, images: list[int], view: View, device: torch.device
) -> Callable[[], Targeted]:
    """Draws the same images as each further epoch would."""
    epochs = itertools.count(1)

    def draw() -> Targeted:
        epoch = next(epochs)
        return _moved(view.batch(samples.__getitems__([(epoch, index) for index in images])), device)

    return draw


def _moved(batch: Targeted, device: torch.device) -> Targeted:
    moved: Targeted = pytree.tree_map(lambda value: value.to(device), batch)
    return moved


def _declared(config: TrainConfig, batch_size: int, loss: Objective | YOLOLossTerms) -> dict[str, object]:
    return {
        "optimizer": config.optimizer.name,
        "lr": config.optimizer.lr,
        "weight_decay": config.optimizer.weight_decay,
        "batch_size": batch_size,
    } | {f"lambda_{name}": getattr(config.loss, f"lambda_{name}") for name in loss.weighted}


def _with_skipped(report: AuditReport, problems: list[str]) -> AuditReport:
    if not problems:
        return report
    skipped = Finding(
        "skipped-data",
        "warning",
        f"{len(problems)} boxes or images are left out because something is wrong with them",
        {"problems": len(problems), "first": problems[:3]},
        "what is left out is not learnt",
        "reference_trainer data check PATH lists them; mend the labels",
    )
    findings = (*report.of("error"), skipped, *report.of("warning"), *report.of("info"))
    return replace(report, findings=findings)
