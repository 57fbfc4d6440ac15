"""What each row trains: its configuration, made cheap in the same way for all rows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..config import AUGMENTATIONS, PRESETS, Device, TrainConfig, parse_config
from ..errors import ConfigError
from ..tasks import build_task
from .rows import ROWS, Row

EPOCHS: dict[str, Callable[[float], float]] = {
    "schedule.patience": math.ceil,
    "schedule.warmup_epochs": float,
}
"""Settings in epochs, and what their share of a shorter run is rounded by."""


@dataclass(frozen=True)
class Common:
    """What is the same for all rows, and how many seeds each has.

    Attributes:
        seeds: each decides images, weights, order and augmentation; rows are compared seed by seed.
        threads: how many each run has; another number changes the order of sums, and with it the result.
    """

    seeds: int
    epochs: int
    size: int
    images: int | None
    width: int
    data: Path | None
    device: Device
    threads: int
    rows: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """To be read by `from_json`."""
        return asdict(self) | {"data": self.data and str(self.data)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Common:
        """What `as_json` wrote."""
        data = content["data"]
        return Common(**{**content, "data": data and Path(data), "rows": tuple(content["rows"])})


@dataclass(frozen=True)
class Job:
    """One run that is to be there: a row with a seed."""

    row: str
    seed: int
    config: TrainConfig
    digest: str


def chosen(patterns: Iterable[str]) -> list[Row]:
    """The rows whose name one of the patterns fits, and those that they are compared with; all without one.

    Raises:
        ConfigError: if a pattern fits none.
    """
    patterns = list(patterns) or ["*"]
    names: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in ROWS if fnmatchcase(name, pattern)]
        if not fitting:
            near = get_close_matches(pattern, ROWS)
            hint = f"did you mean {near[0]!r}?" if near else "for example 'baseline', or 'reference - *'"
            raise ConfigError(f"rows: got {pattern!r}, which fits none of the {len(ROWS)} rows; {hint}")
        names.update(fitting)
    for name in list(names):
        while base := ROWS[name].base:
            names.add(base)
            name = base
    return [row for row in ROWS.values() if row.name in names]


def config_of(row: Row, common: Common) -> TrainConfig:
    """What a row trains, checked; with seed 0.

    Raises:
        ConfigError: if a change names no setting, or the settings contradict each other.
    """
    tree = _tree_of(row)
    share = min(common.epochs / PRESETS["reference"].epochs, 1.0)
    for name, rounded in EPOCHS.items():
        branch, key = _place(tree, name)
        read = name != "schedule.patience" or branch["name"] == "plateau"
        if read and branch[key] is not None:
            branch[key] = rounded(branch[key] * share)
    # Nothing stops early: rows that learn late would be cut off in a short run.
    tree |= {"epochs": common.epochs, "patience": common.epochs}
    tree |= {"device": common.device, "validate_every": 1}
    tree["model"] |= {"width": common.width}
    tree["data"] |= {"size": common.size, "workers": 0, "path": common.data}
    if common.images is not None:
        tree["data"]["images"] = common.images
    config = parse_config(tree, f"row {row.name!r}: ")
    build_task(config)
    return config


def _tree_of(row: Row) -> dict[str, Any]:
    if row.base is None:
        return PRESETS[row.name].model_dump()
    tree = _tree_of(ROWS[row.base])
    for name, value in row.changes.items():
        branch, key = _place(tree, name)
        named = name == "augment" and isinstance(value, str)
        branch[key] = AUGMENTATIONS[value].model_dump() if named else value
    return tree


def _place(tree: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    *branches, key = name.split(".")
    for branch in branches:
        tree = tree[branch]
    return tree, key


def identity(config: TrainConfig, threads: int) -> dict[str, Any]:
    """All that decides the result of a configuration, but for the seed."""
    tree = config.model_dump(mode="json", exclude={"seed", "out", "save_every"})
    del tree["data"]["workers"]
    tree["data"]["scales"] = list(config.data.sizes)
    return {"threads": threads, "config": tree}


def digest_of(content: Mapping[str, Any]) -> str:
    """What tells one identity from another."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def jobs_of(rows: Iterable[Row], common: Common) -> list[Job]:
    """All runs, the first seed of every row, then the next: a stop leaves rows with nearly equal seed counts.

    Raises:
        ConfigError: if a row cannot be trained so.
    """
    configs = {row.name: config_of(row, common) for row in rows}
    digests = {name: digest_of(identity(config, common.threads)) for name, config in configs.items()}
    return [
        Job(name, seed, config.model_copy(update={"seed": seed}), digests[name])
        for seed in range(common.seeds)
        for name, config in configs.items()
    ]
