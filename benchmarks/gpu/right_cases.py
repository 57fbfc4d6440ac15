"""The kernels of the IoU family in all their forms, each against eager in float64 on the same boxes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxreg import (
    Decoder,
    GridCellDecoder,
    LTRBDecoder,
    UnitSquareDecoder,
    YOLOv3Decoder,
    YOLOv5Decoder,
    convert,
)
from boxreg.iou import functional
from boxreg.iou.spec import FAMILY, IOU, MODES

from .boxes import some_pairs
from .device import Cuda
from .report import Figures

PARAMETERS: dict[str, dict[str, Any]] = {
    "mpdiou": {"image_width": 4.0, "image_height": 3.0},
    "shapeiou": {"scale": 0.75},
    "nwd": {"constant": 1.5},
}
"""Parameters of the losses that have any, for boxes of about one unit."""

ANCHORS = ((0.9, 0.7), (0.4, 1.1), (1.3, 0.5))
DECODERS: dict[str, Decoder] = {
    "unit square": UnitSquareDecoder(),
    "grid cell": GridCellDecoder(stretch=1.2, image_size=(3.0, 2.0)),
    "ltrb softplus": LTRBDecoder(stride=0.25),
    "ltrb relu": LTRBDecoder(stride=0.25, distance="relu"),
    "ltrb exp": LTRBDecoder(stride=0.25, distance="exp"),
    "yolov3": YOLOv3Decoder(stride=0.25, anchors=ANCHORS),
    "yolov5": YOLOv5Decoder(stride=0.25, anchors=ANCHORS),
}
"""The decoders whose boxes are decoded inside the kernel."""

SHAPE, TINY_SHAPE = (2, len(ANCHORS), 17, 23), (2, len(ANCHORS), 5, 7)
"""Images, boxes a cell, rows and columns: a last block that is not full, and no multiple of 16."""

INNER = 0.7
"""The ratio of inner boxes."""

EPS = torch.finfo(torch.float32).eps
TOLERANCE = 128 * EPS
"""The largest error of a loss, relative to 1, and of a gradient, relative to the largest of its box."""


class Case(NamedTuple):
    """What is computed; every two values of two fields meet in some case."""

    kind: str
    mode: str
    inner: bool
    dtype: torch.dtype
    fmt: str
    layout: str
    decoder: str
    weight: bool
    reduction: str
    gradients: str

    def __str__(self) -> str:
        parts = [self.kind, self.mode, "inner" if self.inner else "", str(self.dtype).removeprefix("torch.")]
        parts += [self.fmt, self.layout, self.decoder, "weight" if self.weight else "", self.reduction]
        return " ".join(part for part in (*parts, f"d {self.gradients}") if part)


CHOICES: dict[str, tuple[Any, ...]] = {
    "fmt": ("xyxy", "xywh", "cxcywh"),
    "layout": ("rows", "planes", "strided"),
    "decoder": ("", *DECODERS),
    "weight": (False, True),
    "reduction": ("mean", "sum", "none"),
    "gradients": ("pred", "target", "both"),
}


@cache
def cases() -> tuple[Case, ...]:
    """Each loss in each mode, on boxes and on inner boxes, in each dtype; the other fields in turns."""
    draws = random.Random(0)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    fixed = [
        (kind, mode, inner, dtype)
        for kind, mode, inner, dtype in product(FAMILY, MODES, (False, True), dtypes)
        if not inner or FAMILY[kind].overlap is IOU
    ]
    met: set[object] = set()
    found = []
    for first in fixed:
        several = [Case(*first, *(draws.choice(values) for values in CHOICES.values())) for _ in range(60)]
        best = max(several, key=lambda case: len(set(meetings(case)) - met))
        met.update(meetings(best))
        found.append(best)
    return tuple(found)


def meetings(case: Case) -> Iterator[object]:
    """Every two values of two fields of a case."""
    yield from combinations(zip(case._fields, case, strict=True), 2)


CASES = cases()


def check(case: Case, device: Cuda) -> Figures:
    """The kernel of a case against eager in float64: the loss, and the gradients under a random upstream.

    Raises:
        AssertionError: if one of them is farther off than it may be, or is of another dtype.
    """
    pred, target, weight = inputs(case, device)
    found = results(case, pred, target, weight, "triton")
    expected = results(case, pred.double(), target.double(), weight, "eager")
    lengths = lengths_of(case, pred.double(), target.double())
    scale = upstream_of(case, expected[0], lengths.loose.numel()) / lengths.shortest_side
    worst = {"loss": loss_error(found[0], expected[0], lengths.loose)}
    for name, part, reference in zip(names(case), found[1:], expected[1:], strict=True):
        assert part.dtype == case.dtype, f"{name}: got {part.dtype}, expected {case.dtype}"
        if weight is not None:
            ignored = part.movedim(dim(case), -1)[weight == 0]
            assert not ignored.any(), f"{name}: a box of weight 0 has a gradient"
        held = lengths.decidable.unsqueeze(dim(case))
        allowed = gradient_allowance(reference, lengths.loose, scale, dim(case), part.dtype)
        worst[name] = largest(part.double(), reference, allowed, held)
    assert found[0].dtype == torch.float32, f"loss: got {found[0].dtype}, expected float32"
    if weight is not None and case.reduction == "none":
        assert not found[0][weight == 0].any(), "a box of weight 0 has a loss"
    said = ", ".join(f"{name} {value:.3g}" for name, value in worst.items())
    assert max(worst.values()) <= 1, f"off by more than is allowed (1 is the most): {said}"
    return {"error": round(max(worst.values()), 3)}


def inputs(case: Case, device: Cuda) -> tuple[Tensor, Tensor, Tensor | None]:
    """Predictions or raw outputs, targets, and weights with zeros, where the prediction is NaN."""
    shape = device.pick(SHAPE, TINY_SHAPE)
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(1)
    pred, target = some_pairs(count)
    if case.decoder:
        pred = 1.5 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    else:
        pred = convert(pred, "xyxy", case.fmt)
    target = convert(target, "xyxy", case.fmt)
    weight = None
    if case.weight:
        weight = torch.rand(count, generator=generator).mul(4).floor().view(shape).to(device.torch)
        pred[weight.flatten().cpu() == 0] = torch.nan
    pred, target = (
        laid_out(side.to(device.torch, case.dtype).view(*shape, 4), case.layout) for side in (pred, target)
    )
    return pred, target, weight


def laid_out(rows: Tensor, layout: str) -> Tensor:
    """Boxes (..., 4) as they are, as planes (B, 4, K, H, W), or every other number of a wider tensor."""
    if layout == "planes":
        return rows.movedim(-1, 1).contiguous()
    if layout == "strided":
        wide = rows.new_full((*rows.shape[:-1], 9), torch.nan)
        wide[..., 1:8:2] = rows
        return wide[..., 1:8:2]
    return rows


def dim(case: Case) -> int:
    """The coordinate axis."""
    return 1 if case.layout == "planes" else -1


def names(case: Case) -> tuple[str, ...]:
    """Whose gradient is taken."""
    return ("pred", "target") if case.gradients == "both" else (case.gradients,)


def results(case: Case, pred: Tensor, target: Tensor, weight: Tensor | None, backend: str) -> list[Tensor]:
    """The loss, and the gradients that the case asks for, under a random upstream gradient."""
    sides = {"pred": pred.detach(), "target": target.detach()}
    leaves = [sides[name].requires_grad_() for name in names(case)]
    loss = functional.aligned_loss(
        case.kind,
        sides["pred"],
        sides["target"],
        fmt=case.fmt,
        reduction=case.reduction,
        weight=weight,
        dim=dim(case),
        backend=backend,
        decoder=DECODERS.get(case.decoder),
        mode=case.mode,
        inner_ratio=INNER if case.inner else None,
        **PARAMETERS.get(case.kind, {}),
    )
    return [loss.detach(), *torch.autograd.grad(loss, leaves, drawn(loss))]


def drawn(loss: Tensor) -> Tensor:
    """A random upstream gradient, the same in every dtype."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(loss.shape, generator=generator).to(loss)


