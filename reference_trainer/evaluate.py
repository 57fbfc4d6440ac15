"""How good are the boxes: scores over a validation set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from boxreg import box_iou

from .checkpoint import load_run, pick_device
from .config import DataConfig
from .data.loading import Batches, Squares, open_sources, task_name, val_loader
from .errors import CheckpointError
from .model import answer


class Scores(NamedTuple):
    """What a model scores on a set, and the boxes behind it (N, 4), cxcywh as fractions of the square."""

    iou: Tensor
    boxes: Tensor
    targets: Tensor
    confidence: Tensor

    def summary(self) -> dict[str, float]:
        """Mean and median IoU, and the share of pictures above some IoU."""
        shares = {f"iou_over_{bar}": (self.iou > bar).float().mean().item() for bar in (0.5, 0.75, 0.9)}
        return {"mean_iou": self.iou.mean().item(), "median_iou": self.iou.median().item()} | shares


def prepare_images(images: Tensor, device: torch.device) -> Tensor:
    """Pictures uint8 (B, 3, S, S) as the networks take them: float in [0, 1], channels last."""
    on_device = images.to(device, non_blocking=True)
    return on_device.contiguous(memory_format=torch.channels_last).float().div_(255.0)


@torch.no_grad()
def evaluate(model: nn.Module, loader: Batches, device: torch.device) -> Scores:
    """Run a model in evaluation mode over a loader; its mode is put back afterwards."""
    training = model.training
    model.eval()
    columns: list[tuple[Tensor, ...]] = []
    for images, targets in loader:
        boxes, confidence = answer(model(prepare_images(images, device)))
        iou = box_iou(boxes, targets.to(device), fmt="cxcywh")
        columns.append((iou.cpu(), boxes.cpu(), targets, confidence.cpu()))
    model.train(training)
    return Scores(*(torch.cat(column) for column in zip(*columns, strict=True)))


def evaluate_run(folder: Path, data: Path | None, device_name: str) -> dict[str, Any]:
    """Score a run on its own validation pictures, or on those of another data set.

    Raises:
        UserError: if the run, its data or the device cannot be used.
    """
    config, model, _ = load_run(folder)
    device = pick_device(device_name)
    where = config.data
    if data:
        where = DataConfig(path=data, size=where.size, on_error=where.on_error)
    opened = open_sources(where, config.seed, splits=["val"])
    validation = val_loader(Squares(opened.splits["val"], config.data.size))
    started = time.perf_counter()
    scores = evaluate(model.to(device), validation, device)
    if not scores.iou.isfinite().all():
        raise CheckpointError(f"{folder}: its weights give boxes that are not finite")
    result: dict[str, Any] = {"run": str(folder), "task": task_name(where.path)}
    return result | scores.summary() | {"pictures": len(scores.iou), "seconds": time.perf_counter() - started}
