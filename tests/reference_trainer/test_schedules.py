from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from reference_trainer.config import ScheduleConfig
from reference_trainer.errors import ConfigError
from reference_trainer.schedules import Schedule, lr_factor, warmup_steps

NAMES = get_args(ScheduleConfig.model_fields["name"].annotation)
COSINE, STEPS = ScheduleConfig(name="cosine"), ScheduleConfig(name="steps")


def factor_at(config: ScheduleConfig, step: int, total: int) -> float:
    return lr_factor(config, warmup_steps(config, total, 1), step, total)


def schedule_of(config: ScheduleConfig, total: int) -> tuple[Schedule, SGD]:
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=0.25)
    return Schedule(config, optimizer, total), optimizer


@pytest.mark.parametrize(
    ("config", "step", "total", "factor"),
    [
        (COSINE, 0, 2200, 1 / 201),
        (COSINE, 99, 2200, 100 / 201),
        (COSINE, 199, 2200, 200 / 201),
        (COSINE, 200, 2200, 1.0),
        (COSINE, 700, 2200, 0.5 + math.sqrt(0.125)),
        (COSINE, 1200, 2200, 0.5),
        (COSINE, 2200, 2200, 0.0),
        (COSINE, 2300, 2200, 0.0),
        # A short run warms up for a fifth of it.
        (COSINE, 9, 50, 10 / 11),
        (COSINE, 10, 50, 1.0),
        (COSINE, 30, 50, 0.5),
        (ScheduleConfig(warmup_steps=0), 0, 100, 1.0),
        (ScheduleConfig(warmup_steps=0), 50, 100, 0.5),
        (ScheduleConfig(warmup_steps=3), 1, 100, 0.5),
        # The notes' epochs: warm-up 5, full for 75, a tenth for 30, a hundredth after; 240 steps each.
        (STEPS, 0, 140 * 240, 1 / 1201),
        (STEPS, 600, 140 * 240, 601 / 1201),
        (STEPS, 5 * 240, 140 * 240, 1.0),
        (STEPS, 80 * 240 - 1, 140 * 240, 1.0),
        (STEPS, 80 * 240, 140 * 240, 0.1),
        (STEPS, 110 * 240 - 1, 140 * 240, 0.1),
        (STEPS, 110 * 240, 140 * 240, 0.01),
        (STEPS, 140 * 240, 140 * 240, 0.01),
        (ScheduleConfig(name="steps", warmup_steps=0), 0, 140, 1.0),
        (ScheduleConfig(name="constant"), 9, 50, 10 / 11),
        (ScheduleConfig(name="constant"), 50, 50, 1.0),
        (ScheduleConfig(name="plateau", warmup_steps=3), 1, 100, 0.5),
        (ScheduleConfig(name="plateau", warmup_steps=3), 100, 100, 1.0),
        (ScheduleConfig(name="onecycle"), 30, 100, 1.0),
    ],
    ids=lambda value: f"{value.name}-{value.warmup_steps}" if isinstance(value, ScheduleConfig) else None,
)
def test_the_learning_rate_at_named_steps(
    config: ScheduleConfig, step: int, total: int, factor: float
) -> None:
    found = factor_at(config, step, total)
    assert found == pytest.approx(factor, rel=1e-12, abs=1e-15)
    assert factor_at(config, step, total) == found


@given(
    name=st.sampled_from(NAMES),
    warmup=st.none() | st.integers(0, 500),
    total=st.integers(1, 3000),
    step=st.integers(0, 4000),
)
def test_the_learning_rate_is_a_share_of_the_peak(
    name: str, warmup: int | None, total: int, step: int
) -> None:
    assume(warmup is None or warmup < total)
    config = ScheduleConfig.model_validate({"name": name, "warmup_steps": warmup})
    factor = factor_at(config, step, total)
    assert 0 <= factor <= 1
    if step == 0:
        assert factor > 0


