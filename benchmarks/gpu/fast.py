"""Fast? Time, bandwidth, memory and launches of CIoU against torchvision and the textbook formula.

The cases, rows and aims are those of `python -m benchmarks`. torch.compile makes code for any number of boxes
of a class: few, or many. All of it is compiled beforehand, in processes of their own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import torch

from ..cases import CASES, HUGE, SCALING, Case
from ..machine import describe
from ..measuring import (
    BYTES_A_PAIR,
    TOLERANCE,
    Work,
    copy_bandwidth,
    disagreement,
    in_turns,
    spread,
)
from ..providers import TEXTBOOK, TORCHVISION, Provider, ours
from ..rows import Row
from .device import Cuda, open_device
from .page import ROW
from .report import LEFT_OUT, OK, Figures, Record, Report

FEW = 8_400
"""At most this many pairs count as few."""

BLOCKS, WARPS = (256, 512, 1024), (4, 8)
"""Pairs and warps per program to try; with more pairs per thread, registers would spill."""


def main(device: Cuda, report: Report) -> None:
    folder = Path(tempfile.mkdtemp())
    compiling = compile_beforehand(device, folder)
    report.step("torch.compile beforehand", partial(wait_for, compiling, 0.3 * report.seconds, folder))
    bandwidth = copy_bandwidth(device.torch, device.pick(1024, 1))
    for few in (True, False):
        torch._dynamo.reset()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / str(few))
        able = providers(device)
        for case in cases(device, few):
            report.step(
                f"measured: {case.name}, {case.pairs:,}, {case.layout}",
                partial(measure, device, report, case, able, bandwidth),
            )
        if few:
            report.step("host time a call", partial(host_time, device, able))
            report.step("a step in a CUDA graph", partial(graph_time, device))
            for layout in ("rows", "planes"):
                report.step(f"block sizes, {layout}", partial(sweep, device, layout))


def providers(device: Cuda) -> dict[str, Provider]:
    """Who is measured, by the names of `benchmarks.aims`."""
    others = {"torchvision": TORCHVISION, "textbook": TEXTBOOK} if TORCHVISION else {"textbook": TEXTBOOK}
    compiled = {
        f"{name}, torch.compile": other.compiled(dynamic=True, backend=device.pick("inductor", "eager"))
        for name, other in others.items()
    }
    plain = {"torchvision": TORCHVISION} if TORCHVISION else {}
    return {**plain, **compiled, "boxreg auto": ours(device.backend, device.torch)}


def cases(device: Cuda, few: bool) -> Iterator[Case]:
    """The cases of few or of many pairs; in a rehearsal two of each, cut short, every job among them."""
    every = [case for case in (*CASES, *SCALING, *HUGE) if (case.pairs <= FEW) == few]
    # What torch.compile takes longest for comes last.
    every.sort(key=lambda case: ("loss", "from_raw", "pairwise").index(case.job))
    if device.rehearsal:
        every = [case for case in every if (case.job == "loss") == few][:2]
    for case in every:
        few_targets = min(case.targets, 4)
        yield device.pick(case, replace(case, count=20, batch=1, targets=few_targets))


def compile_beforehand(device: Cuda, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Processes that fill the compiler's cache, one for each of `units`."""
    started = []
    for few in (True, False):
        for number in device.pick(range(len(units(device, few))), range(int(few))):
            command = [sys.executable, "-m", "benchmarks.gpu.fast", str(int(few)), str(number)]
            environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / str(few))}
            environment |= {"TORCHINDUCTOR_COMPILE_THREADS": "2"}
            command += ["--rehearse"] if device.rehearsal else []
            with open(folder / f"{few}-{number}.log", "w") as log:
                started.append(subprocess.Popen(command, env=environment, stderr=log))
    return started


def units(device: Cuda, few: bool) -> list[Case]:
    """One case for each program that torch.compile generates; a batch of one has its own."""
    return list({(case.job, case.layout, case.batch == 1): case for case in cases(device, few)}.values())


def compile_here(device: Cuda, few: bool, number: int) -> None:
    """What such a process does: a step of each compiled provider."""
    case = units(device, few)[number]
    for name, provider in providers(device).items():
        if "torch.compile" in name:
            Work(provider, case, device.torch).step()
    device.synchronize()


def wait_for(processes: list[subprocess.Popen[bytes]], seconds: float, folder: Path) -> Figures:
    """Wait until all have ended; those that take longer are ended, and their work is done again later."""
    end = time.monotonic() + seconds
    codes = []
    for process in processes:
        try:
            codes.append(process.wait(max(end - time.monotonic(), 0.1)))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(process.wait())
    errors = [
        line for log in folder.glob("*.log") for line in log.read_text().splitlines() if "Error" in line
    ]
    assert not any(code > 0 for code in codes), f"exit codes {codes}; {errors[-1:]}"
    return {"processes": len(codes), "done": codes.count(0)}


