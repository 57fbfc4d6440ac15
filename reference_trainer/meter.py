"""What the steps of an epoch came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .objective import Objective

TIMES = ("seconds", "pictures_per_second", "step_share")
"""What in a row of metrics.jsonl depends on the clock; all else repeats bit for bit."""


class Step(NamedTuple):
    """What one optimizer step came to: the loss, the task's other figures (K,), the norm of the gradient."""

    objective: Objective
    figures: dict[str, Tensor]
    gradient_norm: Tensor

    def finite(self) -> bool:
        """Whether loss and gradient are finite; waits for the device once."""
        return bool(torch.stack([self.objective.total, self.gradient_norm]).isfinite().all())


class Meter:
    """Collects the steps of an epoch, on their device until somebody asks.

    Attributes:
        steps: how many.
        pictures: how many they saw.
        seconds: that they took, with the wait for their pictures.
        stepping: those of them spent in forward, backward and step.
        lr: the learning rate of the last one.
    """

    def __init__(self) -> None:
        self.steps = self.pictures = 0
        self.seconds = self.stepping = self.lr = 0.0
        self._columns: dict[str, list[Tensor]] = {}

    def add(self, step: Step, lr: float, pictures: int, seconds: float, stepping: float) -> None:
        """Take in a step over so many pictures, and the time that it took."""
        self.steps += 1
        self.lr = lr
        self.pictures += pictures
        self.seconds += seconds
        self.stepping += stepping
        total, raw, weighted = step.objective
        values = {
            "loss": total,
            "gradient_norm": step.gradient_norm,
            **{f"raw.{name}": value for name, value in raw.items()},
            **{f"weighted.{name}": value for name, value in weighted.items()},
            **{f"train_{name}": value for name, value in step.figures.items()},
        }
        for name, value in values.items():
            self._columns.setdefault(name, []).append(value.reshape(-1))

    def row(self, clip_norm: float | None) -> dict[str, Any]:
        """The epoch's means, its speed, and the share of its time spent in forward, backward and step."""
        means = {name: torch.cat(column).mean().item() for name, column in self._columns.items()}
        norms = torch.cat(self._columns["gradient_norm"])

        def branch(prefix: str) -> dict[str, float]:
            return {n.removeprefix(prefix): mean for n, mean in means.items() if n.startswith(prefix)}

        return {
            "loss": means["loss"],
            "raw": branch("raw."),
            "weighted": branch("weighted."),
            **{name: mean for name, mean in means.items() if name.startswith("train_")},
            "gradient_norm": means["gradient_norm"],
            "clipped_share": 0.0 if clip_norm is None else (norms > clip_norm).float().mean().item(),
            "lr": self.lr,
            "steps": self.steps,
            "pictures": self.pictures,
            "pictures_per_second": self.pictures / self.seconds,
            "step_share": self.stepping / self.seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """The steps so far, on the CPU."""
        columns = {name: torch.cat(column).cpu() for name, column in self._columns.items()}
        return {name: value for name, value in vars(self).items() if name != "_columns"} | {
            "columns": columns
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where `state` was taken."""
        vars(self).update({name: value for name, value in state.items() if name != "columns"})
        self._columns = {name: [column.to(device)] for name, column in state["columns"].items()}
