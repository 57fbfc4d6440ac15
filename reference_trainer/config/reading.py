"""Configurations as files, and what is wrong with one in a few lines."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from ..errors import ConfigError
from ..files import not_there, read_yaml, write_whole
from .branches import Settings
from .tree import TrainConfig

_SHOWN = 3

_FORMER = {"pictures": "images"}
"""Keys that were renamed to something that is spelled quite differently."""


def load_config(path: Path) -> TrainConfig:
    """Read a configuration that `save_config` wrote, or one written by hand; missing keys keep their default.

    Raises:
        ConfigError: if the file cannot be read, is no YAML mapping, or holds an unknown or wrong value.
    """
    if not path.exists():
        raise ConfigError(not_there(path))
    try:
        tree = read_yaml(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(tree).__name__}")
    return parse_config(tree, f"{path}: ")


def parse_config(tree: Mapping[str, Any], where: str = "") -> TrainConfig:
    """The configuration that a tree of settings spells.

    Raises:
        ConfigError: if it holds an unknown or wrong value; each line starts with `where`.
    """
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}{line}" for line in explain(error))) from error


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    write_whole(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def explain(error: ValidationError) -> Iterator[str]:
    """One line a fault: where it is, what is wrong, and for an unknown key the nearest known one."""
    faults = error.errors()
    listed: list[list[str]] = []
    for fault in faults[:_SHOWN]:
        where = ".".join(map(str, (*_branch(error.title), *fault["loc"])))
        if fault["type"] == "value_error":  # ours: it says what came
            yield f"{where}: {fault['msg'].removeprefix('Value error, ')}"
            continue
        if fault["type"] != "extra_forbidden":
            yield f"{where}: {fault['msg']} (got {fault['input']!r})"
            continue
        known = _keys(fault["loc"][:-1])
        key = str(fault["loc"][-1])
        near = difflib.get_close_matches(_FORMER.get(key, key), known, n=1, cutoff=0.5)
        # The list of all of them is long: once is enough.
        hint = (
            f"; did you mean {near[0]!r}?"
            if near
            else ""
            if known in listed
            else f"; known are {', '.join(known)}"
        )
        listed += [] if near else [known]
        yield f"{where}: unknown setting{hint}"
    if len(faults) > _SHOWN:
        yield f"and {len(faults) - _SHOWN} more"


def _branch(title: str) -> list[str]:
    """Where the branch is that was checked by itself, and not as part of the whole tree."""
    fields = TrainConfig.model_fields.items()
    return [name for name, field in fields if getattr(field.annotation, "__name__", "") == title]


def _keys(location: tuple[Any, ...]) -> list[str]:
    branch: type[Settings] = TrainConfig
    for key in location:
        branch = cast("type[Settings]", branch.model_fields[key].annotation)
    return list(branch.model_fields)
