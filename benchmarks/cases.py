"""The work that is measured, named by what it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from boxreg import Decoder, GridCellDecoder, LTRBDecoder, UnitSquareDecoder, convert
from boxreg.losses import LOSSES

IMAGE = 640.0
"""Side of an image in pixels."""

STRIDE = 8.0
"""The stride of `LTRBDecoder`, in pixels."""

DECODERS: dict[str, tuple[Decoder, tuple[float, float, float, float]]] = {
    "UnitSquareDecoder": (UnitSquareDecoder(), (0.5, 0.5, 0.2, 0.2)),
    "GridCellDecoder": (GridCellDecoder((IMAGE, IMAGE)), (IMAGE / 2, IMAGE / 2, IMAGE / 5, IMAGE / 5)),
    "LTRBDecoder": (LTRBDecoder(STRIDE), (STRIDE / 2, STRIDE / 2, 8 * STRIDE, 8 * STRIDE)),
}
"""Decoders by name, and the box about which their raw outputs are drawn."""


@dataclass(frozen=True)
class Case:
    """Boxes of `batch` images, and what is computed of them.

    `job` is a field of `Provider`: `"loss"`, the mean loss of kind `kind` and its gradient; `"weighted"`, the
    weighted sum instead of the mean; `"from_raw"`, mean CIoU from raw outputs of `decoder`, and its gradient;
    `"pairwise"`, the scores of `targets` boxes with all others, with a gradient at them if `grad`.
    """

    name: str
    count: int
    """Predicted boxes an image."""
    batch: int = 1
    targets: int = 0
    """Target boxes an image, where each meets every prediction."""
    job: str = "loss"
    layout: str = "rows"
    """`"rows"` (N, 4), or `"planes"` (batch, 4, count)."""
    memory: bool = False
    """Whether its peak memory is measured on a CPU too, which takes a process for each provider."""
    kind: str = "ciou"
    decoder: str = "UnitSquareDecoder"
    grad: bool = True
    """Whether pairwise scores have a gradient; every other job has one."""

    @property
    def pairs(self) -> int:
        return self.count * self.batch * max(self.targets, 1)

    def of(self, pairs: int) -> Case:
        """The same work on so many pairs, as near as whole images allow."""
        return replace(self, count=max(pairs * self.count // self.pairs, 1))


CASES = (
    Case("one-box head", 64),
    Case("positives of a YOLO batch", 1_024),
    Case("positives of a large YOLO batch", 8_400),
    Case("assigner", 8_400, batch=16, targets=50, job="pairwise", memory=True, grad=False),
    Case("dense maps", 8_400, batch=16),
    Case("dense maps", 8_400, batch=16, layout="planes"),
    Case("stress", 1_000_000, memory=True),
    Case("stress", 1_000_000, layout="planes", memory=True),
    Case("raw to loss", 8_400, job="from_raw"),
    Case("raw to loss", 8_400, batch=16, job="from_raw", layout="planes"),
)
HUGE = (Case("stress", 10_000_000), Case("stress", 10_000_000, layout="planes"))
"""Ten million pairs: for a GPU, or where they are asked for."""

SCALING = tuple(
    Case(name, count, layout="planes")
    for name, count in (
        ("one-box head", 64),
        ("positives of a YOLO batch", 1_024),
        ("positives of a large YOLO batch", 8_400),
    )
)
"""The small ones in planes."""

ON_CPU = (
    Case("raw to loss, GridCellDecoder", 8_400, 16, 0, "from_raw", "planes", decoder="GridCellDecoder"),
    Case("raw to loss, LTRBDecoder", 8_400, 16, 0, "from_raw", "planes", decoder="LTRBDecoder"),
    Case("assigner by IoU", 8_400, batch=16, targets=50, job="pairwise", kind="iou", grad=False),
    Case("pairwise IoU of an image", 8_400, targets=800, job="pairwise", kind="iou", grad=False),
    Case("pairwise IoU with gradient", 2_000, targets=2_000, job="pairwise", kind="iou"),
    *(Case("weighted loss", 8_400, batch=batch, job="weighted") for batch in (1, 16)),
    *(Case("other losses", 8_400, kind=kind) for kind in LOSSES if kind != "ciou"),
)
"""What is measured on a CPU alone."""


def inputs(
    case: Case, device: torch.device, dtype: torch.dtype, *, fmt: str = "xyxy", near: bool = False
) -> tuple[Tensor, Tensor, int]:
    """Predictions that need their gradient, targets, and the coordinate axis of both.

    Boxes are in pixels, so that no additive eps of a provider's can be seen; raw outputs are those of the
    case's decoder, and their targets in its unit.

    Args:
        case: what is to be computed.
        device: where the tensors are.
        dtype: the dtype of both.
        fmt: format of the targets; predictions are xyxy, or raw.
        near: every prediction is near its target, IoU above 0.5.
    """
    generator = torch.Generator().manual_seed(0)
    if case.job == "from_raw":
        pred, target = raw_outputs(case, generator, fmt, near)
    elif case.job == "pairwise":
        pred, target = (IMAGE * boxes(generator, case.batch, n) for n in (case.targets, case.count))
    else:
        pred, target = (IMAGE * boxes(generator, case.batch, case.count) for _ in range(2))
        if near:
            pred = target + 0.005 * pred
        target = convert(target, "xyxy", fmt)
    if case.layout == "planes" and case.job != "from_raw":
        pred, target = pred.mT.contiguous(), target.mT.contiguous()
    elif case.layout == "rows" and case.job != "pairwise":
        pred, target = pred.flatten(0, -2), target.flatten(0, -2)
    pred, target = pred.to(device, dtype).contiguous(), target.to(device, dtype).contiguous()
    return pred.requires_grad_(case.grad), target, 1 if case.layout == "planes" else -1


def boxes(generator: torch.Generator, batch: int, count: int) -> Tensor:
    """Upright boxes (batch, count, 4) in fractions of an image, their sides 0.05 to 0.35 of its own."""
    corner, size = (torch.rand(batch, count, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return torch.cat([0.6 * corner, 0.6 * corner + 0.3 * size + 0.05], -1)


def raw_outputs(case: Case, generator: torch.Generator, fmt: str, near: bool) -> tuple[Tensor, Tensor]:
    """Raw outputs and targets, of planes (batch, 4, rows, columns), and of rows (batch, rows, columns, 4)."""
    decoder, prior = DECODERS[case.decoder]
    rows = max(side for side in range(1, math.isqrt(case.count) + 1) if case.count % side == 0)
    shape = case.batch, 4, rows, case.count // rows
    bias = decoder.bias(prior, torch.float64).view(4, 1, 1)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    raw = bias + 0.5 * first
    target = decoder.decode(raw + (0.005 if near else 0.5) * second, dim=1)
    target = convert(target, "cxcywh", fmt, dim=1)
    return (raw, target) if case.layout == "planes" else (raw.movedim(1, -1), target.movedim(1, -1))
