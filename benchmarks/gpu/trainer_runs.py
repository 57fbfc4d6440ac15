"""Whole runs of the trainer on a GPU: stopped, resumed, by torchrun, short of memory, in fp16, exported."""

from __future__ import annotations

import importlib.util
import math
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference_trainer.checkpoint import newest_state

from ..breaking import fingerprint, run_folder
from .device import Cuda
from .report import Figures, LeftOutError, Report
from .trainer_commands import (
    KEPT,
    Done,
    Started,
    here,
    largest_difference,
    program,
    require,
    rows_of,
    small,
    stopping,
    trained,
)

LONG, SHORTEST, OTHERS = 60.0, 15.0, 90.0
"""Seconds of the long run, at the most and at the least, and what the other steps take together."""

STOPPED = 128 + signal.SIGTERM
"""Exit code of a run that SIGTERM has stopped."""

FROM_THERE = r"; step (\d+) of "
"""How a resumed run says where it goes on."""

SAME_SIZE = 10.0
"""If two full runs differ, a resumed run may differ by at most this many times as much."""

TOLERANCE = 0.02
"""How much the scores of two runs with the same seed may differ."""

TORCHRUN, EPOCHS = "torch.distributed.run", 3
"""The module of torchrun, and the epochs of the run that it starts."""

DECODERS = ("cell", "yolov3", "yolov5", "ltrb", "dfl")


def long_run(device: Cuda, report: Report, work: Path) -> Figures:
    """The toy task in bf16, stopped by SIGTERM, and two epochs more."""
    seconds = device.pick(min(LONG, max(SHORTEST, report.left - OTHERS)), 0.0)
    kind = device.torch.type
    tiny = ["--data.images", "80", "--data.size", "64", "--model.width", "8", "--data.workers", "1"]
    settings = ["--epochs", "2000", "--patience", "2000", "--schedule.warmup-steps", device.pick("200", "2")]
    settings += ["--device", kind, "--precision", "bf16", *device.pick([], [*tiny, "--validate-every", "1"])]
    free = device.free_bytes()
    started = Started(program("train", *settings, "--out", work / "runs"), work / "log")
    try:
        least = free_while(device, started, work / "runs", seconds)
        asked = time.perf_counter()
        started.process.terminate()
        ended = started.end(seconds=40).expect(STOPPED)
    finally:
        started.stop()
    stopping_took = time.perf_counter() - asked
    run, stopped_at = run_folder(work / "runs"), ended.number(r"stopped by SIGTERM after step (\d+)")
    before = rows_of(run)
    more = resumed(device, work / "more", run, "--epochs", str(len(before) + 2))
    resumed_at, after = more.number(FROM_THERE), rows_of(run)
    require(resumed_at == stopped_at, f"stopped after step {stopped_at}, resumed after {resumed_at}")
    require(after[: len(before)] == before, "the rows of metrics.jsonl before the stop have changed")
    numbers = [row["epoch"] for row in after]
    require(numbers == list(range(1, len(before) + 3)), f"metrics.jsonl has the epochs {numbers}")
    return {
        **speeds(before),
        **best_of(before),
        "GPU memory of the process MiB": (free - least) / 2**20,
        "stopped after step": stopped_at,
        "seconds from SIGTERM to the end": stopping_took,
        "IoU after two more epochs": best_of(after)["best IoU"],
    }


def resumed(device: Cuda, log: Path, *arguments: str | Path) -> Done:
    """Resume a run: on a GPU in another process, as people do."""
    if device.rehearsal:
        return here("resume", *arguments).expect()
    return Started(program("resume", *arguments), log).end().expect()


def free_while(device: Cuda, started: Started, out: Path, seconds: float) -> int:
    """Let a run go on for so long, or as long as three epochs take; the least free memory of the GPU."""
    least, began = device.free_bytes(), time.perf_counter()
    while True:
        least = min(least, device.free_bytes())
        taken = time.perf_counter() - began
        epochs = max((len(rows_of(run)) for run in out.glob("*")), default=0)
        if started.process.poll() is not None or (taken > seconds and epochs >= 3) or taken > seconds + 60:
            return least
        time.sleep(0.2)


