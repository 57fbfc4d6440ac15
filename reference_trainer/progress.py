"""How far a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .meter import Meter
from .recipe import EarlyStopping


@dataclass
class Progress:
    """All that a run knows of its past but what has been learned.

    Attributes:
        stopping: the best score and how long ago it was.
        step: optimizer steps taken.
        epoch: epochs finished: trained on, validated where that was due, and in `rows`.
        seconds: that the run took before this process went on with it.
        meter: the steps of the epoch that is not finished.
        rows: the rows of metrics.jsonl.
        scores: those of the best weights.
        best_step: optimizer steps that made them.
    """

    stopping: EarlyStopping
    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    meter: Meter = field(default_factory=Meter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, float] | None = None
    best_step: int = 0

    def close_epoch(self, row: dict[str, Any]) -> None:
        """The epoch under way is finished; `row` is what came of it."""
        self.rows.append(row)
        self.epoch += 1
        self.meter = Meter()

    def state_dict(self, seconds: float) -> dict[str, Any]:
        """What `load_state_dict` takes, `seconds` after the run began."""
        parts = {"stopping": self.stopping.state_dict(), "meter": self.meter.state_dict(), "seconds": seconds}
        return vars(self) | parts

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on where `state` was taken."""
        plain = {name: value for name, value in state.items() if name not in ("stopping", "meter")}
        vars(self).update(plain)
        self.stopping.load_state_dict(state["stopping"])
        self.meter.load_state_dict(state["meter"], device)


def random_state() -> list[Tensor]:
    """The state of torch's generators: the CPU's, then that of the GPU in use. Dropout draws from them."""
    gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *gpu]


def restore_random_state(state: list[Tensor]) -> None:
    """Draw from here on as was drawn after `random_state`, on the CPU and, if it is in use, on the GPU."""
    torch.set_rng_state(state[0])
    if len(state) > 1 and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state(state[1])
