"""The benchmarks run, and write down what they measured."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import convergence, costs, growth, torture
from benchmarks.aims import AIMS
from benchmarks.cases import CASES, HUGE, ON_CPU, SCALING, Case, inputs
from benchmarks.measuring import TOLERANCE, Work, counted, disagreement, in_turns, one_core_busy
from benchmarks.providers import RIVAL, TEXTBOOK, Provider, providers
from benchmarks.report import markdown
from benchmarks.rows import Row, read
from boxreg.losses import LOSSES

CPU = torch.device("cpu")
EVERY = (*CASES, *SCALING, *ON_CPU)
EVERY_JOB = list({(case.job, case.kind, case.decoder, case.layout): case for case in EVERY}.values())
ARGUMENTS = "--device cpu --no-compile --most 300 --seconds 0 --threads 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run on little work wrote."""
    out = tmp_path_factory.mktemp("results")
    chosen = ["--cases", "one-box head", "assigner", "raw to loss", "weighted loss", "other losses"]
    chosen += ["--providers", "torchvision", "boxreg auto", "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks", *ARGUMENTS.split(), *chosen]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


class TestRun:
    def test_every_row_has_its_figures_and_its_machine(self, folder: Path) -> None:
        rows = read(folder / "losses.json")
        assert {row.provider for row in rows} == {"torchvision", "boxreg auto"}
        assert {row.job for row in rows} == {case.job for case in EVERY}
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
            assert row.busy_us is not None
            assert row.busy_us > 0
            assert row.machine["threads"] == 1
            if row.kind == "ciou":
                assert (row.times_torchvision == 1) == (row.provider == "torchvision")

    @pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
    def test_memory_of_a_fresh_process(self, folder: Path) -> None:
        rows = [row for row in read(folder / "losses.json") if row.case == "assigner"]
        assert len(rows) == 2
        assert all(row.peak_bytes is not None and 0 <= row.peak_bytes < 2**26 for row in rows)

    def test_what_people_look_at(self, folder: Path) -> None:
        text = (folder / "losses.md").read_text()
        assert "### One-box head: 64 pairs, rows" in text
        assert "### One-box head: 64 pairs, planes" in text
        assert all(f"| {kind} | " in text for kind in LOSSES if kind != "ciou")
        assert "## GPU\n\nNot measured." in text
        assert (folder / "scaling-cpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("case", EVERY_JOB, ids=lambda case: f"{case.name}, {case.kind}, {case.layout}")
@pytest.mark.parametrize("near", [False, True])
def test_providers_agree(case: Case, near: bool) -> None:
    able = providers(CPU, compiling=False)
    assert {"boxreg auto", "boxreg eager"} < set(able)
    for name, provider in able.items():
        if provider.offers(case) and not provider.missing:
            dtype = torch.float64 if provider.double else torch.float32
            work = Work(replace(provider, near=near), case.of(500), CPU, dtype)
            assert disagreement(work) < TOLERANCE, name
    pred, target, dim = inputs(case, CPU, torch.float64, near=near)
    assert pred.shape == target.shape or case.job == "pairwise"
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
    return Row(**{**vars(blank), "kind": case.kind, **figures})


class TestAims:
    def test_a_device_that_was_not_there_is_not_measured(self) -> None:
        lines = [aim.line([]) for aim in AIMS]
        assert all(line.endswith("| not measured |") for line in lines)
        assert markdown([]).count("not measured") == len(AIMS)

    def test_the_worst_case_counts(self) -> None:
        aim = next(aim for aim in AIMS if aim.device == "cpu" and aim.bound == 8)
        rows = [row(case, "torchvision", median_us=90.0) for case in CASES[:2]]
        rows += [row(CASES[0], "boxreg auto", median_us=10.0), row(CASES[1], "boxreg auto", median_us=45.0)]
        assert aim.line(rows).endswith("| at least 8 | 2: missed |")
        assert aim.line([*rows[:1], rows[2]]).endswith("| 9: reached |")

    def test_the_fastest_rival_counts(self) -> None:
        aim = next(aim for aim in AIMS if "powerboxes" in aim.against)
        case = next(case for case in ON_CPU if aim.meant(row(case, "boxreg auto")))
        rows = [row(case, name, median_us=us) for name, us in zip(aim.against, (20.0, 30.0), strict=True)]
        rows.append(row(case, "boxreg auto", median_us=10.0))
        assert aim.line(rows).endswith("| 2: reached |")
        assert aim.line(rows[::-1]).endswith("| 2: reached |")

    def test_every_aim_means_some_case(self) -> None:
        every = [row(case, "boxreg auto") for case in (*EVERY, *HUGE)]
        names = (costs.COMPILE, costs.CACHED, costs.IMPORT, costs.CALL)
        every += [Row(name, "cost", "", 1, "boxreg auto", "cpu", {}, 1e10) for name in names]
        assert all(any(aim.meant(one) for one in every) for aim in AIMS)


def test_the_rival_is_there_in_every_case() -> None:
    able = providers(CPU, compiling=True)
    for case in EVERY:
        assert able[RIVAL].offers(case) or case.name == "other losses"
        assert able["boxreg auto"].offers(case)
        assert able["boxreg eager"].offers(case)


def test_what_is_not_installed_has_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks import __main__, providers

    monkeypatch.setattr(providers, "find_spec", lambda module: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *ARGUMENTS.split(), "--no-busy", "--out", str(tmp_path)])
    sys.argv += ["--cases", "pairwise IoU of an image", "--providers", "powerboxes", "boxreg auto"]
    assert __main__.main() == 0
    missing, mine = read(tmp_path / "losses.json")
    assert missing.why_not == "not installed (pip install 'boxreg[bench]')"
    assert mine.why_not is None
    assert f"| powerboxes | {missing.why_not} |" in (tmp_path / "losses.md").read_text()


def test_steps_take_turns() -> None:
    order: list[str] = []
    taken = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, CPU, 0.0, least_turns=3)
    assert order == list("ababab")
    assert [len(seconds) for seconds in taken.values()] == [3, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")
def test_a_core_is_busy_and_then_free() -> None:
    def children() -> int:
        return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before = children()
    with one_core_busy():
        assert children() == before + 1
    assert children() == before


class TestCosts:
    def test_calls_of_python_functions(self) -> None:
        assert costs.python_calls(lambda: None) == (0, 0)
        calls, files = costs.python_calls(costs.one_step)
        assert 1 < files < calls < 200

    def test_a_first_call_takes_less_from_the_cache(self, tmp_path: Path) -> None:
        compiled, cached = (costs.first_call(str(tmp_path)) for _ in range(2))
        assert 0 < cached < compiled


class TestGrowth:
    def test_a_line_that_rises_grows(self) -> None:
        rising = [(1000 * x, 5_000_000 + 8000 * x + (-1) ** x * 500) for x in range(growth.SAMPLES)]
        assert growth.slope(rising).grows
        assert growth.slope(rising).bytes == pytest.approx(8.0, rel=0.1)
        assert not growth.slope([(x, y - 8 * x) for x, y in rising]).grows

    def test_calls_are_made_and_the_page_written(self) -> None:
        found = growth.samples(60)
        assert [call for call, _ in found] == [6 + 6 * turn for turn in range(growth.SAMPLES)]
        assert "| 60 | no growth" in growth.report(found, 1.0, {"processor": "some"})


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
        assert f"| {case.name} | ciou | loss 0 | ✓ 0, gradient 0 |" in page


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
