"""The work that is measured, named by what it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from boxreg import UnitSquareDecoder, convert

PICTURE = 640.0
"""Side of a picture in pixels."""


@dataclass(frozen=True)
class Case:
    """Boxes of `batch` pictures, and what is computed of them.

    `job` is a field of `Provider`: `"loss"`, mean CIoU and its gradient; `"from_raw"`, the same from the raw
    outputs of a head; `"pairwise"`, the scores of `targets` boxes with all others, forward alone.
    """

    name: str
    count: int
    """Predicted boxes a picture."""
    batch: int = 1
    targets: int = 0
    """Target boxes a picture, where each meets every prediction."""
    job: str = "loss"
    layout: str = "rows"
    """`"rows"` (N, 4), or `"planes"` (batch, 4, count)."""
    memory: bool = False
    """Whether its peak memory is measured on a CPU too, which takes a process for each provider."""

    @property
    def pairs(self) -> int:
        return self.count * self.batch * max(self.targets, 1)

    def of(self, pairs: int) -> Case:
        """The same work on so many pairs, as near as whole pictures allow."""
        return replace(self, count=max(pairs * self.count // self.pairs, 1))


CASES = (
    Case("one-box head", 64),
    Case("positives of a YOLO batch", 1_024),
    Case("positives of a large YOLO batch", 8_400),
    Case("assigner", 8_400, batch=16, targets=50, job="pairwise", memory=True),
    Case("dense maps", 8_400, batch=16),
    Case("dense maps", 8_400, batch=16, layout="planes"),
    Case("stress", 1_000_000, memory=True),
    Case("stress", 1_000_000, layout="planes", memory=True),
    Case("raw to loss", 8_400, job="from_raw"),
    Case("raw to loss", 8_400, batch=16, job="from_raw", layout="planes"),
)
HUGE = (Case("stress", 10_000_000), Case("stress", 10_000_000, layout="planes"))
"""Ten million pairs: for a GPU, or where they are asked for."""

SCALING = tuple(Case("scaling", count, layout="planes") for count in (64, 1_024, 8_400))
"""What the picture of time against pairs needs beside `CASES`: the small ones in planes."""


def inputs(
    case: Case, device: torch.device, dtype: torch.dtype, *, fmt: str = "xyxy", near: bool = False
) -> tuple[Tensor, Tensor, int]:
    """Predictions that need their gradient, targets, and the coordinate axis of both.

    Boxes are in pixels, so that no additive eps of a provider's can be seen; raw outputs are those of
    `boxreg.UnitSquareDecoder`, and their targets fractions of the picture.

    Args:
        case: what is to be computed.
        device: where the tensors are.
        dtype: of both.
        fmt: format of the targets; predictions are xyxy, or raw.
        near: every prediction is near its target, IoU above 0.5.
    """
    generator = torch.Generator().manual_seed(0)
    if case.job == "pairwise":
        first, second = (boxes(generator, case.batch, n) for n in (case.targets, case.count))
        return PICTURE * first.to(device, dtype), PICTURE * second.to(device, dtype), -1
    pred, target = (boxes(generator, case.batch, case.count) for _ in range(2))
    if near:
        pred = target + 0.005 * pred
    if case.job == "from_raw":
        pred = UnitSquareDecoder().encode(convert(pred, "xyxy", "cxcywh"))
    else:
        pred, target = PICTURE * pred, PICTURE * target
    pred, target = (side.to(device, dtype) for side in (pred, convert(target, "xyxy", fmt)))
    if case.layout == "planes":
        pred, target = (side.transpose(1, 2).contiguous() for side in (pred, target))
        return pred.requires_grad_(), target, 1
    return pred.flatten(0, 1).requires_grad_(), target.flatten(0, 1), -1


def boxes(generator: torch.Generator, batch: int, count: int) -> Tensor:
    """Upright boxes (batch, count, 4) in fractions of a picture, their sides 0.05 to 0.35 of its own."""
    corner, size = (torch.rand(batch, count, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return torch.cat([0.6 * corner, 0.6 * corner + 0.3 * size + 0.05], -1)
