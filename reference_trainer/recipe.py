"""The parts of the recipe: optimizer, averaged weights, early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from boxreg import param_groups

from .config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """The optimizer that `config` names, over parameter groups that keep decay off norms and biases."""
    groups: Any = (
        param_groups(model, weight_decay=config.weight_decay)
        if config.exempt
        else [{"params": list(model.parameters()), "weight_decay": config.weight_decay, "name": "all"}]
    )
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, config.beta2), fused=True)


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """What the live optimizer is: its class, and each group's settings."""
    shown = ("initial_lr", "lr", "weight_decay", "momentum", "nesterov", "betas")
    return {
        "class": type(optimizer).__name__,
        "groups": [
            {"name": group["name"], "parameters": sum(p.numel() for p in group["params"])}
            | {key: group[key] for key in shown if key in group}
            for group in optimizer.param_groups
        ],
    }


class Ema:
    """An exponential moving average of a model: `decay`, ramped up from (1 + n) / (10 + n) at first.

    Parameters and floating buffers are averaged; counters are copied. A decay of 0 follows the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.updates = 0

        @torch.no_grad()
        def average(averaged: list[Tensor], current: list[Tensor], _: object) -> None:
            keep = min(decay, (1 + self.updates) / (10 + self.updates)) if decay else 0.0
            for mean, value in zip(averaged, current, strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, 1.0 - keep)
                else:
                    mean.copy_(value)

        self._averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)  # type: ignore[arg-type]
        self._averaged.update_parameters(model)
        self.model = self._averaged.module.eval()

    def update(self, model: nn.Module) -> None:
        """Take the model's weights into the average, once an optimizer step."""
        self.updates += 1
        self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        """The average and how often it was updated, which decides its ramp."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])


class EarlyStopping:
    """Remembers the best score; `over` says when `patience` epochs brought none. NaN is never best.

    Args:
        patience: in epochs.
        min_delta: how much the score must have risen, since patience last started, for it to start anew. A
            smaller rise is remembered as the best score all the same.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best, self.best_epoch = -math.inf, 0
        self.waiting_from, self.waiting_since, self.validated = -math.inf, 0, 0

    def improved(self, score: float, epoch: int) -> bool:
        """Whether `score`, that of the validation after `epoch`, is the best so far."""
        self.validated = epoch
        if not score > self.best:
            return False
        self.best, self.best_epoch = score, epoch
        if score > self.waiting_from + self.min_delta:
            self.waiting_from, self.waiting_since = score, epoch
        return True

    @property
    def over(self) -> bool:
        """Whether the last validation said that it is time to stop."""
        return self.validated - self.waiting_since >= self.patience

    def wait_anew(self) -> None:
        """Count the epochs without a better score from now on."""
        self.waiting_since = self.validated

    def state_dict(self) -> dict[str, Any]:
        """All but what the configuration gives."""
        return {name: value for name, value in vars(self).items() if name not in ("patience", "min_delta")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        vars(self).update(state)
