"""`python -m benchmarks.gpu`: all of it is rehearsed, and a fault in it costs no more than its own step."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations, product
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import keeping, right, right_cases
from benchmarks.gpu.device import StandIn
from benchmarks.gpu.page import ROW, markdown
from benchmarks.gpu.report import (
    FAILED,
    LEFT_OUT,
    OK,
    RECORDS,
    STARTED,
    LeftOutError,
    Record,
    Report,
    add,
    read,
    set_aside,
)
from benchmarks.gpu.right_cases import CASES, CHOICES, Case, check
from benchmarks.gpu.right_others import beyond_float16, scaler
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.waiting import no_wait
from benchmarks.rows import Row
from boxreg.iou import functional
from boxreg.iou.backends._triton_maths import INTERPRETED

ROOT = Path(__file__).parents[1]
pytest.importorskip("triton")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="Triton compiles here, for a GPU")


def fail() -> None:
    raise ValueError("broken on purpose")


def leave_out() -> None:
    raise LeftOutError("needs a thing that is not here")


def test_the_rehearsal_runs_every_section(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    records = read(tmp_path)
    assert [(r.section, r.name, r.detail) for r in records if r.outcome in (FAILED, LEFT_OUT)] == []
    assert done.returncode == 0, done.stderr[-2000:]
    assert [record.section for record in records if record.outcome == "ended"] == list(SECTIONS)
    page = (tmp_path / "gpu.md").read_text()
    assert page == markdown(records)
    assert "| GPU | boxreg auto | launches a step | at most 2 | not measured |" in page
    assert "**A rehearsal on the CPU: no figure below means anything.**" in page
    for kind in ("right", "waiting", "fast", "trainer"):
        assert sum(record.section == kind and record.outcome == OK for record in records) >= 5


class TestReport:
    def test_a_step_that_fails_is_reported_and_the_next_one_goes_on(self, tmp_path: Path) -> None:
        report = Report(tmp_path, "right", 60)
        report.step("first", fail)
        report.step("second", lambda: {"error": 0.5, "pairs": 12_000})
        report.step("third", leave_out)
        first, second, third = read(tmp_path)
        assert (first.outcome, second.outcome, third.outcome) == (FAILED, OK, LEFT_OUT)
        assert "ValueError: broken on purpose" in first.detail
        assert "in fail" in first.detail
        page = (tmp_path / "gpu.md").read_text()
        assert "ValueError: broken on purpose" in page
        assert "| second | 0.0 | error 0.5, pairs 12,000 |" in page
        assert "- third: needs a thing that is not here" in page

    def test_a_step_without_time_is_left_out(self, tmp_path: Path) -> None:
        report = Report(tmp_path, "fast", 60)
        report.step("long", fail, needs=100)
        late = Report(tmp_path, "fast", -1)
        late.step("late", fail)
        assert [record.outcome for record in read(tmp_path)] == [LEFT_OUT, LEFT_OUT]

    def test_a_line_that_was_cut_off_loses_itself_alone(self, tmp_path: Path) -> None:
        Report(tmp_path, "right", 60).step("first", lambda: None)
        with open(tmp_path / RECORDS, "a") as file:
            file.write('{"section": "right", "na')
        assert [record.name for record in read(tmp_path)] == ["first"]

    def test_a_record_that_no_page_can_show_does_not_end_the_run(self, tmp_path: Path) -> None:
        add(tmp_path, Record("right", "case: ciou", OK, figures={"no": "error"}))
        Report(tmp_path, "right", 60).step("next", lambda: None)
        assert [record.name for record in read(tmp_path)] == ["case: ciou", "next"]
        assert "KeyError" in (tmp_path / "gpu.md").read_text()


class TestFolder:
    def test_an_earlier_run_is_renamed_and_its_other_sections_stay(self, tmp_path: Path) -> None:
        for section in ("right", "fast"):
            add(tmp_path, Record(section, "the section", STARTED, figures={"rehearsal": False}))
            Report(tmp_path, section, 60).step("first", lambda: None)
        set_aside(tmp_path, ["fast"], rehearsal=False)
        assert [(r.section, r.name) for r in read(tmp_path)] == [("right", "the section"), ("right", "first")]
        assert len((tmp_path / "gpu-1.jsonl").read_text().splitlines()) == 4
        assert (tmp_path / "gpu-1.md").exists()
        set_aside(tmp_path, ["fast"], rehearsal=True)
        assert read(tmp_path) == []
        assert len((tmp_path / "gpu-2.jsonl").read_text().splitlines()) == 2

    def test_a_second_run_into_it_is_refused(self, tmp_path: Path) -> None:
        with program.only_run_in(tmp_path) as first, program.only_run_in(tmp_path) as second:
            assert (first, second) == (True, False)

    def test_a_full_disk_does_not_end_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("benchmarks.gpu.report.write_page", full)
        Report(tmp_path, "right", 60).step("first", lambda: {"error": 0.25})
        said = capsys.readouterr()
        assert "right: first: ok" in said.out
        assert "No space left on device; not written" in said.err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--minutes", "nan"], "got nan, expected a number of minutes above 0"),
            (["--minutes", "-1"], "got -1, expected a number of minutes above 0"),
            (["--only"], "expected at least one argument"),
        ],
        ids=" ".join,
    )
    def test_wrong_arguments(
        self,
        arguments: list[str],
        message: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with pytest.raises(SystemExit):
            program.arguments().parse_args(["--out", str(tmp_path), *arguments])
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc").exists(), reason="descendants are found in /proc")
def test_a_section_ends_with_processes_in_sessions_of_their_own() -> None:
    script = (
        "import subprocess, time; subprocess.Popen(['sleep', '60'], start_new_session=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    while not (found := program.descendants(child.pid)):
        time.sleep(0.05)
    program.kill_all(child)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").exists() and alive(pid) for pid in found):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie, which waits for whoever has inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def options(tmp_path: Path, **others: object) -> object:
    return program.argparse.Namespace(out=tmp_path, rehearse=True, **others)


class TestSections:
    def test_one_that_takes_too_long_is_ended_with_all_that_it_has_started(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(program, "GRACE", 0.5)
        assert program.run("trainer", 1.0, options(tmp_path)) is None  # type: ignore[arg-type]
        failed, ended = read(tmp_path)[-2:]
        assert (failed.outcome, failed.detail) == (FAILED, "cut off after 2 s")
        assert (ended.outcome, ended.figures["of"]) == ("ended", 1.0)

    def test_without_a_gpu_it_says_so_once(self, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is one")
        command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout.count("torch sees no GPU; --rehearse runs the same code on the CPU") == 1

    def test_a_module_that_cannot_be_imported_is_a_record(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(program, "import_module", lambda name: fail())
        program.carry_out("fast", options(tmp_path, until=time.monotonic() + 5))  # type: ignore[arg-type]
        assert "ValueError: broken on purpose" in read(tmp_path)[-1].detail


DYING = """
import json, os, sys
place, step = map(int, sys.argv[-2:])
for number in range(place, 9, step):
    print(json.dumps({"begins": number, "name": f"task {number}"}), flush=True)
    if number == 4:
        os.kill(os.getpid(), 9)
    print(json.dumps({"section": "right", "name": f"task {number}", "outcome": "ok"}), flush=True)
    if number == 2:
        sys.exit(3)
