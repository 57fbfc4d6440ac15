"""The training run, from a configuration to a folder of results: read `train` first."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .checkpoint import CONFIG, WEIGHTS, load_run, pick_device, save_weights
from .config import TrainConfig, save_config
from .data.loading import Batch, Batches, ObjectBatch, Squares, train_loader, val_loader
from .errors import ConfigError, UserError
from .evaluate import evaluate
from .meter import Meter, Step
from .model import prepare_images
from .recipe import EarlyStopping, Ema, build_optimizer, describe_optimizer, lr_factor, warmup_steps
from .report import RunReport
from .stopping import StopRequest
from .tasks import Task, build_task


@dataclass
class Learner:
    """What learns: the network, its average, and everything that moves them."""

    task: Task
    model: nn.Module
    ema: Ema
    optimizer: Optimizer
    schedule: LambdaLR
    clip_norm: float | None
    device: torch.device


def train(config: TrainConfig) -> dict[str, Any]:
    """Train as `config` says and return the summary, which the run's folder holds too.

    Raises:
        ConfigError: if the configuration cannot be met on this machine.
        DataError: if the pictures or their labels are broken; nothing has been trained then.
    """
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    device = pick_device(config.device)
    task = build_task(config)

    sources, left_out, problems = task.open_data()
    pictures = {split: Squares(source, config.data.size) for split, source in sources.items()}
    loader, batches = train_loader(pictures["train"], config, task.collate)
    validation = val_loader(pictures["val"], task.collate)
    total_steps = config.epochs * len(loader)

    warmup = warmup_steps(config.schedule, total_steps)
    if warmup >= total_steps:
        raise ConfigError(f"schedule.warmup_steps: got {warmup}, but the run has {total_steps} steps")
    config = config.resolved(device.type, loader.num_workers, warmup)
    learner = build_learner(config, task, pictures["train"], total_steps, device)
    report = RunReport(config, task, len(loader))
    save_config(config, report.folder / CONFIG)
    report.start(learner.model, pictures, left_out, problems)

    stopping = EarlyStopping(config.patience)
    best: dict[str, float] | None = None
    with StopRequest() as stop, report.progress():
        for epoch in range(1, config.epochs + 1):
            batches.epoch = epoch
            row = {"epoch": epoch} | train_epoch(learner, loader, epoch, report, stop)
            last = epoch == config.epochs or stop.requested
            validate = last or epoch % config.validate_every == 0
            if validate:
                scores = evaluate(task, learner.ema.model, validation, device)
                if not all(map(math.isfinite, scores.values())):
                    raise diverged("the scores are not finite", epoch, learner, report)
                row |= {f"val_{name}": value for name, value in scores.items()}
                if stopping.improved(scores[task.best_by], epoch) or best is None:
                    best = scores
                    save_weights(learner.ema.model, sources["train"].names, report.folder / WEIGHTS)
            report.epoch(row | {"seconds": time.perf_counter() - started})
            if last or (validate and (stop.requested or stopping.over(epoch))):
                break

    assert best is not None  # the last epoch always validates
    return report.finish(
        {
            task.best_by: best[task.best_by],
            "seconds": time.perf_counter() - started,
            "best_epoch": stopping.best_epoch,
            "stopped_by": stop.name,
            "best_by": task.best_by,
            "scores": best,
            "optimizer": describe_optimizer(learner.optimizer),
        },
        load_run(report.folder)[1].to(device),
        pictures["val"],
        device,
    )


def build_learner(
    config: TrainConfig, task: Task, pictures: Squares, total_steps: int, device: torch.device
) -> Learner:
    """The network with the optimizer and schedule that `config` names."""
    model = task.build_model(pictures.source.names, pictures)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(config.optimizer, model)
    return Learner(
        task=task,
        model=model,
        ema=Ema(model, config.ema_decay),
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, lambda step: lr_factor(config.schedule, step, total_steps)),
        clip_norm=config.clip_norm,
        device=device,
    )


def train_epoch(
    learner: Learner, loader: Batches, epoch: int, report: RunReport, stop: StopRequest
) -> dict[str, Any]:
    """One pass over the training pictures, or up to the step at which a stop was asked for.

    Raises:
        UserError: if the loss of the epoch is not finite.
    """
    learner.model.train()
    meter = Meter()
    started = time.perf_counter()
    for batch in loader:
        report.first_batch(batch)
        lr = float(learner.schedule.get_last_lr()[0])
        before = time.perf_counter()
        step = take_step(learner, batch)
        meter.steps.append(step)
        meter.pictures += len(batch.images)
        meter.stepping += time.perf_counter() - before
        meter.seconds = time.perf_counter() - started
        report.step(epoch, step, lr, meter.pictures / meter.seconds)
        if stop.requested:
            break
    row = meter.row(learner.clip_norm)
    if not math.isfinite(row["loss"]):
        raise diverged(f"the loss is {row['loss']}", epoch, learner, report)
    return row | {"lr": lr, "steps": len(meter.steps), "pictures": meter.pictures}


def diverged(what: str, epoch: int, learner: Learner, report: RunReport) -> UserError:
    """The error of a run that has left the finite numbers."""
    peak = learner.optimizer.param_groups[0]["initial_lr"]
    left = "the best weights before" if (report.folder / WEIGHTS).exists() else "no weights"
    return UserError(
        f"{what} in epoch {epoch}; try a smaller --optimizer.lr than {peak}. {report.folder} holds {left}"
    )


def take_step(learner: Learner, batch: Batch | ObjectBatch) -> Step:
    """Forward, backward, clip, step; then the average follows."""
    batch = batch.to(learner.device)
    with autocast(learner.device):
        prediction = learner.model(prepare_images(batch.images))
    objective = learner.task.objective(prediction, batch)
    learner.optimizer.zero_grad(set_to_none=True)
    objective.total.backward()  # type: ignore[no-untyped-call]
    norm = clip_gradient(learner.model.parameters(), learner.clip_norm)
    learner.optimizer.step()
    learner.schedule.step()
    learner.ema.update(learner.model)
    with torch.no_grad():
        figures = learner.task.figures(prediction, batch)
    return Step(objective.detached(), figures, norm)


def clip_gradient(parameters: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale the gradient down to norm `limit`; returns its norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit is not None:
        for gradient in gradients:
            gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 on CUDA; float32 on the CPU, where it is the faster of the two."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
