"""How good are the boxes: scores over a validation set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from . import ranks
from .checkpoint import load_run, pick_device, saved_scores
from .config import DataConfig
from .data.loading import VALIDATED_AT_ONCE, Batches, Squares, task_name, val_loader
from .data.sample import Renumbered
from .errors import CheckpointError
from .model import prepare_images
from .tasks import Task, build_task


def never() -> bool:
    """Do not stop."""
    return False


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    loader: Batches,
    device: torch.device,
    stop: Callable[[], bool] = never,
    confidence: float | None = None,
) -> dict[str, float] | None:
    """Score a model in evaluation mode over a loader; its mode is put back afterwards.

    All ranks call this together, and each calls `stop` as often as the others.

    Args:
        task: what is learned.
        model: in any mode.
        loader: the loader of a validation set, from `val_loader`.
        device: the model's device.
        stop: asked after each batch.
        confidence: see `Task.scorer`.

    Returns:
        The scores, or None if `stop` said so after one of the batches.
    """
    training = model.training
    model.eval()
    squares = cast("Squares", loader.dataset)
    scorer = task.scorer(squares.source.names, confidence)
    # By the smallest share; another rank may have one batch more.
    asking = math.ceil(len(squares) // ranks.world_size() / VALIDATED_AT_ONCE)
    for number, batch in enumerate(loader):
        moved = batch.to(device)
        scorer.add(model(prepare_images(moved.images)), moved)
        if number < asking and stop():
            return None
    model.train(training)
    return scorer.scores()


def evaluate_run(folder: Path, data: Path | None, device_name: str) -> dict[str, Any]:
    """Score a run on its own validation images, or on those of another dataset.

    Classes of another dataset are those of the run that have the same name; a class that the run does not
    know is one that it never finds. Its precision and recall are those at the run's own confidence.

    Raises:
        UserError: if the run, its data or the device cannot be used.
    """
    config, model, names = load_run(folder)
    device = pick_device(device_name)
    confidence = None
    if data:
        other = DataConfig(path=data, size=config.data.size, on_error=config.data.on_error)
        config = config.model_copy(update={"data": other})
        confidence = saved_scores(folder).get("confidence")
    task = build_task(config)
    source = task.open_data(["val"]).splits["val"]
    if data and config.task == "grid":
        source = Renumbered(source, names)
    squares = Squares(source, config.data.size)
    started = time.perf_counter()
    loader = val_loader(squares, task.collate)
    scores = evaluate(task, model.to(device), loader, device, confidence=confidence)
    assert scores is not None  # nobody stops it
    if not all(map(math.isfinite, scores.values())):
        raise CheckpointError(f"{folder}: its weights give boxes that are not finite")
    result: dict[str, Any] = {"run": str(folder), "task": task_name(config.data.path)}
    return result | scores | {"images": len(squares), "seconds": time.perf_counter() - started}