"""


HANGING = """
import json, sys, time
print("nothing that anybody waits for", flush=True)
for number in range(int(sys.argv[-2]), 2):
    print(json.dumps({"begins": number, "name": f"task {number}"}), flush=True)
    if number == 0:
        time.sleep(60)
    print(json.dumps({"section": "right", "name": f"task {number}", "outcome": "ok"}), flush=True)
"""


def test_a_process_that_dies_loses_one_task() -> None:
    found: queue.Queue[Record] = queue.Queue()
    right.Share([sys.executable, "-c", DYING], 0, 2, 9, found).work_off()
    records = [found.get_nowait() for _ in range(found.qsize())]
    assert [(record.name, record.outcome) for record in records] == [
        ("task 0", OK),
        ("task 2", OK),
        ("task 4", FAILED),
        ("task 6", OK),
        ("task 8", OK),
    ]
    assert records[2].detail.startswith("the process ended with code -9 after")


def test_a_task_that_hangs_is_ended_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(right, "LONGEST", 1.0)
    found: queue.Queue[Record] = queue.Queue()
    share = right.Share([sys.executable, "-c", HANGING], 0, 1, 2, found)
    thread = threading.Thread(target=share.work_off)
    thread.start()
    while thread.is_alive():
        share.end_what_hangs()
        time.sleep(0.05)
    records = [found.get_nowait() for _ in range(found.qsize())]
    assert [(record.name, record.outcome) for record in records] == [("task 0", FAILED), ("task 1", OK)]


def test_every_two_values_of_two_fields_meet_in_a_case() -> None:
    met = {frozenset(meeting) for case in CASES for meeting in combinations(case._asdict().items(), 2)}
    fields = CHOICES | {"kind": {case.kind for case in CASES}, "mode": {case.mode for case in CASES}}
    missing = [
        (first, second)
        for one, other in combinations(fields, 2)
        for first, second in product([(one, v) for v in fields[one]], [(other, v) for v in fields[other]])
        if frozenset((first, second)) not in met
    ]
    assert missing == []


def test_every_case_compares_most_of_its_boxes() -> None:
    for case in CASES:
        pred, target, _ = right_cases.inputs(case, StandIn())
        lengths = right_cases.lengths_of(case, pred.double(), target.double())
        assert lengths.decidable.shape == pred.select(right_cases.dim(case), 0).shape, str(case)
        assert lengths.decidable.double().mean() > 0.7, str(case)


def off_by(factor: float, loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A loss whose kernel, and no other backend, is off by a factor."""

    def changed(*arguments: object, **named: object) -> torch.Tensor:
        return loss(*arguments, **named) * (factor if named["backend"] == "triton" else 1.0)

    return changed


