"""A run under way, and the state of it that is saved."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from . import ranks
from .checkpoint import WEIGHTS, Checkpoints, Found, pack_weights
from .config import TrainConfig
from .data.loading import Batches, EpochBatches, Squares
from .errors import CheckpointError
from .learner import Learner
from .progress import Progress, random_state
from .report import RunReport

STATE_FORMAT = 2
"""Raised when older states can no longer be gone on from."""


@dataclass
class Run:
    """A run under way: what it learns from, what learns, how far it has come, where it is kept."""

    config: TrainConfig
    datasets: dict[str, Squares]
    loader: Batches
    batches: EpochBatches
    validation: Batches
    learner: Learner
    progress: Progress
    report: RunReport
    checkpoints: Checkpoints
    started: float
    rehearsed: bool = False

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.progress.epoch >= self.config.epochs or self.progress.stopping.over

    @property
    def seconds(self) -> float:
        """How long it has taken, in all processes that went on with it."""
        return self.progress.seconds + time.perf_counter() - self.started

    def save(self) -> None:
        """Save all that is needed to go on from here; rank 0 does, all others are where it is."""
        if ranks.rank():
            return
        progress = self.progress
        state = {
            "format": STATE_FORMAT,
            "config": self.config.model_dump(mode="json"),
            "data": data_digests(self.datasets),
            "random": random_state(),
            "step": progress.step,
            "progress": progress.state_dict(self.seconds),
            **self.learner.state_dict(),
        }
        self.checkpoints.save(state, progress.step, progress.best_step)

    def save_average(self) -> None:
        """Write the averaged weights, to evaluate and to predict with."""
        names = self.datasets["train"].source.names
        weights = self.learner.ema.model.state_dict()
        self.report.files.write(WEIGHTS, pack_weights(weights, names, self.progress.scores))

    def advice(self) -> str:
        """What to do about a run that has left the finite numbers."""
        peak = self.learner.optimizer.param_groups[0]["initial_lr"]
        left = "the best weights before" if self.progress.scores else "no weights"
        return f"try a smaller --optimizer.lr than {peak}. {self.report.folder} holds {left}"


def data_digests(datasets: Mapping[str, Squares]) -> dict[str, str]:
    """What tells each split from another: the number of its images, their boxes' numbers, the classes."""
    return {
        split: hashlib.sha256(
            repr(squares.source.names).encode() + squares.source.box_counts.tobytes()
        ).hexdigest()
        for split, squares in datasets.items()
    }


def check_data(datasets: Mapping[str, Squares], found: Found) -> None:
    """See that a run goes on with the data that it began with.

    Raises:
        CheckpointError: if it is not.
    """
    now, before = data_digests(datasets), found.state["data"]
    other = [split for split in now if now[split] != before[split]]
    if other:
        raise CheckpointError(
            f"{found.path}: the {' and '.join(other)} images have changed since: other images, "
            "boxes or classes; a run goes on only with its own data"
        )
