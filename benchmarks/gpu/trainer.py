"""The reference trainer on a GPU: runs of its command line first, then single steps of it.

What it needs beyond torch is in requirements.txt. Without that the whole section is left out.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path

import torch

from .device import Cuda
from .report import LEFT_OUT, Record, Report
from .sections import missing_packages

OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which a process takes itself for one of several."""


def main(device: Cuda, report: Report) -> None:
    """Take all steps, those that tell most first."""
    missing = missing_packages()
    if missing:
        why = f"needs {', '.join(missing)}: see benchmarks/gpu/requirements.txt"
        return report.add(Record(report.section, "the section", LEFT_OUT, detail=why))
    for name in OF_TORCHRUN:
        os.environ.pop(name, None)
    if device.rehearsal:
        # Threads that wait for each other on a machine that does other things take most of the time.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        return take_steps(device, report, Path(place))


def take_steps(device: Cuda, report: Report, work: Path) -> None:
    """The steps in the order of their worth; each is independent of the others."""
    from ..assignment import CASES
    from ..breaking import undraw
    from . import trainer_runs as runs
    from . import trainer_steps as steps

    # In this process. The long run is a process of its own, and draws.
    undraw()
    report.step("a run, SIGTERM, resume", lambda: runs.long_run(device, report, work / "long"), needs=35)
    # These two run beside the next steps, which measure no time.
    group = runs.start_torchrun(device, work / "group")
    short = runs.start_out_of_memory(device, work / "memory")
    report.step("a resumed run is the same", lambda: runs.exact_resume(device, work / "exact"), needs=12)
    report.step("fp16", lambda: runs.half_precision(device, work / "fp16"), needs=4)
    report.step("task grid", lambda: runs.grid(device, work / "grid"), needs=10)
    report.step("one process of torchrun", lambda: runs.torchrun(device, work / "alone", group), needs=4)
    report.step("out of memory", lambda: runs.out_of_memory(short, work / "memory"), needs=2)
    for process in (group, short):
        process.stop()
    report.step("where the time goes", lambda: steps.where_the_time_goes(device, work / "time"), needs=8)
    for name in CASES:
        report.step(f"YOLOLoss, {name}", partial(steps.assigner, device, name), needs=4)
    for size in device.pick((16, 64, 256), (4, 8)):
        report.step(f"batch size {size}", partial(steps.batch_size, device, size), needs=3)
    report.step("export as ONNX", lambda: runs.export(device, work / "export"), needs=12)