def speeds(rows: Sequence[dict[str, Any]]) -> Figures:
    """Images a second, with all that an epoch does and without, and how the time was spent."""
    counted = rows[1:]  # the first epoch draws the images
    images = sum(row["images"] for row in counted)
    steps = sorted(rate for row in counted for name, rate in row.items() if name.endswith("_per_second"))
    share = sum(row["step_share"] for row in counted) / len(counted)
    return {
        "images/s": images / (rows[-1]["seconds"] - rows[0]["seconds"]),
        "images/s between validations": steps[len(steps) // 2],
        "share in forward, backward and step": share,
        "share waiting for data": 1 - share,
        "epochs": len(rows),
    }


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The best validation score, and when it was reached."""
    validated = [row for row in rows if "val_mean_iou" in row]
    require(bool(validated), f"no validation in {len(rows)} epochs")
    best = max(validated, key=lambda row: row["val_mean_iou"])
    return {"best IoU": best["val_mean_iou"], "after seconds": best["seconds"], "in epoch": best["epoch"]}


def exact_resume(device: Cuda, work: Path) -> Figures:
    """Two whole runs, and one that was stopped in the middle and resumed in another process."""
    settings = small(device, 4)
    first, second = (trained(work / name, settings) for name in ("first", "second"))
    with stopping(13):
        here(*settings, "--out", work / "broken").expect(STOPPED)
    broken = run_folder(work / "broken")
    require(newest_state(broken).state["step"] == 13, "SIGTERM in step 13 did not stop the run after it")
    done = resumed(device, work / "log", broken, "--workers", "1")
    require(done.number(FROM_THERE) == 13, f"not resumed after step 13: {done.said[-KEPT:]}")
    prints = [fingerprint(run) for run in (first, second, broken)]
    between, of_broken = (largest_difference(first, run) for run in (second, broken))
    figures = {"difference of two runs": between, "difference of the resumed run": of_broken}
    if prints[0] == prints[1]:
        require(prints[2] == prints[0], f"two whole runs are the same, the resumed one is not: {figures}")
        return {"runs are the same bit for bit": "yes", "and so is the resumed one": "yes", **figures}
    near = of_broken <= SAME_SIZE * between
    require(near, f"the resumed run differs more than {SAME_SIZE:g} times as much: {figures}")
    return {"runs are the same bit for bit": "no", **figures}


def start_torchrun(device: Cuda, work: Path) -> Started:
    """Start a run by torchrun, as the only process."""
    # Its own name may lead nowhere on a machine without a network.
    launcher = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "1"]
    settings = small(device, EPOCHS, "--out", str(work / "runs"))
    command = program(*launcher, "-m", "reference_trainer", *settings, name=TORCHRUN)
    (work / "nccl").mkdir(parents=True)
    log = str(work / "nccl" / "%p")
    return Started(command, work / "log", NCCL_DEBUG="INFO", NCCL_DEBUG_FILE=log)


def torchrun(device: Cuda, work: Path, started: Started) -> Figures:
    """What came of the run by torchrun, on NCCL, against one without torchrun."""
    alone = trained(work, small(device, EPOCHS))
    started.end(seconds=60).expect()
    group = run_folder(started.folder.parent / "runs")
    logs = (started.folder.parent / "nccl").iterdir()
    said = "".join(path.read_text(errors="replace") for path in logs)
    require(device.rehearsal or "NCCL" in said, "NCCL was not used: it has written no log")
    ours, theirs = (rows_of(run)[-1] for run in (group, alone))
    iou = abs(ours["val_mean_iou"] - theirs["val_mean_iou"])
    loss = abs(ours["loss"] / theirs["loss"] - 1)
    require(iou <= TOLERANCE, f"the IoU differs by {iou:.2g}")
    require(loss <= TOLERANCE, f"the loss differs by {loss:.2g} of itself")
    version = re.findall(r"NCCL version (\S+)", said)
    return {
        "NCCL": version[0] if version else "no log",
        "same bit for bit": "yes" if fingerprint(group) == fingerprint(alone) else "no",
        "difference of weights": largest_difference(group, alone),
        "difference of the IoU": iou,
        "difference of the loss": loss,
    }


def start_out_of_memory(device: Cuda, work: Path) -> Started:
    """Start a run whose batches do not fit into the memory that its process may have."""
    # A process of its own: the limit stays with it.
    command = program(device.torch.type, work / "runs", name="benchmarks.gpu.trainer_memory")
    return Started(command, work / "log")


def out_of_memory(started: Started, work: Path) -> Figures:
    """What came of the run short of memory: it has gone on, in parts of batches."""
    done = started.end(seconds=60).expect()
    parts = done.number(r"from here on each batch is worked on in (\d+) parts")
    saved = newest_state(run_folder(work / "runs")).state["parts"]
    require(saved == parts > 1, f"said {parts} parts, saved {saved}")
    return {"parts": parts, **done.result}


def half_precision(device: Cuda, work: Path) -> Figures:
    """A run in fp16 with its gradient scaler."""
    run = trained(work, small(device, device.pick(10, 3), "--precision", "fp16"))
    rows, scale = rows_of(run), newest_state(run).state["scaler"]["scale"]
    first, last = rows[0]["loss"], rows[-1]["loss"]
    steps, skipped = (sum(row[name] for row in rows) for name in ("steps", "skipped_steps"))
    require(last < first, f"the loss went from {first} to {last}")
    require(math.isfinite(scale) and scale >= 1, f"the scale is {scale}")
    require(skipped < steps / 2, f"{skipped} of {steps} steps were skipped")
    return {"loss at first": first, "at last": last, "scale": scale, "steps": steps, "skipped": skipped}


def grid(device: Cuda, work: Path) -> Figures:
    """The task of several objects an image with every decoder; then evaluate and predict on the device."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise LeftOutError("needs faster-coco-eval")
    figures: dict[str, float] = {}
    run = work
    for decoder in device.pick(DECODERS, DECODERS[-1:]):
        run = trained(work / decoder, small(device, 1, "--task", "grid", "--model.decoder", decoder))
        figures[f"loss, {decoder}"] = rows_of(run)[-1]["loss"]
    scores = here("evaluate", run, "--device", device.torch.type).expect().result
    before = rows_of(run)[-1]["val_ap50"]
    require(abs(scores["ap50"] - before) <= TOLERANCE, f"AP50 {before} in the run, {scores['ap50']} after it")
    images = work / "images"
    here("data", "write", images, "--images", "10", "--size", "64").expect()
    here("predict", run, images, "--out", work / "found", "--device", device.torch.type).expect()
    return figures


def export(device: Cuda, work: Path) -> Figures:
    """The ONNX and torch.export programs of a run that was trained on the device."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise LeftOutError(f"needs {', '.join(missing)}")
    run = trained(work, small(device, 1))
    differences = here("export", run).expect().result["differences"]
    sizes = {f"{name} bytes": (run / "export" / name).stat().st_size for name in differences}
    return {f"difference of {name}": value for name, value in differences.items()} | sizes
