"""The benchmarks run, and write down what they measured."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import convergence, torture
from benchmarks.aims import AIMS
from benchmarks.cases import CASES, HUGE, SCALING, Case, inputs
from benchmarks.measuring import TOLERANCE, Work, counted, disagreement
from benchmarks.providers import TEXTBOOK, Provider, providers
from benchmarks.report import markdown
from benchmarks.rows import Row, read
from boxreg.iou.backends import BACKENDS

CPU = torch.device("cpu")
EVERY_JOB = list({case.job: case for case in CASES}.values())
ARGUMENTS = "--device cpu --no-compile --most 300 --seconds 0 --threads 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run on little work wrote."""
    out = tmp_path_factory.mktemp("results")
    chosen = ["--cases", "one-box head", "assigner", "raw to loss", "scaling"]
    chosen += ["--providers", "torchvision", "boxreg auto", "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks", *ARGUMENTS.split(), *chosen]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


class TestRun:
    def test_every_row_has_its_figures_and_its_machine(self, folder: Path) -> None:
        rows = read(folder / "losses.json")
        assert {row.provider for row in rows} == {"torchvision", "boxreg auto"}
        assert {row.job for row in rows} == {case.job for case in CASES}
        for row in rows:
            assert row.why_not is None
            assert row.pairs <= 800
            assert row.disagreement is not None
            assert row.disagreement <= TOLERANCE
            assert row.p20_us is not None
            assert row.median_us is not None
            assert row.p80_us is not None
            assert 0 < row.p20_us <= row.median_us <= row.p80_us
            assert row.machine["torch"] == torch.__version__.partition("+")[0]
            assert row.machine["threads"] == 1
            assert (row.times_torchvision == 1) == (row.provider == "torchvision")

    @pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
    def test_memory_of_a_fresh_process(self, folder: Path) -> None:
        rows = [row for row in read(folder / "losses.json") if row.case == "assigner"]
        assert len(rows) == 2
        assert all(row.peak_bytes is not None and 0 <= row.peak_bytes < 2**26 for row in rows)

    def test_what_people_look_at(self, folder: Path) -> None:
        text = (folder / "losses.md").read_text()
        assert "### One-box head: 64 pairs, rows" in text
        assert "## GPU\n\nNot measured." in text
        assert (folder / "scaling-cpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("case", EVERY_JOB, ids=lambda case: case.job)
@pytest.mark.parametrize("near", [False, True])
def test_providers_agree(case: Case, near: bool) -> None:
    able = providers(CPU, compiling=False)
    assert {f"boxreg {name}" for name in ("auto", "eager", "fused")} < set(able)
    for name, provider in able.items():
        if getattr(provider, case.job) is not None:
            dtype = torch.float64 if provider.double else torch.float32
            work = Work(replace(provider, near=near), case.of(500), CPU, dtype)
            assert disagreement(work) < TOLERANCE, name
    pred, target, dim = inputs(case, CPU, torch.float64, near=near)
    assert (pred.shape == target.shape) == (case.job != "pairwise")
    assert pred.shape[dim] == 4


def test_another_formula_is_found_out() -> None:
    off_by_little = Provider(
        loss=lambda pred, target, dim: TEXTBOOK.loss(pred, target, dim) * 1.001, from_raw=TEXTBOOK.from_raw
    )
    assert disagreement(Work(off_by_little, CASES[0], CPU)) > TOLERANCE
    broken = Provider(loss=lambda pred, target, dim: pred.sum() * float("nan"), from_raw=TEXTBOOK.from_raw)
    assert not disagreement(Work(broken, CASES[0], CPU)) <= TOLERANCE


def test_planes_and_rows_are_the_same_boxes() -> None:
    rows, planes = (case for case in CASES if case.name == "dense maps")
    found = [Work(TEXTBOOK, case.of(96), CPU, torch.float64).results() for case in (rows, planes)]
    by_row, by_plane = found
    torch.testing.assert_close(by_plane[0], by_row[0])
    torch.testing.assert_close(by_plane[1].transpose(1, 2).flatten(0, 1), by_row[1])


def test_calls_are_counted_by_what_they_are() -> None:
    names = ["cudaLaunchKernel", "cuLaunchKernelEx", "aten::add", "cudaStreamSynchronize", "cudaMemcpyAsync"]
    assert counted([*names, "cudaDeviceSynchronize", "Context Sync", "triton_kernel"]) == (2, 2)


def row(case: Case, provider: str, device: str = "cpu", **figures: float | int) -> Row:
    blank = Row(case.name, case.job, case.layout, case.pairs, provider, device, {}, 1e10)
    return Row(**{**vars(blank), **figures})


class TestAims:
    def test_a_device_that_was_not_there_is_not_measured(self) -> None:
        lines = [aim.line([]) for aim in AIMS]
        assert all(line.endswith("| not measured |") for line in lines)
        assert markdown([]).count("not measured") == len(AIMS)

    def test_the_worst_case_counts(self) -> None:
        aim = next(aim for aim in AIMS if aim.device == "cpu" and aim.bound == 3)
        rows = [row(case, "torchvision", median_us=90.0) for case in CASES[:2]]
        rows += [row(CASES[0], "boxreg auto", median_us=20.0), row(CASES[1], "boxreg auto", median_us=45.0)]
        assert aim.line(rows).endswith("| at least 3 | 2: missed |")
        assert aim.line([*rows[:1], rows[2]]).endswith("| 4.5: reached |")

    def test_every_aim_means_some_case(self) -> None:
        every = [row(case, "boxreg auto") for case in (*CASES, *HUGE, *SCALING)]
        assert all(any(aim.meant(one) for one in every) for aim in AIMS)


def test_each_backend_is_a_provider_or_says_why_not() -> None:
    boxes = torch.zeros(1, 4)
    able = {name for name, refusal in BACKENDS.items() if not refusal(boxes, boxes)}
    found = {name.removeprefix("boxreg ") for name in providers(CPU, True) if name.startswith("boxreg")}
    assert found == {"auto", *able}


def test_results_in_the_repository_can_be_read() -> None:
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    rows = read(results / "losses.json")
    assert (results / "losses.md").read_text() == markdown(rows)


class TestTorture:
    @pytest.mark.parametrize("case", torture.CASES, ids=lambda case: f"{case.kind}: {case.name}")
    def test_ours_keeps_every_promise(self, case: torture.Case) -> None:
        outcome = torture.run(torture.libraries()["boxreg"][case.kind], case)
        assert case.holds(outcome), str(outcome)

    def test_what_is_wrong_is_seen(self) -> None:
        """torchvision's CIoU divides by 0 for a point."""
        (case,) = [case for case in torture.CASES if case.name == "the prediction is a point"]
        assert torture.cell(torture.libraries()["torchvision"], case).startswith("✗")

    def test_what_is_not_installed_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = torture.CASES[0]
        monkeypatch.setattr(torture, "libraries", lambda: {"boxreg": torture.ours()})
        monkeypatch.setattr(torture, "CASES", (case,))
        page = torture.report()
        assert "| boxreg | 0.1.0 | 2 of 2 |" in page
        assert "| mmdet | not installed |  |" in page
        assert f"| {case.name} | ciou | loss 0 | ✓ 0, slope 0 |" in page


def test_boxes_walk_to_their_targets(tmp_path: Path) -> None:
    boxes, targets = convergence.starts(1)
    assert len(boxes) == 7**3
    far = boxes + torch.tensor([5.0, 0.0, 0.0, 0.0])
    walks = [convergence.measure(kind, far, targets, convergence.PAPERS_RATE) for kind in ("iou", "wiou")]
    assert walks[0].reached_apart == 0
    assert walks[1].reached_apart > 0.9
    assert walks[1].curve == sorted(walks[1].curve)
    page = convergence.report(walks, len(boxes), 1.0, "a machine")
    assert page.count("| wiou |") == 2
    convergence.draw(walks, tmp_path / "image.png")
    assert (tmp_path / "image.png").stat().st_size > 1000
