from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.breaking import SETTINGS, STEPS, run_folder
from reference_trainer.__main__ import main
from reference_trainer.checkpoint import newest_state
from reference_trainer.data.loading import Batch, Sample, to_batch
from reference_trainer.tasks import SingleBox
from tests.reference_trainer.runs import call_here, refused

pytestmark = pytest.mark.usefixtures("undrawn")

POISONED = STEPS + 3
"""The batch, of those that a run draws, which holds a box that is not finite."""


def test_a_batch_that_is_not_finite_stops_the_run_and_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = 0

    def poison(samples: list[Sample]) -> Batch:
        nonlocal made
        batch = to_batch(samples)
        # Validation makes a batch after each epoch.
        made += 1
        if made == POISONED + 1:
            batch.targets[2, 0] = torch.nan
        return batch

    monkeypatch.setattr(SingleBox, "collate", staticmethod(poison))
    settings = [*SETTINGS, "--epochs", "2", "--data.workers", "0", "--out", tmp_path]
    said = refused(capsys, "train", *settings)
    run = run_folder(tmp_path)
    state = torch.load(run / "nonfinite.pt", weights_only=True)
    culprit = state["images"][2]
    assert f"not finite at step {POISONED}, in epoch 2" in said
    # No cell is near a centre that is no number: only what should find nothing has a say.
    assert "noobj (nan)" in said
    assert f"  {culprit}: boxes [[nan, " in said
    assert all(other not in said for other in set(state["images"]) - {culprit})
    assert f"see it again: reference_trainer replay {run}" in said
    # Nothing of that step was learned: the weights are those that the step before left.
    assert newest_state(run).state["step"] == STEPS
    assert all(weight.isfinite().all() for weight in state["model"].values())
    assert f"{run} holds the best weights before" in said

    assert main(["replay", str(run)]) == 1
    *lines, result = capsys.readouterr().out.splitlines()
    assert "noobj (nan)" in lines[1]
    assert json.loads(result)["images"] == [culprit]
    assert json.loads(result)["finite"] is False
    # What was drawn by chance is over: without it the run goes on.
    monkeypatch.undo()
    call_here(capsys, "resume", run)


def test_a_run_that_never_was_at_fault_has_nothing_to_replay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{tmp_path}: it has no nonfinite.pt" in refused(capsys, "replay", tmp_path)
