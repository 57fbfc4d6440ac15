"""Augmentation of training images, a batch at a time, each image under a seed of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from ..config import AugmentConfig

WINDOW_DRAWS = 7
"""Random numbers that decide one image's window: crop, zoom, shift in x and y, three flips."""

BLUR_REACH = 3.0
"""A blur's kernel reaches this many standard deviations to either side."""

LEAST_SHARE, LEAST_SIDE = 0.25, 2.0
"""An object is removed if less than this share of its box is left, or less than these pixels either way."""


def rotated(boxes: Tensor, angle: Tensor, side: float) -> Tensor:
    """The boxes (K, 4) around the corners of boxes turned clockwise by `angle` (K, 1) about the middle."""
    middle = (boxes[:, :2] + boxes[:, 2:] - side) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    cos, sin = angle.cos(), angle.sin()
    turned = middle * cos + middle.flip(1) * torch.cat([-sin, sin], dim=1) + side / 2
    reach = half * cos.abs() + half.flip(1) * sin.abs()
    return torch.cat([turned - reach, turned + reach], dim=1)


class Window(NamedTuple):
    """The part of each image, turned about its middle, that becomes the new image.

    angle (B, 1), clockwise; start (B, 2) and window (B, 1) in pixels; mirrored (B, 2) for x and y, and after
    that turned over (B, 1) along the diagonal; side of the image in pixels.
    """

    angle: Tensor
    start: Tensor
    window: Tensor
    mirrored: Tensor
    diagonal: Tensor
    side: float

    def boxes(self, boxes: Tensor, owner: Tensor) -> Tensor:
        """Boxes (K, 4), xyxy in pixels, of the images `owner` (K,), as they lie in the new ones, uncut."""
        if self.angle.any():
            boxes = rotated(boxes, self.angle[owner], self.side)
        start, scale = self.start[owner], self.side / self.window[owner]
        mirrored, diagonal = self.mirrored[owner], self.diagonal[owner]
        low, high = ((end - start) * scale for end in boxes.chunk(2, dim=1))
        low, high = torch.where(mirrored, self.side - high, low), torch.where(mirrored, self.side - low, high)
        low, high = (torch.where(diagonal, end.flip(1), end) for end in (low, high))
        return torch.cat([low, high], dim=1)

    def warp(self, images: Tensor) -> Tensor:
        """The new images, uint8 (B, 3, S, S), all in one resampling."""
        size = images.shape[-1]
        # Coordinates of grid_sample: -1 and 1 are the image's edges.
        centres = (2.0 * torch.arange(size) + 1.0) / size - 1.0
        scale = torch.where(self.mirrored, -1.0, 1.0) * self.window / self.side
        offset = (2.0 * self.start + self.window) / self.side - 1.0
        x, y = (scale[:, :, None] * centres + offset[:, :, None]).unbind(1)
        across, down = x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)
        diagonal = self.diagonal[:, :, None]
        x = torch.where(diagonal, across.transpose(1, 2), across)
        y = torch.where(diagonal, down.transpose(1, 2), down)
        if self.angle.any():
            cos, sin = self.angle[:, :, None].cos(), self.angle[:, :, None].sin()
            x, y = x * cos + y * sin, y * cos - x * sin
        grid = torch.stack([x, y], dim=-1)
        moved = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return moved.round_().to(images.dtype)


def draw_window(
    kept: Tensor, reach: Tensor, side: float, draws: Tensor, angle: Tensor, config: AugmentConfig
) -> Window:
    """Rotate, flip, zoom, shift and crop, each image in its own way; one object of each stays whole.

    Args:
        kept: the box of that object (B, 4), xyxy in pixels.
        reach: the box around all objects of an image together, (B, 4), xyxy in pixels.
        side: the side of the images in pixels.
        draws: (B, WINDOW_DRAWS), uniform in [0, 1).
        angle: (B, 1), to rotate by; images with an object at an edge stay upright.
        config: the strengths.
    """
    nearest, farthest = reach.chunk(2, dim=1)
    at_edge = ((nearest <= 0) | (farthest >= side)).any(1, keepdim=True)
    angle = torch.where(at_edge, 0.0, angle)
    if angle.any():
        kept = rotated(kept, angle, side)
    low, high = kept.chunk(2, dim=1)
    share = config.crop + (1.0 - config.crop) * draws[:, 0:1]
    window = side * share / (1.0 + config.scale * (2.0 * draws[:, 1:2] - 1.0))
    window = torch.maximum(window, (high - low).amax(1, keepdim=True))
    across = ((nearest <= 0) & (farthest >= side)).any(1, keepdim=True)
    window = torch.where(across, window.clamp(max=side), window)

    play = (0.5 * (1.0 - share) + config.translate) * side
    start = 0.5 * (side - window) + play * (2.0 * draws[:, 2:4] - 1.0)
    # All of the object in the window, and no window past an edge that an object touches: repeated beyond
    # the edge, the object would outgrow its box.
    first = torch.where(nearest > 0, high - window, (high - window).clamp(min=0.0))
    last = torch.where(farthest < side, low, torch.minimum(low, side - window))
    start = torch.minimum(torch.maximum(start, first), last)
    mirrored = draws[:, 4:6] < torch.tensor([config.hflip, config.vflip])
    return Window(angle, start, window, mirrored, draws[:, 6:7] < config.dflip, side)


