"""The command `audit`: what it finds in the presets and in a run, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reference_trainer.__main__ import main
from tests.reference_trainer.runs import Done, refused

QUICK = ["--data.size", "64", "--data.workers", "0", "--device", "cpu"]

POINTS = {
    "update-size": 1,
    "output-range": 2,
    "batch-size": 3,
    "dropout": 4,
    "augmentation": 5,
    "untrained-prediction": 6,
    "schedule": 7,
    "overlap-drowned": 8,
    "normalisation": 9,
    "clipping": 10,
    "averaged-weights": 11,
    "patience": 13,
    "one-scale": 14,
}
"""Which numbered point of the field notes on the set-up that got stuck a check stands for."""

QUICK_WINS = {
    "batch-size", "augmentation", "schedule", "dropout", "weight-decay", "overlap-drowned", "update-size"
}  # fmt: skip


def run_audit(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str]]:
    code = main(["audit", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


def findings(lines: list[str]) -> dict[str, dict[str, Any]]:
    (line,) = lines
    return {finding["check"]: finding for finding in json.loads(line)["findings"]}


class TestPresets:
    def test_baseline_shows_what_got_it_stuck(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, lines = run_audit(capsys, "--preset", "baseline", "--json", *QUICK)
        found = findings(lines)
        assert code == 4
        assert len({POINTS[check] for check in found if check in POINTS}) >= 12
        assert set(found) >= QUICK_WINS
        assert all(finding["evidence"] and finding["fix"] for finding in found.values())

    def test_reference_has_nothing_above_info(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, lines = run_audit(capsys, "--json", *QUICK)
        assert code == 0
        assert {finding["severity"] for finding in findings(lines).values()} <= {"info"}

    def test_grid_has_nothing_above_info(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, lines = run_audit(capsys, "--preset", "grid", "--json", "--model.width", "8", *QUICK)
        assert code == 0
        report = json.loads(lines[0])
        assert {finding["severity"] for finding in report["findings"]} <= {"info"}
        assert {"loss-optimum", "untrained-prediction", "output-range", "target-reading"} <= set(
            report["passed"]
        )

    def test_faults_of_a_grid_are_found(self, capsys: pytest.CaptureFixture[str]) -> None:
        faults = "--augmentation off --optimizer.no-exempt --clip-norm 0.01 --optimizer.lr 3"
        code, lines = run_audit(
            capsys, "--preset", "grid", "--json", "--model.width", "8", *faults.split(), *QUICK
        )
        assert code == 3
        found = findings(lines)
        assert {"weight-decay", "clipping", "augmentation", "learning-rate"} <= set(found)

    def test_a_setting_that_is_changed_is_what_is_audited(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, lines = run_audit(capsys, "--patience", "40", "--data.images", "100", *QUICK)
        assert code == 3
        result = json.loads(lines[-1])
        assert {"patience", "updates"} <= set(result["findings"])
        assert any(line.startswith("warning  patience") for line in lines)


class TestRuns:
    def test_a_run_is_audited_as_trained(self, capsys: pytest.CaptureFixture[str], small: Done) -> None:
        code, lines = run_audit(capsys, small.folder, "--json")
        result = json.loads(lines[-1])
        checked = {finding["check"] for finding in result["findings"]} | set(result["passed"])
        assert {"collapsed-boxes", "train-val-gap"} <= checked
        assert code in (3, 4)  # two epochs of two steps

    def test_a_run_takes_no_settings(self, capsys: pytest.CaptureFixture[str], small: Done) -> None:
        assert "a run has its own configuration" in refused(capsys, "audit", small.folder, "--epochs", "3")

    def test_no_run(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "not a run folder" in refused(capsys, "audit", tmp_path)


class TestOverfit:
    def test_an_image_is_learnt(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["overfit", "1", "--model.width", "8", *QUICK]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["reached"] is True
        assert result["iou"][0] >= 0.99

    def test_what_is_not_learnt(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["overfit", "2", "--optimizer.lr", "1e-9", "--seconds", "1", *QUICK]) == 1
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["reached"] is False

    @pytest.mark.parametrize("count", ["0", "9"])
    def test_how_many(self, capsys: pytest.CaptureFixture[str], count: str) -> None:
        assert "expected 1 to 8" in refused(capsys, "overfit", count)
