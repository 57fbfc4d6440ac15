"""Breaks in a run, and that they leave no trace in what comes of it."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.breaking import SETTINGS, STEPS, counted, fingerprint, run_folder
from reference_trainer import evaluate, files, train
from reference_trainer.__main__ import main
from reference_trainer.checkpoint import newest_state, states
from reference_trainer.learner import Learner
from tests.reference_trainer.runs import call_here, refused

TWO_EPOCHS = [*SETTINGS, "--epochs", "2", "--data.workers", "0"]


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def whole(undrawn: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing breaks."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["train", *TWO_EPOCHS, "--out", str(out)]) == 0
    return run_folder(out)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def stop() -> None:
    signal.raise_signal(signal.SIGTERM)


def stopped_run(out: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int) -> Path:
    """A run that gets a signal before call number `at` of a function, and then ends."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted(getattr(owner, name), at, stop))
        assert main(["train", *TWO_EPOCHS, "--out", str(out)]) == 143
    return run_folder(out)


@pytest.mark.parametrize(
    ("owner", "name", "at", "workers", "step"),
    [
        (Learner, "gradients", 1, 0, 1),
        (Learner, "gradients", STEPS, 0, STEPS),
        (Learner, "gradients", STEPS + 3, 1, STEPS + 3),
        (evaluate, "prepare_images", 1, 1, STEPS),
    ],
    ids=["first step", "last step of an epoch", "inside an epoch", "inside validation"],
)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    owner: Any,
    name: str,
    at: int,
    workers: int,
    step: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = stopped_run(tmp_path, monkeypatch, owner, name, at)
    said = capsys.readouterr().err
    assert f"stopped by SIGTERM after step {step}; go on with: reference_trainer resume {run}\n" in said
    assert newest_state(run).state["step"] == step
    done = call_here(capsys, "resume", run, "--workers", str(workers))
    epoch, rest = divmod(step, STEPS) if step != STEPS else (0, STEPS)
    assert (
        f"resuming in epoch {epoch + 1} of 2 after {rest} of its 8 steps; step {step} of 16" in done.messages
    )
    assert fingerprint(run) == fingerprint(whole)


def test_the_whole_recipe_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = [*SETTINGS, "--epochs", "3", "--data.workers", "0", "--accumulate", "3", "--model.norm", "batch"]
    recipe += ["--schedule.name", "plateau", "--schedule.patience", "0", "--schedule.min-delta", "0.9"]
    recipe += ["--schedule.factor", "0.5", "--schedule.warmup-epochs", "0.5"]
    recipe += ["--data.scales", "48", "64", "80", "--min-delta", "0.01"]
    assert main(["train", *recipe, "--out", str(tmp_path / "whole")]) == 0
    whole = run_folder(tmp_path / "whole")
    rates = [row["lr"] for row in newest_state(whole).state["progress"]["rows"]]
    assert rates == pytest.approx([3e-3, 3e-3, 1.5e-3]), "the first score is better than none"

    # In the epoch whose rate the plateau has lowered.
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "gradients", counted(Learner.gradients, 2 * STEPS + 3, stop))
        assert main(["train", *recipe, "--out", str(tmp_path / "broken")]) == 143
    run = run_folder(tmp_path / "broken")
    call_here(capsys, "resume", run, "--workers", "1")
    assert fingerprint(run) == fingerprint(whole)


