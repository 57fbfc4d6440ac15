"""Boxes a cell that start from anchors: the schemes of YOLOv3 and of YOLOv5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._checks import check_number
from .._raw import (
    EXP_BOUND,
    bounded_exp,
    bounded_exp_grad,
    inverse_bounded_exp,
    logit,
    sigmoid,
    sigmoid_grad,
)
from .axis import AxisDecoder, Settings
from .base import Prior, StrideDecoder


@dataclass(frozen=True)
class AnchorDecoder(StrideDecoder, AxisDecoder):
    """A scheme in which each of the K boxes of a cell has an anchor, the size that it starts from."""

    needs_anchors: ClassVar[bool] = True

    anchors: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.anchors, Sequence) or not self.anchors:
            raise ValueError(f"anchors: got {self.anchors!r}, expected at least one (width, height)")
        for anchor in self.anchors:
            if not isinstance(anchor, Sequence) or len(anchor) != 2:
                raise ValueError(f"anchors: got {anchor!r}, expected (width, height)")
            for side in anchor:
                check_number("anchors", side)
                if not side > 0:
                    raise ValueError(f"anchors: got a side of {side}, expected sides above 0")
        # Lists would not hash.
        object.__setattr__(self, "anchors", tuple((width, height) for width, height in self.anchors))

    @property
    def settings(self) -> Settings:
        """The stride."""
        return (self.stride,), (self.stride,)

    @property
    def anchor_sides(self) -> Settings:
        """The widths and the heights of the anchors."""
        return tuple(width for width, _ in self.anchors), tuple(height for _, height in self.anchors)

    @property
    def own_sizes(self) -> tuple[tuple[float, float], ...]:
        """The anchors."""
        return tuple(self.anchors)

    def bias(self, prior: Prior, dtype: torch.dtype = torch.float32) -> Tensor:
        """As of every decoder; one prior for each of the anchors, unless there is but one anchor."""
        got = len(prior) if isinstance(prior, Sequence) and isinstance(prior[0], tuple | list) else 1
        if got != len(self.anchors):
            raise ValueError(
                f"prior: got {got} boxes, expected one for each of the {len(self.anchors)} anchors"
            )
        return super().bias(prior, dtype)

    def _check_grid(self, name: str, value: Tensor, dim: int) -> None:
        super()._check_grid(name, value, dim)
        plane, boxes = value.select(dim, 0).shape, len(self.anchors)
        if boxes > 1 and (len(plane) < 3 or plane[-3] != boxes):
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)}, but there are {boxes} anchors: "
                f"expected (B, 4, {boxes}, H, W) with dim=1 or (B, {boxes}, H, W, 4) with dim=-1"
            )


@dataclass(frozen=True)
class YOLOv3Decoder(AnchorDecoder):
    """Anchors times an exponential, centres by a sigmoid inside the cell.

    `cx = (col + sigmoid(tx)) * stride`, `w = anchor_width * exp(tw)`

    and likewise cy and h from the row and the anchor's height. From "YOLO9000: Better, Faster, Stronger"
    (Redmon and Farhadi, 2016, arXiv:1612.08242); "YOLOv3: An Incremental Improvement" (the same, 2018,
    arXiv:1804.02767) has three anchors on each of three levels, of strides 8, 16 and 32.

    The papers leave the exponential unbounded. Here, above 62.5 anchors (tw above ln 62.5 = 4.1) it goes on
    as its tangent, so that a bad step neither overflows nor stops the gradient. The gradient stays positive
    for raw centres within ±88 and raw sizes above -87 (float64: ±709 and -708).

    Args:
        stride: side of a cell, above 0, in the unit of the boxes: as a rule pixels.
        anchors: (width, height) of each of the K boxes of a cell, in the unit of the boxes. Raw outputs are
            (B, 4, K, H, W), a view of a convolution's (B, 4 K, H, W); with one anchor (B, 4, H, W) too.

    Raises:
        TypeError: if a number is of the wrong type.
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from boxreg import YOLOv3Decoder
        >>> decoder = YOLOv3Decoder(stride=8, anchors=[(10, 13), (33, 23)])
        >>> boxes = decoder.decode(torch.zeros(1, 4, 2, 3, 5), dim=1)
        >>> boxes[0, :, 1, 2, 4]  # the second box of row 2, column 4
        tensor([36., 20., 33., 23.])
    """

    @staticmethod
    def decode_axis(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, anchor: Tensor, stride: float
    ) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        return (cell + sigmoid(first)) * stride, anchor * bounded_exp(second, EXP_BOUND)

    @staticmethod
    def decode_axis_grad(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, anchor: Tensor, stride: float
    ) -> tuple[Any, Any, Any, Any]:
        """See `AxisDecoder`."""
        return sigmoid_grad(first) * stride, 0.0, 0.0, anchor * bounded_exp_grad(second, EXP_BOUND)

    @staticmethod
    def encode_axis(
        centre: Tensor,
        size: Tensor,
        dtype: torch.dtype,
        cell: Tensor,
        cells: float,
        anchor: Tensor,
        stride: float,
    ) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        return logit(centre / stride - cell, dtype), inverse_bounded_exp(size / anchor, EXP_BOUND, dtype)


@dataclass(frozen=True)
class YOLOv5Decoder(AnchorDecoder):
    """Anchors times the square of a sigmoid, centres up to half a cell outside the cell.

    `cx = (col + 2 * sigmoid(tx) - 0.5) * stride`, `w = anchor_width * (2 * sigmoid(tw)) ** 2`

    and likewise cy and h from the row and the anchor's height. From YOLOv5 (Jocher, 2020,
    doi:10.5281/zenodo.3908559), and the same in "YOLOv7: Trainable bag-of-freebies sets new state-of-the-art
    for real-time object detectors" (Wang, Bochkovskiy and Liao, 2022, arXiv:2207.02696).

    Sizes lie below four anchors, and `encode` clips them to that (and at the other end to 6e-14 of an anchor,
    float16 to 1.5e-8, float64 to 2e-31); so objects are to be assigned by the ratio of their sides, as
    `AnchorRatioAssigner` does. The gradient stays positive for raw centres within ±88 and raw sizes from -43
    to 88 (float64: ±709, and -354 to 709).

    Args:
        stride: side of a cell, above 0, in the unit of the boxes: as a rule pixels.
        anchors: (width, height) of each of the K boxes of a cell, in the unit of the boxes. Raw outputs are
            (B, 4, K, H, W), a view of a convolution's (B, 4 K, H, W); with one anchor (B, 4, H, W) too.

    Raises:
        TypeError: if a number is of the wrong type.
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from boxreg import YOLOv5Decoder
        >>> decoder = YOLOv5Decoder(stride=8, anchors=[(10, 13), (33, 23)])
        >>> raw = torch.zeros(1, 4, 2, 3, 5)
        >>> raw[:, :2] = 9.0  # as far to the right and down as it goes
        >>> decoder.decode(raw, dim=1)[0, :, 1, 2, 4].round(decimals=2)
        tensor([44., 28., 33., 23.])
    """

    @staticmethod
    def decode_axis(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, anchor: Tensor, stride: float
    ) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        share = sigmoid(second)
        return (cell + (2.0 * sigmoid(first) - 0.5)) * stride, 4.0 * share * share * anchor

    @staticmethod
    def decode_axis_grad(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, anchor: Tensor, stride: float
    ) -> tuple[Any, Any, Any, Any]:
        """See `AxisDecoder`."""
        at_size = 8.0 * sigmoid(second) * sigmoid_grad(second) * anchor
        return 2.0 * sigmoid_grad(first) * stride, 0.0, 0.0, at_size

    @staticmethod
    def encode_axis(
        centre: Tensor,
        size: Tensor,
        dtype: torch.dtype,
        cell: Tensor,
        cells: float,
        anchor: Tensor,
        stride: float,
    ) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        share = 0.5 * (size / anchor).clamp(min=torch.finfo(size.dtype).smallest_normal).sqrt()
        return logit(0.5 * (centre / stride - cell + 0.5), dtype), logit(share, dtype)
