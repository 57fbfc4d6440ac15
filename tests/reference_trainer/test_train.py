from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from boxreg import box_iou
from reference_trainer.__main__ import main
from reference_trainer.checkpoint import load_run
from reference_trainer.config import DataConfig, load_config
from reference_trainer.data.loading import Squares, open_sources, val_loader
from reference_trainer.data.sample import Letterbox, decode_picture, letterbox
from reference_trainer.data.toy import ToyPictures
from reference_trainer.model import answer
from reference_trainer.predict import in_original
from tests.reference_trainer.pictures import ramp, save

ROOT = Path(__file__).parents[2]
SIZE = 64
# Two epochs of two steps.
SMALL = ["--epochs", "2", "--data.pictures", "40", "--data.size", str(SIZE), "--data.workers", "0"]
SMALL += ["--model.width", "8", "--validate-every", "1", "--device", "cpu"]
LEARN = ["--epochs", "16", "--data.pictures", "300", "--data.size", str(SIZE), "--data.workers", "0"]
LEARN += ["--validate-every", "4", "--device", "cpu"]
FILES = {"config.yaml", "metrics.jsonl", "summary.json", "model.safetensors"}
DRAWINGS = {"curves.png", "train_batch.png", "val_predictions.png"}


class Done(NamedTuple):
    """A command that has ended: its result, from the last line that it printed, and what it said."""

    result: dict[str, Any]
    messages: str

    @property
    def folder(self) -> Path:
        return Path(self.result["run"])

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "reference_trainer", *map(str, arguments)]


def call(*arguments: str | Path) -> Done:
    """Run a command in a process of its own; it must succeed."""
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Done(json.loads(done.stdout.splitlines()[-1]), done.stderr)


