"""The networks: a small convolutional backbone, and two ways to read one box from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from boxreg import BoxHead, GridCellDecoder

from . import ranks
from .config import ModelConfig

STRIDE = 16
"""Pixels per cell of the last map."""

POOLED_SIDE = 4
"""The pooled head keeps a coarse grid of the map: a mean over all of it would forget where things are."""

UNTRAINED_LOGIT = -4.0
"""Objectness before training: a confidence of 2 %."""

CELL_STRETCH = 3.0
"""A cell's box may be centred up to one cell away, so that neighbours of the object's cell can hold it."""

FEW_FOR_BATCH_NORM = 8
"""Images at a time up to which BatchNorm is warned of."""

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(8, channels),
    "batch": nn.BatchNorm2d,
    # All channels are one group: "Group Normalization" (Wu and He 2018, arXiv:1803.08494).
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
}

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
}


SQUASHED: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "clamp": lambda: nn.Hardtanh(0.0, 1.0),
}
"""What may follow a bare linear layer that names a box."""


class Prediction(NamedTuple):
    """What a network says of a batch, boxes in cxcywh as fractions of the square.

    pooled: boxes (B, 4), no objectness. dense: boxes (B, 4, H, W), objectness (B, H, W) as logits.
    """

    boxes: Tensor
    objectness: Tensor | None = None


def convolution(inputs: int, outputs: int, stride: int, config: ModelConfig) -> nn.Sequential:
    """3x3 convolution, norm, activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=config.norm == "none"),
        NORMS[config.norm](outputs),
        ACTIVATIONS[config.activation](),
    )


class Backbone(nn.Sequential):
    """Four stages of two convolutions, each halving the side and doubling the channels: stride 16."""

    def __init__(self, config: ModelConfig) -> None:
        widths = [3, *(config.width * 2**stage for stage in range(4))]
        super().__init__(
            *(
                nn.Sequential(convolution(inputs, width, 2, config), convolution(width, width, 1, config))
                for inputs, width in itertools.pairwise(widths)
            )
        )
        self.out_channels = widths[-1]


def pooled_head(features: int, config: ModelConfig, prior: tuple[float, float, float, float]) -> nn.Module:
    """From one vector to one box."""
    if config.output == "boxhead":
        head = BoxHead(features, prior)
        if not config.prior:
            head.projection.reset_parameters()
        return head
    linear = nn.Linear(features, 4)
    if config.prior:
        box = torch.tensor(prior)
        with torch.no_grad():
            linear.bias.copy_(box.logit() if config.output == "sigmoid" else box)
    return linear if config.output == "linear" else nn.Sequential(linear, SQUASHED[config.output]())


class PooledRegressor(nn.Module):
    """One vector, one box."""

    def __init__(self, config: ModelConfig, prior: tuple[float, float, float, float]) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        features = self.backbone.out_channels
        self.neck = nn.Sequential(
            nn.AdaptiveAvgPool2d(POOLED_SIDE),
            nn.Flatten(),
            nn.Linear(features * POOLED_SIDE**2, features),
            ACTIVATIONS[config.activation](),
            nn.Dropout(config.dropout),
        )
        self.head = pooled_head(features, config, prior)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to what the head reads (B, features)."""
        features: Tensor = self.neck(self.backbone(images))
        return features

    def forward(self, images: Tensor) -> Prediction:
        """Images (B, 3, S, S) in [0, 1] to boxes (B, 4)."""
        return Prediction(self.head(self.features(images)).float())


class DenseRegressor(nn.Module):
    """Every cell of the last map predicts a box and an objectness."""

    def __init__(self, config: ModelConfig, prior: tuple[float, float, float, float]) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        features = self.backbone.out_channels
        self.dropout = nn.Dropout2d(config.dropout)
        # One more convolution, cheap at this size: a cell sees 123 pixels about it instead of 91.
        self.tower = convolution(features, features, 1, config)
        # The prior's centre is read inside each cell; the middle of it suits every cell.
        self.head = BoxHead(
            features, (0.5, 0.5, *prior[2:]), decoder=GridCellDecoder(stretch=CELL_STRETCH), projection="conv"
        )
        if not config.prior:
            self.head.projection.reset_parameters()
        self.objectness = nn.Conv2d(features, 1, 1)
        # Most cells hold no object: start there (Lin et al. 2017, arXiv:1708.02002).
        nn.init.zeros_(self.objectness.weight)
        assert self.objectness.bias is not None
        nn.init.constant_(self.objectness.bias, UNTRAINED_LOGIT)

    def forward(self, images: Tensor) -> Prediction:
        """Images (B, 3, S, S) in [0, 1] to boxes (B, 4, S/16, S/16) and objectness (B, S/16, S/16)."""
        features = self.features(images)
        return Prediction(self.head(features).float(), self.objectness(features).squeeze(1).float())

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to what the head reads (B, features, S/16, S/16)."""
        features: Tensor = self.tower(self.dropout(self.backbone(images)))
        return features


def build_model(config: ModelConfig, prior: tuple[float, float, float, float]) -> nn.Module:
    """The network that `config` names; `prior` is the box (cx, cy, w, h) its head starts from."""
    return DenseRegressor(config, prior) if config.head == "dense" else PooledRegressor(config, prior)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with BatchNorm over the images of all ranks, where there are several on GPUs."""
    if device.type != "cuda" or ranks.world_size() == 1:
        return model
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def batch_norm_warning(model: nn.Module, images: int) -> str | None:
    """A warning, with figures, about BatchNorm over few images at a time, if the network has any.

    With SyncBatchNorm each rank sees as many.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms and isinstance(norms[0], nn.SyncBatchNorm):
        images *= ranks.world_size()
    if not norms or images > FEW_FOR_BATCH_NORM:
        return None
    return (
        f"BatchNorm sees {images} images at a time: where images differ, the mean that it subtracts is "
        f"off by {100 / math.sqrt(images):.0f} % of their spread, against {100 / math.sqrt(64):.0f} % with "
        "64; --model.norm group does not depend on their number"
    )


def answer(prediction: Prediction) -> tuple[Tensor, Tensor]:
    """One box an image (B, 4) in cxcywh, and its confidence (B,): the most confident cell, or the only box.

    A pooled network has no confidence of its own: 1.
    """
    boxes, objectness = prediction
    if objectness is None:
        return boxes, torch.ones_like(boxes[:, 0])
    confidence, cell = objectness.flatten(1).max(1)
    chosen = boxes.flatten(2).gather(2, cell[:, None, None].expand(-1, 4, 1)).squeeze(2)
    return chosen, confidence.sigmoid()


def prepare_images(images: Tensor) -> Tensor:
    """Images uint8 (B, 3, S, S) as the networks take them: float in [0, 1], channels last."""
    return images.contiguous(memory_format=torch.channels_last).float().div_(255.0)
