"""Distances of the four sides from the middle of a cell: FCOS, TOOD and their kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import check_choice
from .._raw import (
    EXP_BOUND,
    between,
    between_grad,
    bounded_exp,
    bounded_exp_grad,
    inverse_bounded_exp,
    inverse_rectified,
    inverse_softplus,
    rectified,
    rectified_grad,
    softplus,
    softplus_grad,
    to_ends,
)
from .axis import AxisDecoder, Settings
from .base import StrideDecoder


@dataclass(frozen=True)
class LTRBDecoder(StrideDecoder, AxisDecoder):
    """Distances from the middle of a cell to the left, top, right and bottom of the box.

    `x1 = (col + 0.5 - f(tl)) * stride`, `x2 = (col + 0.5 + f(tr)) * stride`

    and likewise y1 and y2 from the row, tt and tb; the raw outputs are tl, tt, tr, tb. The points are those
    of `points_of`. From "FCOS: Fully Convolutional One-Stage Object Detection" (Tian, Shen, Chen and He,
    2019, arXiv:1904.01355), where f is the exponential, later relu in units of the stride. "TOOD:
    Task-aligned One-stage Object Detection" (Feng et al., 2021, arXiv:2108.07755) has the same boxes. A
    factor that FCOS learns for each level is the stride here.

    `distance` says what f is:

    - `"softplus"`: `log(1 + exp(t))`, linear for large distances.
    - `"exp"`: the exponential; above 62.5 strides it goes on as its tangent.
    - `"relu"`: t itself where it is above 1/16 of a stride. Below, where relu would soon be 0 and have no
      gradient, it is `(1/16)² / (1/8 - t)`: never 0, with a gradient wherever t may have strayed to.

    A box always contains its point. `encode` moves a side that lies beyond the point to it, up to the margin
    that centres have (see `boxreg.decoders`). The gradient stays positive for raw outputs above -87 (float64:
    -708), of `"relu"` above -1e16.

    Args:
        stride: side of a cell, above 0, in the unit of the boxes: as a rule pixels.
        distance: `"softplus"`, `"relu"` or `"exp"`.

    Raises:
        TypeError: if `stride` is not a number.
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from boxreg import LTRBDecoder, convert
        >>> decoder = LTRBDecoder(stride=8, distance="relu")
        >>> raw = torch.tensor([0.5, 1.0, 1.5, 2.0]).view(1, 4, 1, 1).expand(1, 4, 3, 5)
        >>> convert(decoder.decode(raw, dim=1), "cxcywh", "xyxy", dim=1)[0, :, 2, 4]  # the point (36, 20)
        tensor([32., 12., 48., 36.])
    """

    distance: str = "softplus"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("distance", self.distance, _MATHS)
        object.__setattr__(self, "scheme", _MATHS[self.distance].scheme)

    @property
    def settings(self) -> Settings:
        """The stride."""
        return (self.stride,), (self.stride,)

    @staticmethod
    def decode_axis(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, stride: float
    ) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        return between(softplus(first), softplus(second), cell, stride)

    @staticmethod
    def decode_axis_grad(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, stride: float
    ) -> tuple[Any, Any, Any, Any]:
        """See `AxisDecoder`."""
        return between_grad(softplus_grad(first), softplus_grad(second), stride)

    @staticmethod
    def encode_axis(
        centre: Tensor, size: Tensor, dtype: torch.dtype, cell: Tensor, cells: float, stride: float
    ) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        low, high = to_ends(centre, size, dtype, cell, stride)
        return inverse_softplus(low, dtype), inverse_softplus(high, dtype)


class _Rectified(LTRBDecoder):
    """The maths of `distance="relu"`."""

    @staticmethod
    def decode_axis(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, stride: float
    ) -> tuple[Tensor, Tensor]:
        return between(rectified(first), rectified(second), cell, stride)

    @staticmethod
    def decode_axis_grad(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, stride: float
    ) -> tuple[Any, Any, Any, Any]:
        return between_grad(rectified_grad(first), rectified_grad(second), stride)

    @staticmethod
    def encode_axis(
        centre: Tensor, size: Tensor, dtype: torch.dtype, cell: Tensor, cells: float, stride: float
    ) -> tuple[Tensor, Tensor]:
        low, high = to_ends(centre, size, dtype, cell, stride)
        return inverse_rectified(low), inverse_rectified(high)


class _Exponential(LTRBDecoder):
    """The maths of `distance="exp"`."""

    @staticmethod
    def decode_axis(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, stride: float
    ) -> tuple[Tensor, Tensor]:
        return between(bounded_exp(first, EXP_BOUND), bounded_exp(second, EXP_BOUND), cell, stride)

    @staticmethod
    def decode_axis_grad(
        first: Tensor, second: Tensor, cell: Tensor, cells: float, stride: float
    ) -> tuple[Any, Any, Any, Any]:
        low, high = bounded_exp_grad(first, EXP_BOUND), bounded_exp_grad(second, EXP_BOUND)
        return between_grad(low, high, stride)

    @staticmethod
    def encode_axis(
        centre: Tensor, size: Tensor, dtype: torch.dtype, cell: Tensor, cells: float, stride: float
    ) -> tuple[Tensor, Tensor]:
        low, high = to_ends(centre, size, dtype, cell, stride)
        return inverse_bounded_exp(low, EXP_BOUND, dtype), inverse_bounded_exp(high, EXP_BOUND, dtype)


_MATHS: dict[str, type[LTRBDecoder]] = {"softplus": LTRBDecoder, "relu": _Rectified, "exp": _Exponential}
