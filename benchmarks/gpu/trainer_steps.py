"""Single training steps on a GPU: where their time goes, the assigners, batch sizes."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from boxreg import DensePrediction, Targets, YOLOLoss, convert
from reference_trainer.config import DataConfig, ModelConfig, TrainConfig
from reference_trainer.data.loading import Batch, ObjectBatch, Squares, stop_workers, to_batch
from reference_trainer.learner import Learner, build_learner, clip_gradient
from reference_trainer.model import prepare_images
from reference_trainer.precision import autocast, pick_precision
from reference_trainer.run import Run
from reference_trainer.tasks import build_task
from reference_trainer.train import prepare

from .. import assignment
from .device import Cuda
from .report import Figures

MOST_EXPENSIVE = 5
"""Kernels that are named."""

DISTINCT = 64
"""Images that the batches of `learner_of` are made of."""


def take(learner: Learner, batch: Batch | ObjectBatch) -> None:
    """A training step as the trainer takes it."""
    step = learner.gradients(batch)
    step.finite()
    learner.move(step)


def learner_of(device: torch.device, size: int, config: TrainConfig | None = None) -> tuple[Learner, Batch]:
    """What learns with the default configuration, or another one, and a batch of some size on the device."""
    chosen = config or TrainConfig(data=DataConfig(images=2 * DISTINCT))
    task = build_task(chosen)
    precision = pick_precision(chosen.precision, device)
    chosen = chosen.resolved(device.type, 0, 0, chosen.model, precision, 10)
    images = Squares(task.open_data(["train"]).splits["train"], chosen.data.size)
    torch.manual_seed(chosen.seed)
    with redirect_stderr(io.StringIO()):
        learner = build_learner(chosen, task, images, 1000, device)
    learner.model.train()
    count = min(DISTINCT, len(images))
    samples = [images[number % count] for number in range(size)]
    return learner, to_batch(samples).to(device)


def tiny() -> TrainConfig:
    """A small network on few small images, for a rehearsal."""
    return TrainConfig(
        epochs=9,
        batch_size=8,
        device="cpu",
        data=DataConfig(images=20, size=64, workers=0),
        model=ModelConfig(width=8),
    )


def where_the_time_goes(device: Cuda, out: Path) -> Figures:
    """Training steps of the default configuration: what each part of them takes."""
    kind: Any = device.torch.type
    config = device.pick(TrainConfig(device=kind, data=DataConfig(images=400)), tiny())
    with redirect_stderr(io.StringIO()):
        run = prepare(config.model_copy(update={"out": out}), None)
    run.learner.model.train()
    epoch_of(run, 1)  # draws the images
    waiting, stepping, steps, batch = epoch_of(run, 2)
    step = lambda: take(run.learner, batch)  # noqa: E731
    parts = [phases(device, run.learner, batch) for _ in range(device.pick(20, 2))]
    stop_workers(run.loader)
    spent = kernels(device, step, device.pick(10, 1))
    busy = spent.total() / device.pick(10, 1)
    return {
        "images/s": len(batch.images) * steps / (waiting + stepping),
        "ms a step": 1e3 * (waiting + stepping) / steps,
        "of it waiting for the batch": 1e3 * waiting / steps,
        **{f"ms of {name}": 1e3 * median(part[name] for part in parts) for name in parts[0]},
        "ms that the GPU computes": 1e3 * busy,
        "share that the GPU is idle": 1 - busy * steps / (waiting + stepping),
        **{
            f"kernel {name[:70]}": f"{seconds / spent.total():.0%}"
            for name, seconds in spent.most_common(MOST_EXPENSIVE)
        },
        "waits for the GPU": ", ".join(device.waits(step)) or "none seen",
    }


def epoch_of(run: Run, number: int) -> tuple[float, float, int, Batch | ObjectBatch]:
    """An epoch as the trainer has it: seconds of waiting and of steps, their number, and a whole batch."""
    run.batches.epoch, run.batches.first = number, 0
    waiting = stepping = 0.0
    largest: Any = None
    before = time.perf_counter()
    for batch in run.loader:
        arrived = time.perf_counter()
        waiting += arrived - before
        moved = run.learner.sized(batch, run.learner.schedule.taken)
        take(run.learner, moved)
        before = time.perf_counter()
        stepping += before - arrived
        largest = moved if largest is None else largest
    return waiting, stepping, len(run.batches), largest


def phases(device: Cuda, learner: Learner, batch: Batch | ObjectBatch) -> dict[str, float]:
    """Seconds of each part of a training step, by the GPU's clock, one after another."""
    taken: dict[str, float] = {}
    found: list[Any] = []

    def part(name: str, work: Callable[[], Any]) -> Any:
        taken[name] = device.seconds(lambda: found.append(work()))
        return found.pop()

    def forward() -> Any:
        with autocast(learner.device, learner.precision):
            return learner.parallel(prepare_images(batch.images))

    learner.optimizer.zero_grad(set_to_none=True)
    prediction = part("forward", forward)
    loss = part("loss", lambda: learner.task.objective(prediction, batch).total)
    part("backward", lambda: learner.scaler.scale(loss).backward())
    learner.scaler.unscale_(learner.optimizer)
    part("clipping", lambda: clip_gradient(learner.model.parameters(), learner.clip_norm))
    part("the optimizer", lambda: learner.scaler.step(learner.optimizer))
    learner.scaler.update()
    part("the average of the weights", lambda: learner.ema.update(learner.model))
    return taken


