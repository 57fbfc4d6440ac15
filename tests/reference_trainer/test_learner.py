"""One optimizer step: in parts, out of memory, at sizes, in mixed precision."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.breaking import SETTINGS
from reference_trainer.config import TrainConfig, load_config
from reference_trainer.data.loading import Batch, Squares, to_batch
from reference_trainer.data.toy import toy_splits
from reference_trainer.errors import ConfigError, UserError
from reference_trainer.learner import Learner, build_learner
from reference_trainer.precision import pick_precision
from reference_trainer.scaling import size_at
from reference_trainer.tasks import build_task
from tests.reference_trainer.runs import call_here

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def squares() -> Squares:
    return Squares(toy_splits(20, 64, 0)["train"], 64)


def learner_of(squares: Squares, **settings: Any) -> Learner:
    """A learner with small random weights, the same every time."""
    model = {"width": 8} | settings.pop("model", {})
    config = TrainConfig.model_validate({"device": "cpu", "model": model} | settings)
    config = config.resolved(
        "cpu", 0, 0, config.model, config.precision if config.precision != "auto" else "fp32", 10
    )
    torch.manual_seed(0)
    learner = build_learner(config, build_task(config), squares, 10, CPU)
    learner.model.train()
    return learner


def batch_of(squares: Squares, count: int = 10) -> Batch:
    return to_batch([squares[index] for index in range(count)])


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in learner.model.named_parameters()}


def whole_state(learner: Learner) -> list[Tensor]:
    return [*copy.deepcopy(learner.model.state_dict()).values(), torch.get_rng_state()]


@pytest.mark.parametrize("head", ["dense", "pooled"])
@pytest.mark.parametrize("parts", [2, 3, 10])
def test_parts_have_the_gradient_of_the_whole_batch(head: str, parts: int, squares: Squares) -> None:
    batch = batch_of(squares)
    # Objects at the edge have fewer cells about their centre: parts differ in what they divide by.
    batch.targets[:3, :2] = 0.02
    model = {"head": head}
    whole = learner_of(squares, model=model, clip_norm=None)
    step = whole.gradients(batch)
    accumulated = learner_of(squares, model=model, clip_norm=None, accumulate=parts)
    found = accumulated.gradients(batch)
    for name, expected in gradients(whole).items():
        # Sums over the images, in another order.
        error = (gradients(accumulated)[name] - expected).norm() / expected.norm()
        assert error < 200 * torch.finfo(torch.float32).eps, name
    torch.testing.assert_close(found.objective, step.objective)
    torch.testing.assert_close(found.figures, step.figures)
    torch.testing.assert_close(found.gradient_norm, step.gradient_norm)


class Small(nn.Module):
    """A network for which memory ends above so many images; it has drawn random numbers by then."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Any:
        self.seen.append(len(images))
        prediction = self.network(images)
        if len(images) > self.most:
            raise torch.OutOfMemoryError("no room")
        return prediction


def test_out_of_memory_in_the_optimizers_step_is_said_as_such(squares: Squares) -> None:
    learner = learner_of(squares)
    step = learner.gradients(batch_of(squares))

    def no_room(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    learner.optimizer.register_step_pre_hook(no_room)
    with pytest.raises(UserError, match=r"memory in the step of AdamW on [\d,]+ weights.*--model\.width"):
        learner.move(step)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_out_of_memory_the_same_batch_is_worked_on_in_parts_and_that_is_said(
    norm: str, squares: Squares, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: Any = {"model": {"norm": norm, "dropout": 0.5}, "optimizer": {"lr": 0.25}}
    short = learner_of(squares, **settings)
    short.model = short.parallel = Small(short.model, 3)
    capsys.readouterr()
    short.gradients(batch_of(squares))
    assert short.model.seen == [10, 5, 2, 3, 3, 2]
    said = " ".join(capsys.readouterr().err.split())
    assert "out of memory at 64 pixels: from here on each batch is worked on in 4 parts" in said
    assert "batch size and learning rate stay as they are" in said
    assert ("BatchNorm sees 3 images at a time" in said) == (norm == "batch")
    assert short.optimizer.param_groups[0]["lr"] == short.schedule.lr == 0.25

    # As if it had been asked for: what failed left no trace, not even in the random numbers.
    planned = learner_of(squares, **settings, accumulate=4)
    planned.gradients(batch_of(squares))
    for name, expected in gradients(planned).items():
        assert torch.equal(gradients(short)[f"network.{name}"], expected)
    for found, expected in zip(short.model.network.buffers(), planned.model.buffers(), strict=True):
        assert torch.equal(found, expected)
    assert short.state_dict()["parts"] == 4, "a run that goes on does not find out again"


def test_memory_for_not_even_one_image_is_an_error_that_says_what_to_try(squares: Squares) -> None:
    learner = learner_of(squares)
    learner.model = learner.parallel = Small(learner.model, 0)
    with pytest.raises(UserError, match=r"out of memory with 1 images of 64 pixels .* --data.size"):
        learner.gradients(batch_of(squares))


def test_the_rehearsal_is_at_the_largest_size_and_leaves_no_trace(squares: Squares) -> None:
    settings: Any = {"data": {"size": 64, "scales": (48, 64, 96)}}
    learner = learner_of(squares, **settings, model={"norm": "batch", "dropout": 0.5})
    before, sides = whole_state(learner), []
    learner.model.register_forward_pre_hook(lambda _, images: sides.append(images[0].shape[-1]))
    learner.rehearse(batch_of(squares))
    assert sides == [96]
    for found, expected in zip(whole_state(learner), before, strict=True):
        assert torch.equal(found, expected)
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    steps = [learner.sized(batch_of(squares), step).images.shape[-1] for step in range(20)]
    assert steps == [size_at((48, 64, 96), 0, step) for step in range(20)]


def test_a_step_that_float16_cannot_hold_is_skipped_and_moves_nothing(squares: Squares) -> None:
    learner = learner_of(squares, precision="fp16")
    # The gradient of the bias of objectness is about 0.2 by image: far too much at this scale.
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**120})
    before, average = whole_state(learner), copy.deepcopy(learner.ema.state_dict())
    learner.scaler.scale(torch.zeros(()))
    first = learner.gradients(batch_of(squares))
    assert first.skipped
    assert first.finite(), "no reason to stop"
    learner.move(first)
    for found, expected in zip(whole_state(learner), before, strict=True):
        assert torch.equal(found, expected)
    torch.testing.assert_close(learner.ema.state_dict(), average, rtol=0, atol=0)
    assert learner.schedule.taken == 0
    assert not learner.optimizer.state
    assert learner.state_dict()["scaler"]["scale"] == 2.0**119

    learner.scaler.update(1024.0)
    second = learner.gradients(batch_of(squares))
    assert not second.skipped
    learner.move(second)
    assert (learner.schedule.taken, learner.ema.updates) == (1, 1)
    # At a scale of 1 there is nothing left to blame but the step itself.
    learner.scaler.update(1.0)
    learner.model.get_parameter("objectness.weight").register_hook(lambda gradient: gradient * torch.inf)
    third = learner.gradients(batch_of(squares))
    assert not third.skipped
    assert not third.finite()


