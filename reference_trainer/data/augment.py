"""Augmentation of training pictures, a batch at a time, each picture under a seed of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from ..config import AugmentConfig

WINDOW_DRAWS = 7
"""Random numbers that decide one picture's window: crop, zoom, shift in x and y, three flips."""


class Window(NamedTuple):
    """The part of each picture that becomes the new picture.

    start (B, 2) and window (B, 1) in pixels; mirrored (B, 2) for x and y, and after that turned over (B, 1)
    along the diagonal; side of the picture in pixels.
    """

    start: Tensor
    window: Tensor
    mirrored: Tensor
    diagonal: Tensor
    side: float

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (B, 4), xyxy in pixels, as they lie in the new pictures."""
        low, high = ((end - self.start) * (self.side / self.window) for end in boxes.chunk(2, dim=1))
        low, high = (
            torch.where(self.mirrored, self.side - high, low),
            torch.where(self.mirrored, self.side - low, high),
        )
        low, high = (torch.where(self.diagonal, end.flip(1), end) for end in (low, high))
        return torch.cat([low, high], dim=1).clamp(0.0, self.side)

    def pictures(self, images: Tensor) -> Tensor:
        """The new pictures, uint8 (B, 3, S, S), all in one resampling."""
        size = images.shape[-1]
        # Coordinates of grid_sample: -1 and 1 are the picture's edges.
        centres = (2.0 * torch.arange(size) + 1.0) / size - 1.0
        slope = torch.where(self.mirrored, -1.0, 1.0) * self.window / self.side
        offset = (2.0 * self.start + self.window) / self.side - 1.0
        x, y = (slope[:, :, None] * centres + offset[:, :, None]).unbind(1)
        across, down = x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)
        diagonal = self.diagonal[:, :, None]
        x = torch.where(diagonal, across.transpose(1, 2), across)
        y = torch.where(diagonal, down.transpose(1, 2), down)
        grid = torch.stack([x, y], dim=-1)
        moved = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return moved.round_().to(images.dtype)


def draw_window(boxes: Tensor, side: float, draws: Tensor, config: AugmentConfig) -> Window:
    """Flip, zoom, shift and crop, each picture in its own way; every object stays whole.

    Args:
        boxes: one box a picture (B, 4), xyxy in pixels.
        side: of the pictures in pixels.
        draws: (B, WINDOW_DRAWS), uniform in [0, 1).
        config: the strengths.
    """
    low, high = boxes.chunk(2, dim=1)
    kept = config.crop + (1.0 - config.crop) * draws[:, 0:1]
    window = side * kept / (1.0 + config.scale * (2.0 * draws[:, 1:2] - 1.0))
    extent = (high - low).amax(1, keepdim=True)
    window = torch.where(extent < side, torch.maximum(window, extent), side)

    play = (0.5 * (1.0 - kept) + config.translate) * side
    start = 0.5 * (side - window) + play * (2.0 * draws[:, 2:4] - 1.0)
    # All of the object in the window, and no window past an edge that the object touches: repeated beyond
    # the edge, the object would outgrow its box.
    first = torch.where(low > 0, high - window, 0.0)
    last = torch.where(high < side, low, side - window)
    start = torch.minimum(torch.maximum(start, first), last)
    mirrored = draws[:, 4:6] < torch.tensor([config.hflip, config.vflip])
    return Window(start, window, mirrored, draws[:, 6:7] < config.dflip, side)


class Augmentation:
    """What happens to training pictures: colour jitter for some, then flips, zoom, shift and crop.

    The jitter is torchvision's. Its geometric transforms draw once for a whole batch, take no boxes with edge
    padding, and picture by picture cost a fifth of a training step on two cores; so flips, zoom, shift
    and crop are one resampling of the batch, and edge pixels fill what comes free (a reflected border
    would put a second object beside the first).

    Args:
        config: the strengths.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation)
        self.moves = any(
            (config.hflip, config.vflip, config.dflip, config.scale, config.translate, config.crop < 1)
        )

    def __call__(self, images: Tensor, boxes: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augment pictures uint8 (B, 3, S, S) with a box each (B, 4), xyxy in pixels.

        What happens to a picture depends on its own seed alone.
        """
        drawn, coloured = [], []
        for image, seed in zip(images, seeds, strict=True):
            with own_randomness(seed):
                *draws, chance = torch.rand(WINDOW_DRAWS + 1).tolist()
                coloured.append(self.jitter(image) if chance < self.config.colour else image)
            drawn.append(draws)
        images = torch.stack(coloured)
        if not self.moves:
            return images, boxes
        window = draw_window(boxes, float(images.shape[-1]), torch.tensor(drawn), self.config)
        return window.pictures(images), window.boxes(boxes)


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside, and put its state back after.

    What `torch.random.fork_rng` and `torch.manual_seed` do, without their look at every accelerator: that
    takes a quarter of a millisecond, as long as an augmentation.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
