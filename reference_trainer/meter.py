"""What the steps of an epoch came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ranks
from .objective import Objective

TIMES = ("seconds", "images_per_second", "step_share")
"""What in a row of metrics.jsonl depends on the clock; all else repeats bit for bit."""


class Step(NamedTuple):
    """What one optimizer step came to: the loss, the task's other figures, the norm of the gradient.

    Figures are (K,), a number for each image of the batch. A step is skipped if the scale of float16 was
    too high for its gradient.
    """

    objective: Objective
    figures: dict[str, Tensor]
    gradient_norm: Tensor
    skipped: bool = False

    def of_all(self, images: int, asked: Sequence[float], batch_size: int) -> tuple[Step, int, list[float]]:
        """The step of the whole batch, of which each rank took a share.

        Args:
            images: the number of images in this rank's share.
            asked: numbers to be summed over the ranks on the way, which costs nothing more.
            batch_size: most images of a whole batch.

        Returns:
            The step, the number of its images, and the sums.
        """
        if not ranks.in_group():
            return self, images, list(asked)
        total, unweighted, weighted, divisor = self.objective
        terms = torch.stack([total, *unweighted.values(), *weighted.values()]).float() / ranks.world_size()
        slots = terms.new_zeros(len(self.figures), batch_size)
        for row, values in zip(slots, self.figures.values(), strict=True):
            row[ranks.rank() :: ranks.world_size()][:images] = values
        head = terms.new_tensor([images, *asked])
        summed = ranks.all_reduce_sum(torch.cat([head, terms, slots.flatten()]))
        head, terms, slots = torch.split(summed, [len(head), len(terms), slots.numel()])
        count, *sums = head.tolist()
        whole = iter(terms.unbind())
        objective = Objective(
            next(whole),
            {name: next(whole) for name in unweighted},
            {name: next(whole) for name in weighted},
            divisor,
        )
        rows = slots.view(len(self.figures), batch_size)[:, : int(count)]
        figures = dict(zip(self.figures, rows, strict=True))
        return self._replace(objective=objective, figures=figures), int(count), sums

    def finite(self) -> bool:
        """Whether loss and gradient are finite, or the loss of a skipped step; waits for the device once."""
        total = self.objective.total
        values = [total] if self.skipped else [total, self.gradient_norm]
        return bool(torch.stack(values).isfinite().all())


class Meter:
    """Collects the steps of an epoch, on their device until somebody asks.

    Attributes:
        steps: how many.
        skipped: how many of them moved nothing.
        images: how many they saw.
        seconds: that they took, with the wait for their images.
        stepping: those of them spent in forward, backward and step.
        lr: the learning rate of the last one.
    """

    def __init__(self) -> None:
        self.steps = self.skipped = self.images = 0
        self.seconds = self.stepping = self.lr = 0.0
        self._columns: dict[str, list[Tensor]] = {}

    def add(self, step: Step, lr: float, images: int, seconds: float, stepping: float) -> None:
        """Take in a step over `images` images, and the time that it took."""
        self.steps += 1
        self.skipped += step.skipped
        self.lr = lr
        self.images += images
        self.seconds += seconds
        self.stepping += stepping
        total, unweighted, weighted, _ = step.objective
        values = {
            "loss": total,
            **({} if step.skipped else {"gradient_norm": step.gradient_norm}),
            **{f"unweighted.{name}": value for name, value in unweighted.items()},
            **{f"weighted.{name}": value for name, value in weighted.items()},
            **{f"train_{name}": value for name, value in step.figures.items()},
        }
        for name, value in values.items():
            self._columns.setdefault(name, []).append(value.reshape(-1))

    def row(self, clip_norm: float | None) -> dict[str, Any]:
        """The epoch's means, its speed, and the share of its time spent in forward, backward and step."""
        means = {name: torch.cat(column).mean().item() for name, column in self._columns.items()}
        norms = torch.cat(self._columns.get("gradient_norm", [torch.zeros(1)]))

        def branch(prefix: str) -> dict[str, float]:
            return {n.removeprefix(prefix): mean for n, mean in means.items() if n.startswith(prefix)}

        return {
            "loss": means["loss"],
            "unweighted": branch("unweighted."),
            "weighted": branch("weighted."),
            **{name: mean for name, mean in means.items() if name.startswith("train_")},
            # None if every step was skipped.
            "gradient_norm": means.get("gradient_norm"),
            "clipped_share": 0.0 if clip_norm is None else (norms > clip_norm).float().mean().item(),
            "lr": self.lr,
            "steps": self.steps,
            "skipped_steps": self.skipped,
            "images": self.images,
            "images_per_second": self.images / self.seconds,
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
