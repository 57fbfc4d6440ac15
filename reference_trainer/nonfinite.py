"""A loss or gradient that is not finite: which terms, which images, and the batch to see it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from . import ranks
from .checkpoint import pack_state, pick_device, unpack_state
from .config import parse_config
from .data.loading import Batch, ObjectBatch, TrainingSamples, batch_from
from .errors import CheckpointError, ElsewhereError, UserError
from .files import not_there
from .model import prepare_images
from .precision import autocast
from .progress import restore_random_state
from .run import Run
from .scaling import micro_batches
from .tasks import Task, build_task

NONFINITE = "nonfinite.pt"
"""The batch of a run's folder whose loss or gradient was not finite, with the weights that met it."""

SHOWN = 4
"""Images, and boxes of each, that a message names."""


class Diagnosis(NamedTuple):
    """What is not finite.

    Attributes:
        terms: each term of the loss that is at fault: its name, and its value or "its gradient".
        images: positions in the batch of those whose loss alone, or its gradient, is not finite.
    """

    terms: dict[str, str]
    images: list[int]

    def lines(self, names: Sequence[str], boxes: Sequence[Tensor]) -> list[str]:
        """For people: the terms, then the images with their boxes."""
        terms = ", ".join(f"{name} ({what})" for name, what in self.terms.items())
        named = [
            f"  {names[index]}: boxes {_rounded(boxes[index])}, xyxy in pixels"
            for index in self.images[:SHOWN]
        ]
        more = len(self.images) - SHOWN
        rest = [f"  and {more} more of {len(names)} images"] if more > 0 else []
        head = "images:" if named else "images: none alone, only all of them together"
        return [f"terms: {terms or 'none alone, only their sum'}", head, *named, *rest]


def _rounded(boxes: Tensor) -> list[list[float]]:
    return [[round(value, 2) for value in box] for box in boxes[:SHOWN].tolist()]


def diagnose(
    task: Task,
    model: nn.Module,
    parts: Sequence[Batch | ObjectBatch],
    random: list[Tensor],
    device: torch.device,
    precision: str,
) -> Diagnosis:
    """Repeat the forward passes of a batch, and look at each term and each image of it.

    Args:
        task: what is learned.
        model: with the weights that met the batch, in training mode.
        parts: the parts of the batch, on the device, in the order in which they were worked on.
        random: the state of the generators before that.
        device: the device of model and batch.
        precision: the precision of the forward pass.
    """
    restore_random_state(random)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def fault(loss: Tensor) -> str | None:
        """The value of a loss if that is at fault, or its gradient."""
        if not loss.isfinite().all():
            return f"{loss.item()}"
        if not loss.requires_grad:
            return None
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norm = nn.utils.get_total_norm([grad for grad in grads if grad is not None])
        return None if norm.isfinite() else "its gradient"

    terms: dict[str, str] = {}
    images: list[int] = []
    first = 0
    for batch in parts:
        with autocast(device, precision):
            prediction = model(prepare_images(batch.images))
        found = {name: fault(term) for name, term in task.objective(prediction, batch).weighted.items()}
        terms |= {name: what for name, what in found.items() if what}
        images += [
            first + index
            for index in range(len(batch.images))
            if fault(task.objective(*task.alone(prediction, batch, index)).total)
        ]
        first += len(batch.images)
    return Diagnosis(terms, images)


def not_finite(run: Run, batch: Batch | ObjectBatch, random: list[torch.Tensor]) -> UserError:
    """The error of a step that was not taken; the batch is saved with what it met."""
    if ranks.rank():
        return ElsewhereError()
    learner, progress, source = run.learner, run.progress, run.datasets["train"].source
    indices = run.batches.indices(progress.step - progress.epoch * len(run.batches))
    if ranks.world_size() > 1:
        # The whole batch, and nobody else to wait for.
        ranks.leave()
        samples = cast("TrainingSamples", run.loader.dataset)
        whole = learner.task.collate(samples.__getitems__([(run.batches.epoch, index) for index in indices]))
        batch = learner.sized(whole, progress.step)
    names = [source[index].source for index in indices]
    state = {
        "config": run.config.model_dump(mode="json"),
        "names": source.names,
        "epoch": run.batches.epoch,
        "step": progress.step + 1,
        "model": learner.model.state_dict(),
        "random": random,
        "parts": learner.parts,
        "batch": batch._asdict(),
        "images": names,
    }
    saved = run.report.files.write(NONFINITE, pack_state(state), later=False)
    parts = micro_batches(batch, learner.parts)
    found = diagnose(learner.task, learner.model, parts, random, learner.device, learner.precision)
    see = [f"see it again: {run.report.command('replay')}"] if saved else []
    where = f"at step {progress.step + 1}, in epoch {run.batches.epoch}"
    head = f"loss or gradient not finite {where}; {run.advice()}"
    return UserError("\n".join([head, *found.lines(names, learner.task.boxes(batch)), *see]))


def replay(folder: Path, device_name: str) -> tuple[dict[str, Any], list[str]]:
    """Meet again what stopped a run: the same weights, batch and random numbers.

    Returns:
        The result, and the lines that say what is not finite.

    Raises:
        CheckpointError: if the run left no such batch.
    """
    if not folder.exists():
        raise CheckpointError(not_there(folder))
    if not (folder / NONFINITE).exists():
        raise CheckpointError(f"{folder}: it has no {NONFINITE}: no loss or gradient was not finite there")
    state = unpack_state(folder / NONFINITE)
    device = pick_device(device_name)
    config = parse_config(state["config"])
    task = build_task(config)
    model = task.build_model(state["names"])
    model.load_state_dict(state["model"])
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batch = batch_from(state["batch"]).to(device)
    parts = micro_batches(batch, state["parts"])
    found = diagnose(task, model, parts, state["random"], device, config.precision)
    at_fault = [state["images"][index] for index in found.images]
    result = {"run": str(folder), "finite": not (found.terms or found.images), "terms": found.terms}
    where = f"step {state['step']} of epoch {state['epoch']}"
    return result | {"images": at_fault}, [where, *found.lines(state["images"], task.boxes(batch))]
