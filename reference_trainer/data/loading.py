"""From a source of images to batches: squares of one size, augmented under seeds of their own."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from boxreg import BoxHead, convert

from .. import ranks
from ..config import DataConfig, TrainConfig
from .augment import Augmentation
from .opening import open_data
from .sample import Counts, DataError, ImageSource, LeftOut, letterbox, one_box_only
from .toy import toy_splits

MEMORY_BUDGET = 2**30
"""Letterboxed images are kept in memory up to this many bytes; a larger dataset is decoded as it is used."""

CORES_OF_A_STEP, MOST_WORKERS = 2, 4
"""On two cores a worker takes more from the step than it saves; beyond them it comes for free."""

PRIOR_IMAGES = 1000
"""At most this many images are used to find prior boxes and anchors."""

TOY_OBJECTS = 6
"""Most objects in a toy image where there are several."""


VALIDATED_AT_ONCE = 64
"""Images of a batch to validate on."""


class Sample(NamedTuple):
    """A square image uint8 (3, S, S) with boxes (K, 4), xyxy in its pixels, and labels (K,)."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """Images uint8 (B, 3, S, S) and one target box each (B, 4), cxcywh as fractions of the square."""

    images: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    def none(self) -> Batch:
        """No image of it."""
        return Batch(*(part[:0] for part in self))


class ObjectBatch(NamedTuple):
    """Images uint8 (B, 3, S, S), and each one's boxes (K, 4), xyxy in pixels, and labels (K,)."""

    images: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]

    def to(self, device: torch.device) -> ObjectBatch:
        """The same on a device."""
        boxes, labels = ([part.to(device, non_blocking=True) for part in parts] for parts in self[1:])
        return ObjectBatch(self.images.to(device, non_blocking=True), boxes, labels)

    def none(self) -> ObjectBatch:
        """No image of it."""
        return ObjectBatch(self.images[:0], [], [])


def batch_from(parts: Mapping[str, Any]) -> Batch | ObjectBatch:
    """The batch whose parts these are, by name."""
    return Batch(**parts) if "targets" in parts else ObjectBatch(**parts)


Batches = DataLoader[Sample]
"""A loader that yields a `Batch` for each batch of samples, or an `ObjectBatch`."""

Collate = Callable[[list[Sample]], Batch | ObjectBatch]


class Squares(Dataset[Sample]):
    """The images of a source, letterboxed to one size.

    Each is decoded when it is first asked for. A dataset that fits into the memory budget is kept from
    then on, in memory that forked workers share.

    Args:
        source: the images.
        size: side of the square in pixels.
    """

    def __init__(self, source: ImageSource, size: int) -> None:
        self.source, self.size = source, size
        fits = len(source) * 3 * size * size <= MEMORY_BUDGET
        self.kept = KeptSamples(source.box_counts, size) if fits and len(source) else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """An image with its boxes; what it holds is not to be changed."""
        if self.kept is None:
            return self._load(index)
        if not self.kept.filled[index]:
            self.kept.put(index, self._load(index))
        return self.kept.get(index)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is not forked cannot share the memory; it decodes as it goes.
        return self.__dict__ | {"kept": None}

    def first_boxes(self) -> Tensor:
        """The boxes (K, 4) of the first images that have any, xyxy in pixels."""
        first = np.flatnonzero(self.source.box_counts)[:PRIOR_IMAGES]
        return torch.cat([self[int(index)].boxes for index in first])

    def prior(self) -> tuple[float, float, float, float]:
        """The median box (cx, cy, w, h) of the first images, as fractions of the square."""
        return BoxHead.prior_from(self.first_boxes() / self.size, fmt="xyxy")

    def _load(self, index: int) -> Sample:
        loaded = self.source[index]
        image, boxes, _ = letterbox(loaded.image, loaded.boxes, self.size)
        return Sample(image, boxes, loaded.labels)


class KeptSamples:
    """Room for samples in memory that is shared with the processes forked later.

    Two processes that put the same sample write the same bytes.

    Args:
        box_counts: the number of boxes of each sample.
        size: side of the images in pixels.
    """

    def __init__(self, box_counts: Counts, size: int) -> None:
        count, self._starts = len(box_counts), np.concatenate([[0], np.cumsum(box_counts)])
        boxes = int(self._starts[-1])
        self.filled = _shared(torch.bool, count)
        self._images = _shared(torch.uint8, count, 3, size, size)
        self._boxes, self._labels = _shared(torch.float32, boxes, 4), _shared(torch.int64, boxes)

    def put(self, index: int, sample: Sample) -> None:
        """Keep a sample."""
        rows = slice(self._starts[index], self._starts[index + 1])
        self._images[index], self._boxes[rows], self._labels[rows] = sample
        self.filled[index] = True

    def get(self, index: int) -> Sample:
        """A sample that was put before."""
        rows = slice(self._starts[index], self._starts[index + 1])
        return Sample(self._images[index], self._boxes[rows], self._labels[rows])


def _shared(dtype: torch.dtype, *shape: int) -> Tensor:
    """Zeros in memory that forked processes share; unlike /dev/shm it has no limit of its own."""
    size = math.prod(shape)
    memory = mmap(-1, max(size, 1) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype, count=max(size, 1))[:size].view(shape)