class Lengths(NamedTuple):
    """What rounding does to the lengths of a pair."""

    loose: Tensor
    """Factor on the usual rounding tolerance; 1 if the corners are given exactly."""
    shortest_side: Tensor
    """The shortest side of the two boxes; infinite where neither has a side."""
    decidable: Tensor
    """False where rounding decides whether the boxes overlap: their gradient is not compared."""


def lengths_of(case: Case, pred: Tensor, target: Tensor) -> Lengths:
    """The lengths of the pairs, in float64, and how well float32 knows them.

    The rounding error of a computed corner is relative to its coordinate. A side, or the reach of two boxes
    into each other, that is much shorter than the coordinates has fewer correct digits.
    """
    if case.decoder:
        pred = convert(DECODERS[case.decoder].decode(pred, dim(case)), "cxcywh", case.fmt, dim(case))
    p, t = (convert(side, case.fmt, "xyxy", dim(case)).movedim(dim(case), 0) for side in (pred, target))
    sides = torch.cat([p[2:] - p[:2], t[2:] - t[:2]]).abs()
    if case.inner:
        p, t = (shrunk(box, INNER) for box in (p, t))
    reach = torch.minimum(p[2:], t[2:]) - torch.maximum(p[:2], t[:2])
    farthest = torch.cat([p, t]).abs().amax(0)
    exact = case.fmt == "xyxy" and not case.decoder and not case.inner
    lengths = torch.cat([sides, reach.abs()])
    shortest = torch.where(lengths > 0, lengths, torch.inf).amin(0)
    loose = torch.ones_like(farthest) if exact else 1 + (farthest / shortest).nan_to_num(0.0) / 16
    decidable = (reach.abs() > 64 * EPS * farthest).all(0) | exact
    return Lengths(loose.nan_to_num(1.0), torch.where(sides > 0, sides, torch.inf).amin(0), decidable)


