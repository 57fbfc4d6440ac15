"""From a source of pictures to batches: squares of one size, augmented under seeds of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from boxreg import BoxHead, convert

from ..config import DataConfig, TrainConfig
from .augment import Augmentation
from .sample import DataError, LeftOut, PictureSource, letterbox, one_box_only
from .toy import toy_splits
from .yolo import open_yolo_splits

MEMORY_BUDGET = 2**30
"""Letterboxed pictures are kept in memory up to this many bytes; a larger set is decoded as it is used."""


CORES_OF_A_STEP, MOST_WORKERS = 2, 4
"""On two cores a worker takes more from the step than it saves; beyond them it comes for free."""

PRIOR_PICTURES = 1000
"""The prior box is the median of at most this many boxes."""


class Batch(NamedTuple):
    """Pictures uint8 (B, 3, S, S) and one target box each (B, 4), cxcywh as fractions of the square."""

    images: Tensor
    targets: Tensor


Batches = DataLoader[tuple[Tensor, Tensor]]
"""A loader that yields a `Batch` for each batch of samples."""


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """The pictures of a source, one box each, letterboxed to one size.

    Args:
        source: pictures with exactly one box.
        size: side of the square in pixels.
    """

    def __init__(self, source: PictureSource, size: int) -> None:
        self.source, self.size = source, size
        fits = len(source) * 3 * size * size <= MEMORY_BUDGET
        self.kept = [self._load(index) for index in range(len(source))] if fits else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture uint8 (3, S, S) and box (4,), xyxy in pixels of the square."""
        return self._load(index) if self.kept is None else self.kept[index]

    def prior(self) -> tuple[float, float, float, float]:
        """The median box (cx, cy, w, h) of the first pictures, as fractions of the square."""
        boxes = torch.stack([self[index][1] for index in range(min(len(self), PRIOR_PICTURES))])
        return BoxHead.prior_from(boxes / self.size, fmt="xyxy")

    def _load(self, index: int) -> tuple[Tensor, Tensor]:
        picture = self.source[index]
        image, boxes, _ = letterbox(picture.image, picture.boxes, self.size)
        return image, boxes[0]


class TrainingSamples(Dataset[tuple[Tensor, Tensor]]):
    """Augmented squares; what is drawn depends on (seed, epoch, index) alone, not on workers or order.

    Args:
        squares: the pictures.
        augmentation: applied to picture and box together.
        seed: of the run.
    """

    def __init__(self, squares: Squares, augmentation: Augmentation, seed: int) -> None:
        self.squares, self.augmentation, self.seed = squares, augmentation, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        (sample,) = self.__getitems__([key])
        return sample

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """The samples of a batch: a DataLoader asks for them together."""
        images, boxes = zip(*(self.squares[index] for _, index in keys), strict=True)
        # Python hashes integers, and tuples of them, the same way in every process.
        seeds = [hash((self.seed, *key)) % 2**63 for key in keys]
        augmented = self.augmentation(torch.stack(images), torch.stack(boxes), seeds)
        return list(zip(*augmented, strict=True))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), shuffled by (seed, epoch); set `epoch` before each pass."""

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length).tolist()
        for start in range(0, self.length, self.batch_size):
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


def to_batch(samples: list[tuple[Tensor, Tensor]]) -> Batch:
    """Stack samples and bring their boxes to fractions of the square."""
    images = torch.stack([image for image, _ in samples])
    boxes = torch.stack([box for _, box in samples])
    return Batch(images, convert(boxes / images.shape[-1], "xyxy", "cxcywh"))


def train_loader(squares: Squares, config: TrainConfig) -> tuple[Batches, EpochBatches]:
    """Batches of augmented pictures, and the sampler that must be told the epoch."""
    sampler = EpochBatches(len(squares), config.batch_size, config.seed)
    samples = TrainingSamples(squares, Augmentation(config.augment), config.seed)
    workers = config.data.workers
    if workers is None:
        workers = min(max((os.cpu_count() or 1) - CORES_OF_A_STEP, 0), MOST_WORKERS)
    loader = DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=to_batch,
        worker_init_fn=_start_worker,
        # Its own: a loader draws from it, how often depends on the workers, and dropout must not notice.
        generator=torch.Generator(),
    )
    return loader, sampler


def val_loader(squares: Squares) -> Batches:
    """Batches of pictures as they are, in order."""
    return DataLoader(squares, batch_size=64, collate_fn=to_batch)


def open_sources(
    config: DataConfig, seed: int, splits: Sequence[str] = ("train", "val")
) -> tuple[dict[str, PictureSource], dict[str, LeftOut]]:
    """The splits with one-box pictures only, and what was left out of each.

    Raises:
        DataError: if a folder, a label or a picture is broken, or a split has no one-box picture.
    """
    opened: Mapping[str, PictureSource]
    if config.path is None:
        opened = toy_splits(config.pictures, config.size, seed)
    else:
        opened = open_yolo_splits(config.path, splits)
    chosen = {name: one_box_only(opened[name]) for name in splits}
    empty = [name for name, (subset, _) in chosen.items() if not len(subset)]
    if empty:
        raise DataError(*(f"{config.path}: {name}: no picture with exactly one box" for name in empty))
    return {name: subset for name, (subset, _) in chosen.items()}, {
        name: left_out for name, (_, left_out) in chosen.items()
    }


def task_name(path: Path | None) -> str:
    """A short name of what is trained on: "toy", or the name of the folder."""
    if path is None:
        return "toy"
    folder = path.parent if path.suffix in (".yaml", ".yml") else path
    return folder.resolve().name


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; only the main one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
