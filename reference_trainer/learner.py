"""What learns, and one step of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from . import ranks
from .config import TrainConfig
from .data.loading import Batch, ObjectBatch, Squares
from .errors import CheckpointError, UserError
from .meter import Step
from .model import batch_norm_warning, prepare_images, synchronised
from .objective import Objective, whole_objective
from .precision import LEAST_SCALE, autocast, grad_scaler
from .recipe import Ema, build_optimizer
from .report import say
from .scaling import AnyBatch, Snapshot, micro_batches, resized, size_at
from .schedules import Schedule
from .tasks import Task


@dataclass
class Learner:
    """The network, its average, and everything that moves them.

    Attributes:
        parallel: the model, or what shares its gradients among ranks.
        scaler: scales the loss for float16; does nothing otherwise.
        precision: the precision of the forward pass.
        sizes: that images are brought to, one a step; none leaves them as they are.
        seed: decides which.
        parts: that a batch is worked on in, one after another; their gradients add up to that of the whole.
    """

    task: Task
    model: nn.Module
    parallel: nn.Module
    ema: Ema
    optimizer: Optimizer
    schedule: Schedule
    scaler: GradScaler
    precision: str
    sizes: tuple[int, ...]
    seed: int
    parts: int
    clip_norm: float | None
    device: torch.device

    def sized(self, batch: AnyBatch, step: int) -> AnyBatch:
        """The batch of a step, counted from 0, on the device and at that step's size."""
        batch = batch.to(self.device)
        return resized(batch, size_at(self.sizes, self.seed, step)) if self.sizes else batch

    def rehearse(self, batch: Batch | ObjectBatch) -> None:
        """Forward and backward at the largest size, so that memory ends now or never; nothing is learned."""
        before = Snapshot(self.model)
        self._backward_in_memory(resized(batch.to(self.device), max(self.sizes)))
        self.optimizer.zero_grad(set_to_none=True)
        before.restore()

    def gradients(self, batch: Batch | ObjectBatch) -> Step:
        """Forward, backward, clip: what the next `move` would do, and what led to it.

        Raises:
            UserError: if not even one image at a time fits into memory.
        """
        objective, figures = self._backward_in_memory(batch)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradient(self.model.parameters(), self.clip_norm)
        skipped = self.scaler.is_enabled() and self.scaler.get_scale() > LEAST_SCALE
        return Step(objective, figures, norm, skipped=skipped and not norm.isfinite())

    def move(self, step: Step) -> None:
        """Take the optimizer's step; schedule and average follow. One that is to be skipped moves nothing.

        Raises:
            UserError: if what the optimizer keeps does not fit into memory.
        """
        if not step.skipped:
            try:
                self.scaler.step(self.optimizer)
            except torch.OutOfMemoryError as error:
                # Half of the weights may have moved, and smaller parts of a batch would not help: the step
                # needs no image.
                weights = sum(parameter.numel() for parameter in self.model.parameters())
                kind = type(self.optimizer).__name__
                raise UserError(
                    f"out of memory in the step of {kind} on {weights:,} weights, which it keeps values "
                    "for from its first step on; try a smaller --model.width, or --optimizer.name sgd, which "
                    "keeps half as many"
                ) from error
            self.schedule.step()
            self.ema.update(self.model)
        self.scaler.update()

    def _backward_in_memory(self, batch: Batch | ObjectBatch) -> tuple[Objective, dict[str, Tensor]]:
        """`_backward`, in more parts from here on if memory ends."""
        while True:
            before = Snapshot(self.model)
            try:
                return self._backward(batch)
            except torch.OutOfMemoryError as error:
                if self.parts >= len(batch.images) or ranks.world_size() > 1:
                    raise self._too_large(batch) from error
            # Out of the handler: what the error holds on to is freed.
            before.restore()
            ranks.start_over(self.parallel)
            self.parts = min(2 * self.parts, len(batch.images))
            self.optimizer.zero_grad(set_to_none=True)
            say(
                f"out of memory at {batch.images.shape[-1]} pixels: from here on each batch is worked on in "
                f"{self.parts} parts; batch size and learning rate stay as they are"
            )
            self.warn(len(batch.images))

    def _backward(self, batch: Batch | ObjectBatch) -> tuple[Objective, dict[str, Tensor]]:
        """The gradient of the whole batch, scaled, and what its parts came to."""
        self.optimizer.zero_grad(set_to_none=True)
        objectives: list[Objective] = []
        figures: list[dict[str, Tensor]] = []
        parts = micro_batches(batch, self.parts, ranks.all_reduce_max(len(batch.images)))
        for part in parts:
            with autocast(self.device, self.precision):
                prediction = self.parallel(prepare_images(part.images))
            objective = self.task.objective(prediction, part)
            objectives.append(objective.detached())
            loss = objective.total
            if len(parts) > 1:
                # Its sums, in units near those of the whole batch, whose divisor is known at the end.
                loss = loss * (objective.divisor / (objectives[0].divisor * len(parts)))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                figures.append(self.task.figures(prediction, part))
        whole = whole_objective(objectives)
        if len(parts) > 1:
            share = objectives[0].divisor * len(parts) / whole.divisor
            for gradient in gradients_of(self.model.parameters()):
                gradient.mul_(share)
        return whole, {name: torch.cat([one[name] for one in figures]) for name in figures[0]}

    def _too_large(self, batch: Batch | ObjectBatch) -> UserError:
        side, images = batch.images.shape[-1], -(-len(batch.images) // self.parts)
        hint = "--data.size or --model.width" if images == 1 else f"--accumulate than {self.parts}, larger"
        smaller = "a smaller" if images == 1 else "another"
        return UserError(
            f"out of memory with {images} images of {side} pixels at a time; try {smaller} {hint}"
        )

    def warn(self, images: int) -> None:
        """Say what there is to know about batches of `images` images."""
        warning = batch_norm_warning(self.model, -(-images // self.parts))
        if warning:
            say(warning)

    def state_dict(self) -> dict[str, Any]:
        """All that has been learned, and what moves it."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "parts": self.parts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            CheckpointError: if it is not of this network.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the state does not fit its configuration: {error}") from error
        self.parts = state["parts"]


def build_learner(
    config: TrainConfig, task: Task, squares: Squares, total_steps: int, device: torch.device
) -> Learner:
    """The network with the optimizer and schedule that `config`, resolved, names; all as new."""
    model = task.build_model(squares.source.names, squares)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = synchronised(model, device)
    optimizer = build_optimizer(config.optimizer, model)
    learner = Learner(
        task=task,
        model=model,
        parallel=ranks.parallel(model, device),
        ema=Ema(model, config.ema_decay),
        optimizer=optimizer,
        schedule=Schedule(config.schedule, optimizer, total_steps),
        scaler=grad_scaler(device, config.precision),
        precision=config.precision,
        sizes=config.data.sizes,
        seed=config.seed,
        parts=config.accumulate,
        clip_norm=config.clip_norm,
        device=device,
    )
    learner.warn(-(-config.batch_size // ranks.world_size()))
    return learner


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that there are."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def clip_gradient(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale the gradient down to norm `limit`; returns its norm before."""
    gradients = gradients_of(parameters)
    norm = nn.utils.get_total_norm(gradients)
    if limit is not None:
        # One factor for all: computed for each by itself, on a GPU it is a few launches each.
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
