"""The tables that tests share: losses of the IoU family, regimes of box pairs, dtypes and layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from boxreg.boxes import FORMATS as FORMATS
from boxreg.decoders import (
    Decoder,
    DeltaDecoder,
    DFLDecoder,
    GridCellDecoder,
    LTRBDecoder,
    UnitSquareDecoder,
    YOLOv3Decoder,
    YOLOv5Decoder,
)
from boxreg.iou import dispatch, functional
from boxreg.iou.spec import FAMILY, LONGEST, Parameter, Spec, check_parameters

KINDS = tuple(FAMILY)
PARAMETERS: dict[str, dict[str, float]] = {
    "mpdiou": {"image_width": 4.0, "image_height": 3.0},
    "shapeiou": {"scale": 0.75},
    "nwd": {"constant": 1.5},
}
"""Parameters of the losses that have any, for boxes of about one unit."""
WORKING_DTYPES = (torch.float32, torch.float64)
HALF_DTYPES = (torch.float16, torch.bfloat16)
DTYPES = (*HALF_DTYPES, *WORKING_DTYPES)
PER_REGIME = 32

BACKENDS = tuple(name for name in ("eager", "numba") if name == "eager" or dispatch.HAS_NUMBA)
"""The backends of the CPU. Triton's kernels are slow in its interpreter; `test_triton.py` runs them."""

DECODERS: dict[str, Decoder] = {
    "unit_square": UnitSquareDecoder(),
    "grid_cell": GridCellDecoder(),
    "grid_cell_stretched": GridCellDecoder(stretch=1.2),
    "grid_cell_pixels": GridCellDecoder(image_size=(640.0, 480.0), stretch=1.1),
}
"""Schemes of one image, with settings that differ."""

LEVEL_DECODERS: dict[str, Decoder] = {
    "yolov3": YOLOv3Decoder(stride=8.0, anchors=[(10.0, 13.0)]),
    "yolov5": YOLOv5Decoder(stride=16.0, anchors=[(62.0, 45.0)]),
    "ltrb_softplus": LTRBDecoder(stride=8.0),
    "ltrb_relu": LTRBDecoder(stride=0.125, distance="relu"),
    "ltrb_exp": LTRBDecoder(stride=32.0, distance="exp"),
    "dfl": DFLDecoder(stride=8.0, bins=9),
}
"""Schemes of a level of a pyramid, one box a cell."""

ALL_DECODERS: dict[str, Decoder] = {
    **DECODERS,
    **LEVEL_DECODERS,
    "deltas": DeltaDecoder(means=(0.1, 0.0, 0.0, 0.2), stds=(0.1, 0.1, 0.2, 0.5)).about(
        torch.tensor([50.0, 40.0, 20.0, 30.0])
    ),
}
"""Every scheme."""

MOST_PENALTY = {
    "iou": 0,
    "giou": 1,
    "diou": 1,
    "ciou": 2,
    # A point in a corner of the other box: each size differs by the whole enclosing side, which leaves
    # an offset of half of it. What is lost on one size gains less than that for the offset.
    "eiou": 1 + 1 + 1 / 4,
    # Approached by a point and a flat box, both tiny beside an offset that is all but along an axis.
    "siou": (1 - math.exp(-2)) + (1 - math.exp(-1)) ** 4,
    "wiou": math.e - 1,
    "mpdiou": math.inf,
    # A target so much higher than wide that all weight, which is 2, is on what lies along x.
    "shapeiou": 2 + (1 - math.exp(-2)) ** 4 / 2,
    "nwd": 0,
}
"""How far above 1 - overlap a loss of upright boxes may lie."""

Pairs = tuple[Tensor, Tensor]


def seeded(seed: int = 0) -> Generator:
    """A generator of its own, so that no test depends on the order of the others."""
    return torch.Generator().manual_seed(seed)


