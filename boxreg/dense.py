"""Dense heads: boxes, objectness and classes for every cell of the maps of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ._checks import check_number, check_tensor
from .decoders import Decoder, DFLDecoder, check_decoder
from .grids import Level, Levels, check_levels
from .heads import WEIGHT_SCALE, without_autocast

Size = tuple[float, float]
"""Width and height, in the unit of the boxes."""


class DensePrediction(NamedTuple):
    """What a dense head says of B images: A predictions each, in the order that `Assignment` describes.

    Level by level, of each level box by box, row by row; planes throughout, the coordinates along axis 1.

    Attributes:
        boxes: (B, 4, A), decoded, cxcywh, in the unit of the strides; not clamped.
        objectness: (B, A), logits; None where the classes alone score.
        classes: (B, C, A), logits; None for a single class, scored by objectness.
        bins: (B, 4, bins, A), logits of the distances to the left, top, right and bottom, of a `DFLDecoder`;
            else None.
        levels: (rows, cols, stride) of each map.
    """

    boxes: Tensor
    objectness: Tensor | None
    classes: Tensor | None
    bins: Tensor | None
    levels: tuple[Level, ...]

    @property
    def scores(self) -> Tensor:
        """(B, C, A), in [0, 1]: class probabilities times objectness, or the one of them that is there."""
        if self.classes is None:
            assert self.objectness is not None
            return self.objectness.sigmoid().unsqueeze(1)
        scores = self.classes.sigmoid()
        return scores if self.objectness is None else scores * self.objectness.sigmoid().unsqueeze(1)


class DenseHead(nn.Module):
    """Predicts boxes for every cell of one or more maps; untrained, the priors whatever the features.

    Each level has its own head, for levels may differ in channels: `depth` blocks of a 3x3 convolution, group
    norm and SiLU, which keep the channels, and then, for boxes, objectness and classes each, a 1x1
    convolution without norm. Its weights are as small as those of `BoxHead`, its biases are solved from
    priors: those of boxes by the decoder, those of scores as logits of probabilities ("Focal Loss for Dense
    Object Detection", Lin, Goyal, Girshick, He and Dollár, 2017, arXiv:1708.02002).

    These last convolutions run in the dtype of their own weight, even under autocast, and so does decoding.
    Nothing is permuted: outputs are views of the maps as the convolutions make them, laid end to end.

    Args:
        in_channels: channels of the features of each level.
        decoders: how raw outputs stand for boxes, one for each level, all of one class; a scheme on a grid.
        classes: C, the number of classes. A single class with objectness has no logits of its own.
        objectness: whether there is one; without it the classes alone score, as in FCOS and YOLOv8.
        prior: the size (w, h) that boxes start with, in the unit of the boxes, in the middle of every cell:
            one for all; or for each level K of them, one for each of the K boxes of a cell. By default the
            anchors of the decoders, or 8 by 8 cells for decoders with a stride but no anchors.
        objectness_prior: probability of an object before training, between 0 and 1, of all levels or of each:
            by default the focal 0.01; `count_prior` makes one from how many objects images have.
        class_prior: probability of each class, likewise. By default 1 / C with objectness, since an object
            has one of the classes, and 0.01 without.
        depth: blocks before the last convolution; 0 for none.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of its range, their number is not that of the levels, the number of
            boxes a cell differs between levels, or a decoder cannot express its prior.

    Example:
        >>> import torch
        >>> from boxreg import DenseHead, LTRBDecoder
        >>> head = DenseHead([32, 64], [LTRBDecoder(8), LTRBDecoder(16)], classes=3, prior=(40.0, 30.0))
        >>> prediction = head([torch.randn(2, 32, 8, 8), torch.randn(2, 64, 4, 4)])
        >>> prediction.boxes[0, :, -1].round(decimals=2)  # the middle of the last cell, and the prior
        tensor([56., 56., 40., 30.], grad_fn=<RoundBackward1>)
        >>> prediction.scores.shape, prediction.levels[1]
        (torch.Size([2, 3, 80]), Level(rows=4, cols=4, stride=16))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        decoders: Sequence[Decoder],
        *,
        classes: int = 1,
        objectness: bool = True,
        prior: Size | Sequence[Sequence[Size]] | None = None,
        objectness_prior: float | Sequence[float] = 0.01,
        class_prior: float | Sequence[float] | None = None,
        depth: int = 1,
    ) -> None:
        super().__init__()
        _check_count("classes", classes, minimum=1)
        _check_count("depth", depth, minimum=0)
        _check_decoders(decoders)
        channels = _of_levels("in_channels", in_channels, len(decoders))
        for number in channels:
            _check_count("in_channels", number, minimum=1)
        sizes = _sizes(prior, decoders)
        if class_prior is None:
            class_prior = 1 / max(classes, 2) if objectness else 0.01
        of_objectness = _probabilities("objectness_prior", objectness_prior, len(decoders))
        of_classes = _probabilities("class_prior", class_prior, len(decoders))
        self.classes = classes if classes > 1 or not objectness else 0
        self.objectness = objectness
        self.levels = nn.ModuleList(
            _LevelHead(*level, classes=self.classes, objectness=objectness, depth=depth)
            for level in zip(channels, decoders, sizes, of_objectness, of_classes, strict=True)
        )

    def reset_parameters(self) -> None:
        """Draw all weights anew and set the biases to the priors."""
        for level in self.levels:
            assert isinstance(level, _LevelHead)
            level.reset_parameters()

    def forward(self, features: Sequence[Tensor]) -> DensePrediction:
        """Predict boxes and scores.

        Args:
            features: floating, (B, in_channels, H, W) of each level; sizes may differ from call to call.

        Returns:
            A prediction for each of the K boxes of every cell, in the dtype of the last weights.

        Raises:
            TypeError: if a map is not a floating tensor.
            ValueError: if there are not as many maps as levels, or one has not the right shape.
        """
        self._check(features)
        found = [level(maps) for level, maps in self._levels(features)]
        boxes, objectness, classes, bins, levels = zip(*found, strict=True)
        return DensePrediction(
            torch.cat(boxes, -1),
            torch.cat(objectness, -1) if self.objectness else None,
            torch.cat(classes, -1) if self.classes else None,
            None if bins[0] is None else torch.cat(bins, -1),
            levels,
        )

    def raw(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The outputs before the decoder, of each level: (B, channels, K, H, W).

        Along axis 1 the decoder's `channels`, the objectness logit if there is one, the class logits if there
        are any. Arguments and errors as for a call.
        """
        self._check(features)
        parts = [level.raw(maps) for level, maps in self._levels(features)]
        return [torch.cat([part for part in of_level if part is not None], 1) for of_level in parts]

    def _check(self, features: Sequence[Tensor]) -> None:
        if len(features) != len(self.levels):
            raise ValueError(f"features: got {len(features)} maps, expected {len(self.levels)}, one a level")
        for number, (level, maps) in enumerate(self._levels(features)):
            level.check(f"features[{number}]", maps)

    def _levels(self, features: Sequence[Tensor]) -> Iterator[tuple[_LevelHead, Tensor]]:
        for level, maps in zip(self.levels, features, strict=True):
            assert isinstance(level, _LevelHead)
            yield level, maps

    @staticmethod
    def count_prior(objects: float, levels: Levels, per_cell: int = 1) -> tuple[float, ...]:
        """The probability on each level that a prediction has an object, from how many there are.

        `objects / (per_cell * rows * cols)`, at most a half: as YOLOv5 starts its objectness, with 8 objects.

        Args:
            objects: objects of an image, above 0, which the assigner makes positives of on each level; one
                that makes several positives of an object counts each of them.
            levels: (rows, cols, stride) of each map in training.
            per_cell: boxes per cell, K.

        Raises:
            TypeError: if a number is of the wrong type.
            ValueError: if a number is out of its range.

        Example:
            >>> from boxreg import DenseHead
            >>> DenseHead.count_prior(4, [(80, 80, 8), (20, 20, 32), (1, 1, 640)])
            (0.000625, 0.01, 0.5)
        """
        check_number("objects", objects)
        if not objects > 0:
            raise ValueError(f"objects: got {objects}, expected a number above 0")
        check_levels(levels)
        _check_count("per_cell", per_cell, minimum=1)
        return tuple(min(objects / (per_cell * rows * cols), 0.5) for rows, cols, _ in levels)


class _LevelHead(nn.Module):
    """The head of one level: from its features to what `DensePrediction` has of them."""

    def __init__(
        self,
        in_channels: int,
        decoder: Decoder,
        sizes: tuple[Size, ...],
        objectness_prior: float,
        class_prior: float,
        *,
        classes: int,
        objectness: bool,
        depth: int,
    ) -> None:
        super().__init__()
        width, height = decoder.extent
        self.decoder = decoder
        self.priors = [(0.5 * width, 0.5 * height, w, h) for w, h in sizes]
        decoder.bias(self.priors)  # complains about a bad prior before anything is built
        self.objectness_prior, self.class_prior = objectness_prior, class_prior
        self.tower = nn.Sequential(*(_block(in_channels) for _ in range(depth)))
        per_cell = len(sizes)
        self.box = nn.Conv2d(in_channels, decoder.channels * per_cell, kernel_size=1)
        self.objectness = nn.Conv2d(in_channels, per_cell, kernel_size=1) if objectness else None
        self.classes = nn.Conv2d(in_channels, classes * per_cell, kernel_size=1) if classes else None
        self._start()

    def reset_parameters(self) -> None:
        for module in self.tower.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                module.reset_parameters()
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """The last convolutions at their priors."""
        assert self.box.bias is not None
        self._start_at(self.box, self.decoder.bias(self.priors, self.box.bias.dtype).flatten())
        for scores, prior in ((self.objectness, self.objectness_prior), (self.classes, self.class_prior)):
            if scores is not None:
                self._start_at(scores, math.log(prior / (1 - prior)))

    @staticmethod
    def _start_at(projection: nn.Conv2d, bias: Tensor | float) -> None:
        assert projection.bias is not None
        nn.init.normal_(projection.weight, std=WEIGHT_SCALE / math.sqrt(projection.in_channels))
        if isinstance(bias, Tensor):
            projection.bias.copy_(bias)
        else:
            projection.bias.fill_(bias)

    def check(self, name: str, features: Tensor) -> None:
        """Raise unless these are features of this level."""
        check_tensor(name, features, floating=True)
        channels = self.box.in_channels
        if features.ndim != 4 or features.shape[1] != channels:
            raise ValueError(
                f"{name}: got shape {tuple(features.shape)}, expected (B, {channels}, H, W) with "
                f"in_channels={channels}"
            )

    def raw(self, features: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        features = self.tower(features).to(self.box.weight.dtype)
        with without_autocast(features.device.type):
            # (B, channels * K, H, W) as (B, channels, K, H, W)
            raw, objectness, classes = (
                None if scores is None else torch.unflatten(scores(features), 1, (-1, len(self.priors)))
                for scores in (self.box, self.objectness, self.classes)
            )
        assert raw is not None
        return raw, objectness, classes

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Level]:
        raw, objectness, classes = self.raw(features)
        with without_autocast(features.device.type):
            decoded = self.decoder.decode(raw, dim=1)
        bins = self.decoder.logits(raw, 1) if isinstance(self.decoder, DFLDecoder) else None
        return (
            decoded.flatten(2),
            None if objectness is None else objectness.flatten(1),
            None if classes is None else classes.flatten(2),
            None if bins is None else bins.flatten(3),
            self.decoder.level(*features.shape[-2:]),
        )

    def extra_repr(self) -> str:
        return f"priors={self.priors}, decoder={self.decoder}"


def _block(channels: int) -> nn.Sequential:
    # Groups of 8 channels or more where they divide: statistics of a group of few are those of noise.
    groups = math.gcd(channels, 8) if channels >= 64 else 1
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(groups, channels), nn.SiLU()
    )


def _check_count(name: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an int")
    if value < minimum:
        raise ValueError(f"{name}: got {value}, expected at least {minimum}")


def _check_decoders(decoders: Sequence[Decoder]) -> None:
    if not isinstance(decoders, Sequence) or not decoders:
        raise ValueError(f"decoders: got {decoders!r}, expected one for each level")
    for decoder in decoders:
        check_decoder(decoder)
        if not decoder.needs_grid:
            raise ValueError(f"decoders: got {decoder}, expected schemes that read the cells of a grid")
    if len({(type(decoder), decoder.channels) for decoder in decoders}) > 1:
        raise ValueError(f"decoders: got {decoders}, expected the same scheme on every level")


T = TypeVar("T")


def _of_levels(name: str, values: Sequence[T], levels: int) -> Sequence[T]:
    if not isinstance(values, Sequence) or len(values) != levels:
        raise ValueError(f"{name}: got {values!r}, expected one for each of the {levels} levels")
    return values


def _probabilities(name: str, value: float | Sequence[float], levels: int) -> Sequence[float]:
    each = _of_levels(name, value, levels) if isinstance(value, Sequence) else [value] * levels
    for probability in each:
        check_number(name, probability)
        if not 0 < probability < 1:
            raise ValueError(f"{name}: got {probability}, expected a probability between 0 and 1")
    return each


def _sizes(
    prior: Size | Sequence[Sequence[Size]] | None, decoders: Sequence[Decoder]
) -> list[tuple[Size, ...]]:
    """The sizes that the boxes of a cell start with, of each level."""
    if prior is None:
        sizes = [decoder.own_sizes for decoder in decoders]
    elif isinstance(prior, Sequence) and len(prior) == 2 and not isinstance(prior[0], Sequence):
        sizes = [(prior,) * len(decoder.own_sizes or (prior,)) for decoder in decoders]  # type: ignore[misc]
    else:
        sizes = [tuple(level) for level in _of_levels("prior", prior, len(decoders))]  # type: ignore[arg-type]
    found = []
    for level, decoder in zip(sizes, decoders, strict=True):
        if level is None:
            raise ValueError(f"prior: got None, expected a size (w, h): {decoder} has none of its own")
        if any(not isinstance(size, Sequence) or len(size) != 2 for size in level):
            raise ValueError(f"prior: got {prior!r}, expected (w, h), or several of them for each level")
        found.append(level)
    if len({len(level) for level in found}) > 1 or not found[0]:
        raise ValueError(f"prior: got {found}, expected as many boxes a cell on every level")
    return found
