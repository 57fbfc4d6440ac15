"""Sides as distributions over bins: Generalized Focal Loss, YOLOv8."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_tensor
from .._dtypes import promote
from .._raw import between, logit, to_ends
from ..boxes import Planes
from .axis import cell_indices
from .base import StrideDecoder


def check_bins(logits: Tensor, dim: int) -> None:
    """Raise unless `logits` has at least two bins along `dim`."""
    check_tensor("logits", logits, floating=True)
    shape = tuple(logits.shape)
    if not -logits.ndim <= dim < logits.ndim:
        raise ValueError(f"dim: got {dim}, but logits has shape {shape}")
    if shape[dim] < 2:
        raise ValueError(f"logits: got shape {shape}, expected at least 2 bins along dim {dim}")


def bins_along(dim: int, like: Tensor) -> Tensor:
    """0, 1, 2 ... along `dim`, in a shape that broadcasts with `like`."""
    bins = torch.arange(like.shape[dim], dtype=like.dtype, device=like.device)
    return bins.view([-1 if axis == dim % like.ndim else 1 for axis in range(like.ndim)])


def dfl_integral(logits: Tensor, dim: int = -1) -> Tensor:
    r"""The number that a distribution over bins stands for: its expectation \( \sum_i i\, p_i \).

    p is the softmax of the logits. Li et al. 2020, "Generalized Focal Loss" (arXiv:2006.04388).

    Args:
        logits: a number per bin along `dim`, floating.
        dim: the axis of the bins.

    Returns:
        `logits`' shape without `dim`, in [0, bins - 1], in units of bins, in the dtype of `logits` (float16
        and bfloat16 are computed in float32). A logit of minus infinity shuts its bin.

    Raises:
        TypeError: if `logits` is not a floating tensor.
        ValueError: if there are fewer than two bins.

    Example:
        >>> import torch
        >>> from boxreg.functional import dfl_integral
        >>> dfl_integral(torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0, 9.0]]))
        tensor([2.0000, 3.4995])
    """
    check_bins(logits, dim)
    working, _ = promote(logits, logits)
    return (working.softmax(dim) * bins_along(dim, working)).sum(dim).to(logits.dtype)


@dataclass(frozen=True)
class DFLDecoder(StrideDecoder):
    """Distances to the four sides, each the expectation of a distribution over bins.

    `x1 = (col + 0.5 - E(l)) * stride`, `E(l) = sum(i * softmax(l)[i] for i in range(bins))`

    for the logits l of the left side, and likewise for the others; the 4 * bins raw outputs are the bins of
    the left side, then of the top, right and bottom. From "Generalized Focal Loss: Learning Qualified and
    Distributed Bounding Boxes for Dense Object Detection" (Li et al., 2020, arXiv:2006.04388); YOLOv8's boxes
    are the same. `dfl_loss` trains the distributions themselves.

    Many distributions have one expectation. `encode` takes the binomial one, with which every bin has its
    share and so its gradient:

    `l[i] = log(binomial(bins - 1, i)) + i * logit(y / (bins - 1))`

    for a side y cells away. A box contains its point and has no side more than bins - 1 cells from it;
    `encode` moves sides to these ends.

    Args:
        stride: side of a cell, above 0, in the unit of the boxes: as a rule pixels.
        bins: bins of a side, for the distances 0, 1 ... bins - 1 in cells. The papers count differently:
            YOLOv8's reg_max=16 is bins=16, Generalized Focal Loss's reg_max=16 is bins=17.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from boxreg import DFLDecoder
        >>> decoder = DFLDecoder(stride=8, bins=5)
        >>> decoder.decode(torch.zeros(1, 20, 3, 5), dim=1)[0, :, 2, 4]  # two cells to each side of (36, 20)
        tensor([36., 20., 32., 32.])
    """

    bins: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bins, bool) or not isinstance(self.bins, int):
            raise TypeError(f"bins: got {type(self.bins).__name__}, expected an int")
        if self.bins < 2:
            raise ValueError(f"bins: got {self.bins}, expected at least 2")

    @property
    def channels(self) -> int:
        """Four sides of `bins` bins."""
        return 4 * self.bins

    def logits(self, raw: Tensor, dim: int) -> Tensor:
        """Raw outputs with the axis of the sides at `dim`, counted from the front, and that of the bins next.

        As `dfl_loss` takes them: (B, 4 * bins, ...) to (B, 4, bins, ...).
        """
        return torch.unflatten(raw, dim, (4, self.bins))

    def _read(self, raw: Tensor, dim: int) -> tuple[Tensor, ...]:
        dim %= raw.ndim
        return dfl_integral(self.logits(raw, dim), dim + 1).unbind(dim)

    def _decode(self, raw: tuple[Tensor, ...]) -> Planes:
        left, top, right, bottom = raw
        cols, rows = cell_indices(left)
        (cx, w), (cy, h) = between(left, right, cols, self.stride), between(top, bottom, rows, self.stride)
        return cx, cy, w, h

    def _encode(self, boxes: Planes, dtype: torch.dtype) -> tuple[Tensor, ...]:
        cx, cy, w, h = boxes
        cols, rows = cell_indices(cx)
        left, right = to_ends(cx, w, dtype, cols, self.stride)
        top, bottom = to_ends(cy, h, dtype, rows, self.stride)
        last = self.bins - 1
        steps = [logit(side / last, dtype) for side in (left, top, right, bottom)]
        return tuple(math.log(math.comb(last, i)) + i * step for step in steps for i in range(self.bins))