@interpreted
class TestFaultsAreFound:
    CASE = Case("ciou", "linear", False, torch.float32, "xyxy", "rows", "", False, "mean", "pred")

    def test_a_kernel_that_is_off_by_a_thousandth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        check(self.CASE, StandIn())
        monkeypatch.setattr(right_cases.functional, "aligned_loss", off_by(1.001, functional.aligned_loss))
        with pytest.raises(AssertionError, match="off by more than is allowed"):
            check(self.CASE, StandIn())

    def test_a_kernel_that_forgets_a_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = right_cases.results

        def forgetful(case: Case, *arguments: object, **named: object) -> list[torch.Tensor]:
            loss, gradient = run(case, *arguments, **named)  # type: ignore[arg-type]
            gradient[..., 2] *= 0.99 if arguments[-1] == "triton" else 1.0
            return [loss, gradient]

        monkeypatch.setattr(right_cases, "results", forgetful)
        with pytest.raises(AssertionError, match="pred"):
            check(self.CASE, StandIn())

    def test_gradients_that_saturate_after_they_were_scaled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from boxreg.iou import autograd

        def saturating(
            grad: torch.Tensor | None, upstream: torch.Tensor | None, dtype: torch.dtype
        ) -> torch.Tensor | None:
            most = torch.finfo(dtype).max
            scaled = grad if grad is None or upstream is None else grad * upstream
            return scaled if scaled is None else scaled.clamp(-most, most).to(dtype)

        device = StandIn()
        scaler(device)
        beyond_float16(device)
        monkeypatch.setattr(autograd, "_scaled", saturating)
        with pytest.raises(AssertionError, match="scales differ"):
            scaler(device)
        with pytest.raises(AssertionError, match="under"):
            beyond_float16(device)

    def test_a_step_that_waits(self) -> None:
        leaf = torch.ones(3)
        no_wait(StandIn(), lambda p: p.sum(), (leaf,))
        with pytest.raises(RuntimeError, match="_local_scalar_dense would wait"):
            no_wait(StandIn(), lambda p: p.sum() * p[0].item(), (leaf,))
        with pytest.raises(RuntimeError, match="would wait"):
            no_wait(StandIn(), lambda p: p[p > 0].sum(), (leaf,))


