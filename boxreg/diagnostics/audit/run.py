"""Checks of the run's length: how many steps, at which learning rates, and when it stops."""

from __future__ import annotations

import copy
import warnings
from itertools import groupby, pairwise
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .findings import Check, Finding, Found, NotCheckedError
from .probe import Probe

FEWEST_STEPS_AN_EPOCH, FEWEST_UPDATES = 16, 1000
LONGEST_SIMULATED = 100_000
LONGEST_WARMUP = 0.2
ENDED_RATE, LONGEST_END = 0.02, 0.15
"""A rate below the first share of the peak moves nothing; the second share of the run may be at such."""

LONGEST_PATIENCE = 1 / 3


def _steps_per_epoch(probe: Probe) -> int:
    if probe.settings.images is None:
        raise NotCheckedError("needs images, the number of training images")
    return -(-probe.settings.images // probe.batch_size)


def _updates(probe: Probe) -> int:
    if probe.settings.epochs is None:
        raise NotCheckedError("needs epochs")
    return probe.settings.epochs * _steps_per_epoch(probe)


def _rates(probe: Probe) -> list[float]:
    """The learning rate of every step of the run, as shares of the highest."""
    schedule, updates = probe.settings.schedule, _updates(probe)
    if schedule is None:
        raise NotCheckedError(
            "needs schedule: a scheduler of torch, stepped once a step, or a function of the step"
        )
    if isinstance(schedule, ReduceLROnPlateau):
        raise NotCheckedError("what ReduceLROnPlateau does depends on scores to come")
    if updates > LONGEST_SIMULATED:
        raise NotCheckedError(f"{updates} steps are too many to go through")
    rates = (
        [float(schedule(step)) for step in range(updates)]
        if callable(schedule)
        else _played(schedule, updates)
    )
    peak = max(rates)
    return [rate / peak for rate in rates] if peak > 0 else rates


def _played(schedule: Any, updates: int) -> list[float]:
    """The learning rates that a scheduler gives from where it is; a copy steps a stand-in."""
    optimizer: Optimizer = schedule.optimizer
    groups: list[dict[str, Any]] = [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        | {"params": [torch.zeros(1, requires_grad=True)]}
        for group in optimizer.param_groups
    ]
    stand_in = torch.optim.SGD(groups, lr=0.1)
    played = copy.deepcopy(schedule, {id(optimizer): stand_in})
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of schedules stepped before their optimizer
        for _ in range(updates):
            rates.append(max(float(group["lr"]) for group in stand_in.param_groups))
            played.step()
    return rates


def updates(probe: Probe) -> Found:
    """There are enough steps an epoch, and enough in all."""
    per_epoch = _steps_per_epoch(probe)
    evidence: dict[str, Any] = {"steps_per_epoch": per_epoch, "batch_size": probe.batch_size}
    if per_epoch < FEWEST_STEPS_AN_EPOCH:
        yield Finding(
            "updates",
            "warning",
            f"{per_epoch} steps an epoch, with batches of {probe.batch_size}",
            evidence,
            "patience, warm-up and validation count epochs, the optimizer counts steps: it gets hardly any",
            "use batches of 8 to 16, or augment and repeat the images",
        )
    if probe.settings.epochs is not None and _updates(probe) < FEWEST_UPDATES:
        yield Finding(
            "updates",
            "warning",
            f"{_updates(probe)} updates in the whole run",
            evidence | {"updates": _updates(probe)},
            "a box regressor from scratch takes some thousand updates, whatever the learning rate",
            "more epochs, or smaller batches",
        )


def warmup(probe: Probe) -> Found:
    """The learning rate warms up for a fitting share of the run."""
    rates = _rates(probe)
    top = next(step for step, rate in enumerate(rates) if rate >= 0.999)
    share = top / len(rates)
    evidence = {"warmup_steps": top, "share": share, "updates": len(rates)}
    if share > LONGEST_WARMUP:
        yield Finding(
            "warmup",
            "warning",
            f"the peak learning rate is reached after {share:.0%} of the run",
            evidence,
            "the run ends before it has learnt at its learning rate",
            "warm up for 200 to 500 steps",
        )
    elif top == 0:
        yield Finding(
            "warmup",
            "info",
            "no warm-up",
            evidence,
            "the first steps, while momentum and second moments are empty, are the largest",
            "warm up linearly for 200 to 500 steps",
        )


def schedule(probe: Probe) -> Found:
    """The learning rate falls smoothly, and not to nothing long before the end."""
    rates = _rates(probe)
    if not max(rates):
        yield Finding(
            "schedule", "error", "the schedule gives a learning rate of 0 at every step", {"peak": 0.0},
            "nothing is trained", "check what the schedule divides by",
        )  # fmt: skip
        return
    top = rates.index(max(rates))
    ended = sum(rate < ENDED_RATE for rate in rates[top:]) / len(rates)
    plateaus = [(rate, len(list(steps))) for rate, steps in groupby(rates[top:])]
    drops = [after / before for (before, _), (after, _) in pairwise(plateaus) if before]
    stepped = 1 < len(plateaus) <= 6 and min(drops, default=1.0) <= 0.5
    evidence = {"share_below_2_percent_of_peak": ended, "last_rate": rates[-1]}
    if stepped:
        evidence |= {"plateaus": [[rate, steps] for rate, steps in plateaus]}  # type: ignore[dict-item]
    if ended > LONGEST_END:
        yield Finding(
            "schedule",
            "warning",
            f"for {ended:.0%} of the run the learning rate is below {ENDED_RATE:.0%} of its peak"
            + (", in fixed steps" if stepped else ""),
            evidence,
            "these steps change next to nothing: the schedule has ended before the run, whatever the scores",
            "a cosine over the whole run: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total steps)",
        )
    elif stepped:
        yield Finding(
            "schedule",
            "info",
            f"the learning rate drops in {len(plateaus) - 1} fixed steps",
            evidence,
            "when to drop was chosen for another number of updates, perhaps",
            "a cosine needs no such choice",
        )


def patience(probe: Probe) -> Found:
    """Early stopping waits longer than the warm-up, and not for most of the run."""
    waits, epochs = probe.settings.patience, probe.settings.epochs
    if waits is None or epochs is None:
        raise NotCheckedError("needs patience and epochs")
    evidence: dict[str, Any] = {"patience": waits, "epochs": epochs, "share": waits / epochs}
    try:
        rates = _rates(probe)
        warm = next(step for step, rate in enumerate(rates) if rate >= 0.999) / _steps_per_epoch(probe)
        evidence["warmup_epochs"] = warm
    except NotCheckedError:
        warm = 0.0
    if waits <= warm:
        yield Finding(
            "patience",
            "warning",
            f"a patience of {waits} epochs ends before the warm-up of {warm:.1f}",
            evidence,
            "the run may stop before it has trained at its learning rate",
            "make patience several times the warm-up",
        )
    elif LONGEST_PATIENCE * epochs < waits < epochs:
        yield Finding(
            "patience",
            "warning",
            f"a patience of {waits} epochs is {waits / epochs:.0%} of the run",
            evidence,
            "so long a patience seldom stops anything, and trains far past the optimum when it does",
            f"{max(epochs // 5, 1)} to {max(epochs // 4, 1)} epochs",
        )


CHECKS: list[Check] = [updates, warmup, schedule, patience]