class Augmentation:
    """What happens to training images: for some colour jitter, blur and noise, then all that moves pixels.

    Jitter and blur are torchvision's. Its geometric transforms draw once for a whole batch, take no boxes
    with edge padding, and image by image cost a fifth of a training step on two cores; so rotation,
    flips, zoom, shift and crop are one resampling of the batch, and edge pixels fill what comes free (a
    reflected border would put a second object beside the first). Noise comes after it, which would smooth it.

    Args:
        config: the strengths.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation)
        flips = config.hflip, config.vflip, config.dflip
        self.moves = any((*flips, config.scale, config.translate, config.crop < 1, config.rotate))

    def __call__(
        self, images: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor], seeds: Sequence[int]
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """Augment images uint8 (B, 3, S, S), each with boxes (K, 4), xyxy in pixels, and labels (K,).

        What happens to an image depends on its own seed alone. One of its objects, drawn by lot, stays
        whole, so that an image does not lose all it has. The others are cut at the new edges, and removed
        with their labels if less than a quarter is left of them, or less than 2 pixels either way.
        """
        drawn, angles, seen, noises = [], [], [], []
        for image, seed in zip(images, seeds, strict=True):
            with own_randomness(seed):
                *draws, chance = torch.rand(WINDOW_DRAWS + 1).tolist()
                image = self.jitter(image) if chance < self.config.colour else image
                turn, softness, noise = torch.rand(3).tolist()
                seen.append(blur(image, self.config.blur * softness))
                if self.config.noise:
                    noises.append(torch.randn(image.shape) * (255 * self.config.noise * noise))
            drawn.append(draws)
            angles.append(math.radians(self.config.rotate * (2 * turn - 1)))
        images = torch.stack(seen)
        if self.moves:
            images, boxes, labels = self._move(images, boxes, labels, seeds, drawn, angles)
        if noises:
            images = (images + torch.stack(noises)).round_().clamp_(0, 255).to(images.dtype)
        return images, boxes, labels

    def _move(
        self,
        images: Tensor,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        seeds: Sequence[int],
        drawn: list[list[float]],
        angles: list[float],
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        side, counts = float(images.shape[-1]), torch.tensor([len(each) for each in boxes])
        owner, flat = torch.arange(len(counts)).repeat_interleave(counts), torch.cat(list(boxes))
        lot = torch.tensor([seed % max(len(each), 1) for each, seed in zip(boxes, seeds, strict=True)])
        whole = (counts.cumsum(0) - counts + lot)[counts > 0]
        kept = torch.full((len(counts), 4), side / 2)
        kept[counts > 0] = flat[whole]
        reach, angle = _reach(flat, owner, kept), torch.tensor(angles)[:, None]
        window = draw_window(kept, reach, side, torch.tensor(drawn), angle, self.config)

        moved = window.boxes(flat, owner)
        cut = moved.clamp(0.0, side)
        size, size_before = cut[:, 2:] - cut[:, :2], moved[:, 2:] - moved[:, :2]
        stays = (size >= LEAST_SIDE).all(1) & (size.prod(1) >= LEAST_SHARE * size_before.prod(1))
        stays[whole] = True
        left: list[int] = torch.bincount(owner[stays], minlength=len(counts)).tolist()
        boxes, labels = (torch.split(rows[stays], left) for rows in (cut, torch.cat(list(labels))))
        return window.warp(images), boxes, labels


def blur(image: Tensor, sigma: float) -> Tensor:
    """An image uint8 (3, S, S) under a Gaussian blur; one too weak to change a pixel is left out."""
    if sigma < 0.1:
        return image
    blurred: Tensor = v2.functional.gaussian_blur(image, 2 * math.ceil(BLUR_REACH * sigma) + 1, [sigma])
    return blurred


def _reach(boxes: Tensor, owner: Tensor, start: Tensor) -> Tensor:
    """The box (B, 4) around all boxes of an image and `start` (B, 4); `owner` (K,) says whose each is."""
    rows = owner[:, None].expand(-1, 2)
    low = start[:, :2].scatter_reduce(0, rows, boxes[:, :2], "amin")
    high = start[:, 2:].scatter_reduce(0, rows, boxes[:, 2:], "amax")
    return torch.cat([low, high], dim=1)


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
