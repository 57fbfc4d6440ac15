from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from boxreg.losses import LOSSES
from reference_trainer import ablation
from reference_trainer.ablation.intervals import mean_interval, t_quantile
from reference_trainer.ablation.lines import ABOUT, RUNS, Lines
from reference_trainer.ablation.plan import Common, Job, chosen, config_of, digest_of, identity, jobs_of
from reference_trainer.ablation.results import results_of
from reference_trainer.ablation.rows import (
    FAMILY,
    NO_ROW,
    PARTS,
    RECOMMENDATIONS,
    ROWS,
    Row,
    added,
    removed,
    setting,
)
from reference_trainer.ablation.running import run_all, train_once
from reference_trainer.ablation.table import sentences
from reference_trainer.commands.diagnosis import AblateOptions
from reference_trainer.config import PRESETS
from reference_trainer.errors import ConfigError, UserError
from tests.reference_trainer.fake_training import MACHINE, fake
from tests.reference_trainer.runs import ROOT, call_here, refused

DEFAULT = AblateOptions()
COMMON = Common(seeds=2, epochs=12, size=64, images=300, width=8, data=None, device="cpu", threads=1, rows=())
BATCHES = ("baseline + batch 16", "batch 8")


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "run_all", lambda *args: run_all(*args, training=fake))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def recorded(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RUNS).read_text().splitlines()]


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_every_row_trains_something_else_than_its_base(row: Row) -> None:
    config = identity(config_of(row, COMMON), 1)
    if row.base is not None:
        assert digest_of(config) != digest_of(identity(config_of(ROWS[row.base], COMMON), 1))
        for name in row.changes:
            if name not in ("augment", "data.scales"):
                assert setting(config_of(row, COMMON), name) != setting(
                    config_of(ROWS[row.base], COMMON), name
                )
    assert set(row.notes) <= RECOMMENDATIONS.keys()
    assert bool(row.claim) <= bool(row.notes)


def test_parts_are_all_that_the_presets_differ_in() -> None:
    baseline, reference = (leaves(PRESETS[name].model_dump()) for name in ("baseline", "reference"))
    differ = {name for name in baseline if baseline[name] != reference[name]}
    settings = [name for part in PARTS for name in part.settings]
    assert len(settings) == len(set(settings))
    covered = {leaf for leaf in differ for name in settings if leaf == name or leaf.startswith(f"{name}.")}
    assert covered == differ - {"patience"}


def test_all_parts_added_in_turn_are_reference_and_removed_baseline() -> None:
    for start, end, rows in (
        ("baseline", "reference", map(added, PARTS)),
        ("reference", "baseline", map(removed, PARTS)),
    ):
        tree = PRESETS[start].model_dump()
        for row in rows:
            for name, value in row.changes.items():
                *branches, key = name.split(".")
                place = tree
                for branch in branches:
                    place = place[branch]
                place[key] = value
        assert tree | {"patience": None} == PRESETS[end].model_dump() | {"patience": None}


def test_every_recommendation_has_a_row_or_a_reason() -> None:
    served = {note for row in ROWS.values() for note in row.notes}
    assert served | NO_ROW.keys() == RECOMMENDATIONS.keys()
    assert not served & NO_ROW.keys()


def test_every_loss_of_the_family_is_a_row() -> None:
    rows = {row.changes["loss.overlap"] for row in FAMILY}
    assert rows | {PRESETS["reference"].loss.overlap} == LOSSES.keys()


def test_settings_in_epochs_shrink_with_the_run() -> None:
    assert config_of(ROWS["longer warm-up"], COMMON).schedule.warmup_epochs == pytest.approx(6 * 12 / 70)
    assert config_of(ROWS["ReduceLROnPlateau"], COMMON).schedule.patience == 1
    assert config_of(ROWS["reference"], COMMON).patience == 12