def test_a_scale_goes_on_where_it_was(squares: Squares) -> None:
    batch = batch_of(squares, 4)
    learner = learner_of(squares, precision="fp16")
    for scale in (2.0**120, 512.0, 512.0):
        learner.scaler.scale(torch.zeros(()))
        learner.scaler.update(scale)
        learner.move(learner.gradients(batch))
    again = learner_of(squares, precision="fp16")
    again.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert again.state_dict()["scaler"] == learner.state_dict()["scaler"]
    assert learner.state_dict()["scaler"]["_growth_tracker"] == 2
    assert again.schedule.taken == learner.schedule.taken == 2
    for one in (learner, again):
        one.move(one.gradients(batch))
    for found, expected in zip(again.model.parameters(), learner.model.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("precision", "eps"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_mixed_precision_has_the_gradient_of_float32_but_for_rounding(
    precision: str, eps: float, squares: Squares
) -> None:
    whole, mixed = (learner_of(squares, precision=name) for name in ("fp32", precision))
    whole.gradients(batch_of(squares))
    mixed.gradients(batch_of(squares))
    for name, expected in gradients(whole).items():
        error = (gradients(mixed)[name] - expected).norm() / expected.norm()
        assert error < 30 * eps, name
    expected = gradients(whole)["tower.0.weight"]
    assert not torch.equal(gradients(mixed)["tower.0.weight"], expected)


@pytest.mark.parametrize(
    ("name", "device", "bf16", "picked"),
    [
        ("auto", "cpu", True, "fp32"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("fp32", "cuda", True, "fp32"),
        ("fp16", "cuda", True, "fp16"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_auto_takes_what_the_device_has(
    name: str, device: str, bf16: bool, picked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert pick_precision(name, torch.device(device)) == picked


def test_bf16_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ConfigError, match=r"precision: got 'bf16'.*--precision fp16"):
        pick_precision("bf16", torch.device("cuda"))


@pytest.mark.usefixtures("undrawn")
def test_skipped_steps_are_counted_and_all_that_was_decided_is_in_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    initial = 2.0**122
    grad_scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        "reference_trainer.precision.GradScaler",
        lambda device, enabled: grad_scaler(device, init_scale=initial, enabled=enabled),
    )
    settings = [*SETTINGS, "--epochs", "1", "--data.workers", "0", "--precision", "fp16"]
    settings += ["--patience-steps", "20", "--schedule.warmup-epochs", "0.5", "--data.scales", "0.75", "1"]
    done = call_here(capsys, "train", *settings, "--out", tmp_path)
    (row,) = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert row["skipped_steps"] == row["steps"] == 8
    assert row["gradient_norm"] is None
    # The rate of the first step of a warm-up of 4: nothing has moved.
    assert row["lr"] == pytest.approx(3e-3 / 5)
    saved = load_config(done.folder / "config.yaml")
    assert (saved.precision, saved.patience, saved.patience_steps) == ("fp16", 3, None)
    assert (saved.schedule.warmup_steps, saved.schedule.warmup_epochs) == (4, None)
    assert saved.data.scales == (48, 64)
