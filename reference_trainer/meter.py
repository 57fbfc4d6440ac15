"""What the steps of an epoch came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .objective import Objective


class Step(NamedTuple):
    """What one optimizer step came to: the loss, the task's other figures (K,), the norm of the gradient."""

    objective: Objective
    figures: dict[str, Tensor]
    gradient_norm: Tensor


@dataclass
class Meter:
    """Adds up the steps of an epoch."""

    steps: list[Step] = field(default_factory=list)
    pictures: int = 0
    seconds: float = 0.0
    stepping: float = 0.0

    def row(self, clip_norm: float | None) -> dict[str, Any]:
        """The epoch's means, its speed, and the share of its time spent in forward, backward and step."""
        objectives = [step.objective for step in self.steps]
        norms = torch.stack([step.gradient_norm for step in self.steps])
        return {
            "loss": mean([objective.total for objective in objectives]),
            "raw": {name: mean([o.raw[name] for o in objectives]) for name in objectives[0].raw},
            "weighted": {
                name: mean([o.weighted[name] for o in objectives]) for name in objectives[0].weighted
            },
            **{
                f"train_{name}": torch.cat([step.figures[name] for step in self.steps]).mean().item()
                for name in self.steps[0].figures
            },
            "gradient_norm": norms.mean().item(),
            "clipped_share": 0.0 if clip_norm is None else (norms > clip_norm).float().mean().item(),
            "pictures_per_second": self.pictures / self.seconds,
            "step_share": self.stepping / self.seconds,
        }


def mean(values: list[Tensor]) -> float:
    """The mean of scalars, read from the device once."""
    return torch.stack(values).mean().item()
