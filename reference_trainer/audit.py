"""What is wrong with a configuration or a run: `boxreg.audit` on what the trainer would train."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import boxreg
from boxreg import AuditReport, Finding, convert

from .checkpoint import load_run, pick_device
from .config import TrainConfig
from .data.loading import Squares, TrainingSamples, open_sources, to_batch, train_loader
from .model import answer, build_model, prepare_images
from .objective import Criterion
from .recipe import build_optimizer
from .schedules import lr_factor, warmup_steps
from .tasks import refuse_grid

EXIT_CODES = {None: 0, "info": 0, "warning": 3, "error": 4}
"""By the worst that was found; 2 is a command that cannot be understood."""

VAL_PICTURES = 64


class Labelled:
    """Squares as pairs of a picture and its box (1, 4), cxcywh as fractions."""

    def __init__(self, squares: Squares) -> None:
        self.squares = squares

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.squares[index]
        return sample.image, convert(sample.boxes / self.squares.size, "xyxy", "cxcywh")


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
    refuse_grid(config, "audit")
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    criterion = Criterion(config.loss)
    opened = open_sources(config.data, config.seed)
    squares = {split: Squares(source, config.data.size) for split, source in opened.splits.items()}
    loader, _ = train_loader(squares["train"], config)  # its workers never start: batches are drawn here
    total_steps = config.epochs * len(loader)
    warmup = warmup_steps(config.schedule, total_steps, config.epochs)
    model = trained or build_model(config.model, squares["train"].prior())
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]

    pictures = torch.randperm(len(squares["train"]))[: config.batch_size].tolist()
    redraw = _drawer(loader.dataset, pictures, device)  # type: ignore[arg-type]
    val = to_batch([squares["val"][index] for index in range(min(len(squares["val"]), VAL_PICTURES))])
    report = boxreg.audit(
        model,
        criterion,
        build_optimizer(config.optimizer, model),
        redraw(),
        boxes=lambda prediction: answer(prediction)[0],
        declared=_declared(config, len(pictures)),
        schedule=lambda step: lr_factor(config.schedule, warmup, step, total_steps),
        epochs=config.epochs,
        pictures=len(squares["train"]),
        patience=config.patience_epochs(len(loader)),
        clip_norm=config.clip_norm or math.inf,
        ema_decay=config.ema_decay,
        redraw=redraw,
        val_batch=(prepare_images(val.images.to(device)), val.targets.to(device)),
        train_data=Labelled(squares["train"]),  # type: ignore[arg-type]
        val_data=Labelled(squares["val"]),  # type: ignore[arg-type]
        trained=trained is not None,
    )
    return _with_skipped(report, opened.problems)


def _drawer(
    samples: TrainingSamples, pictures: list[int], device: torch.device
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Draws the same pictures as each further epoch would."""
    epochs = itertools.count(1)

    def draw() -> tuple[Tensor, Tensor]:
        epoch = next(epochs)
        batch = to_batch(samples.__getitems__([(epoch, index) for index in pictures]))
        return prepare_images(batch.images.to(device)), batch.targets.to(device)

    return draw


def _declared(config: TrainConfig, batch_size: int) -> dict[str, object]:
    lambdas = ["lambda_coord", "lambda_wh", "lambda_iou"]
    if config.model.head == "dense":
        lambdas += ["lambda_obj", "lambda_noobj"]
    return {
        "optimizer": config.optimizer.name,
        "lr": config.optimizer.lr,
        "weight_decay": config.optimizer.weight_decay,
        "batch_size": batch_size,
    } | {name: getattr(config.loss, name) for name in lambdas}


def _with_skipped(report: AuditReport, problems: list[str]) -> AuditReport:
    if not problems:
        return report
    skipped = Finding(
        "skipped-data",
        "warning",
        f"{len(problems)} boxes or pictures are left out because something is wrong with them",
        {"problems": len(problems), "first": problems[:3]},
        "what is left out is not learnt",
        "reference_trainer data check PATH lists them; mend the labels",
    )
    findings = (*report.of("error"), skipped, *report.of("warning"), *report.of("info"))
    return replace(report, findings=findings)