class TrainingSamples(Dataset[Sample]):
    """Augmented squares; what is drawn depends on (seed, epoch, index) alone, not on workers or order.

    Args:
        squares: the images.
        augmentation: applied to image and boxes together.
        seed: the run's seed.
    """

    def __init__(self, squares: Squares, augmentation: Augmentation, seed: int) -> None:
        self.squares, self.augmentation, self.seed = squares, augmentation, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        (sample,) = self.__getitems__([key])
        return sample

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Sample]:
        """The samples of a batch: a DataLoader asks for them together."""
        if not keys:
            return []
        images, boxes, labels = zip(*(self.squares[index] for _, index in keys), strict=True)
        # Python hashes integers, and tuples of them, the same way in every process.
        seeds = [hash((self.seed, *key)) % 2**63 for key in keys]
        augmented = self.augmentation(torch.stack(images), boxes, labels, seeds)
        return list(map(Sample, *augmented))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), shuffled by (seed, epoch).

    Each rank gets its share of every batch; its share of the last one may be empty.
    Set `epoch` before each pass, and `first` to the batch that it starts with; no more is needed to resume.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order()
        for start in range(self.first * self.batch_size, self.length, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield [(self.epoch, batch[place]) for place in ranks.share(len(batch))]

    def indices(self, number: int) -> list[int]:
        """The indices of one batch of the epoch, the first being number 0."""
        return self._order()[number * self.batch_size : (number + 1) * self.batch_size]

    def _order(self) -> list[int]:
        order: list[int] = np.random.default_rng([self.seed, self.epoch]).permutation(self.length).tolist()
        return order


def to_batch(samples: list[Sample]) -> Batch:
    """Stack samples of one box each, and bring the boxes to fractions of the square."""
    images = torch.stack([sample.image for sample in samples])
    boxes = torch.cat([sample.boxes for sample in samples])
    return Batch(images, convert(boxes / images.shape[-1], "xyxy", "cxcywh"))


def to_object_batch(samples: list[Sample]) -> ObjectBatch:
    """Stack the images of samples with any number of boxes, and list their boxes and labels."""
    images, boxes, labels = zip(*samples, strict=True)
    return ObjectBatch(torch.stack(images), list(boxes), list(labels))


def train_loader(
    squares: Squares, config: TrainConfig, collate: Collate = to_batch, pin: bool = False
) -> tuple[Batches, EpochBatches]:
    """Batches of augmented images, and the sampler whose epoch must be set.

    `pin` keeps batches where a GPU copies them from while it computes.
    """
    sampler = EpochBatches(len(squares), config.batch_size, config.seed)
    samples = TrainingSamples(squares, Augmentation(config.augment), config.seed)
    workers = config.data.workers
    if workers is None:
        cores = (os.cpu_count() or 1) // ranks.on_this_machine()
        workers = min(max(cores - CORES_OF_A_STEP, 0), MOST_WORKERS)

    def share(samples: list[Sample]) -> Batch | ObjectBatch:
        return collate(samples) if samples else collate([squares[0]]).none()

    loader = DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=share,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        # Its own: a loader draws from it, how often depends on the workers, and dropout must not notice.
        generator=torch.Generator(),
    )
    return loader, sampler


def val_loader(squares: Squares, collate: Collate = to_batch, pin: bool = False) -> Batches:
    """Batches of images as they are, in order; each rank gets its share."""
    return DataLoader(
        squares,
        batch_size=VALIDATED_AT_ONCE,
        sampler=ranks.share(len(squares)),
        collate_fn=collate,
        pin_memory=pin,
        # Its own, as above: a pass draws from it, and a pass that is repeated draws again.
        generator=torch.Generator(),
    )


class Opened(NamedTuple):
    """Images to train or validate on, what was left out of each split, and what was skipped as bad."""

    splits: dict[str, ImageSource]
    left_out: dict[str, LeftOut]
    problems: list[str]


def open_sources(config: DataConfig, seed: int, splits: Sequence[str] = ("train", "val")) -> Opened:
    """The splits with one-box images only.

    Raises:
        DataError: if a folder, a label or an image is broken, or a split has no one-box image.
    """
    opened, problems = _open_all(config, seed, splits, 1)
    chosen = {name: one_box_only(opened[name]) for name in splits}
    empty = [name for name, (subset, _) in chosen.items() if not len(subset)]
    if empty:
        raise DataError(*(f"{config.path}: {name}: no image with exactly one box" for name in empty))
    kept: dict[str, ImageSource] = {name: subset for name, (subset, _) in chosen.items()}
    return Opened(kept, {name: left_out for name, (_, left_out) in chosen.items()}, problems)


def open_objects(config: DataConfig, seed: int, splits: Sequence[str] = ("train", "val")) -> Opened:
    """The splits with all their images, those without a box too.

    Raises:
        DataError: if a folder, a label or an image is broken, or a split has no box.
    """
    opened, problems = _open_all(config, seed, splits, TOY_OBJECTS)
    empty = [name for name in splits if not opened[name].box_counts.any()]
    if empty:
        raise DataError(*(f"{config.path}: {name}: no image has a box" for name in empty))
    return Opened({name: opened[name] for name in splits}, {}, problems)


def _open_all(
    config: DataConfig, seed: int, splits: Sequence[str], most: int
) -> tuple[Mapping[str, ImageSource], list[str]]:
    """All images of some splits, toy ones with up to `most` objects, and the problems of those skipped."""
    if config.path is None:
        return toy_splits(config.images, config.size, seed, most), []
    found = open_data(config.path, splits, skip_bad=config.on_error == "skip")
    return found.splits, found.problems


def task_name(path: Path | None) -> str:
    """A short name of what is trained on: "toy", or the name of the folder."""
    if path is None:
        return "toy"
    folder = path.parent if path.suffix in (".yaml", ".yml", ".json") else path
    return folder.resolve().name


def stop_workers(loader: Batches) -> None:
    """End the processes of a loader: they ignore signals, and the end of the program would wait for them."""
    iterator: Any = loader._iterator
    if iterator is not None:
        loader._iterator = None
        iterator._shutdown_workers()


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, and a scheduler's SIGTERM every process of the job; only
    # the main one decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