MACHINE: dict[str, str | int] = {"processor": "a processor", "threads": 1, "torch": "2"}


class TestKeep:
    def row(self, device: str) -> Row:
        return Row("stress", "loss", "planes", 10**6, "boxreg auto", device, MACHINE, 1e12, median_us=9.0)

    def test_rows_of_a_gpu_join_those_of_the_cpu(self, tmp_path: Path) -> None:
        run, results = tmp_path / "run", tmp_path / "results"
        run.mkdir()
        results.mkdir()
        (results / "losses.json").write_text(json.dumps([asdict(self.row("cpu"))]))
        add(run, Record("fast", "the section", STARTED, figures={"gpu": "a GPU", "rehearsal": False}))
        add(run, Record("fast", f"{ROW}boxreg auto", OK, figures=asdict(self.row("cuda"))))
        add(run, Record("fast", f"{ROW}of another version", OK, figures={"pairs": 3}))
        (run / "gpu.md").unlink()
        assert keeping.keep(run, results) == 0
        assert "## GPU\n\nprocessor a processor" in (results / "losses.md").read_text()
        assert "## CPU\n\nprocessor a processor" in (results / "losses.md").read_text()
        assert {file.name for file in results.iterdir()} >= {"gpu.md", "gpu.jsonl", "scaling-cuda.png"}

    def test_a_rehearsal_is_not_kept(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert keeping.keep(tmp_path / "nowhere", tmp_path) == 2
        assert "has no gpu.jsonl with a section that has started" in capsys.readouterr().err
        add(tmp_path, Record("fast", "the section", STARTED, figures={"rehearsal": True}))
        assert keeping.keep(tmp_path, tmp_path) == 2
        assert "is a rehearsal; expected the --out of a run on a GPU" in capsys.readouterr().err


def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """A sample; `python -m benchmarks.gpu.kernels` compiles all."""
    out = tmp_path / "kernels.md"
    command = [sys.executable, "-m", "benchmarks.gpu.kernels", "--every", "23", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in out.read_text().splitlines() if "| sm_" in line]
    assert {"sm_80", "sm_90"} == {row.split(" | ")[2] for row in rows}
    assert len(rows) >= 10


def test_a_kernel_that_spills_or_moves_too_much_is_a_fault() -> None:
    kernels = pytest.importorskip("benchmarks.gpu.kernels")
    good = kernels.Kernel("ciou", "aligned_kernel", 90, 80, 0, 48.0, 48.0, 600.0, 16, 1.0)
    bad = [
        good._replace(spilled=8),
        good._replace(moved=60.0),
        good._replace(work="mean CIoU, rows, float32", widest=4),
        good._replace(name="scores_kernel", widest=8),
    ]
    assert kernels.faults([good, *bad, good._replace(name="scores_kernel", moved=60.0)]) == bad
    ptx = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    @%p1 ld.global.v2.b16 { %rs1, %rs2 }, [ %rd2 + 0 ];
    @%p2 st.global.b32 [ %rd3 + 0 ], { %r5 };
    @%p3 atom.global.gpu.acq_rel.add.u32 %r6, [ %rd4 + 0 ], %r7;
    @%p3 st.global.b32 [ %rd5 + 0 ], { %r8 };
    @%p4 ld.global.cg.b32 { %r9 }, [ %rd6 + 0 ];
    """
    assert list(kernels.accesses_of_a_thread(ptx)) == [("ld", 16), ("ld", 4), ("st", 4)]