def kernels(device: Cuda, step: Callable[[], object], repeats: int) -> Counter[str]:
    """Seconds that each kernel, fill and copy takes on the GPU in some steps, by name."""
    kind = device.pick("CUDA", "CPU")
    both = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=device.pick(both, both[:1])) as profile:
        for _ in range(repeats):
            step()
        device.synchronize()
    seconds: Counter[str] = Counter()
    for event in profile.events() or ():
        if event.device_type.name == kind and not event.is_user_annotation and "Sync" not in event.name:
            seconds[event.name] += (event.time_range.end - event.time_range.start) / 1e6
    if not seconds:
        raise AssertionError("the profiler sees no kernel")
    return seconds


def assigner(device: Cuda, name: str) -> Figures:
    """Assignment and loss of a dense prediction without waiting for the GPU, and beside the network."""
    scheme, bins = assignment.CASES[name]
    images = device.pick(assignment.BATCH, 1)
    torch.manual_seed(0)
    targets = Targets(*(part[:images].to(device.torch) for part in assignment.objects()))
    prediction = on_device(assignment.prediction(bins), images, device.torch)
    criterion = YOLOLoss(scheme)
    corners = convert(prediction.boxes.detach(), "cxcywh", "xyxy", dim=1)
    scores = prediction.scores.detach()

    def step() -> None:
        criterion(prediction, targets).total.backward()

    for _ in range(2):
        step()
    device.synchronize()
    with device.no_waiting():
        step()
    device.synchronize()
    times = {
        "ms of the assignment": lambda: scheme(corners, targets, assignment.LEVELS, scores),
        "ms with the loss": step,
        "ms of the network": network(device, images, bins),
    }
    figures = {what: 1e3 * seconds_of(device, work) for what, work in times.items()}
    share = figures["ms with the loss"] / figures["ms of the network"]
    return {**figures, "share of the network": share, "launches": len(device.launches(step))}


def on_device(prediction: DensePrediction, images: int, device: torch.device) -> DensePrediction:
    """The first images of a prediction, each part a leaf on the device."""

    def leaf(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.detach()[:images].to(device).requires_grad_()

    boxes, objectness, classes, bins = (leaf(part) for part in prediction[:4])
    assert boxes is not None
    return DensePrediction(boxes, objectness, classes, bins, prediction.levels)


def network(device: Cuda, images: int, bins: bool) -> Callable[[], object]:
    """Forward and backward of the network that such predictions come from, in bf16."""
    side = device.pick(assignment.SIDE, 64)
    outputs = 1 + assignment.CLASSES + 4 * (assignment.BINS if bins else 1)
    model = assignment.Model(outputs).to(device.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = torch.rand(images, 3, side, side, device=device.torch)
    batch = batch.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with autocast(device.torch, "bf16"):
            maps = model(batch)
        torch.stack([part.float().sum() for part in maps]).sum().backward()  # type: ignore[no-untyped-call]

    return step


def seconds_of(device: Cuda, step: Callable[[], object]) -> float:
    """The median of the seconds that the GPU takes for a step."""
    for _ in range(device.pick(3, 0)):
        step()
    return median(device.seconds(step) for _ in range(device.pick(20, 1)))


def batch_size(device: Cuda, size: int) -> Figures:
    """Memory and speed of a training step of the default configuration, its images on the GPU already."""
    learner, batch = learner_of(device.torch, size, device.pick(None, tiny()))
    step = lambda: take(learner, batch)  # noqa: E731
    peak = device.peak_bytes(step)
    seconds = seconds_of(device, step)
    return {"peak MiB": peak / 2**20, "ms a step": 1e3 * seconds, "images/s": size / seconds}
