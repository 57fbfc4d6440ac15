"""A box anywhere in the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._raw import inverse_softplus, logit, sigmoid, sigmoid_grad, softplus, softplus_grad
from .axis import AxisDecoder


@dataclass(frozen=True)
class UnitSquareDecoder(AxisDecoder):
    """A box anywhere in the image, as fractions of it.

    `cx = sigmoid(tx)`, `cy = sigmoid(ty)`, `w = softplus(tw)`, `h = softplus(th)`

    where `softplus(t) = log(1 + exp(t))`. Centres lie inside the image; sizes are positive and have no
    upper bound, and grow linearly in the raw output, so that a bad step cannot blow a box up as an
    exponential would. The gradient stays positive for raw centres within ±88 and raw sizes above -87
    (float64: ±709 and -708).

    Example:
        >>> import torch
        >>> from boxreg.decoders import UnitSquareDecoder
        >>> decoder = UnitSquareDecoder()
        >>> decoder.decode(torch.zeros(4))
        tensor([0.5000, 0.5000, 0.6931, 0.6931])
        >>> decoder.decode(decoder.encode(torch.tensor([0.5, 0.25, 0.2, 1.5])))
        tensor([0.5000, 0.2500, 0.2000, 1.5000])
    """

    @staticmethod
    def decode_axis(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        return sigmoid(first), softplus(second)

    @staticmethod
    def decode_axis_grad(first: Tensor, second: Tensor) -> tuple[Any, Any, Any, Any]:
        """See `AxisDecoder`."""
        return sigmoid_grad(first), 0.0, 0.0, softplus_grad(second)

    @staticmethod
    def encode_axis(centre: Tensor, size: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See `AxisDecoder`."""
        return logit(centre, dtype), inverse_softplus(size, dtype)
