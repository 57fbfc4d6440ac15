"""Where the settings of a training come from: a preset or a file, changed by single options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..config import AUGMENTATIONS, PRESETS, Task, TrainConfig, load_config
from ..errors import ConfigError
from .arguments import read


@dataclass(frozen=True)
class BaseOptions:
    """Where a training's settings come from, before single options change them."""

    preset: Literal["reference", "baseline", "grid", "photos"] | None = None
    """reference: one box an image, the whole recipe; baseline: the set-up that got stuck, with its faults;
    grid: any number of boxes; photos: the same for images of your own."""
    config: Path | None = None
    """A configuration file to start from instead, such as the config.yaml of a run."""
    augmentation: Literal["off", "light", "default", "heavy"] | None = None
    """How strongly training images vary: sets all --augment options, before single ones change them."""
    task: Task | None = None
    """See TrainConfig; without a preset it decides which."""
    data: Annotated[Path | None, tyro.conf.arg(aliases=["--data.path"])] = None
    """See DataConfig; its boxes decide the task if nobody does."""


def starting_point(base: BaseOptions, looks_at_data: bool) -> TrainConfig:
    """The settings to start from; the data may be looked at to choose the task.

    Raises:
        ConfigError: if the options contradict each other.
        DataError: if nothing is said of the task, and the data cannot be read to see.
    """
    if base.preset and base.config:
        raise ConfigError("--preset and --config both say where to start; give one of them")
    if base.config or base.preset:
        start = load_config(base.config) if base.config else PRESETS[base.preset or ""]
        if base.task not in (None, start.task):
            where = base.config or f"preset {base.preset!r}"
            raise ConfigError(f"task: got {base.task!r}, but {where} is of task {start.task!r}")
        return start
    task = base.task
    # That there is no such file is said once the other options are understood.
    if task is None and base.data and base.data.exists() and looks_at_data:
        from ..data.opening import task_for
        from ..report import say

        task, why = task_for(base.data)
        if first_here():
            say(f"task {task}: {why}")
    if task == "grid":
        return PRESETS["photos" if base.data else "grid"]
    return PRESETS["reference"]


def settings(base: BaseOptions, rest: list[str], command: str) -> TrainConfig:
    """The settings of a command: where they come from, changed by the arguments that are left.

    Raises:
        ConfigError: if it is not clear where to start.
        DataError: see `starting_point`.
    """
    looks = command in ("train", "audit") and {"-h", "--help"}.isdisjoint(rest)
    default = starting_point(base, looks_at_data=looks)
    if base.augmentation:
        default = default.model_copy(update={"augment": AUGMENTATIONS[base.augmentation]})
    return read(
        TrainConfig,
        [*rest, *(["--data", str(base.data)] if base.data else [])],
        command,
        beside=type(base),
        default=default,
        prog=f"reference_trainer {command} [--preset NAME | --config FILE] [--augmentation NAME]",
        description="Train a box regressor. Options change the preset's settings, shown as defaults below.",
    )


def first_here() -> bool:
    """Whether this is the only rank, or the first that torchrun starts on this machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0
