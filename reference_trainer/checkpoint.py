"""Weights and the configuration they belong to, in a run's folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from .config import TrainConfig, load_config
from .errors import CheckpointError, ConfigError
from .files import write_whole
from .tasks import build_task

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"


def save_weights(model: nn.Module, names: list[str], path: Path) -> None:
    """Write a model's weights and its classes' names; the old file stays until the new one is whole."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_whole(path, save(weights, metadata={"names": "\n".join(names)}))


def load_run(folder: Path) -> tuple[TrainConfig, nn.Module, list[str]]:
    """The configuration, model and class names of a run, ready to predict.

    Raises:
        CheckpointError: if the folder is no run, or its weights do not fit its configuration.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: not a run folder: it has no {name}")
    try:
        config = load_config(folder / CONFIG)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            names = (file.metadata() or {}).get("names", "").split("\n")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: {error}") from error
    model = build_task(config).build_model(names)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: does not fit {CONFIG}: {error}") from error
    return config, model.eval(), names


def pick_device(name: str) -> torch.device:
    """The device that `name` means: "cpu", "cuda", or "auto" for CUDA where there is one.

    Raises:
        ConfigError: for "cuda" where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: got 'cuda', but torch sees no CUDA device; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
