"""Batches in other sizes: of the images, and of how many of them are worked on at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .data.loading import Batch, ObjectBatch, batch_from
from .progress import random_state, restore_random_state

SIZES = 1
"""Tells the draws of sizes from others under the same seed."""

AnyBatch = Batch | ObjectBatch


def size_at(sizes: Sequence[int], seed: int, step: int) -> int:
    """The side of the images of a step, counted from 0: a pure function, the same on all ranks."""
    return sizes[int(np.random.default_rng([seed, step, SIZES]).integers(len(sizes)))]


def resized(batch: AnyBatch, side: int) -> AnyBatch:
    """The batch with its images, and the boxes that are in their pixels, at another side."""
    before = batch.images.shape[-1]
    if side == before:
        return batch
    images = F.interpolate(batch.images.float(), (side, side), mode="bilinear", antialias=True)
    images = images.round_().clamp_(0, 255).to(torch.uint8)
    if isinstance(batch, ObjectBatch):
        return batch._replace(images=images, boxes=[boxes * (side / before) for boxes in batch.boxes])
    return batch._replace(images=images)


def micro_batches(batch: AnyBatch, parts: int, most: int | None = None) -> list[AnyBatch]:
    """The batch in `parts` parts, as equal as can be; fewer if there are fewer images.

    All ranks have as many parts each, some of them empty; `most` are the images of the largest
    share.
    """
    count = len(batch.images)
    parts = min(parts, count if most is None else most)
    ends = [round(count * part / max(parts, 1)) for part in range(parts + 1)]
    cuts = [slice(start, end) for start, end in itertools.pairwise(ends)]
    return [batch_from({name: part[cut] for name, part in batch._asdict().items()}) for cut in cuts]


class Snapshot:
    """What a forward pass in training mode changes: buffers of the model, and the random state."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.random = model, random_state()
        self.buffers = [buffer.clone() for buffer in model.buffers()]

    def restore(self) -> None:
        """Put back what there was."""
        restore_random_state(self.random)
        for buffer, before in zip(self.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
