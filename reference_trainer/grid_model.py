"""The network of the grid task: the backbone, a pyramid over its maps, and boxreg's dense head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxreg import (
    DenseHead,
    DensePrediction,
    DFLDecoder,
    GridCellDecoder,
    Level,
    LTRBDecoder,
    YOLOv3Decoder,
    YOLOv5Decoder,
)
from boxreg.decoders import Decoder

from .config import FINEST_STRIDE, WITH_ANCHORS, AnchorSizes, ModelConfig
from .model import CELL_STRETCH, Backbone, convolution

ANCHORS_A_CELL = 3

UNKNOWN_SIZE = 4.0
"""Cells that a box is wide and high before anything is known of the training boxes."""

POSITIVES = {"task_aligned": 10, "anchor_ratio": 9, "responsible_cell": 1}
"""Predictions that an assigner gives to an object, at the most or nearly so."""


class Pyramid(nn.Module):
    """The maps of the backbone from stride 8 on, each with what the coarser ones say added to it.

    The top-down half of "Feature Pyramid Networks for Object Detection" (Lin et al. 2017, arXiv:1612.03144).
    """

    def __init__(self, inputs: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        self.levels, self.out_channels = config.levels, 4 * config.width
        self.lateral = nn.ModuleList(nn.Conv2d(channels, self.out_channels, 1) for channels in inputs)
        self.smooth = nn.ModuleList(
            convolution(self.out_channels, self.out_channels, 1, config) for _ in range(config.levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps, the finest first, to as many maps of one width as there are levels."""
        merged = [lateral(features) for lateral, features in zip(self.lateral, maps, strict=True)]
        for fine in reversed(range(len(merged) - 1)):
            merged[fine] = merged[fine] + F.interpolate(merged[fine + 1], merged[fine].shape[-2:])
        return [smooth(features) for smooth, features in zip(self.smooth, merged, strict=False)]


class GridDetector(nn.Module):
    """Boxes, objectness and classes from every cell of one to three maps.

    Args:
        config: the network's configuration, its anchors found.
        size: side of the images in pixels.
        classes: how many there are.
        prior: sizes that the boxes of a cell start with, of each level; by default squares.
        objects: how many an image has, on average.
    """

    def __init__(
        self,
        config: ModelConfig,
        size: int,
        classes: int,
        prior: AnchorSizes | None = None,
        objects: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        widths = [4 * config.width, 8 * config.width]
        # Above the backbone's last map, stride 16.
        self.coarser = nn.ModuleList(
            convolution(widths[-1], widths[-1], 2, config) for _ in range(config.levels - 2)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.neck = Pyramid(widths + widths[-1:] * len(self.coarser), config)
        decoders = decoders_of(config, size)
        prior = expressible(prior or known_sizes(config), decoders)
        aligned = config.own_assigner == "task_aligned"
        levels = [Level(size // stride, size // stride, stride) for stride in strides_of(config)]
        share = objects * POSITIVES[config.own_assigner] / config.levels
        self.head = DenseHead(
            [self.neck.out_channels] * config.levels,
            decoders,
            classes=classes,
            objectness=not aligned,
            prior=prior,
            objectness_prior=DenseHead.count_prior(share, levels, len(prior[0])),
            class_prior=DenseHead.count_prior(share / classes, levels) if aligned else None,
        )

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, S, S) in [0, 1] to the maps that the head reads."""
        maps = [images]
        for stage in (*self.backbone, *self.coarser):
            maps.append(stage(maps[-1]))
        found: list[Tensor] = self.neck([*maps[3:-1], self.dropout(maps[-1])])
        return found

    def forward(self, images: Tensor) -> DensePrediction:
        """Images (B, 3, S, S) in [0, 1] to predictions in pixels."""
        prediction: DensePrediction = self.head(self.features(images))
        return prediction


def strides_of(config: ModelConfig) -> list[int]:
    """Pixels per cell of each level."""
    return [FINEST_STRIDE * 2**level for level in range(config.levels)]


def decoders_of(config: ModelConfig, size: int) -> list[Decoder]:
    """What raw outputs stand for, on each level."""
    if config.decoder == "cell":
        return [GridCellDecoder((size, size), CELL_STRETCH)] * config.levels
    strides, anchors = strides_of(config), known_sizes(config)
    if config.decoder in WITH_ANCHORS:
        kind = YOLOv3Decoder if config.decoder == "yolov3" else YOLOv5Decoder
        return [kind(stride, sizes) for stride, sizes in zip(strides, anchors, strict=True)]
    return [DFLDecoder(stride) if config.decoder == "dfl" else LTRBDecoder(stride) for stride in strides]


def known_sizes(config: ModelConfig) -> AnchorSizes:
    """The anchors, or squares of 4 cells: what is assumed of boxes that nobody has seen."""
    if config.anchors:
        return config.anchors
    sides = [UNKNOWN_SIZE * stride for stride in strides_of(config)]
    return tuple(((side, side),) * boxes_per_cell(config) for side in sides)


def expressible(sizes: AnchorSizes, decoders: Sequence[Decoder]) -> AnchorSizes:
    """The sizes, cut to half of the largest box where distributions reach only so far."""
    most = [
        (decoder.bins - 1) * decoder.stride if isinstance(decoder, DFLDecoder) else math.inf
        for decoder in decoders
    ]
    return tuple(
        tuple((min(width, limit), min(height, limit)) for width, height in level)
        for level, limit in zip(sizes, most, strict=True)
    )


def boxes_per_cell(config: ModelConfig) -> int:
    """How many boxes a cell predicts."""
    if config.decoder not in WITH_ANCHORS:
        return 1
    return len(config.anchors[0]) if config.anchors else ANCHORS_A_CELL


@torch.no_grad()
def typical_sizes(boxes: Tensor, levels: int, per_cell: int) -> AnchorSizes:
    """Sizes for each level and each box of a cell: medians of groups of equal numbers.

    Boxes (K, 4), xyxy, are shared out among the levels by area, smaller ones to finer levels, and on a level
    among the boxes of a cell by their ratio of width to height.
    """
    sizes = (boxes[:, 2:] - boxes[:, :2]).double()
    return tuple(
        tuple(
            (round(max(w, 1.0), 2), round(max(h, 1.0), 2))
            for w, h in (group.median(0).values.tolist() for group in _shared_out(level, _ratio, per_cell))
        )
        for level in _shared_out(sizes, _area, levels)
    )


def _area(sizes: Tensor) -> Tensor:
    return sizes.prod(1)


def _ratio(sizes: Tensor) -> Tensor:
    return sizes[:, 0] / sizes[:, 1]


def _shared_out(sizes: Tensor, key: Callable[[Tensor], Tensor], parts: int) -> list[Tensor]:
    """Sizes (K, 2) in parts of equal numbers in the order of a key; no part is empty."""
    ordered = sizes[key(sizes).argsort(stable=True)]
    edges = [len(sizes) * part // parts for part in range(parts + 1)]
    return [ordered[start : max(end, start + 1)] for start, end in pairwise(edges)]
