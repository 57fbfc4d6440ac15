"""What learns, and one step of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .config import TrainConfig
from .data.loading import Batch, ObjectBatch, Squares
from .errors import CheckpointError
from .meter import Step
from .model import autocast, prepare_images
from .recipe import Ema, build_optimizer
from .schedules import Schedule
from .tasks import Task


@dataclass
class Learner:
    """The network, its average, and everything that moves them."""

    task: Task
    model: nn.Module
    ema: Ema
    optimizer: Optimizer
    schedule: Schedule
    clip_norm: float | None
    device: torch.device

    def gradients(self, batch: Batch | ObjectBatch) -> Step:
        """Forward, backward, clip: what the next `move` would do, and what led to it."""
        batch = batch.to(self.device)
        with autocast(self.device):
            prediction = self.model(prepare_images(batch.images))
        objective = self.task.objective(prediction, batch)
        self.optimizer.zero_grad(set_to_none=True)
        objective.total.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradient(self.model.parameters(), self.clip_norm)
        with torch.no_grad():
            figures = self.task.figures(prediction, batch)
        return Step(objective.detached(), figures, norm)

    def move(self) -> None:
        """Take the optimizer's step; schedule and average follow."""
        self.optimizer.step()
        self.schedule.step()
        self.ema.update(self.model)

    def state_dict(self) -> dict[str, Any]:
        """All that has been learned, and what moves it."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
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
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the state does not fit its configuration: {error}") from error


def build_learner(
    config: TrainConfig, task: Task, pictures: Squares, total_steps: int, device: torch.device
) -> Learner:
    """The network with the optimizer and schedule that `config` names, all as new."""
    model = task.build_model(pictures.source.names, pictures)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(config.optimizer, model)
    return Learner(
        task=task,
        model=model,
        ema=Ema(model, config.ema_decay),
        optimizer=optimizer,
        schedule=Schedule(config.schedule, optimizer, total_steps),
        clip_norm=config.clip_norm,
        device=device,
    )


def clip_gradient(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale the gradient down to norm `limit`; returns its norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit is not None:
        for gradient in gradients:
            gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
