"""What a run keeps: states to go on from, and the weights to use, each with the configuration it belongs to.

A state is a file of `torch.save` that ends with its own SHA-256, the comment of the zip archive that it is.
torch notices no flipped bit, and the archive's checksums leave out headers and padding; the digest does not.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from .config import TrainConfig, load_config
from .errors import CheckpointError, ConfigError
from .files import UNFINISHED, RunFolder, not_there
from .tasks import build_task

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"

ABOUT = "boxreg"
"""The metadata of a file of weights: a JSON object."""

KEPT = 2
"""Newest states in a run's folder; the best one stays beside them."""

DAMAGED = ".damaged"
"""What the name of a state that failed its check ends in, once a run has gone on without it."""

DIGEST = hashlib.sha256().digest_size * 2
"""Length of the digest, in hexadecimal digits."""


def pack_state(state: Mapping[str, Any]) -> memoryview:
    """The content of a file that `unpack_state` reads: tensors, numbers, strings, and what holds them."""
    content = BytesIO()
    torch.save(state, content)
    # A zip archive ends with the length of its comment, and the comment.
    content.seek(-2, 2)
    content.write(struct.pack("<H", DIGEST))
    content.write(hashlib.sha256(content.getbuffer()).hexdigest().encode())
    return content.getbuffer()


def unpack_state(path: Path) -> dict[str, Any]:
    """Read a file that `pack_state` made; nothing in it is run.

    Raises:
        CheckpointError: if it cannot be read, is damaged, or holds more than tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if hashlib.sha256(content[:-DIGEST]).hexdigest().encode() != content[-DIGEST:]:
        raise CheckpointError(f"{path}: damaged: it is not what its digest says, or no checkpoint")
    try:
        state: dict[str, Any] = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it holds more than tensors and plain values"
        raise CheckpointError(f"{path}: refused: {what}, which might run code; none was run") from error
    return state


class Found(NamedTuple):
    """The newest state of a run that passed its check, and what was wrong with those after it."""

    path: Path
    state: dict[str, Any]
    damaged: dict[Path, str]


def states(folder: Path) -> list[Path]:
    """The states in a run's folder, oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step-*.pt"))


def newest_state(folder: Path) -> Found:
    """The newest state of a run that can be gone on from.

    Raises:
        CheckpointError: if there is none; it says what is wrong with each.
    """
    if not folder.is_dir():
        raise CheckpointError(not_there(folder))
    damaged: dict[Path, str] = {}
    for path in reversed(states(folder)):
        try:
            return Found(path, unpack_state(path), damaged)
        except CheckpointError as error:
            damaged[path] = str(error)
    raise CheckpointError(
        "\n".join([f"{folder}: no state to go on from in {folder / CHECKPOINTS}", *damaged.values()])
    )


class Checkpoints:
    """The states of a run in its folder: the newest two, and the best.

    Args:
        files: the run's files.

    Attributes:
        lost: whether the last state could not be saved.
    """

    def __init__(self, files: RunFolder) -> None:
        self.files, self.lost = files, False
        if files.writes:
            (files.path / CHECKPOINTS).mkdir(exist_ok=True)

    def save(self, state: Mapping[str, Any], step: int, best_step: int) -> None:
        """Save the state after `step`; if that fails, those before it stay."""
        self.files.retry()
        self.lost = not self.files.write(self._name(step), pack_state(state), later=False)
        if not self.lost:
            self._prune(best_step)

    def set_aside(self, damaged: Mapping[Path, str]) -> None:
        """Say what is wrong with states that cannot be gone on from, and rename them."""
        for path, why in damaged.items():
            aside = path.with_name(path.name + DAMAGED)
            path.rename(aside)
            self.files.say(f"{why}; now {aside.name}; the state before it is used")

    def best_weights(self, best_step: int) -> dict[str, Any] | None:
        """The averaged weights of the best state, if it is there."""
        try:
            weights: dict[str, Any] = unpack_state(self.files.path / self._name(best_step))["ema"]["model"]
        except CheckpointError:
            return None
        return weights

    def _name(self, step: int) -> str:
        return f"{CHECKPOINTS}/step-{step:09d}.pt"

    def _prune(self, best_step: int) -> None:
        best = self.files.path / self._name(best_step)
        old = [path for path in states(self.files.path)[:-KEPT] if path != best]
        # A process that was killed may have left one.
        unfinished = (self.files.path / CHECKPOINTS).glob(f"*{UNFINISHED}")
        for path in (*old, *unfinished):
            path.unlink(missing_ok=True)


def pack_weights(
    weights: Mapping[str, torch.Tensor], names: list[str], scores: Mapping[str, float] | None = None
) -> bytes:
    """The content of a safetensors file: a model's weights, its classes' names, its validation scores."""
    whole = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    # One entry: safetensors writes several in an order that differs from process to process.
    about = {"names": names, "scores": dict(scores or {})}
    return bytes(save(whole, metadata={ABOUT: json.dumps(about)}))


def _about(file: Any) -> dict[str, Any]:
    """What `pack_weights` wrote beside the weights into an open file; nothing if another program made it."""
    about: dict[str, Any] = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
    return about


def saved_scores(folder: Path) -> dict[str, float]:
    """The validation scores of a run's weights, the confidence chosen there among them.

    Raises:
        CheckpointError: if the weights cannot be read.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            scores: dict[str, float] = _about(file).get("scores", {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: {error}") from error
    return scores


def load_run(folder: Path) -> tuple[TrainConfig, nn.Module, list[str]]:
    """The configuration, model and class names of a run, ready to predict.

    Raises:
        CheckpointError: if the folder is no run, or its weights do not fit its configuration.
    """
    if not folder.is_dir():
        raise CheckpointError(not_there(folder))
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: not a run folder: it has no {name}")
    try:
        config = load_config(folder / CONFIG)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            names = _about(file).get("names", [""])
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