def test_the_comparison_sees_random_numbers_that_were_not_restored(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stopped_run(tmp_path, monkeypatch, Learner, "gradients", 3)
    monkeypatch.setattr(train, "restore_random_state", lambda state: None)
    call_here(capsys, "resume", run)
    assert fingerprint(run) != fingerprint(whole)


def test_a_damaged_state_is_named_and_the_one_before_it_used(
    whole: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, newest = states(copy)
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    # The process had come further than the state that is left.
    done = call_here(capsys, "resume", copy)
    assert f"{newest}: damaged: it is not what its digest says" in done.messages
    assert "resuming in epoch 2 of 2 after 0 of its 8 steps" in done.messages
    assert newest.with_name(newest.name + ".damaged").exists()
    assert fingerprint(copy) == fingerprint(whole)
    for path in states(copy):
        path.write_bytes(b"")
    said = refused(capsys, "resume", copy)
    assert all(str(path) in said for path in (before, newest))


def test_a_complete_run_says_so_and_can_go_further(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "summary.json").unlink()
    learned = fingerprint(copy)
    done = call_here(capsys, "resume", copy)
    assert "complete: all 2 epochs are done" in done.messages
    assert done.summary["stopped_by"] is None, "what is missing in its folder is made again"
    assert fingerprint(copy) == learned
    assert "got 1, but" in refused(capsys, "resume", copy, "--epochs", "1")
    assert "epochs" in refused(capsys, "resume", copy, "--epochs", "0")

    further = call_here(capsys, "resume", copy, "--epochs", "3")
    assert "resuming in epoch 3 of 3 after 0 of its 8 steps; step 16 of 24" in further.messages
    rows = newest_state(copy).state["progress"]["rows"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    # The last step of a cosine over 24 steps, after the 3 of warm-up that the run of 16 had settled on.
    assert rows[-1]["lr"] == pytest.approx(3e-3 * 0.5 * (1 + math.cos(math.pi * 20 / 21)))


def test_an_early_stop_is_lifted_by_more_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = train.evaluate

    def never_better(*arguments: Any) -> dict[str, float] | None:
        scores = scored(*arguments)
        return None if scores is None else scores | {"mean_iou": 0.5}

    monkeypatch.setattr(train, "evaluate", never_better)
    settings = [*SETTINGS, "--data.images", "10", "--epochs", "9", "--patience", "1", "--data.workers", "0"]
    done = call_here(capsys, "train", *settings, "--out", tmp_path)
    assert newest_state(done.folder).state["progress"]["epoch"] == 2
    again = call_here(capsys, "resume", done.folder)
    assert "complete: stopped early after epoch 2 of 9" in again.messages
    call_here(capsys, "resume", done.folder, "--epochs", "8")
    assert newest_state(done.folder).state["progress"]["epoch"] == 3


def test_a_run_does_not_go_on_with_other_data(
    yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(yolo, tmp_path / "data")
    settings = ["--data", tmp_path / "data", "--data.size", "64", "--model.width", "8", "--epochs", "1"]
    done = call_here(capsys, "train", *settings, "--data.workers", "0", "--out", tmp_path / "runs")
    next((tmp_path / "data" / "labels" / "train").iterdir()).write_text("")
    assert "the train images have changed" in refused(capsys, "resume", done.folder)


def test_a_folder_without_a_state_cannot_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{tmp_path}: no state to go on from" in refused(capsys, "resume", tmp_path)


def test_the_second_signal_leaves_at_once_and_what_is_saved_stays(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice() -> None:
        stop()
        stop()

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "gradients", counted(Learner.gradients, STEPS + 2, twice))
        assert main(["train", *TWO_EPOCHS, "--out", str(tmp_path)]) == 130
    run = run_folder(tmp_path)
    assert newest_state(run).state["step"] == STEPS
    call_here(capsys, "resume", run)
    assert fingerprint(run) == fingerprint(whole)


def full_disk(lost: Callable[[str], bool]) -> Callable[..., None]:
    """An `os.fsync` that finds no room for files of some names, in the middle of writing them."""

    def fsync(number: int) -> None:
        name = os.readlink(f"/proc/self/fd/{number}")
        if lost(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fsync


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the name of an open file is not known")
def test_a_full_disk_costs_no_step_and_is_said(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(name: str) -> bool:
        return "checkpoints/step-000000016" in name or "curves" in name

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full_disk(full))
        assert main(["train", *TWO_EPOCHS, "--out", str(tmp_path)]) == 1
    run = run_folder(tmp_path)
    captured = capsys.readouterr()
    assert "NOT SAVED: checkpoints/step-000000016.pt: No space left on device" in captured.err
    assert " bytes needed, " in captured.err
    last = captured.err.splitlines()[-1]
    assert last.startswith(
        "NOT SAVED: curves.png, the last state; the newest state saved is step-000000008.pt"
    )
    assert last.endswith(f"reference_trainer resume {run}")
    assert captured.out.splitlines()[-1].endswith('"lost": ["curves.png", "the last state"]}')
    assert not list(run.rglob("*.unfinished"))
    assert newest_state(run).state["step"] == STEPS
    call_here(capsys, "resume", run)
    assert fingerprint(run) == fingerprint(whole)


def test_what_could_not_be_written_is_written_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    folder = files.RunFolder(tmp_path, said.append)
    (tmp_path / "a").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        assert not folder.write("a", b"new")
        folder.retry()
    assert (tmp_path / "a").read_text() == "old"
    assert len(said) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    folder.retry()
    assert (tmp_path / "a").read_text() == "new"
    assert not folder.waiting
