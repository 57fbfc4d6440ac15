from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from reference_trainer.config import PRESETS, OptimizerConfig, TrainConfig
from reference_trainer.model import build_model
from reference_trainer.recipe import EarlyStopping, Ema, build_optimizer, describe_optimizer

PRIOR = (0.5, 0.5, 0.3, 0.3)


def test_the_reference_decays_no_norm_and_no_bias() -> None:
    config = PRESETS["reference"]
    model = build_model(config.model, PRIOR)
    optimizer = build_optimizer(config.optimizer, model)
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["betas"] == (0.9, 0.99) for group in optimizer.param_groups)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.GroupNorm) for p in m.parameters()}
    biases = {id(p) for name, p in model.named_parameters() if name.endswith("bias")}
    undecayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    decayed = {
        id(p)
        for g in optimizer.param_groups
        if g["weight_decay"] == config.optimizer.weight_decay
        for p in g["params"]
    }
    assert undecayed == norms | biases
    assert decayed == {id(p) for p in model.parameters()} - undecayed


def test_the_baseline_decays_everything() -> None:
    config = PRESETS["baseline"]
    model = build_model(config.model, PRIOR)
    optimizer = build_optimizer(config.optimizer, model)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert group["momentum"] == 0.9
    assert not group["nesterov"]
    assert group["weight_decay"] == config.optimizer.weight_decay > 0
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("exempt", [True, False])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_momentum_beta2_and_exemption_reach_either_optimizer(name: str, exempt: bool) -> None:
    own = {"beta2": 0.95} if name == "adamw" else {"nesterov": True}
    config = OptimizerConfig.model_validate(
        {"name": name, "lr": 0.25, "momentum": 0.5, **own, "exempt": exempt, "weight_decay": 0.125}
    )
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    groups = build_optimizer(config, model).param_groups
    assert [group["weight_decay"] for group in groups] == ([0.125, 0.0] if exempt else [0.125])
    for group in groups:
        assert group["lr"] == 0.25
        momentum = {"adamw": {"betas": (0.5, 0.95)}, "sgd": {"momentum": 0.5, "nesterov": True}}[name]
        assert momentum.items() <= group.items()


def test_what_is_reported_of_the_optimizer_is_read_from_it() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight], "name": "mine"}], lr=0.5, momentum=0.25)
    optimizer.add_param_group({"params": [model.bias], "name": "late", "weight_decay": 0.125})
    optimizer.param_groups[0]["lr"] = 0.0625
    assert describe_optimizer(optimizer) == {
        "class": "SGD",
        "groups": [
            {
                "name": "mine",
                "parameters": 6,
                "lr": 0.0625,
                "weight_decay": 0,
                "momentum": 0.25,
                "nesterov": False,
            },
            {
                "name": "late",
                "parameters": 2,
                "lr": 0.5,
                "weight_decay": 0.125,
                "momentum": 0.25,
                "nesterov": False,
            },
        ],
    }
    adamw = describe_optimizer(
        torch.optim.AdamW([{"params": [model.weight], "name": "w"}], betas=(0.5, 0.75))
    )
    assert adamw["class"] == "AdamW"
    assert adamw["groups"][0]["betas"] == (0.5, 0.75)


