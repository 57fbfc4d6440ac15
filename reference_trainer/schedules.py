"""The learning rate over a run: its share of the peak at each step, and what a plateau takes from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from .config import ScheduleConfig
from .errors import ConfigError

STEPS_WARMUP, FIRST_DROP, SECOND_DROP = 5 / 140, 80 / 140, 110 / 140
"""The fixed steps of 5 + 75 + 30 + 30 epochs, as shares of the run."""

WARMUP = 200
"""Optimizer steps; in a short run a fifth of it."""

ONECYCLE_RISE, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1 / 25e4
"""The share of the run in which the rate rises, and the shares of the peak that it rises from and ends at:
those of torch's OneCycleLR."""


PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
"""What a ReduceLROnPlateau remembers; the rest of its state is settings."""


def warmup_steps(config: ScheduleConfig, total: int, epochs: int) -> int:
    """The optimizer steps of warm-up in a run of `total`, in the given epochs.

    Raises:
        ConfigError: if the run has no more than these.
    """
    if config.warmup_steps is not None:
        warmup, given = config.warmup_steps, f"schedule.warmup_steps: got {config.warmup_steps}"
    elif config.warmup_epochs is not None:
        warmup = round(config.warmup_epochs * total / epochs)
        given = f"schedule.warmup_epochs: got {config.warmup_epochs:g}, which is {warmup} steps"
    else:
        shares = {"steps": round(STEPS_WARMUP * total), "onecycle": round(ONECYCLE_RISE * total)}
        return shares.get(config.name, min(WARMUP, total // 5))
    if warmup >= total:
        raise ConfigError(f"{given}, but the run has {total} steps")
    return warmup


def lr_factor(config: ScheduleConfig, warmup: int, step: int, total: int) -> float:
    """The share of the peak learning rate at `step` of `total`, the first `warmup` of them rising to it.

    A pure function; a plateau takes its reductions from what it says.
    """
    if config.name == "onecycle" and step < warmup:
        return _between(ONECYCLE_START, 1.0, step / warmup)
    done = min(max(step - warmup, 0) / max(total - warmup, 1), 1.0)
    if config.name == "steps":
        share = step / total
        factor = 1.0 if share < FIRST_DROP else 0.1 if share < SECOND_DROP else 0.01
    elif config.name == "cosine":
        factor = _between(1.0, 0.0, done)
    elif config.name == "onecycle":
        return _between(1.0, ONECYCLE_END, done)
    else:
        factor = 1.0
    return factor * min((step + 1) / (warmup + 1), 1.0)


def _between(start: float, end: float, done: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))


class Schedule:
    """Sets the learning rate of an optimizer: torch's LambdaLR, times what ReduceLROnPlateau has left.

    Args:
        config: names the schedule; its warm-up is resolved to steps.
        optimizer: with the peak rate in each group.
        total: steps of the run.
    """

    def __init__(self, config: ScheduleConfig, optimizer: Optimizer, total: int) -> None:
        assert config.warmup_steps is not None
        self.config, self.optimizer, self.total, self.warmup = config, optimizer, total, config.warmup_steps
        self._plateau: ReduceLROnPlateau | None = None
        if config.name == "plateau":
            # A reduction of the optimizer itself would be gone with the next step: it is a factor of its own.
            self._plateau = ReduceLROnPlateau(
                SGD([torch.zeros(1)], lr=1.0),
                mode="max",
                factor=config.factor,
                patience=config.patience,
                threshold=config.min_delta,
                threshold_mode="abs",
            )
        self._start(0)

    def _start(self, step: int) -> None:
        self._rate = LambdaLR(self.optimizer, self._share, last_epoch=step - 1)

    def _share(self, step: int) -> float:
        left: float = self._plateau.optimizer.param_groups[0]["lr"] if self._plateau else 1.0
        return left * lr_factor(self.config, self.warmup, step, self.total)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self._rate.get_last_lr()[0])

    @property
    def taken(self) -> int:
        """Optimizer steps taken."""
        return int(self._rate.last_epoch)

    def step(self) -> None:
        """An optimizer step was taken."""
        self._rate.step()

    def scored(self, score: float) -> None:
        """A validation came to `score`; after the warm-up a plateau looks at it."""
        if self._plateau and self.taken >= self.warmup:
            self._plateau.step(score)
            self._start(self.taken)

    def state_dict(self) -> dict[str, Any]:
        """The steps taken, and what the plateau remembers; all else follows from these."""
        state: dict[str, Any] = {"taken": self.taken}
        if self._plateau:
            remembered = self._plateau.state_dict()
            state["plateau"] = {name: remembered[name] for name in PLATEAU_STATE}
            state["left"] = self._plateau.optimizer.param_groups[0]["lr"]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, after the optimizer's own was loaded."""
        if self._plateau:
            self._plateau.load_state_dict(dict(state["plateau"]))
            self._plateau.optimizer.param_groups[0]["lr"] = state["left"]
        self._start(state["taken"])
