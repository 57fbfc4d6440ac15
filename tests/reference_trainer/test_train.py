from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from boxreg import box_iou
from reference_trainer.checkpoint import load_run
from reference_trainer.config import DataConfig, load_config
from reference_trainer.data.loading import Squares, open_sources, val_loader
from tests.reference_trainer.runs import (
    DRAWINGS,
    FILES,
    ROOT,
    SIZE,
    SMALL,
    Done,
    call,
    call_here,
    command,
    from_a_folder,
)


def test_a_run_leaves_its_whole_folder(small: Done) -> None:
    assert {file.name for file in small.folder.iterdir()} == FILES | DRAWINGS
    for name in DRAWINGS:
        with Image.open(small.folder / name) as drawing:
            assert drawing.format == "PNG"
            extremes = drawing.convert("L").getextrema()
        assert extremes[1] - extremes[0] > 100, f"{name} is blank"


def test_the_last_line_says_what_came_of_it(small: Done) -> None:
    assert list(small.result) == ["run", "task", "mean_iou", "seconds"]
    assert small.result["task"] == "toy"
    assert 0 < small.result["mean_iou"] < 1
    assert small.result["seconds"] > 0
    assert all(small.summary[key] == value for key, value in small.result.items())


def test_without_a_terminal_people_get_plain_lines_and_the_next_command(small: Done) -> None:
    assert "\x1b" not in small.messages
    assert "\r" not in small.messages
    starts = [line.split("  ")[0] for line in small.messages.splitlines() if line.startswith("epoch")]
    assert len(starts) == 2
    assert "32 train, 8 val images" in small.messages
    assert f"next: reference_trainer evaluate {small.folder}" in small.messages


def test_the_resolved_configuration_is_saved(small: Done) -> None:
    config = load_config(small.folder / "config.yaml")
    assert (config.epochs, config.seed, config.device, config.validate_every) == (2, 0, "cpu", 1)
    assert (config.data.images, config.data.size, config.model.width) == (40, SIZE, 8)
    written = (small.folder / "config.yaml").read_text()
    assert "lambda_noobj: 0.5" in written, "settings that nobody gave are written too"


def test_nothing_is_left_open_in_the_saved_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    settings = ["--epochs", "2", "--data.images", "40", "--data.size", str(SIZE), "--model.width", "8"]
    done = call_here(capsys, "train", *settings, "--out", folder / "open")
    config = load_config(done.folder / "config.yaml")
    assert config.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert config.data.workers == 1
    # Four steps: a fifth of them, rounded down.
    assert config.schedule.warmup_steps == 0
    again = call_here(capsys, "train", "--config", done.folder / "config.yaml")
    assert again.summary["mean_iou"] == done.summary["mean_iou"]
    assert (again.folder / "config.yaml").read_text() == (done.folder / "config.yaml").read_text()