@given(st.sampled_from(sorted(set(NAMES) - {"onecycle"})), st.integers(1, 400), st.integers(500, 3000))
def test_the_warm_up_is_a_straight_line(name: str, warmup: int, total: int) -> None:
    config = ScheduleConfig.model_validate({"name": name, "warmup_steps": warmup})
    if name == "steps" and warmup > total * 80 / 140:
        return
    found = torch.tensor([factor_at(config, step, total) for step in range(warmup)], dtype=torch.float64)
    line = torch.arange(1, warmup + 1, dtype=torch.float64) / (warmup + 1)
    torch.testing.assert_close(found, line, rtol=1e-12, atol=0)


@pytest.mark.parametrize("total", [10, 137, 2000])
def test_cosine_only_falls_after_its_warm_up(total: int) -> None:
    factors = [factor_at(COSINE, step, total) for step in range(min(200, total // 5), total + 1)]
    assert factors == sorted(factors, reverse=True)


def test_onecycle_is_torchs() -> None:
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    # torch counts the last step in: its rise of 0.3 * 101 - 1 steps and its fall end a step early.
    torchs = OneCycleLR(optimizer, 1.0, total_steps=101, pct_start=31 / 101, cycle_momentum=False)
    for step in range(100):
        found = factor_at(ScheduleConfig(name="onecycle"), step, 100)
        assert found == pytest.approx(torchs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        torchs.step()


def test_a_warm_up_in_epochs_is_counted_in_steps() -> None:
    assert warmup_steps(ScheduleConfig(warmup_epochs=2.5), 80, 8) == 25
    with pytest.raises(
        ConfigError, match="warmup_epochs: got 8, which is 80 steps, but the run has 80 steps"
    ):
        warmup_steps(ScheduleConfig(warmup_epochs=8), 80, 8)
    with pytest.raises(ValueError, match="warmup_steps: got 3, and warmup_epochs: got 1; give one of them"):
        ScheduleConfig(warmup_steps=3, warmup_epochs=1)


def test_a_plateau_lowers_the_rate_after_its_patience_and_goes_on_where_it_was() -> None:
    config = ScheduleConfig(name="plateau", warmup_steps=1, factor=0.5, patience=1, min_delta=0.125)
    schedule, optimizer = schedule_of(config, 100)
    rates = []
    # Each after a step; 0.6 is no better than 0.5 by 0.125, and the first comes in the warm-up's last step.
    for score in (0.5, 0.6, 0.6, math.nan, 0.75, 0.75, 0.75, 0.75):
        optimizer.step()
        schedule.step()
        schedule.scored(score)
        rates.append(schedule.lr)
        assert optimizer.param_groups[0]["lr"] == schedule.lr
        # As a run that goes on would: all new, then what was saved.
        state = schedule.state_dict()
        parts = optimizer.state_dict()
        schedule, optimizer = schedule_of(config, 100)
        optimizer.load_state_dict(parts)
        schedule.load_state_dict(state)
        assert schedule.taken == len(rates)
    assert rates == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125, 0.0625, 0.0625]


def test_scores_in_the_warm_up_lower_no_rate() -> None:
    config = ScheduleConfig(name="plateau", warmup_steps=3, patience=0)
    schedule, optimizer = schedule_of(config, 100)
    for _ in range(2):
        optimizer.step()
        schedule.step()
        schedule.scored(0.0)
    assert schedule.lr == 0.25 * 3 / 4


def test_other_schedules_read_no_score_and_no_setting_of_a_plateau() -> None:
    schedule, optimizer = schedule_of(ScheduleConfig(name="constant", warmup_steps=0), 10)
    for _ in range(9):
        optimizer.step()
        schedule.step()
        schedule.scored(0.0)
    assert schedule.lr == 0.25
    with pytest.raises(ValueError, match="patience: got 9, but schedule 'cosine' does not read it"):
        ScheduleConfig(patience=9)
