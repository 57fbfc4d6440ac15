"""The training run, from a configuration to a folder of results: read `learn` first."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from . import ranks
from .checkpoint import (
    CONFIG,
    WEIGHTS,
    Checkpoints,
    Found,
    load_run,
    newest_state,
    pack_weights,
    pick_device,
    states,
)
from .config import TrainConfig, parse_config, save_config
from .data.loading import (
    Squares,
    stop_workers,
    train_loader,
    val_loader,
)
from .errors import CheckpointError, ConfigError, LostRankError, UserError
from .evaluate import evaluate
from .learner import build_learner
from .nonfinite import not_finite
from .precision import pick_precision
from .progress import Progress, random_state, restore_random_state
from .recipe import EarlyStopping, describe_optimizer
from .report import RunReport
from .run import STATE_FORMAT, Run, check_data
from .schedules import warmup_steps
from .stopping import StopRequest
from .tasks import build_task


def train(config: TrainConfig) -> dict[str, Any]:
    """Train as `config` says and return the summary, which the run's folder holds too.

    All ranks but rank 0 return an empty one.

    Raises:
        ConfigError: if the configuration cannot be met on this machine.
        DataError: if the images or their labels are broken; nothing has been trained then.
        UserError: if a loss or gradient is not finite.
    """
    with ranks.joined():
        return carry_out(config, None)


def resume(
    folder: Path, epochs: int | None = None, workers: int | None = None, device: str | None = None
) -> dict[str, Any]:
    """Go on with a run exactly where its newest whole state was saved, at whatever step.

    With the same epochs, what comes of it is bit for bit what would have come of it without the break; the
    number of workers makes no difference. With other `epochs` the learning rate is from here on that of a run
    of that length; an early stop is lifted, and its patience counts anew.

    Raises:
        CheckpointError: if no state of the run can be used, or its data has changed.
        ConfigError: if `epochs` have already passed, or the device is not there.
        DataError: if the images or their labels are broken.
    """
    with ranks.joined():
        found = ranks.from_rank_zero(lambda: newest_state(folder))
        with ranks.raise_on_all_ranks():
            config = changed(found, epochs, workers, device)
        return carry_out(config, found)


def changed(found: Found, epochs: int | None, workers: int | None, device: str | None) -> TrainConfig:
    """The configuration of a state that was found, with some settings changed.

    Raises:
        CheckpointError: if the state is of another version.
        ConfigError: if `epochs` have already passed.
    """
    if found.state.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{found.path}: written by another version: its format is not {STATE_FORMAT}")
    saved = found.state["config"]
    changes = {"epochs": epochs, "device": device}
    tree = saved | {name: value for name, value in changes.items() if value is not None}
    if workers is not None:
        tree = tree | {"data": saved["data"] | {"workers": workers}}
    config, done = parse_config(tree), found.state["progress"]["epoch"]
    if config.epochs < done:
        raise ConfigError(f"epochs: got {epochs}, but {found.path.parents[1]} has done {done}")
    return config


def carry_out(config: TrainConfig, found: Found | None) -> dict[str, Any]:
    """Train from the beginning, or from a state that was found, and return the summary."""
    run = prepare(config, found)
    with StopRequest() as stop:
        if found:
            # Last, since building draws random numbers.
            restore_random_state(found.state["random"])
        try:
            with ranks.naming_the_loss(), run.report.bar(run.progress.step):
                learn(run, stop)
        except LostRankError:
            # The step under way is not taken; what was learned before it is whole.
            run.save()
            run.report.stopped("the end of another rank", run.progress)
            raise
        finally:
            stop_workers(run.loader)
        return {} if ranks.rank() else conclude(run, stop)


def prepare(config: TrainConfig, found: Found | None) -> Run:
    """Open the data, build what learns, and make or reopen the folder."""
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    with ranks.raise_on_all_ranks():
        device = ranks.own_device(pick_device(config.device))
        precision = pick_precision(config.precision, device)
        task = build_task(config)
    sources, left_out, problems = ranks.from_rank_zero(task.open_data)
    datasets = {split: Squares(source, config.data.size) for split, source in sources.items()}
    pin = device.type == "cuda"
    loader, batches = train_loader(datasets["train"], config, task.collate, pin)
    total_steps = config.epochs * len(loader)
    with ranks.raise_on_all_ranks():
        warmup = warmup_steps(config.schedule, total_steps, config.epochs)
        network = task.model_config(datasets["train"])
    config = config.resolved(device.type, loader.num_workers, warmup, network, precision, len(loader))
    task = build_task(config)
    learner = build_learner(config, task, datasets["train"], total_steps, device)
    if found:
        with ranks.raise_on_all_ranks():
            check_data(datasets, found)
            learner.load_state_dict(found.state)
    report = RunReport(config, task, len(loader), found.path.parents[1] if found else None)
    if report.files.writes:
        save_config(config, report.folder / CONFIG)
    run = Run(
        config=config,
        datasets=datasets,
        loader=loader,
        batches=batches,
        validation=val_loader(datasets["val"], task.collate, pin),
        learner=learner,
        progress=Progress(EarlyStopping(config.patience or 0, config.min_delta)),
        report=report,
        checkpoints=Checkpoints(report.files),
        started=started,
    )
    report.start(learner.model, datasets, left_out, problems)
    if found:
        restore(run, found)
    return run


def restore(run: Run, found: Found) -> None:
    """Bring progress and folder back to where the state was saved, and say where that is."""
    progress, before = run.progress, found.state["config"]["epochs"]
    progress.load_state_dict(found.state["progress"], run.learner.device)
    if run.config.epochs != before and progress.stopping.over:
        progress.stopping.wait_anew()
    if ranks.rank():
        return
    run.checkpoints.set_aside(found.damaged)
    # The rank that is gone may have come further than its last state.
    run.report.metrics(progress.rows)
    best = run.checkpoints.best_weights(progress.best_step)
    if progress.scores and best:
        names = run.datasets["train"].source.names
        run.report.files.write(WEIGHTS, pack_weights(best, names, progress.scores))
    run.report.resumed(progress, run.complete)


def learn(run: Run, stop: StopRequest) -> None:
    """Train from where the run is to its end, or to where it is asked to stop; its state is saved then."""
    learner, progress = run.learner, run.progress
    while not run.complete:
        train_epoch(run, stop)
        ranks.check_same_weights(learner.ema.model)
        epoch, scores = progress.epoch + 1, None
        validates = epoch == run.config.epochs or epoch % run.config.validate_every == 0
        if validates and not stop.requested:
            scores = evaluate(learner.task, learner.ema.model, run.validation, learner.device, stop.settle)
        if stop.requested:
            # Validation is repeated when the run goes on.
            return run.save()
        close_epoch(run, scores)
        run.save()
    return None


def train_epoch(run: Run, stop: StopRequest) -> None:
    """What is left of an epoch, or up to the step at which a stop was asked for.

    Raises:
        UserError: if the loss or the gradient of a step is not finite; that step is not taken.
    """
    learner, progress, batches = run.learner, run.progress, run.batches
    learner.model.train()
    batches.epoch, batches.first = progress.epoch + 1, progress.step - progress.epoch * len(batches)
    if batches.first == len(batches):
        return
    before = time.perf_counter()
    for batch in run.loader:
        run.report.first_batch(batch)
        if learner.sizes and not run.rehearsed:
            learner.rehearse(batch)
            run.rehearsed = True
        ranks.seed_step(run.config.seed, progress.step)
        random, lr, begun = random_state(), learner.schedule.lr, time.perf_counter()
        batch = learner.sized(batch, progress.step)
        own = learner.gradients(batch)
        step, images, asked = own.of_all(len(batch.images), stop.asked, run.config.batch_size)
        stop.agree(asked)
        if not step.finite():
            raise not_finite(run, batch, random)
        learner.move(step)
        now = time.perf_counter()
        progress.step += 1
        progress.meter.add(step, lr, images, now - before, now - begun)
        before = now
        run.report.step(batches.epoch, step, lr, progress.meter.images / progress.meter.seconds)
        if stop.requested:
            break
        if run.config.save_every and progress.step % run.config.save_every == 0:
            run.save()


def close_epoch(run: Run, scores: dict[str, float] | None) -> None:
    """Write down what came of an epoch; keep the weights if they are the best."""
    learner, progress = run.learner, run.progress
    epoch = progress.epoch + 1
    row = {"epoch": epoch, **progress.meter.row(learner.clip_norm)}
    if scores is not None:
        if not all(map(math.isfinite, scores.values())):
            error = UserError(f"the scores are not finite in epoch {epoch}; {run.advice()}")
            raise ranks.raised_by_rank_zero(error)
        row |= {f"val_{name}": value for name, value in scores.items()}
        learner.schedule.scored(scores[learner.task.best_by])
    row["seconds"] = run.seconds
    progress.close_epoch(row)
    run.report.metrics(progress.rows)
    run.report.epoch(row)
    if scores and (progress.stopping.improved(scores[learner.task.best_by], epoch) or not progress.scores):
        progress.scores, progress.best_step = scores, progress.step
        if run.report.files.writes:
            run.save_average()


def conclude(run: Run, stop: StopRequest) -> dict[str, Any]:
    """Draw what the run came to, write its summary and say what to do next."""
    learner, progress, report = run.learner, run.progress, run.report
    if not run.complete:
        report.stopped(str(stop.name), progress)
        if not progress.scores:
            run.save_average()
    try:
        model = load_run(report.folder)[1].to(learner.device)
    except CheckpointError:  # the disk is full
        model = learner.ema.model
    scores = progress.scores
    shown = [key.removeprefix("val_") for key in learner.task.shown if key.startswith("val_")]
    result = {
        **{name: scores and scores[name] for name in shown},
        "seconds": run.seconds,
        "best_epoch": progress.stopping.best_epoch,
        "stopped_by": None if run.complete else stop.name,
        "best_by": learner.task.best_by,
        "shown": shown,
        "scores": scores,
        "optimizer": describe_optimizer(learner.optimizer),
    }
    summary = report.finish(result, progress.rows, model, run.datasets["val"], learner.device)
    lost = [*report.files.waiting, *(["the last state"] if run.checkpoints.lost else [])]
    if lost:
        newest = states(report.folder)
        report.lost(lost, newest[-1].name if newest else None)
    return summary | {"lost": lost}