def call_here(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Done:
    """Run a command in this process; it must succeed."""
    assert main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    return Done(json.loads(captured.out.splitlines()[-1]), captured.err)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command says that ends with code 2; an exception that is not caught fails the test."""
    try:
        code: Any = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def small(folder: Path) -> Done:
    return call("train", *SMALL, "--out", folder / "small")


@pytest.fixture(scope="module")
def learned(folder: Path) -> Done:
    return call("train", *LEARN, "--out", folder / "learned")


@pytest.fixture(scope="module")
def yolo(folder: Path) -> Path:
    """The toy pictures of the small run as a YOLO folder."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["data", str(folder / "toy-folder"), "--pictures", "40", "--size", str(SIZE)]) == 0
    assert json.loads(out.getvalue()) == {"data": str(folder / "toy-folder"), "train": 32, "val": 8}
    return folder / "toy-folder"


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
    assert "32 train, 8 val pictures" in small.messages
    assert f"next: reference_trainer evaluate {small.folder}" in small.messages


def test_the_resolved_configuration_is_saved(small: Done) -> None:
    config = load_config(small.folder / "config.yaml")
    assert (config.epochs, config.seed, config.device, config.validate_every) == (2, 0, "cpu", 1)
    assert (config.data.pictures, config.data.size, config.model.width) == (40, SIZE, 8)
    written = (small.folder / "config.yaml").read_text()
    assert "lambda_noobj: 0.5" in written, "settings that nobody gave are written too"


def test_nothing_is_left_open_in_the_saved_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    settings = ["--epochs", "2", "--data.pictures", "40", "--data.size", str(SIZE), "--model.width", "8"]
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
        assert list(row["raw"]) == list(row["weighted"]) == ["coord", "wh", "iou", "obj", "noobj"]
        for name, value in row["raw"].items():
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
    sources, _ = open_sources(DataConfig(pictures=300, size=SIZE), seed=0)
    boxes = {
        name: torch.cat([batch.targets for batch in val_loader(Squares(source, SIZE))])
        for name, source in sources.items()
    }
    mean_box = boxes["train"].mean(0).expand_as(boxes["val"])
    by_the_mean_box = box_iou(mean_box, boxes["val"], fmt="cxcywh").mean().item()
    # Seeds 0, 1 and 2 came to 0.63, 0.64 and 0.70; the mean box to 0.15, 0.17 and 0.17.
    assert learned.result["mean_iou"] > 0.5 > 2 * by_the_mean_box


def test_evaluate_gives_the_score_of_the_run(learned: Done) -> None:
    scored = call("evaluate", learned.folder, "--device", "cpu").result
    assert scored["mean_iou"] == pytest.approx(learned.result["mean_iou"], abs=1e-6)
    assert scored["pictures"] == 60
    for name, value in learned.summary["scores"].items():
        assert scored[name] == pytest.approx(value, abs=1e-6), name


def test_evaluate_on_another_folder(learned: Done, yolo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored = call_here(capsys, "evaluate", learned.folder, "--data", yolo, "--device", "cpu").result
    assert (scored["task"], scored["pictures"]) == ("toy-folder", 8)
    # Pictures that the run was trained on.
    assert scored["mean_iou"] > 0.4


@pytest.fixture(scope="module")
def photos(folder: Path) -> list[Path]:
    """Pictures of several sizes, of which two share a name."""
    (folder / "photos" / "more").mkdir(parents=True)
    toy = ToyPictures([250, 251, 252], 160)
    crops = {
        "wide.png": toy[0].image[:, 30:121],
        "tall.jpg": toy[1].image[:, :, 17:90],
        "more/wide.png": ramp(50, 333),
        "square.bmp": toy[2].image,
    }
    for name, image in crops.items():
        save(image, folder / "photos" / name)
    return [folder / "photos" / name for name in crops]


def box_by_hand(run: Path, picture: Path) -> list[float]:
    """Letterbox, predict, and go back to the picture's own pixels."""
    image = decode_picture(picture)
    height, width = image.shape[1:]
    square, _, _ = letterbox(image, torch.zeros(0, 4), SIZE)
    _, model, _ = load_run(run)
    with torch.no_grad():
        boxes, _ = answer(model(square[None].float() / 255))
    cx, cy, w, h = boxes[0].tolist()
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    corners = [(cx - w / 2) * side - left, (cy - h / 2) * side - top]
    corners += [(cx + w / 2) * side - left, (cy + h / 2) * side - top]
    return [min(max(x, 0.0), edge) for x, edge in zip(corners, [width, height] * 2, strict=True)]


def test_predict_draws_and_writes_boxes_in_original_pixels(learned: Done, photos: list[Path]) -> None:
    done = call("predict", learned.folder, *photos, "--device", "cpu")
    out = learned.folder / "predictions"
    assert done.result["pictures"] == 4
    assert done.result["predictions"] == str(out / "predictions.json")
    found = json.loads((out / "predictions.json").read_text())
    assert [one["picture"] for one in found] == [str(photo) for photo in photos]
    sizes = [(160, 91), (73, 160), (333, 50), (160, 160)]
    for one, photo, (width, height) in zip(found, photos, sizes, strict=True):
        assert (one["width"], one["height"]) == (width, height)
        x1, y1, x2, y2 = one["box_xyxy"]
        assert 0 <= x1 <= x2 <= width
        assert 0 <= y1 <= y2 <= height
        assert 0 < one["confidence"] <= 1
        # Written with two decimals; the batch layout changes the last bits of the network's numbers.
        assert one["box_xyxy"] == pytest.approx(box_by_hand(learned.folder, photo), abs=0.02)
    drawings = sorted(file for file in out.iterdir() if file.suffix == ".png")
    assert [file.name for file in drawings] == [
        f"{number:03d}-{photo.stem}.png" for number, photo in enumerate(photos)
    ]
    for drawing, (width, height) in zip(drawings, sizes, strict=True):
        with Image.open(drawing) as image:
            assert image.format == "PNG"
            # As wide and as high as the picture, give or take the title.
            assert (image.width > image.height) == (width > height) or width == height


def test_predict_writes_where_it_is_told(
    learned: Done, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "er"
    call_here(capsys, "predict", learned.folder, photos[0], "--out", out, "--device", "cpu")
    assert {file.name for file in out.iterdir()} == {"predictions.json", "000-wide.png"}


@pytest.mark.parametrize(
    ("fitted", "box", "expected"),
    [
        # 160 x 80 into 80: half as large, 20 pixels of grey above and below.
        (Letterbox(0.5, 0.0, 20.0, 160, 80), (0.5, 0.5, 0.25, 0.25), [60, 20, 100, 60]),
        (Letterbox(0.5, 0.0, 20.0, 160, 80), (0.5, 0.5, 1.0, 1.0), [0, 0, 160, 80]),
        (Letterbox(0.5, 0.0, 20.0, 160, 80), (0.0, 0.25, 0.5, 0.5), [0, 0, 40, 40]),
        # 40 x 80 into 160: twice as large, 40 pixels of grey left and right.
        (Letterbox(2.0, 40.0, 0.0, 40, 80), (0.5, 0.25, 0.25, 0.25), [10, 10, 30, 30]),
        (Letterbox(2.0, 40.0, 0.0, 40, 80), (0.9, 0.9, 0.1, 0.1), [40, 68, 40, 76]),
    ],
    ids=["wide", "all of the square", "half outside", "tall", "in the grey"],
)
def test_a_box_is_brought_back_into_the_picture(
    fitted: Letterbox, box: tuple[float, ...], expected: list[float]
) -> None:
    size = {160: 80, 40: 160}[fitted.width]
    assert in_original(torch.tensor(box), fitted, size) == pytest.approx(expected, abs=1e-4)


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
    assert f"next: reference_trainer evaluate {done.folder}" in messages
    assert {file.name for file in done.folder.iterdir()} == FILES | DRAWINGS
    assert done.summary["stopped_by"] == number.name
    assert all(weight.isfinite().all() for weight in done.weights.values())

    scored = call_here(capsys, "evaluate", done.folder, "--device", "cpu").result
    assert scored["mean_iou"] == pytest.approx(done.result["mean_iou"], abs=1e-6)


def test_training_from_a_yolo_folder_is_training_on_its_pictures(
    small: Done, yolo: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--data", yolo, *from_a_folder(SMALL)]
    done = call_here(capsys, "train", *settings, "--out", folder / "yolo")
    assert done.result["task"] == "toy-folder"
    # PNG loses nothing, and the boxes come back but for their last bits.
    assert done.result["mean_iou"] == pytest.approx(small.result["mean_iou"], abs=1e-3)
    _, _, names = load_run(done.folder)
    assert names == ["rectangle", "ellipse", "triangle"]
    scored = call_here(capsys, "evaluate", done.folder, "--device", "cpu").result
    assert scored["mean_iou"] == pytest.approx(done.result["mean_iou"], abs=1e-6)


def from_a_folder(settings: list[str]) -> list[str]:
    """The settings without those of generated pictures."""
    at = settings.index("--data.pictures")
    return settings[:at] + settings[at + 2 :]


def test_what_was_done_to_the_data_is_said_and_kept(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(yolo, tmp_path / "copy")
    labels = sorted((tmp_path / "copy" / "labels" / "train").iterdir())
    labels[0].write_text("0 0.252 0.5 0.51 0.5\n")  # 0.3 % beyond the left edge
    labels[1].write_text("0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.2 0.2\n")
    labels[2].write_text("")
    settings = ["--data", tmp_path / "copy", *from_a_folder(SMALL), "--out", tmp_path / "runs"]
    done = call_here(capsys, "train", *settings)
    assert done.summary["pictures"] == {"train": 30, "val": 8}
    assert done.summary["left_out"]["train"] == {"no_box": 1, "several_boxes": 1}
    assert done.summary["clipped_boxes"] == {"train": 1, "val": 0}
    assert "train: left out 1 pictures with several boxes, 1 with none" in done.messages
    assert "train: clipped 1 boxes" in done.messages
    assert "val: " not in done.messages.replace("val IoU", "")


def test_evaluate_needs_no_training_pictures(
    learned: Done, yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(yolo, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "images" / "train")
    scored = call_here(capsys, "evaluate", learned.folder, "--data", tmp_path / "copy").result
    assert scored["pictures"] == 8


def broken_folder(tmp_path: Path, fault: str) -> tuple[Path, str]:
    """A YOLO folder with one fault, and how the fault must be named."""
    root = tmp_path / "pictures"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        save(ramp(), root / "images" / split / "a.png")
        (root / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cat]\n")
    picture, label = root / "images/val/a.png", root / "labels/train/a.txt"
    if fault == "missing folder":
        return tmp_path / "nowhere", f"{tmp_path / 'nowhere'}: no such file or folder"
    if fault == "missing split":
        (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/test\nnames: [cat]\n")
        return root, f"{root / 'data.yaml'}: val: no such folder"
    if fault == "class out of range":
        label.write_text("0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.4 0.4\n")
        return root, f"{label}:2: class is not one of 0 to 0: 1"
    if fault == "label out of the picture":
        label.write_text("\n0 0.9 0.5 0.5 0.5\n")
        return root, f"{label}:2: sticks out of the picture by 15.0%"
    if fault == "broken picture":
        picture.write_bytes(picture.read_bytes()[:60])
        return root, f"{picture}: broken picture"
    label.write_text("")
    return root, "train: no picture with exactly one box"


FAULTS = [
    "missing folder",
    "missing split",
    "class out of range",
    "label out of the picture",
    "broken picture",
    "no box at all",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_data_is_named_before_training_starts(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, expected = broken_folder(tmp_path, fault)
    message = refused(capsys, "train", "--data", root, *from_a_folder(SMALL), "--out", tmp_path / "runs")
    assert expected in message
    assert not (tmp_path / "runs").exists()


def test_a_refusal_ends_the_process_with_2_and_no_traceback(tmp_path: Path) -> None:
    root, expected = broken_folder(tmp_path, "class out of range")
    done = subprocess.run(
        command("train", "--data", root, "--out", tmp_path / "runs"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda run: (run / "config.yaml").write_text("epoch: 3"), "did you mean 'epochs'?"),
        (lambda run: (run / "config.yaml").write_text("model: {width: 16}"), "does not fit config.yaml"),
        (lambda run: (run / "model.safetensors").write_bytes(b"nonsense"), "model.safetensors"),
    ],
    ids=["no weights", "unknown setting", "other network", "broken weights"],
)
@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_a_folder_that_is_no_whole_run_is_refused(
    name: str, break_it: Any, message: str, small: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in ("model.safetensors", "config.yaml"):
        (run / file).write_bytes((small.folder / file).read_bytes())
    break_it(run)
    save(ramp(), tmp_path / "a.png")
    said = refused(capsys, name, run, *([tmp_path / "a.png"] if name == "predict" else []))
    assert str(run) in said
    assert message in said


def test_a_picture_that_cannot_be_read_is_refused(
    small: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "missing.png"):
        said = refused(capsys, "predict", small.folder, tmp_path / name, "--out", tmp_path / "out")
        assert str(tmp_path / name) in said
    assert "PICTURES" in refused(capsys, "predict", small.folder)
    assert not (tmp_path / "out").exists()


def test_data_touches_no_folder_with_something_in_it(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in yolo.rglob("*")}
    assert f"{yolo}: already there" in refused(capsys, "data", yolo)
    assert {file: file.stat().st_mtime_ns for file in yolo.rglob("*")} == before
    assert "got 10, expected at least 32" in refused(capsys, "data", tmp_path / "new", "--size", "10")
    assert not (tmp_path / "new").exists()


def test_cuda_where_there_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refused(capsys, "train", *SMALL, "--device", "cuda", "--out", tmp_path / "runs")
    assert "device: got 'cuda'" in said
    assert not (tmp_path / "runs").exists()