class Small(nn.Module):
    """A weight, BatchNorm with its statistics, and a buffer of each kind."""

    counter: Tensor
    level: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("counter", torch.tensor(0))
        self.register_buffer("level", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.counter += 7
        self.level += x.mean()
        return self.norm(self.linear(x))


def train_for(model: Small, steps: int, ema: Ema) -> list[dict[str, Tensor]]:
    """Move the model by hand, the average after it; the model's state after every step."""
    generator = torch.Generator().manual_seed(1)
    states = []
    for _ in range(steps):
        model(torch.randn(8, 3, generator=generator) + 2.0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        ema.update(model)
        states.append(copy.deepcopy(model.state_dict()))
    return states


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_the_recursion_by_hand(decay: float) -> None:
    torch.manual_seed(0)
    model = Small()
    start = copy.deepcopy(model.state_dict())
    ema = Ema(model, decay)
    states = train_for(model, 30, ema)
    found = ema.model.state_dict()
    assert found.keys() == start.keys()
    for name, value in start.items():
        if not value.is_floating_point():
            torch.testing.assert_close(found[name], states[-1][name], rtol=0, atol=0)
            continue
        mean = value.double()
        for number, state in enumerate(states, start=1):
            keep = min(decay, (1 + number) / (10 + number))
            mean = keep * mean + (1 - keep) * state[name].double()
        torch.testing.assert_close(found[name].double(), mean, rtol=3e-6, atol=3e-6)
    assert found["norm.num_batches_tracked"] == 30
    assert found["counter"] == 210
    assert not torch.equal(found["norm.running_mean"], states[-1]["norm.running_mean"])


def test_the_ramp_makes_the_first_average_follow_fast() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, 0.999)
    nn.init.ones_(model.weight)
    ema.update(model)
    # A decay of 2/11 at the first update, not 0.999.
    torch.testing.assert_close(ema.model.weight, torch.tensor([[9 / 11]]))


def test_a_decay_of_0_follows_the_model() -> None:
    torch.manual_seed(0)
    model = Small()
    ema = Ema(model, 0.0)
    states = train_for(model, 3, ema)
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, states[-1][name])


def test_the_average_starts_as_a_copy_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = Small()
    model(torch.randn(8, 3))
    ema = Ema(model, 0.99)
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0)
    assert not ema.model.training
    assert model.training
    nn.init.zeros_(model.linear.weight)
    assert ema.model.linear.weight.any()


@pytest.mark.parametrize(
    ("scores", "best_epoch", "ends"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], 5, None),
        ([0.5, 0.4, 0.4, 0.4, 0.4], 1, 4),
        ([0.5, 0.5, 0.5, 0.5], 1, 4),
        ([0.1, 0.0, 0.2, 0.1, 0.1, 0.1], 3, 6),
        ([0.1, math.nan, math.nan, math.nan], 1, 4),
        ([math.nan, 0.1, math.nan, 0.2], 4, None),
        ([math.nan, math.nan, math.nan], 0, 3),
    ],
    ids=["rising", "falling", "level", "one rise", "nan later", "nan between", "all nan"],
)
def test_training_ends_after_three_epochs_without_a_better_score(
    scores: list[float], best_epoch: int, ends: int | None
) -> None:
    stopping = EarlyStopping(patience=3)
    over = None
    for epoch, score in enumerate(scores, start=1):
        better = score > max([s for s in scores[: epoch - 1] if s == s], default=-math.inf)
        assert stopping.improved(score, epoch) == better
        if stopping.over and over is None:
            over = epoch
    assert (stopping.best_epoch, over) == (best_epoch, ends)


def test_small_rises_are_best_but_do_not_prolong_the_wait() -> None:
    stopping = EarlyStopping(patience=3, min_delta=0.125)
    # The third has risen by enough since the wait began, though from one to the next none has.
    scores = (0.5, 0.5625, 0.6875, 0.75, math.nan, 0.8125)
    found = [(stopping.improved(score, epoch), stopping.over) for epoch, score in enumerate(scores, start=1)]
    better = [improved for improved, _ in found]
    assert better == [True, True, True, True, False, True]
    assert [over for _, over in found] == [False] * 5 + [True]
    assert (stopping.best, stopping.best_epoch, stopping.waiting_since) == (0.8125, 6, 3)


def test_patience_in_steps_is_patience_in_epochs() -> None:
    assert TrainConfig(patience_steps=17).patience_epochs(8) == 3
    assert TrainConfig(patience=7).patience_epochs(8) == 7
    assert TrainConfig().patience_epochs(8) == 20
    with pytest.raises(ValueError, match="patience: got 3, and patience_steps: got 4; give one of them"):
        TrainConfig(patience=3, patience_steps=4)