def measure(device: Cuda, report: Report, case: Case, able: dict[str, Provider], bandwidth: float) -> Figures:
    """A row for each provider; none has a time that disagrees with the textbook's formula in float64."""
    rows = [
        Row(
            case.name,
            case.job,
            case.layout,
            case.pairs,
            name,
            device.torch.type,
            describe(device.torch),
            bandwidth,
        )
        for name, provider in able.items()
        if getattr(provider, case.job) is not None
    ]
    works = {row.provider: work for row in rows if (work := agreeing(device, row, case, able)) is not None}
    steps: dict[str, Callable[[], object]] = {name: work.step for name, work in works.items()}
    taken = in_turns(steps, device.torch, device.pick(min(1.0, report.left / 20), 0.0))
    base = spread(taken["torchvision"])[0] if "torchvision" in taken else None
    for row in rows:
        if row.provider in works:
            fill_in(device, row, works[row.provider], taken[row.provider])
            assert row.median_us is not None
            row.times_torchvision = base and 1e6 * base / row.median_us
        name = f"{ROW}{row.provider}, {case.name}, {case.pairs:,}, {case.layout}"
        outcome = OK if row.why_not is None else LEFT_OUT
        report.add(Record(report.section, name, outcome, 0.0, asdict(row), row.why_not or ""))
    mine = next(row for row in rows if row.provider == "boxreg auto")
    assert mine.why_not is None, mine.why_not
    return {"us": mine.median_us, "times torchvision": mine.times_torchvision}


def agreeing(device: Cuda, row: Row, case: Case, able: dict[str, Provider]) -> Work | None:
    """A provider's share of a case; None, and the row says why, if it cannot run or disagrees."""
    try:
        work = Work(able[row.provider], case, device.torch)
        row.disagreement = disagreement(work)
    except Exception as error:
        row.why_not = f"cannot run: {type(error).__name__}: {error}"[:200]
        return None
    if row.disagreement <= TOLERANCE:
        return work
    row.why_not = f"disagrees with the textbook by {row.disagreement:.1g}"
    return None


def fill_in(device: Cuda, row: Row, work: Work, seconds: list[float]) -> None:
    """What the turns of a provider say, and what it asked of the GPU."""
    row.turns = len(seconds)
    row.median_us, row.p20_us, row.p80_us = (1e6 * figure for figure in spread(seconds))
    if row.job == "loss":
        row.share_of_bandwidth = BYTES_A_PAIR * row.pairs / (row.median_us / 1e6) / row.copy_bytes_per_s
    # The previous step's gradient exists at the start and is freed before the new one is made.
    row.peak_bytes = device.peak_bytes(work.step)
    if row.provider == "boxreg auto" or row.pairs <= 64:
        row.launches, row.synchronisations = device.calls(work.step)


def host_time(device: Cuda, able: dict[str, Provider]) -> Figures:
    """Microseconds that the host is busy with a step of 64 pairs, while the GPU follows."""
    turns, figures = device.pick(300, 2), {}
    for name, provider in able.items():
        step = Work(provider, CASES[0], device.torch).step
        for _ in range(device.pick(20, 1)):
            step()
        device.synchronize()
        began = time.perf_counter()
        for _ in range(turns):
            step()
        figures[f"us of {name}"] = 1e6 * (time.perf_counter() - began) / turns
        device.synchronize()
    return figures


def graph_time(device: Cuda) -> Figures:
    """The time of a step without the host's: its kernels replayed, twenty times in a row."""
    figures, turns = {}, device.pick(20, 1)
    for count in device.pick((64, 8_400, 134_400), (20,)):
        work = Work(ours(device.backend, device.torch), Case("graph", count), device.torch)
        replays = partial(often, device.captured(work.step), turns)
        taken = [device.seconds(replays) for _ in range(turns)]
        figures[f"us of {count:,} pairs"] = 1e6 * statistics.median(taken) / turns
    return figures


def often(step: Callable[[], object], times: int) -> None:
    """A step, several times in a row."""
    for _ in range(times):
        step()


def sweep(device: Cuda, layout: str) -> Figures:
    """The time of a step of many pairs for each block size and number of warps; the best is named."""
    from boxreg.iou.backends import triton

    case = Case("block sizes", device.pick(4_000_000, 40), layout=layout)
    figures: dict[str, float] = {}
    own = (triton.PAIRS, triton.WARPS)
    for block, warps in product(device.pick(BLOCKS, (triton.PAIRS,)), device.pick(WARPS, (triton.WARPS,))):
        with mock.patch.multiple(triton, PAIRS=block, WARPS=warps):
            work = Work(ours("triton", device.torch), case, device.torch)
            for _ in range(device.pick(5, 1)):
                work.step()
            taken = [device.seconds(work.step) for _ in range(device.pick(20, 2))]
        figures[named(block, warps)] = 1e6 * statistics.median(taken)
    best = min(figures, key=lambda name: figures[name])
    return {"best": best, "in use": named(*own)} | {f"us at {name}": us for name, us in figures.items()}


def named(block: int, warps: int) -> str:
    return f"{block} pairs, {warps} warps"


if __name__ == "__main__":
    compile_here(open_device("--rehearse" in sys.argv), sys.argv[1] == "1", int(sys.argv[2]))