def test_a_row_that_names_no_setting_or_contradicts_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"row 'x': model\.nrom: unknown setting; did you mean 'norm'"):
        config_of(Row("x", "baseline", {"model.nrom": "group"}), COMMON)
    with pytest.raises(ConfigError, match="row 'x': model: head 'dense' with output 'linear'"):
        config_of(Row("x", "baseline", {"model.head": "dense"}), COMMON)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 12.706204736),
        (2, 4.302652730),
        (3, 3.182446305),
        (4, 2.776445105),
        (9, 2.262157163),
        (30, 2.042272456),
    ],
)
def test_students_t(freedom: int, quantile: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(quantile, abs=1e-8)


def test_interval_of_numbers_worked_by_hand() -> None:
    # mean 3, variance 2.5: 3 +- 2.776445 * sqrt(2.5 / 5)
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3
    assert (interval.low, interval.high) == pytest.approx((3 - 1.9632432, 3 + 1.9632432), abs=1e-6)
    assert interval.sign == 1
    assert mean_interval([-1, 0, 1]).sign == 0
    assert mean_interval([-3, -3, -3.1]).sign == -1
    assert mean_interval([0.5]) == (0.5, None, None, 1)
    assert mean_interval([0.5]).sign is None


def test_bases_come_along_and_seeds_go_first() -> None:
    jobs = jobs_of(chosen(["baseline + dense head"]), COMMON)
    names = ["baseline", "baseline + decoded outputs", "baseline + dense head"]
    assert [(job.seed, job.row) for job in jobs] == [
        (seed, name) for seed in (0, 1) for name in sorted(names, key=list(ROWS).index)
    ]


def common(**changes: Any) -> Common:
    return Common(**{**vars(COMMON), "rows": BATCHES, **changes})


@pytest.mark.usefixtures("faked")
def test_a_second_call_trains_what_is_missing(tmp_path: Path) -> None:
    result = ablation.ablate(tmp_path, common(seeds=1), 2)
    assert (result["runs"], result["failed"], result["missing"]) == (3, 1, 0)
    assert {line["row"]: line.get("final", line.get("error")) for line in recorded(tmp_path)} == {
        "baseline": 0.04,
        "baseline + batch 16": 0.16,
        "batch 8": "loss not finite\nat step 3",
    }
    # A kill tears a line; an old line is of a configuration that is no more.
    whole, torn = (tmp_path / RUNS).read_text().splitlines()[:2], '{"row": "batch 8", "se'
    (tmp_path / RUNS).write_text("\n".join([*whole, torn]))
    ablation.ablate(tmp_path, common(), 2)
    lines = Lines(tmp_path).read()
    assert sorted(line["seed"] for line in lines) == [0, 0, 0, 1, 1, 1]
    assert not (tmp_path / "runs").exists()
    # Nothing is missing now, and nothing is trained.
    before = (tmp_path / RUNS).read_bytes()
    table, figure = (tmp_path / "ablation.md").read_bytes(), (tmp_path / "ablation.png").read_bytes()
    ablation.ablate(tmp_path, common(), 2)
    assert (tmp_path / RUNS).read_bytes() == before
    assert (tmp_path / "ablation.md").read_bytes() == table
    assert (tmp_path / "ablation.png").read_bytes() == figure
    # Another setting makes all lines stale.
    with pytest.raises(UserError, match="no run of these rows with these settings"):
        ablation.ablate(tmp_path, common(epochs=3), 2, table_only=True)


@pytest.mark.usefixtures("faked")
def test_a_process_that_dies_is_reported_and_tried_again(tmp_path: Path) -> None:
    rows = common(rows=("reference, batch 64",), seeds=1)
    for calls in (1, 2):
        assert ablation.ablate(tmp_path, rows, 1)["failed"] == 1
        lines = [line for line in recorded(tmp_path) if line.get("died")]
        assert len(lines) == calls
        assert lines[0]["error"] == "its process ended with code 9: no memory left"
    assert len(recorded(tmp_path)) == 3


def test_lines_from_before_a_setting_was_added_still_count(tmp_path: Path) -> None:
    job = jobs_of(chosen(["reference"]), common(seeds=1))[0]
    lines = Lines(tmp_path)
    older = Job(job.row, job.seed, job.config, "0123456789abcdef")
    lines.describe(COMMON, [older])
    lines.add(older, {"final": 0.5})
    content = json.loads((tmp_path / ABOUT).read_text())
    del content["configurations"]["0123456789abcdef"]["config"]["model"]["prior"]
    (tmp_path / ABOUT).write_text(json.dumps(content))
    assert Lines(tmp_path).of_jobs([job], 1)["reference", 0]["final"] == 0.5
    content["configurations"]["0123456789abcdef"]["config"]["model"]["width"] = 24
    (tmp_path / ABOUT).write_text(json.dumps(content))
    assert Lines(tmp_path).of_jobs([job], 1) == {}


SCRIPT = """
import sys
from pathlib import Path
from reference_trainer.ablation.plan import Job
from reference_trainer.ablation.running import run_all
from tests.reference_trainer.fake_training import endless

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    list(run_all([Job("", seed, None, "digest") for seed in range(2)], 2, 1, folder, endless))
"""


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to look."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_its_end_is_that_of_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    while len(started := list(tmp_path.glob("pid-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    pids = [int(path.name.removeprefix("pid-")) for path in started]
    until = time.monotonic() + 30
    while not all(map(ended, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.wait(60)


def test_differences_are_paired_and_claims_read_from_intervals() -> None:
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for seed, level in enumerate((0.1, 0.3, 0.5)):
        own = {"baseline": 0.0, "baseline + batch 16": 0.1 + 0.01 * seed, "batch 8": 0.02 * (seed - 1)}
        for name, gain in own.items():
            lines[name, seed] = {"final": level + gain, "best": level + gain, "machine": MACHINE}
    lines["batch 8", 2] = {"error": "not finite"}
    results = results_of(chosen(["baseline*", "batch 8"]), lines)
    added_batch, batch_8 = results["baseline + batch 16"], results["batch 8"]
    assert added_batch.difference is not None
    assert added_batch.difference[:3] == pytest.approx((0.11, 0.11 - 0.0248414, 0.11 + 0.0248414), abs=1e-6)
    assert (added_batch.reading, added_batch.held) == ("better", True)
    assert batch_8.difference is not None
    assert batch_8.difference.of == 2
    assert (batch_8.reading, batch_8.held, batch_8.errors) == (
        "no difference shown",
        False,
        {2: "not finite"},
    )
    text = "\n".join(sentences(results))
    not_helped, helped = text.split("## Helped here")
    assert "- batch 8: -0.010 (" in not_helped
    assert "- baseline + batch 16: +0.110 (+0.085 to +0.135)" in helped


def test_a_real_ablation_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    short = ["--epochs", "1", "--images", "20", "--size", "32", "--seeds", "1", "--jobs", "1"]
    done = call_here(capsys, "ablate", "--out", tmp_path, "--rows", "baseline + batch 16", *short)
    assert (done.result["runs"], done.result["missing"], done.result["failed"]) == (2, 0, 0)
    assert {line["steps"] for line in recorded(tmp_path)} == {4, 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [ABOUT, RUNS, "ablation.md", "ablation.png"]
    )
    table = (tmp_path / "ablation.md").read_text()
    assert "20 toy images" in table
    assert "With one seed there is no interval" in table
    # The folder knows its settings: the same table again, and nothing trained.
    (tmp_path / "ablation.md").unlink()
    before = (tmp_path / RUNS).read_bytes()
    again = call_here(capsys, "ablate", "--out", tmp_path)
    assert (tmp_path / "ablation.md").read_text() == table
    assert (again.result["runs"], (tmp_path / RUNS).read_bytes()) == (2, before)


def test_a_run_is_the_same_as_in_this_process(tmp_path: Path) -> None:
    job = jobs_of(chosen(["reference"]), common(epochs=1, images=20, size=32, seeds=1))[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = train_once(job.config, tmp_path)
    torch.set_num_threads(threads)
    (ended,) = run_all([job], 1, 1, tmp_path)
    assert (ended.result["final"], ended.result["steps"]) == (here["final"], here["steps"])


def test_what_cannot_be_run_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, "ablate", "--out", tmp_path / "x", "--rows", "batch 9")
    assert "rows: got 'batch 9', which fits none of the 78 rows; did you mean 'batch 8'?" in said
    said = refused(capsys, "ablate", "--out", tmp_path / "x", "--seeds", "0")
    assert "seeds: got 0, expected at least 1" in said
    said = refused(capsys, "ablate", "--out", tmp_path / "x", "--size", "40", "--rows", "baseline")
    assert "row 'baseline': data: size: got 40, expected a multiple of 16" in said
    assert not (tmp_path / "x").exists()