def test_each_epoch_has_its_line_of_figures(small: Done) -> None:
    rows = [json.loads(line) for line in (small.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    loss = load_config(small.folder / "config.yaml").loss.model_dump()
    for row in rows:
        assert row["steps"] == 2
        assert list(row["unweighted"]) == list(row["weighted"]) == ["coord", "wh", "iou", "obj", "noobj"]
        for name, value in row["unweighted"].items():
            assert row["weighted"][name] == pytest.approx(loss[f"lambda_{name}"] * value, rel=1e-6)
        assert row["loss"] == pytest.approx(sum(row["weighted"].values()), rel=1e-5)
        assert 0 <= row["val_mean_iou"] <= 1
        assert 0 <= row["step_share"] <= 1
    best = max(rows, key=lambda row: row["val_mean_iou"])
    assert small.summary["best_epoch"] == best["epoch"]
    assert small.summary["mean_iou"] == best["val_mean_iou"]


def test_the_same_seed_gives_the_same_weights_bit_for_bit(small: Done, folder: Path) -> None:
    again = call("train", *SMALL, "--out", folder / "again")
    assert again.folder != small.folder
    assert again.weights.keys() == small.weights.keys()
    for name, value in small.weights.items():
        assert torch.equal(again.weights[name], value), name
    assert again.result["mean_iou"] == small.result["mean_iou"]


def test_another_seed_gives_other_weights(
    small: Done, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = call_here(capsys, "train", *SMALL, "--seed", "1", "--out", folder / "other")
    assert not torch.equal(other.weights["backbone.0.0.0.weight"], small.weights["backbone.0.0.0.weight"])


@pytest.mark.parametrize("preset", ["reference", "baseline"])
def test_neither_the_worker_count_nor_dropout_breaks_the_repetition(
    preset: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--preset", preset, *SMALL, "--model.dropout", "0.5", "--out", folder / f"dropout-{preset}"]
    alone = call_here(capsys, "train", *settings)
    helped = call_here(capsys, "train", *settings, "--data.workers", "1")
    for name, value in alone.weights.items():
        assert torch.equal(helped.weights[name], value), name


@pytest.mark.parametrize(
    ("arguments", "kind", "groups", "lr"),
    [
        (["--preset", "baseline"], "SGD", ["all"], 0.01 * 0.01),
        (["--preset", "reference"], "AdamW", ["decay", "no_decay"], 0.0),
    ],
    ids=["baseline", "reference"],
)
def test_the_optimizer_that_is_reported_is_the_live_one(
    arguments: list[str],
    kind: str,
    groups: list[str],
    lr: float,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[torch.optim.Optimizer] = []
    init = torch.optim.Optimizer.__init__

    def remember(self: torch.optim.Optimizer, *rest: Any, **named: Any) -> None:
        built.append(self)
        init(self, *rest, **named)

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", remember)
    done = call_here(capsys, "train", *arguments, *SMALL, "--out", folder / kind)
    (live,) = built
    reported = done.summary["optimizer"]
    assert reported["class"] == type(live).__name__ == kind
    assert [group["name"] for group in reported["groups"]] == groups
    for shown, group in zip(reported["groups"], live.param_groups, strict=True):
        # The schedule has moved the learning rate since it was configured.
        assert shown["lr"] == group["lr"] == pytest.approx(lr, abs=1e-12)
        assert shown["weight_decay"] == group["weight_decay"]
        assert shown["parameters"] == sum(parameter.numel() for parameter in group["params"])


def test_a_short_patience_between_validations_is_no_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, "--epochs", "5", "--patience", "1", "--validate-every", "2"]
    done = call_here(capsys, "train", *settings, "--out", folder / "patience")
    assert done.summary["best_epoch"] in (2, 4, 5)


def test_training_learns(learned: Done) -> None:
    sources = open_sources(DataConfig(images=300, size=SIZE), seed=0).splits
    boxes = {
        name: torch.cat([batch.targets for batch in val_loader(Squares(source, SIZE))])
        for name, source in sources.items()
    }
    mean_box = boxes["train"].mean(0).expand_as(boxes["val"])
    by_the_mean_box = box_iou(mean_box, boxes["val"], fmt="cxcywh").mean().item()
    # Seeds 0, 1 and 2 came to 0.63, 0.64 and 0.70; the mean box to 0.15, 0.17 and 0.17.
    assert learned.result["mean_iou"] > 0.5 > 2 * by_the_mean_box


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_run_that_can_be_used(
    number: signal.Signals, code: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, "--epochs", "100000", "--data.workers", "1", "--validate-every", "100000"]
    started = subprocess.Popen(
        command("train", *settings, "--patience", "100000", "--out", folder / number.name),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert started.stderr is not None
        assert any(line.startswith("epoch   2") for line in started.stderr)
        # Ctrl-C reaches all processes of a terminal, the workers too.
        os.killpg(started.pid, number) if number == signal.SIGINT else os.kill(started.pid, number)
        out, messages = started.communicate(timeout=60)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == code
    assert "Traceback" not in messages
    done = Done(json.loads(out.splitlines()[-1]), messages)
    assert f"stopped by {number.name}" in messages
    assert f"go on with: reference_trainer resume {done.folder}\n" in messages
    assert {file.name for file in done.folder.iterdir()} == FILES | DRAWINGS
    assert done.summary["stopped_by"] == number.name
    # It was never validated, and can be used all the same.
    assert done.result["mean_iou"] is done.summary["scores"] is None
    assert all(weight.isfinite().all() for weight in done.weights.values())
    assert call_here(capsys, "evaluate", done.folder, "--device", "cpu").result["mean_iou"] > 0


def test_training_from_a_yolo_folder_is_training_on_its_images(
    small: Done, yolo: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--data", yolo, *from_a_folder(SMALL)]
    before = {file: file.stat().st_mtime_ns for file in yolo.rglob("*")}
    done = call_here(capsys, "train", *settings, "--out", folder / "yolo")
    assert {file: file.stat().st_mtime_ns for file in yolo.rglob("*")} == before, "nothing is written there"
    assert done.result["task"] == "toy-folder"
    # PNG loses nothing, and the boxes come back but for their last bits.
    assert done.result["mean_iou"] == pytest.approx(small.result["mean_iou"], abs=1e-3)
    _, _, names = load_run(done.folder)
    assert names == ["rectangle", "ellipse", "triangle"]
    scored = call_here(capsys, "evaluate", done.folder, "--device", "cpu").result
    assert scored["mean_iou"] == pytest.approx(done.result["mean_iou"], abs=1e-6)


def test_what_was_done_to_the_data_is_said_and_kept(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(yolo, tmp_path / "copy")
    labels = sorted((tmp_path / "copy" / "labels" / "train").iterdir())
    labels[0].write_text("0 0.252 0.5 0.51 0.5\n")  # 0.3 % beyond the left edge
    labels[1].write_text("0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.2 0.2\n")
    labels[2].write_text("")
    settings = ["--data", tmp_path / "copy", *from_a_folder(SMALL), "--out", tmp_path / "runs"]
    done = call_here(capsys, "train", "--task", "single", *settings)
    assert done.summary["images"] == {"train": 30, "val": 8}
    assert done.summary["left_out"]["train"] == {"no_box": 1, "several_boxes": 1}
    assert done.summary["clipped_boxes"] == {"train": 1, "val": 0}
    assert "left out 1 images with several boxes, 1 with none; --task grid learns all" in done.messages
    assert "train: clipped 1 boxes" in done.messages
    assert "val: " not in done.messages.replace("val IoU", "")


def test_a_folder_with_brackets_and_spaces_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call_here(capsys, "train", *SMALL, "--epochs", "1", "--out", tmp_path / "my [v1] [/runs]")
    assert f"run {done.folder}" in done.messages
    assert f"next: reference_trainer evaluate '{done.folder}'" in done.messages
