"""Heads: a projection of features, a decoder, and a bias solved from a prior box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from ._checks import check_choice, check_tensor
from .boxes import convert
from .decoders import Decoder, UnitSquareDecoder, check_decoder

_UNIT_SQUARE = UnitSquareDecoder()

# Small enough for the prior to show, not 0, which would cut the backbone off from the first gradient.
# The decoders' derivatives are at most 0.63 for a box no larger than the image, so with features of
# root mean square 100 five standard deviations of the output stay within 1e-3 of the image.
WEIGHT_SCALE = 3e-6


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Where coordinates are computed: the dtype of the weights holds, not that of autocast."""
    # Entered only where autocast is on, so that an exported graph stays plain; the meta device has none.
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class BoxHead(nn.Module):
    """Predicts boxes from features; untrained, it predicts a prior box whatever the features.

    `boxes = decode(weight @ features + bias)`, with `bias = encode(prior)` and `weight` drawn from a normal
    distribution of standard deviation `3e-6 / sqrt(in_features)`.

    Features whose root mean square is up to 100 move the untrained head's boxes by less than 1e-3 of
    the image. Starting a head at a prior by its bias is what "Focal Loss for Dense Object Detection"
    (Lin, Goyal, Girshick, He and Dollár, 2017, arXiv:1708.02002) does for scores; here it is done for boxes.

    The projection always runs in the dtype of its own weight, even under autocast, for bfloat16 has too
    few bits for coordinates: in the far half of an image 640 pixels wide its numbers are 2.5 pixels apart.

    Args:
        in_features: length of a feature vector, or channels of a feature map.
        prior: the box (cx, cy, w, h) to start from, in the unit of the decoder's boxes, e.g. `prior_from`
            of the training boxes. A decoder with a grid reads the centre inside each cell, as if the grid
            had one cell.
        decoder: how raw outputs stand for boxes.
        projection: `"linear"`, one box a vector: features (..., in_features) to boxes (..., 4); or `"conv"`,
            a 1x1 convolution, one box a cell: features (B, in_features, H, W) to boxes (B, 4, H, W).

    Attributes:
        dim: the coordinate axis of the boxes: -1 for `"linear"`, 1 for `"conv"`.

    Raises:
        TypeError: if `in_features` or `decoder` is of the wrong type.
        ValueError: if an argument is out of its range, or the decoder needs a grid and `projection` makes
            none.

    Example:
        >>> import torch
        >>> from boxreg.heads import BoxHead
        >>> head = BoxHead(256, prior=(0.5, 0.5, 0.2, 0.3))
        >>> head(torch.randn(8, 256)).mean(0).round(decimals=2)
        tensor([0.5000, 0.5000, 0.2000, 0.3000], grad_fn=<RoundBackward1>)
    """

    dim: int

    def __init__(
        self,
        in_features: int,
        prior: Sequence[float],
        *,
        decoder: Decoder = _UNIT_SQUARE,
        projection: Literal["linear", "conv"] = "linear",
    ) -> None:
        super().__init__()
        if isinstance(in_features, bool) or not isinstance(in_features, int):
            raise TypeError(f"in_features: got {type(in_features).__name__}, expected an int")
        if in_features < 1:
            raise ValueError(f"in_features: got {in_features}, expected at least 1")
        check_decoder(decoder)
        check_choice("projection", projection, ("linear", "conv"))
        if projection == "linear" and decoder.needs_grid:
            raise ValueError(
                "projection: got 'linear', which makes no grid of cells, but "
                f'{type(decoder).__name__} needs one: use projection="conv"'
            )
        decoder.bias(prior)  # complains about a bad prior before anything is built
        self.in_features = in_features
        self.prior = tuple(float(value) for value in prior)
        self.decoder = decoder
        self.projection: nn.Linear | nn.Conv2d
        if projection == "linear":
            self.dim = -1
            self.projection = nn.Linear(in_features, decoder.channels)
        else:
            self.dim = 1
            self.projection = nn.Conv2d(in_features, decoder.channels, kernel_size=1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight anew and set the bias to the prior."""
        weight, bias = self.projection.weight, self.projection.bias
        assert bias is not None
        nn.init.normal_(weight, std=WEIGHT_SCALE / math.sqrt(self.in_features))
        bias.copy_(self.decoder.bias(self.prior, bias.dtype))

    def raw(self, features: Tensor) -> Tensor:
        """The outputs before the decoder.

        Args:
            features: floating, (..., in_features) for a linear projection, (B, in_features, H, W) for a
                convolution.

        Returns:
            (..., channels) or (B, channels, H, W), with the decoder's number of channels, 4 a box as a
            rule, in the dtype of the projection's weight.

        Raises:
            TypeError: if `features` is not a floating tensor.
            ValueError: if `features` does not have the shape that the projection takes.
        """
        self._check_features(features)
        features = features.to(self.projection.weight.dtype)
        with without_autocast(features.device.type):
            raw: Tensor = self.projection(features)
        return raw

    def forward(self, features: Tensor) -> Tensor:
        """Predict boxes.

        Args:
            features: floating, (..., in_features) for a linear projection, (B, in_features, H, W) for a
                convolution.

        Returns:
            Boxes in cxcywh, (..., 4) or (B, 4, H, W), in the decoder's unit and the dtype of the projection's
            weight. Nothing is clamped.

        Raises:
            TypeError: if `features` is not a floating tensor.
            ValueError: if `features` does not have the shape that the projection takes.
        """
        return self.decoder.decode(self.raw(features), self.dim)

    def _check_features(self, features: Tensor) -> None:
        check_tensor("features", features, floating=True)
        if isinstance(self.projection, nn.Conv2d):
            fits = features.ndim == 4 and features.shape[1] == self.in_features
            expected = f"(B, {self.in_features}, H, W)"
        else:
            fits = features.ndim >= 1 and features.shape[-1] == self.in_features
            expected = f"(..., {self.in_features})"
        if not fits:
            raise ValueError(
                f"features: got shape {tuple(features.shape)}, expected {expected} "
                f"with in_features={self.in_features}"
            )

    def extra_repr(self) -> str:
        """The prior and the decoder, for `print(head)`."""
        return f"prior={self.prior}, decoder={self.decoder}"

    @staticmethod
    def prior_from(boxes: Tensor, fmt: str = "cxcywh") -> tuple[float, float, float, float]:
        """The median of each of cx, cy, w and h over training boxes: a prior to start from.

        Unlike the mean, the median is not moved by a few huge boxes. With an even number of boxes it is the
        mean of the middle two.

        Args:
            boxes: (N, 4), floating or integer, in the unit of the decoder's boxes.
            fmt: format of `boxes`: `"xyxy"`, `"xywh"` or `"cxcywh"`.

        Returns:
            A box (cx, cy, w, h).

        Raises:
            TypeError: if `boxes` is not a real tensor.
            ValueError: if `boxes` is not (N, 4), is empty or holds NaN or infinity, or if the median width
                or height is not above 0.

        Example:
            >>> import torch
            >>> from boxreg.heads import BoxHead
            >>> BoxHead.prior_from(torch.tensor([[0, 0, 2, 4], [2, 2, 4, 8], [0, 0, 9, 9]]), fmt="xyxy")
            (3.0, 4.5, 2.0, 6.0)
        """
        check_tensor("boxes", boxes, floating=False)
        if boxes.ndim != 2 or boxes.shape[0] == 0 or boxes.shape[1] != 4:
            raise ValueError(f"boxes: got shape {tuple(boxes.shape)}, expected (N, 4) with N of at least 1")
        if not boxes.isfinite().all():
            raise ValueError("boxes: got NaN or infinity, expected finite coordinates")
        ordered = convert(boxes.detach().double(), fmt, "cxcywh").sort(dim=0).values
        count = len(ordered)
        cx, cy, w, h = ((ordered[(count - 1) // 2] + ordered[count // 2]) / 2).tolist()
        if not (w > 0 and h > 0):
            raise ValueError(
                f"boxes: got a median width of {w} and height of {h}, expected both above 0 "
                f"(is fmt={fmt!r} right?)"
            )
        return cx, cy, w, h