def uniform(generator: Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Float64 numbers between `low` and `high`."""
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low


def upright(generator: Generator, count: int = PER_REGIME) -> Tensor:
    """Well-behaved xyxy boxes: corners in [0, 2], sides in [0.2, 1]."""
    corner = uniform(generator, count, 2)
    return torch.cat([corner, corner + uniform(generator, count, 2, low=0.2)], -1)


def random_pairs(generator: Generator) -> Pairs:
    """Upright boxes, independent of each other: most overlap, some do not."""
    return upright(generator), upright(generator)


def overlapping(generator: Generator) -> Pairs:
    """Each prediction is its target, every corner moved by less than half of a side."""
    target = upright(generator)
    return target + uniform(generator, PER_REGIME, 4, low=-0.09, high=0.09), target


def identical(generator: Generator) -> Pairs:
    """The prediction is the target."""
    boxes = upright(generator)
    return boxes, boxes.clone()


def disjoint(generator: Generator) -> Pairs:
    """Apart along both axes."""
    return upright(generator), upright(generator) + 3.0


def nested(generator: Generator) -> Pairs:
    """The prediction strictly inside the target, or (every other pair) around it."""
    outer = upright(generator)
    width = (outer[:, 2:] - outer[:, :2]).repeat(1, 2)
    inner = outer + width * uniform(generator, PER_REGIME, 4, low=0.1, high=0.4) * torch.tensor(
        [1, 1, -1, -1]
    )
    swap = (torch.arange(PER_REGIME) % 2 == 0)[:, None]
    return torch.where(swap, outer, inner), torch.where(swap, inner, outer)


def touching(generator: Generator) -> Pairs:
    """The prediction's right side is the target's left side."""
    pred, target = upright(generator), upright(generator)
    width = target[:, 2] - target[:, 0]
    target[:, 0], target[:, 2] = pred[:, 2], pred[:, 2] + width
    return pred, target


def shared_corner(generator: Generator) -> Pairs:
    """Two sides of each box in common: ties in every minimum and maximum of them."""
    pred, target = upright(generator), upright(generator)
    target += (pred[:, :2] - target[:, :2]).repeat(1, 2)
    return pred, target


def flat(*axes: int, of_target: bool = False) -> Callable[[Generator], Pairs]:
    """Boxes without extent along `axes`."""

    def regime(generator: Generator) -> Pairs:
        pairs = random_pairs(generator)
        boxes = pairs[1] if of_target else pairs[0]
        for axis in axes:
            boxes[:, axis + 2] = boxes[:, axis]
        return pairs

    return regime


def inverted(*axes: int, of_target: bool = False) -> Callable[[Generator], Pairs]:
    """Boxes whose corners are swapped along `axes`."""

    def regime(generator: Generator) -> Pairs:
        pairs = random_pairs(generator)
        boxes = pairs[1] if of_target else pairs[0]
        for axis in axes:
            boxes[:, [axis, axis + 2]] = boxes[:, [axis + 2, axis]]
        return pairs

    return regime


def scaled(factor: float) -> Callable[[Generator], Pairs]:
    """Overlapping and separate boxes, `factor` times as large."""

    def regime(generator: Generator) -> Pairs:
        pred, target = random_pairs(generator)
        return (pred - 1.0) * factor, (target - 1.0) * factor

    return regime


def far(generator: Generator) -> Pairs:
    """Boxes of about one unit, a thousand units from the origin."""
    pred, target = random_pairs(generator)
    return pred + 1000.0, target + 1000.0


def slender(generator: Generator) -> Pairs:
    """Boxes a thousand times as wide as high."""
    pred, target = random_pairs(generator)
    stretch = torch.tensor([32.0, 1 / 32, 32.0, 1 / 32], dtype=torch.float64)
    return pred * stretch, target * stretch


def points(generator: Generator) -> Pairs:
    """The same point twice."""
    corner = uniform(generator, PER_REGIME, 2)
    return corner.repeat(1, 2), corner.repeat(1, 2)


SMOOTH: dict[str, Callable[[Generator], Pairs]] = {
    "random": random_pairs,
    "overlapping": overlapping,
    "disjoint": disjoint,
    "nested": nested,
    "slender": slender,
}
"""Regimes without ties, far from a kink compared with a finite difference's step."""

REGIMES: dict[str, Callable[[Generator], Pairs]] = {
    **SMOOTH,
    "identical": identical,
    "touching": touching,
    "shared-corner": shared_corner,
    "flat-x": flat(0),
    "flat-y": flat(1),
    "point": flat(0, 1),
    "flat-x-target": flat(0, of_target=True),
    "point-target": flat(0, 1, of_target=True),
    "points": points,
    "inverted-x": inverted(0),
    "inverted-y": inverted(1),
    "inverted-xy": inverted(0, 1),
    "inverted-x-target": inverted(0, of_target=True),
    "huge-1e20": scaled(1e20),
    "huge-3e38": scaled(3e38),
    "tiny-1e-15": scaled(1e-15),
    "tiny-1e-38": scaled(1e-38),
    "far": far,
}
"""Every regime: a name, and what makes its pairs of xyxy boxes from a generator."""

ORDINARY = (*SMOOTH, "identical", "touching", "shared-corner")
"""Regimes of upright boxes of usual sizes, for which the CPU has a shorter program."""


def pairs(regime: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Pairs:
    """The predicted and the target boxes of a regime, xyxy, brought into the range of `dtype`."""
    most = torch.finfo(dtype).max
    pred, target = REGIMES[regime](seeded(seed))
    return pred.clamp(-most, most).to(dtype), target.clamp(-most, most).to(dtype)


def joined(regimes: Iterable[str], dtype: torch.dtype = torch.float64) -> Pairs:
    """The pairs of several regimes one after the other, `PER_REGIME` of each: what a backend gets at once."""
    pred, target = zip(*(pairs(regime, dtype) for regime in regimes), strict=True)
    return torch.cat(pred), torch.cat(target)


def wild_pairs(count: int, dtype: torch.dtype, seed: int = 0) -> Pairs:
    """Any four finite numbers a box: signs, zeros, ties, the largest float, exponents of every size.

    A third of the pairs have exponents drawn apart, a third one exponent a pair, a third one
    exponent an axis, so that boxes of like size meet as often as boxes that differ by 1e70.
    """
    generator, info = seeded(seed), torch.finfo(dtype)
    lowest, highest = torch.tensor([info.tiny * info.eps, info.max], dtype=torch.float64).log2().tolist()
    shapes = ((count // 3, 2, 4), (count // 3, 1, 1), (count - 2 * (count // 3), 1, 2))
    exponents = [uniform(generator, *shape, low=lowest, high=highest) for shape in shapes]
    exponents = [part.repeat(1, 2 // part.shape[1], 4 // part.shape[2]) for part in exponents]
    boxes = torch.exp2(torch.cat(exponents) + uniform(generator, count, 2, 4, low=-1.0))
    boxes = boxes * torch.where(uniform(generator, count, 2, 4) < 0.3, -1.0, 1.0)
    special = uniform(generator, count, 2, 4)
    boxes = torch.where(special < 0.05, 0.0, boxes)
    boxes = torch.where(special > 0.97, boxes.sign() * info.max, boxes)
    boxes = boxes.clamp(-info.max, info.max).to(dtype)
    tied = uniform(generator, count)
    pred, target = boxes.unbind(1)
    target = torch.where((tied < 0.1)[:, None], pred, target)
    collapsed = torch.cat([pred[:, :2], pred[:, :2]], -1)
    pred = torch.where(((tied > 0.2) & (tied < 0.3))[:, None], collapsed, pred)
    adjacent = torch.cat([target[:, 2:], pred[:, 2:]], -1)
    return torch.where(((tied > 0.3) & (tied < 0.4))[:, None], adjacent, pred), target


def sorted_corners(boxes: Tensor) -> Tensor:
    """The same xyxy boxes, upright."""
    first, second = boxes.chunk(2, -1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def to_planes(rows: Tensor, batch: int = 2) -> Tensor:
    """Rows (N, ...) as planes (batch, ..., H, W) with W = 2: the layout of a dense head."""
    return rows.reshape(batch, -1, 2, *rows.shape[1:]).movedim((1, 2), (-2, -1))


def named(values: Iterator[torch.dtype] | tuple[torch.dtype, ...]) -> list[object]:
    """Dtypes as pytest parameters with readable ids."""
    return [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in values]


def assert_all_finite(*tensors: Tensor) -> None:
    """Neither NaN nor infinity in any of the tensors."""
    for tensor in tensors:
        assert tensor.isfinite().all(), tensor[~tensor.isfinite()]


class Recorder(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "index",
    "index_put",
    "index_put_",
    "equal",
    "unique",
}
"""Operators that make the host wait for the device, or whose output's shape depends on the data."""


def eps(dtype: torch.dtype) -> float:
    """The relative spacing of a dtype's numbers."""
    return torch.finfo(dtype).eps


def own_parameters(kind: str) -> list[Parameter]:
    """The parameters that only this loss has."""
    penalty, overlap = FAMILY[kind]
    return [*overlap.parameters, *penalty.parameters]


def in_unit(kind: str, unit: float) -> dict[str, float]:
    """The parameters of a loss for boxes that are `unit` times as large: its lengths grow with them.

    Skips the test where a length may not be as large or small as that.
    """
    lengths = {parameter.name for parameter in own_parameters(kind) if parameter.maximum == LONGEST}
    scaled = {
        name: value * unit if name in lengths else value for name, value in PARAMETERS.get(kind, {}).items()
    }
    if any(not 1 / LONGEST <= scaled[name] <= LONGEST for name in lengths):
        pytest.skip(f"a length of {kind} may not be so large or small")
    return scaled


def spec_of(kind: str, mode: str = "linear", inner_ratio: float | None = None, fmt: str = "xyxy") -> Spec:
    """A loss with the parameters of the tests."""
    values = check_parameters(kind, mode, inner_ratio, PARAMETERS.get(kind, {}))
    return Spec(kind, mode, inner_ratio is not None, fmt, fmt, parameters=values)


def aligned_loss(kind: str, pred: Tensor, target: Tensor, **options: object) -> Tensor:
    """The loss with the parameters of the tests, unless `options` holds others."""
    return functional.aligned_loss(kind, pred, target, **PARAMETERS.get(kind, {}) | options)  # type: ignore[arg-type]


def box_iou(a: Tensor, b: Tensor, kind: str = "iou", **options: object) -> Tensor:
    """The score with the parameters of the tests."""
    return functional.box_iou(a, b, kind, **PARAMETERS.get(kind, {}) | options)  # type: ignore[arg-type]


def pairwise_box_iou(a: Tensor, b: Tensor, kind: str = "iou", **options: object) -> Tensor:
    """The pairwise score with the parameters of the tests."""
    return functional.pairwise_box_iou(a, b, kind, **PARAMETERS.get(kind, {}) | options)  # type: ignore[arg-type]


def value_and_gradients(kind: str, pred: Tensor, target: Tensor, **options: object) -> tuple[Tensor, ...]:
    """The loss a box, and the gradients of both sides under a random upstream gradient."""
    pred, target = pred.clone().requires_grad_(), target.clone().requires_grad_()
    loss = aligned_loss(kind, pred, target, **options)
    upstream = torch.randn(loss.shape, generator=seeded(9), dtype=loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, (pred, target), upstream)


def gradient(kind: str, pred: Tensor, target: Tensor, **options: object) -> Tensor:
    """The gradient of the summed loss at the prediction."""
    leaf = pred.clone().requires_grad_()
    (grad,) = torch.autograd.grad(aligned_loss(kind, leaf, target, **options).sum(), leaf)
    return grad