def shrunk(box: Tensor, ratio: float) -> Tensor:
    """xyxy planes scaled about their centres."""
    middle, half = (box[:2] + box[2:]) / 2, ratio * (box[2:] - box[:2]) / 2
    return torch.cat([middle - half, middle + half])


def upstream_of(case: Case, loss: Tensor, boxes: int) -> Tensor:
    """The largest upstream gradient of one box, given the number of boxes."""
    size = drawn(loss).abs().max() * (3.0 if case.weight else 1.0)
    return size / boxes if case.reduction == "mean" else size


def loss_error(found: Tensor, expected: Tensor, loose: Tensor) -> float:
    """The largest error of a loss, relative to what is allowed."""
    allowed = TOLERANCE * (loose if found.ndim else loose.mean()) * expected.abs().clamp(min=1)
    return largest(found.double(), expected, allowed)


def gradient_allowance(
    expected: Tensor, loose: Tensor, scale: Tensor, axis: int, dtype: torch.dtype
) -> Tensor:
    """The largest error that a gradient may have.

    Args:
        expected: the gradient in float64.
        loose: factor on the usual rounding tolerance, for each box.
        scale: upstream gradient / shortest side: the size of the terms that cancel for identical boxes.
        axis: the coordinate axis.
        dtype: the dtype of the gradient that was found, which rounds it once more.
    """
    info = torch.finfo(dtype)
    size = expected.abs().amax(axis, keepdim=True)
    rounding = TOLERANCE * loose.unsqueeze(axis) * (size + typical(expected) + scale.unsqueeze(axis))
    return rounding + 2 * info.eps * size + info.smallest_normal * info.eps


def largest(found: Tensor, expected: Tensor, allowed: Tensor, held: Tensor | None = None) -> float:
    """The largest difference, relative to what is allowed; infinite where one is NaN or infinite alone.

    Args:
        found: in float64.
        expected: in float64.
        allowed: the largest difference that is right.
        held: which values are compared; None for all.
    """
    apart = ((found - expected).abs() / allowed).nan_to_num(0.0)
    wrong = (found.isnan() != expected.isnan()) | (found.isinf() != expected.isinf())
    apart = torch.where(wrong, torch.inf, apart)
    return float(apart.max() if held is None else torch.where(held, apart, 0.0).max())


def typical(gradient: Tensor) -> Tensor:
    """The median size of the values that are not 0."""
    sizes = gradient.abs()
    return torch.where(sizes > 0, sizes, torch.nan).nanmedian().nan_to_num(0.0)
