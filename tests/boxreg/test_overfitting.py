"""The overfit check: what can learn does, and of what cannot it says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxreg import BoxHead, BoxLoss, CIoULoss, OverfitReport, convert, overfit
from tests.boxreg.test_audit import PRIOR, Net, Then, draw, fingerprint, sgd
from tests.cases import KINDS

BUDGET: dict[str, Any] = {"max_steps": 150, "max_seconds": 20.0}
"""The limits of an attempt that is to fail."""


class Narrow(nn.Module):
    """Everything that is known of an image goes through two numbers that are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 2), nn.Tanh())
        self.head = BoxHead(2, PRIOR)
        self.backbone.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        boxes: Tensor = self.head(self.backbone(images))
        return boxes


def attempt(
    model: nn.Module | None = None, criterion: Any = None, batch: Any = None, **options: Any
) -> OverfitReport:
    torch.manual_seed(0)
    return overfit(
        Net() if model is None else model,
        CIoULoss(fmt="cxcywh") if criterion is None else criterion,
        draw(4) if batch is None else batch,
        **options,
    )


class TestLearns:
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mpdiou", "nwd")])
    def test_every_row_of_the_family(self, kind: str) -> None:
        report = attempt(criterion=BoxLoss(kind, 1.0, 1.0, 5.0, distance="smooth_l1", fmt="cxcywh"))
        assert report.reached
        assert report.blame is None
        assert min(report.iou) >= 0.99

    def test_dropout_is_off(self) -> None:
        assert attempt(Net(dropout=0.9)).reached

    def test_the_optimizer_given_is_used_without_its_decay(self) -> None:
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=10.0)
        assert attempt(model, optimizer=optimizer).reached
        assert optimizer.param_groups[0]["weight_decay"] == 10.0

    def test_the_model_is_as_before_unless_asked(self) -> None:
        torch.manual_seed(0)
        model = Net(norm="batch")
        before = fingerprint(model.state_dict())
        random = fingerprint(torch.get_rng_state())
        report = overfit(model, CIoULoss(fmt="cxcywh"), draw(4))
        assert fingerprint(model.state_dict()) == before
        assert fingerprint(torch.get_rng_state()) == random
        again = overfit(model, CIoULoss(fmt="cxcywh"), draw(4), in_place=True)
        assert again.model is model
        assert fingerprint(model.state_dict()) == fingerprint(report.model.state_dict()) != before


def shuffled() -> Callable[[], tuple[Tensor, Tensor]]:
    inputs, targets = draw(4)
    generator = torch.Generator().manual_seed(0)
    return lambda: (inputs, targets[torch.randperm(4, generator=generator)])


def contradictory() -> tuple[Tensor, Tensor]:
    inputs, targets = draw(4)
    return inputs[[0, 1, 2, 2]], targets


def at_zero_rate() -> dict[str, Any]:
    model = Net()
    return {"model": model, "optimizer": sgd(0.0)(model)}


def of_another_model() -> dict[str, Any]:
    return {"optimizer": sgd(0.1)(Net())}


FAULTS: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {
    "targets shuffled each step": (lambda: {"batch": shuffled()}, "targets", "one step to the next"),
    "one image, two boxes": (lambda: {"batch": contradictory()}, "targets", "images 2 and 3"),
    "clamped outputs": (
        lambda: {"model": Net(Then(nn.Linear(32, 4), lambda boxes: (boxes - 0.2).clamp(0, 1)))},
        "clamped-outputs",
        "no effect",
    ),
    "clamped in the loss": (
        lambda: {
            "model": Net(Then(nn.Linear(32, 4), lambda boxes: boxes - 3)),
            "criterion": lambda pred, target: F.mse_loss(pred.clamp(0, 1), target),
        },
        "clamp-in-loss",
        "no gradient",
    ),
    "learning rate of zero": (at_zero_rate, "learning-rate", "learning rate of 0"),
    "optimizer of another model": (of_another_model, "parameters-in-groups", "in no group"),
    "frozen backbone": (
        lambda: {"model": Narrow(), "batch": draw(8)},
        "frozen-parameters",
        "2 parameters are frozen",
    ),
    "loss reads xyxy": (
        lambda: {"criterion": lambda p, t: F.l1_loss(convert(p, "cxcywh", "xyxy"), t)},
        "loss-optimum",
        "read",
    ),
    "a term too many": (
        lambda: {
            "criterion": lambda p, t: (
                F.mse_loss(p, t) + 0.5 * p[:, 2:].mean(),
                {"mse": F.mse_loss(p, t), "small": 0.5 * p[:, 2:].mean()},
            )
        },
        "loss-optimum",
        "the loss is least",
    ),
}


class TestBlames:
    @pytest.mark.parametrize("name", FAULTS)
    def test_what_is_to_blame(self, name: str) -> None:
        build, check, words = FAULTS[name]
        torch.manual_seed(0)
        report = attempt(**build(), **BUDGET)
        assert not report.reached
        assert report.blame is not None
        assert report.blame.check == check
        assert words in report.blame.what

    def test_what_it_says(self) -> None:
        torch.manual_seed(0)
        report = attempt(**at_zero_rate(), **BUDGET)
        assert "not learnt" in str(report)
        assert "learning rate of 0" in str(report)
        loaded = json.loads(json.dumps(report.as_dict()))
        assert loaded["blame"]["check"] == "learning-rate"
        assert len(loaded["iou"]) == 4

    def test_a_budget_too_small_blames_the_term_that_is_left(self) -> None:
        report = attempt(criterion=BoxLoss("ciou", 1.0, 1.0, 5.0, fmt="cxcywh"), max_steps=5)
        assert not report.reached
        assert report.blame is not None
        assert report.blame.check == "term"
        assert "'iou'" in report.blame.what


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"target_iou": 1.5}, "target_iou: got 1.5"),
            ({"max_steps": 0}, "max_steps: got 0"),
            ({"fmt": "yxyx"}, "fmt: got 'yxyx'"),
            ({"boxes": lambda output: output[:2]}, "one predicted box a target"),
        ],
    )
    def test_arguments(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            attempt(**options)
