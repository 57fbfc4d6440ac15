from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference_trainer.images import ramp, save
from tests.reference_trainer.runs import (
    ROOT,
    SMALL,
    Done,
    command,
    from_a_folder,
    refused,
)


def broken_folder(tmp_path: Path, fault: str) -> tuple[Path, str]:
    """A YOLO folder with one fault, and how the fault must be named."""
    root = tmp_path / "images"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        save(ramp(), root / "images" / split / "a.png")
        (root / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cat]\n")
    image, label = root / "images/val/a.png", root / "labels/train/a.txt"
    if fault == "missing folder":
        return tmp_path / "nowhere", f"{tmp_path / 'nowhere'}: no such file or folder"
    if fault == "missing split":
        (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/test\nnames: [cat]\n")
        return root, f"{root / 'data.yaml'}: val: no such folder"
    if fault == "class out of range":
        label.write_text("0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.4 0.4\n")
        return root, f"{label}:2: class is not one of 0 to 0: 1"
    if fault == "label out of the image":
        label.write_text("\n0 0.9 0.5 0.5 0.5\n")
        return root, f"{label}:2: sticks out of the image by 15.0%"
    if fault == "broken image":
        image.write_bytes(image.read_bytes()[:60])
        return root, f"{image}: broken image"
    label.write_text("")
    return root, "train: no image has a box"


FAULTS = [
    "missing folder",
    "missing split",
    "class out of range",
    "label out of the image",
    "broken image",
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


def test_an_image_that_cannot_be_read_is_refused(
    small: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "missing.png"):
        said = refused(capsys, "predict", small.folder, tmp_path / name, "--out", tmp_path / "out")
        assert str(tmp_path / name) in said
    assert "IMAGES" in refused(capsys, "predict", small.folder)
    said = refused(capsys, "predict", small.folder, tmp_path / "text.png", "--confidence", "0.5")
    assert "task 'single' gives every image its box" in said
    assert not (tmp_path / "out").exists()


def test_data_touches_no_folder_with_something_in_it(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in yolo.rglob("*")}
    assert f"{yolo}: already there" in refused(capsys, "data", "write", yolo)
    assert {file: file.stat().st_mtime_ns for file in yolo.rglob("*")} == before
    assert "got 10, expected at least 32" in refused(
        capsys, "data", "write", tmp_path / "new", "--size", "10"
    )
    assert not (tmp_path / "new").exists()


def test_cuda_where_there_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refused(capsys, "train", *SMALL, "--device", "cuda", "--out", tmp_path / "runs")
    assert "device: got 'cuda'" in said
    assert not (tmp_path / "runs").exists()


def test_a_run_that_diverges_in_its_last_step_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, "--epochs", "1", "--optimizer.name", "sgd", "--optimizer.lr", "1e12"]
    said = refused(capsys, "train", *settings, "--clip-norm", "None", "--out", tmp_path / "runs")
    assert "in epoch 1; try a smaller --optimizer.lr than 1000000000000.0" in said
    (run,) = (tmp_path / "runs").iterdir()
    assert f"{run} holds no weights" in said
    assert not (run / "model.safetensors").exists()


def test_a_warm_up_longer_than_the_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", *SMALL, "--schedule.warmup-steps", "4", "--out", tmp_path / "runs")
    assert "schedule.warmup_steps: got 4, but the run has 4 steps" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("images", ["0", "-5", "4"])
def test_data_draws_no_folder_that_cannot_be_trained_on(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "data", "write", tmp_path / "new", "--images", images)
    assert f"images: got {images}, expected at least 5" in said
    assert not (tmp_path / "new").exists()


WRONG = {
    "unknown command": ("trian", "'trian'; did you mean 'train'?"),
    "unknown command of data": ("data chek x", "'data chek'; did you mean 'check'?"),
    "misspelt option": ("train --batchsize 3", "--batchsize; did you mean --batch-size"),
    "option without its group": ("train --lr 0.1", "--lr; did you mean --optimizer.lr?"),
    "misspelt option of another form": ("train --preste grid", "--preste; did you mean --preset"),
    "several unknown options": ("train --foo 1 --bar=2 --baz 3 --qux 4", "and 1 more"),
    "stray word": ("train grid", "'grid'; settings are given as --NAME VALUE"),
    "wrong type": ("train --epochs three", "'three'\nexpected --epochs INT"),
    "wrong type in overfit": ("overfit many", "'many'\nexpected --images INT"),
    "out of its range": ("train --data.size 10", "data.size: Input should be greater than or equal to 32"),
    "two out of their range": ("train --epochs 0 --batch-size 0", "batch_size: Input should be"),
    "settings that contradict": ("train --data.scales 33", "scales: got 33, expected a multiple of 16"),
    "unknown choice": ("train --optimizer.name adam", "optimizer.name: got 'adam', expected one of adamw"),
    "unknown preset": ("train --preset refrence", "photos, reference; did you mean 'reference'?"),
    "unknown strength": ("train --augmentation hevy", "one of default, heavy, light, off; did you"),
    "no key twice": ("train --config twice.yaml", "twice.yaml:2: not valid YAML: epochs twice"),
    "missing value": ("train --epochs", "Missing value for argument '--epochs'"),
    "no value for a configuration": ("train --config", "Missing value for argument '--config'"),
    "missing run": ("resume", "Missing from reference_trainer resume: PATH Folder of the run"),
    "preset and configuration": ("train --preset grid --config good.yaml", "give one of them"),
    "no such configuration": ("train --config god.yaml", "no such file or folder; did you mean 'good.yaml'?"),
    "bad YAML": ("train --config bad.yaml", "bad.yaml:2: not valid YAML"),
    "no mapping": ("train --config list.yaml", "list.yaml: expected a mapping of settings, got list"),
    "unknown key": ("train --config key.yaml", "epoch: unknown setting; did you mean 'epochs'?"),
    "unknown key in a group": ("train --config group.yaml", "widht: unknown setting; did you mean 'width'?"),
    "many unknown keys": ("train --config many.yaml", "and 9 more"),
    "wrong type in a configuration": ("train --config type.yaml", "epochs: Input should be a valid integer"),
    "no such data": ("train --data imagse", "imagse: no such file or folder; did you mean 'images'?"),
    "data that are none": ("train --data good.yaml", "good.yaml: names: expected a list"),
    "no such run": ("resume rnus", "rnus: no such file or folder; did you mean 'runs'?"),
    "no such run to evaluate": ("evaluate rnus", "rnus: no such file or folder; did you mean 'runs'?"),
    "a folder without a run": ("resume runs", "runs: no state to go on from"),
    "no such run to replay": ("replay rnus", "rnus: no such file or folder; did you mean 'runs'?"),
    "nothing to replay": ("replay runs", "runs: it has no nonfinite.pt: no loss or gradient was"),
    "a file for a run": ("resume good.yaml", "good.yaml: expected a folder, it is a file"),
    "value of a switch": ("train --model.prior maybe", "VALUE, or --NAME alone"),
    "misspelt option of resume": ("resume runs --worker 3", "--worker; did you mean --workers"),
    "no number": ("predict runs a --confidence high", "--confidence: got 'high', expected {None}|FLOAT"),
    "export without a run": ("export", "Missing from reference_trainer export: PATH Folder of the run"),
    "unknown form of export": ("export runs --output box", "'box', expected one of boxes, detections, raw"),
    "no such run to export": ("export rnus", "rnus: no such file or folder; did you mean 'runs'?"),
    "stray word of evaluate": ("evaluate runs images", "unexpected: 'images'"),
    "no such run to audit": ("audit rnus", "rnus: no such file or folder; did you mean 'runs'?"),
    "misspelt option of audit": ("audit --jsn", "--jsn; did you mean --json?"),
    "a file for a folder": ("ablate --out good.yaml", "good.yaml: File exists"),
    "no such data to ablate on": ("ablate --data imagse", "imagse: no such file or folder; did you mean"),
    "no data to check": ("data check", "Missing from reference_trainer data check: PATH"),
    "no such data to check": ("data check imagse", "imagse: no such file or folder; did you mean"),
    "number in words": ("data write new --images many", "'many'\nexpected --images INT"),
    "a file to write to": ("data write good.yaml", "good.yaml: already there"),
    "too many images by heart": ("overfit 9", "got 9, expected 1 to 8"),
    "no such row": ("ablate --rows nothing --out x", "none of the 78 rows; for example 'baseline', or"),
    "misspelt option of export": ("export runs --outptu raw", "--outptu; did you mean --output"),
    "no image to predict": ("predict runs", "IMAGES: got none, expected at least one image file"),
    "run and settings": ("audit runs --epochs 3", "give RUN, or --preset, --config and settings"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_command_line_is_answered_in_a_few_lines_that_say_what_to_type(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "good": "epochs: 3",
        "bad": "epochs: 3\nmodel: {width: 16",
        "list": "- epochs",
        "key": "epoch: 3",
        "group": "model: {widht: 16}",
        "many": "\n".join(f"zzz{number}: 1" for number in range(12)),
        "type": "epochs: several",
        "twice": "epochs: 3\nepochs: 4",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    for folder in ("images", "runs"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    arguments, expected = WRONG[wrong]
    said = refused(capsys, *arguments.split())
    assert expected in said
    assert "Traceback" not in said
    assert sum(-(-len(line) // 80) for line in said.splitlines()) <= 8, said
    assert not list((tmp_path / "runs").iterdir())
