"""The maths of the IoU family: gradients against autograd, values against the textbook and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import exp

import pytest
import torch
from torch import Tensor

from boxreg.iou import geometry, overlaps, spec
from boxreg.iou.spec import FAMILY, IOU, MODES, SCORE, Spec
from boxreg.losses import ciou, shapeiou, wiou
from tests.cases import (
    KINDS,
    PARAMETERS,
    PER_REGIME,
    REGIMES,
    SMOOTH,
    aligned_loss,
    gradient,
    joined,
    pairs,
    seeded,
    spec_of,
    wild_pairs,
)

EPS = torch.finfo(torch.float64).eps


def leaves(boxes: Tensor) -> tuple[Tensor, ...]:
    return tuple(plane.clone().requires_grad_() for plane in boxes.unbind(-1))


def eager_loss(asked: Spec, pred: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    return spec.value(asked, geometry.pair(*pred, *target))


def closed_form(asked: Spec, pred: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return torch.stack(spec.gradient(asked, geometry.pair(*pred, *target)), -1)


SPECS = {
    **{kind: spec_of(kind) for kind in KINDS},
    **{f"{kind}-score": spec_of(kind)._replace(mode=SCORE) for kind in KINDS},
    **{f"{kind}-{mode}": spec_of(kind, mode) for kind in KINDS for mode in MODES if mode != "linear"},
    **{
        f"{kind}-inner-{ratio}": spec_of(kind, mode, ratio)
        for kind in KINDS
        for mode, ratio in (("linear", 0.7), ("square", 1.4))
        if FAMILY[kind].overlap is IOU
    },
}
"""Every loss, in every mode, as a score, and between inner boxes."""


class TestGradients:
    @pytest.mark.parametrize("name", SPECS)
    def test_closed_form_is_what_autograd_finds(self, name: str) -> None:
        boxes, target = joined(REGIMES)
        # A common power of two brings lengths into the range that the entry points promise.
        scales = torch.tensor([2.0**-4 if regime == "huge-3e38" else 1.0 for regime in REGIMES])
        scale = scales.double().repeat_interleave(PER_REGIME)[:, None]
        pred, target_planes = leaves(boxes * scale), leaves(target * scale)
        loss = eager_loss(SPECS[name], pred, target_planes)
        upstream = torch.randn(loss.shape, generator=seeded(1), dtype=loss.dtype)
        found = torch.stack(torch.autograd.grad(loss, (*pred, *target_planes), upstream), -1)
        by_hand = closed_form(SPECS[name], pred, target_planes) * upstream[:, None]
        # Where gradients cancel, as of identical boxes, roundings of what cancels are left.
        sides = torch.cat([boxes[:, 2:] - boxes[:, :2], target[:, 2:] - target[:, :2]], 1) * scale
        cancelled = 1e-2 / sides.abs().amax(-1, keepdim=True).clamp(min=geometry.SMALLEST)
        unit = torch.maximum(found.abs().amax(-1, keepdim=True), cancelled)
        torch.testing.assert_close(by_hand / unit, found / unit, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("name", SPECS)
    def test_closed_form_agrees_on_wild_exponents(self, name: str) -> None:
        boxes, target = (side.double() for side in wild_pairs(3000, torch.float32))
        pred, target_planes = leaves(boxes), leaves(target)
        loss = eager_loss(SPECS[name], pred, target_planes)
        found = torch.stack(torch.autograd.grad(loss.sum(), (*pred, *target_planes)), -1)
        by_hand = closed_form(SPECS[name], pred, target_planes)
        # Autograd cancels terms as large as 1 / side, so that is the scale to measure by.
        sides = torch.cat([boxes[:, 2:] - boxes[:, :2], target[:, 2:] - target[:, :2]], 1)
        side = sides.abs().amin(-1).clamp(min=geometry.SMALLEST)
        scale = found.abs().amax(-1) + 1 / side
        error = (by_hand - found) / scale[:, None]
        torch.testing.assert_close(error, torch.zeros_like(error), rtol=0, atol=1e-12)

    def test_gradient_of_no_penalty_is_zero(self) -> None:
        pred, target = pairs("random")
        pair = geometry.pair(*pred.unbind(-1), *target.unbind(-1))
        zero = geometry.PairGrad(geometry.AxisGrad(), geometry.AxisGrad())
        assert overlaps.no_penalty_grad(pair) == zero


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor, Tensor], None]:
    """Keep what `stop_gradient` makes constant at its value at a point: the gradient is a derivative."""

    def freeze(pred: Tensor, target: Tensor) -> None:
        pair = geometry.pair(*pred.unbind(-1), *target.unbind(-1))
        angle = ciou.angle_between(pair)
        alpha = ciou.aspect_weight(pair, (4 / math.pi**2) * angle * angle)
        monkeypatch.setattr(ciou, "aspect_weight", lambda pair, aspect: alpha)
        weights = shapeiou.shape_weights(pair, PARAMETERS["shapeiou"]["scale"])
        monkeypatch.setattr(shapeiou, "shape_weights", lambda pair, scale: weights)
        diagonal = wiou.constant_diagonal(pair) * pair.unit.divisor**2
        monkeypatch.setattr(wiou, "constant_diagonal", lambda pair: diagonal / pair.unit.divisor**2)

    return freeze


@pytest.mark.parametrize("kind", KINDS)
class TestDerivatives:
    @pytest.mark.parametrize("regime", [*SMOOTH, "far"])
    def test_gradient_is_the_derivative(self, kind: str, regime: str, frozen) -> None:  # type: ignore[no-untyped-def]
        pred, target = (side[:6] for side in pairs(regime, seed=3))
        frozen(pred, target)
        inputs = (pred.requires_grad_(), target.requires_grad_())
        assert torch.autograd.gradcheck(lambda a, b: aligned_loss(kind, a, b, backend="eager"), inputs)

    @pytest.mark.parametrize("regime", ["inverted-x", "inverted-y", "inverted-xy", "inverted-x-target"])
    def test_place_of_an_inverted_box_keeps_its_gradient(self, kind: str, regime: str, frozen) -> None:  # type: ignore[no-untyped-def]
        # The surcharge of the inversion is in units of the span, which are constant in its gradient: it
        # must not be worth an inverted box's while to move apart. The rest is a derivative.
        pred, target = (side[:6] for side in pairs(regime, seed=3))
        frozen(pred, target)
        shift = torch.zeros(len(pred), 2, dtype=pred.dtype, requires_grad=True)

        def without_surcharge(shift: Tensor) -> Tensor:
            moved = pred + shift.repeat(1, 2)
            inversion = geometry.pair(*moved.unbind(-1), *target.unbind(-1)).inversion
            return aligned_loss(kind, moved, target, backend="eager") - inversion

        assert torch.autograd.gradcheck(without_surcharge, shift)
        (expected,) = torch.autograd.grad(without_surcharge(shift).sum(), shift)
        (kept,) = torch.autograd.grad(
            aligned_loss(kind, pred + shift.repeat(1, 2), target, backend="eager").sum(), shift
        )
        torch.testing.assert_close(kept, expected, rtol=0, atol=64 * EPS)

    @pytest.mark.parametrize("regime", ["overlapping", "disjoint", "nested"])
    def test_second_derivative(self, kind: str, regime: str, frozen) -> None:  # type: ignore[no-untyped-def]
        pred, target = (side[:3] for side in pairs(regime, seed=3))
        frozen(pred, target)
        inputs = (pred.requires_grad_(), target.requires_grad_())
        assert torch.autograd.gradgradcheck(
            lambda a, b: aligned_loss(kind, a, b, backend="eager"), inputs, fast_mode=True
        )


def textbook_iou(b: Tensor, g: Tensor) -> Tensor:
    width = (torch.minimum(b[:, 2], g[:, 2]) - torch.maximum(b[:, 0], g[:, 0])).clamp(min=0)
    height = (torch.minimum(b[:, 3], g[:, 3]) - torch.maximum(b[:, 1], g[:, 1])).clamp(min=0)
    areas = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) + (g[:, 2] - g[:, 0]) * (g[:, 3] - g[:, 1])
    return width * height / (areas - width * height)


def textbook_enclosing(b: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    width = torch.maximum(b[:, 2], g[:, 2]) - torch.minimum(b[:, 0], g[:, 0])
    height = torch.maximum(b[:, 3], g[:, 3]) - torch.minimum(b[:, 1], g[:, 1])
    return width, height


def textbook_iou_loss(b: Tensor, g: Tensor) -> Tensor:
    return 1 - textbook_iou(b, g)


def textbook_giou_loss(b: Tensor, g: Tensor) -> Tensor:
    width, height = textbook_enclosing(b, g)
    areas = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) + (g[:, 2] - g[:, 0]) * (g[:, 3] - g[:, 1])
    iou = textbook_iou(b, g)
    union = areas / (1 + iou)
    return 1 - iou + (width * height - union) / (width * height)


def textbook_diou_loss(b: Tensor, g: Tensor) -> Tensor:
    width, height = textbook_enclosing(b, g)
    dx, dy = (b[:, 0] + b[:, 2] - g[:, 0] - g[:, 2]) / 2, (b[:, 1] + b[:, 3] - g[:, 1] - g[:, 3]) / 2
    return 1 - textbook_iou(b, g) + (dx**2 + dy**2) / (width**2 + height**2)


def textbook_ciou_loss(b: Tensor, g: Tensor) -> Tensor:
    aspect = torch.atan((g[:, 2] - g[:, 0]) / (g[:, 3] - g[:, 1]))
    aspect = aspect - torch.atan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]))
    v = 4 / math.pi**2 * aspect**2
    alpha = (v / (1 - textbook_iou(b, g) + v)).detach()
    return textbook_diou_loss(b, g) + alpha * v


def textbook_eiou_loss(b: Tensor, g: Tensor) -> Tensor:
    width, height = textbook_enclosing(b, g)
    dw, dh = (b[:, 2] - b[:, 0]) - (g[:, 2] - g[:, 0]), (b[:, 3] - b[:, 1]) - (g[:, 3] - g[:, 1])
    return textbook_diou_loss(b, g) + dw**2 / width**2 + dh**2 / height**2


def textbook_siou_loss(b: Tensor, g: Tensor) -> Tensor:
    dx, dy = (b[:, 0] + b[:, 2] - g[:, 0] - g[:, 2]) / 2, (b[:, 1] + b[:, 3] - g[:, 1] - g[:, 3]) / 2
    # The paper takes the smaller of the two angles between the offset and the axes.
    sine = torch.minimum(dx.abs(), dy.abs()) / (dx**2 + dy**2).sqrt()
    gamma = 2 - (1 - 2 * torch.sin(torch.arcsin(sine) - math.pi / 4) ** 2)
    distance, shape = torch.zeros_like(dx), torch.zeros_like(dx)
    for offset, side, axis in zip((dx, dy), textbook_enclosing(b, g), (0, 1), strict=True):
        size, target_size = b[:, axis + 2] - b[:, axis], g[:, axis + 2] - g[:, axis]
        distance = distance + 1 - torch.exp(-gamma * (offset / side) ** 2)
        omega = (size - target_size).abs() / torch.maximum(size, target_size)
        shape = shape + (1 - torch.exp(-omega)) ** 4
    return 1 - textbook_iou(b, g) + (distance + shape) / 2


def textbook_wiou_loss(b: Tensor, g: Tensor) -> Tensor:
    width, height = textbook_enclosing(b, g)
    dx, dy = (b[:, 0] + b[:, 2] - g[:, 0] - g[:, 2]) / 2, (b[:, 1] + b[:, 3] - g[:, 1] - g[:, 3]) / 2
    attention = torch.exp((dx**2 + dy**2) / (width**2 + height**2).detach())
    return attention * (1 - textbook_iou(b, g))


def textbook_mpdiou_loss(b: Tensor, g: Tensor) -> Tensor:
    diagonal = sum(side**2 for side in PARAMETERS["mpdiou"].values())
    return 1 - textbook_iou(b, g) + ((b - g) ** 2).sum(-1) / diagonal


def textbook_shapeiou_loss(b: Tensor, g: Tensor) -> Tensor:
    scale = PARAMETERS["shapeiou"]["scale"]
    across = ((g[:, 3] - g[:, 1]) ** scale, (g[:, 2] - g[:, 0]) ** scale)
    width, height = textbook_enclosing(b, g)
    distance, shape = torch.zeros_like(width), torch.zeros_like(width)
    for axis in (0, 1):
        weight = 2 * across[axis] / (across[0] + across[1])
        offset = (b[:, axis] + b[:, axis + 2] - g[:, axis] - g[:, axis + 2]) / 2
        size, target_size = b[:, axis + 2] - b[:, axis], g[:, axis + 2] - g[:, axis]
        distance = distance + weight * offset**2
        omega = weight * (size - target_size).abs() / torch.maximum(size, target_size)
        shape = shape + (1 - torch.exp(-omega)) ** 4
    return 1 - textbook_iou(b, g) + distance / (width**2 + height**2) + shape / 2


def textbook_nwd_loss(b: Tensor, g: Tensor) -> Tensor:
    def gaussian(box: Tensor) -> Tensor:
        return torch.cat([box[:, :2] + box[:, 2:], box[:, 2:] - box[:, :2]], -1) / 2

    return 1 - torch.exp(
        -torch.linalg.vector_norm(gaussian(b) - gaussian(g), dim=-1) / PARAMETERS["nwd"]["constant"]
    )


def textbook(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The formula of the paper; a new loss needs one here."""
    return globals()[f"textbook_{kind}_loss"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("regime", SMOOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_of_the_textbook(kind: str, regime: str) -> None:
    pred, target = pairs(regime, seed=5)
    ours, theirs = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    loss, reference = aligned_loss(kind, ours, target), textbook(kind)(theirs, target)
    torch.testing.assert_close(loss, reference, rtol=4 * EPS, atol=32 * EPS)
    upstream = torch.randn(loss.shape, generator=seeded(1), dtype=loss.dtype)
    (found,) = torch.autograd.grad(loss, ours, upstream)
    (expected,) = torch.autograd.grad(reference, theirs, upstream)
    torch.testing.assert_close(found, expected, rtol=0, atol=256 * EPS * expected.abs().max().item())


@pytest.mark.parametrize("regime", SMOOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_float64_rounded(kind: str, regime: str) -> None:
    pred, target = pairs(regime, torch.float32, seed=6)
    exact = aligned_loss(kind, pred.double(), target.double())
    found = aligned_loss(kind, pred, target).double()
    # Corners of slender boxes lie 50 heights from the origin: a difference loses as many roundings.
    rounding = torch.finfo(torch.float32).eps
    torch.testing.assert_close(found, exact, rtol=4 * rounding, atol=64 * rounding)


TURNED = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
NARROW = 4 / math.pi**2 * (math.atan(1) - math.atan(0.5)) ** 2

# Shape-IoU's weights of a target twice as high as wide, of what lies along x and along y.
TALL, FLAT = 2 * 2**0.75 / (1 + 2**0.75), 2 / (1 + 2**0.75)


def unlike(omega: float) -> float:
    return (1 - exp(-omega)) ** 4


HAND = {
    # Nothing differs.
    "identical": (
        [1, 1, 3, 2],
        [1, 1, 3, 2],
        dict.fromkeys(KINDS, 0),
    ),
    # A quarter of the target: rho^2 = 1/2, c^2 = 8; sides half of C; offset on a diagonal, 1/4 of C.
    "quarter": (
        [0, 0, 1, 1],
        [0, 0, 2, 2],
        {
            "iou": 3 / 4,
            "giou": 3 / 4,
            "diou": 13 / 16,
            "ciou": 13 / 16,
            "eiou": 13 / 16 + 1 / 4 + 1 / 4,
            "siou": 3 / 4 + (1 - exp(-1 / 16)) + (1 - exp(-1 / 2)) ** 4,
            "wiou": 3 / 4 * exp(1 / 16),
            "mpdiou": 3 / 4 + 2 / 25,
            "shapeiou": 13 / 16 + (1 - exp(-1 / 2)) ** 4,
            "nwd": 1 - exp(-1 / 1.5),
        },
    ),
    # Side by side: the enclosing box is full; rho^2 = 1, c^2 = 5; offset along x, half of C.
    "adjacent": (
        [0, 0, 1, 1],
        [1, 0, 2, 1],
        {
            "iou": 1,
            "giou": 1,
            "diou": 6 / 5,
            "ciou": 6 / 5,
            "eiou": 6 / 5,
            "siou": 1 + (1 - exp(-2 / 4)) / 2,
            "wiou": exp(1 / 5),
            "mpdiou": 1 + 2 / 25,
            "shapeiou": 6 / 5,
            "nwd": 1 - exp(-1 / 1.5),
        },
    ),
    # Corner to corner: half of the enclosing box is empty; rho^2 = 2, c^2 = 8; offset on a diagonal, by 1/2.
    "diagonal": (
        [0, 0, 1, 1],
        [1, 1, 2, 2],
        {
            "iou": 1,
            "giou": 3 / 2,
            "diou": 5 / 4,
            "ciou": 5 / 4,
            "eiou": 5 / 4,
            "siou": 1 + (1 - exp(-1 / 4)),
            "wiou": exp(1 / 4),
            "mpdiou": 1 + 4 / 25,
            "shapeiou": 5 / 4,
            "nwd": 1 - exp(-(2**0.5) / 1.5),
        },
    ),
    # Two boxes' width between them: half is empty; rho^2 = 9, c^2 = 17; offset along x, 3/4 of C.
    "apart": (
        [0, 0, 1, 1],
        [3, 0, 4, 1],
        {
            "iou": 1,
            "giou": 3 / 2,
            "diou": 26 / 17,
            "ciou": 26 / 17,
            "eiou": 26 / 17,
            "siou": 1 + (1 - exp(-2 * 9 / 16)) / 2,
            "wiou": exp(9 / 17),
            "mpdiou": 1 + 18 / 25,
            "shapeiou": 26 / 17,
            "nwd": 1 - exp(-3 / 1.5),
        },
    ),
    # A knight's move: I = 0, U = 2, C = 6; rho^2 = 5, c^2 = 13; Lambda = 4/5, offset 2/3 and 1/2 of C.
    "askew": (
        [0, 0, 1, 1],
        [2, 1, 3, 2],
        {
            "iou": 1,
            "giou": 5 / 3,
            "diou": 18 / 13,
            "ciou": 18 / 13,
            "eiou": 18 / 13,
            "siou": 1 + (2 - exp(-6 / 5 * 4 / 9) - exp(-6 / 5 * 1 / 4)) / 2,
            "wiou": exp(5 / 13),
            "mpdiou": 1 + 10 / 25,
            "shapeiou": 18 / 13,
            "nwd": 1 - exp(-(5**0.5) / 1.5),
        },
    ),
    # A shift by half a side: I = 2, U = 6; rho^2 = 1, c^2 = 13; offset along x, a third of C.
    "shifted": (
        [0, 0, 2, 2],
        [1, 0, 3, 2],
        {
            "iou": 2 / 3,
            "giou": 2 / 3,
            "diou": 29 / 39,
            "ciou": 29 / 39,
            "eiou": 29 / 39,
            "siou": 2 / 3 + (1 - exp(-2 / 9)) / 2,
            "wiou": 2 / 3 * exp(1 / 13),
            "mpdiou": 2 / 3 + 2 / 25,
            "shapeiou": 29 / 39,
            "nwd": 1 - exp(-1 / 1.5),
        },
    ),
    # One box, turned: I = 1, U = 3, C = 4; rho^2 = 1/2, c^2 = 8; sides by half; offset as of the quarter.
    "turned": (
        [0, 0, 2, 1],
        [0, 0, 1, 2],
        {
            "iou": 2 / 3,
            "giou": 11 / 12,
            "diou": 35 / 48,
            "ciou": 35 / 48 + TURNED**2 / (2 / 3 + TURNED),
            "eiou": 35 / 48 + 1 / 4 + 1 / 4,
            "siou": 2 / 3 + (1 - exp(-1 / 16)) + (1 - exp(-1 / 2)) ** 4,
            "wiou": 2 / 3 * exp(1 / 16),
            "mpdiou": 2 / 3 + 2 / 25,
            "shapeiou": 2 / 3 + 1 / 16 + unlike(TALL / 2) / 2 + unlike(FLAT / 2) / 2,
            "nwd": 1 - exp(-1 / 1.5),
        },
    ),
    # As wide as half of the target, about the same centre: I = 8, U = 16.
    "narrow": (
        [1, 0, 3, 4],
        [0, 0, 4, 4],
        {
            "iou": 1 / 2,
            "giou": 1 / 2,
            "diou": 1 / 2,
            "ciou": 1 / 2 + NARROW**2 / (1 / 2 + NARROW),
            "eiou": 1 / 2 + 1 / 4,
            "siou": 1 / 2 + (1 - exp(-1 / 2)) ** 4 / 2,
            "wiou": 1 / 2,
            "mpdiou": 1 / 2 + 2 / 25,
            "shapeiou": 1 / 2 + (1 - exp(-1 / 2)) ** 4 / 2,
            "nwd": 1 - exp(-1 / 1.5),
        },
    ),
}


@pytest.mark.parametrize("case", HAND)
@pytest.mark.parametrize("kind", KINDS)
def test_values_worked_by_hand(kind: str, case: str) -> None:
    pred, target, expected = HAND[case]
    loss = aligned_loss(kind, torch.tensor(pred).double(), torch.tensor(target).double())
    torch.testing.assert_close(loss.item(), float(expected[kind]), rtol=0, atol=4 * EPS)


@pytest.mark.parametrize(("shift", "expected"), [(1, 1.20), (2, 1.29), (3, 1.34)])
def test_siou_rises_as_boxes_move_apart(shift: float, expected: float) -> None:
    # With gamma's sign turned, as some have it, it falls: 0.68, 0.28, 0.
    box = torch.tensor([0.0, 0, 1, 1])
    loss = aligned_loss("siou", box + torch.tensor([shift, 0, shift, 0]), box)
    torch.testing.assert_close(loss.item(), expected, rtol=0, atol=0.005)


def test_eiou_is_the_efficient_one() -> None:
    # Of boxes inside the target the Extended IoU sees the IoU alone; the Efficient sees their shape.
    target = torch.tensor([0.0, 0, 4, 4])
    narrow, square = torch.tensor([1.0, 0, 3, 4]), torch.tensor([1.0, 1, 3, 3])
    square = (square - 2) * 2**0.5 + 2
    losses = torch.stack([aligned_loss("eiou", box, target) for box in (narrow, square)])
    # A half of the area either way: sides of 1/2 and 1, or of sqrt(1/2) both.
    torch.testing.assert_close(losses, torch.tensor([1 / 2 + 1 / 4, 1 / 2 + 2 * (1 - 0.5**0.5) ** 2]))


MODE_VALUES = {
    # IoU 1/3, penalty 1/13 (that of "shifted").
    "linear": 2 / 3 + 1 / 13,
    "log": math.log(3) + 1 / 13,
    "square": 8 / 9 + 1 / 13,
    "alpha": 26 / 27 + 1 / 13**3,
}


class TestModes:
    @pytest.mark.parametrize("mode", MODES)
    def test_values_worked_by_hand(self, mode: str) -> None:
        pred, target, _ = HAND["shifted"]
        loss = aligned_loss("diou", torch.tensor(pred).double(), torch.tensor(target).double(), mode=mode)
        torch.testing.assert_close(loss.item(), MODE_VALUES[mode], rtol=0, atol=4 * EPS)

    def test_alpha_is_an_argument(self) -> None:
        pred, target, _ = HAND["shifted"]
        boxes = torch.tensor(pred).double(), torch.tensor(target).double()
        for alpha in (1.0, 2.5, 10.0):
            loss = aligned_loss("diou", *boxes, mode="alpha", alpha=alpha)
            torch.testing.assert_close(loss.item(), 1 - 3**-alpha + 13**-alpha, rtol=0, atol=16 * EPS)

    def test_nwd_takes_the_place_of_iou(self) -> None:
        pred, target = torch.tensor([0.0, 0, 4, 4]), torch.tensor([3.0, 4, 7, 8])
        loss = aligned_loss("nwd", pred, target, mode="log", constant=10.0)
        torch.testing.assert_close(loss.item(), 0.5)

    def test_the_logarithm_ends_in_its_tangent(self) -> None:
        # Side by side: no overlap; -log(f) + 1 with f = 2^-20, and a gradient of 1 / f times that of the IoU.
        pred, target = torch.tensor([0.0, 0, 1, 1]), torch.tensor([1.0, 0, 2, 1])
        torch.testing.assert_close(aligned_loss("iou", pred, target, mode="log").item(), 20 * math.log(2) + 1)
        grad = gradient("iou", pred, target, mode="log")
        torch.testing.assert_close(grad, 2.0**20 * torch.tensor([0.0, 0, -0.5, 0]))

    def test_a_power_ends_in_its_tangent(self) -> None:
        # 400 diagonals of the image away along x: a penalty of 2 * 400^2.
        pred, target = torch.tensor([2000.0, 0, 2001, 1]), torch.tensor([0.0, 0, 1, 1])
        loss = aligned_loss("mpdiou", pred.double(), target.double(), mode="alpha")
        torch.testing.assert_close(loss.item(), 1 + 64 + 3 * 16 * (2 * 400.0**2 - 4))


class TestInner:
    def test_values_worked_by_hand(self) -> None:
        # Unit boxes half a side apart. Scaled by 1/2 they touch; by 3/2 they have 1 x 3/2 in common, of 3.
        pred, target = torch.tensor([0.5, 0, 1.5, 1]).double(), torch.tensor([0.0, 0, 1, 1]).double()
        for ratio, iou in ((0.5, 0.0), (1.0, 1 / 3), (1.5, 1 / 2)):
            loss = aligned_loss("iou", pred, target, inner_ratio=ratio)
            torch.testing.assert_close(loss.item(), 1 - iou, rtol=0, atol=4 * EPS)

    def test_the_penalty_stays(self) -> None:
        pred, target = pairs("random")
        penalty = aligned_loss("ciou", pred, target) - aligned_loss("iou", pred, target)
        found = aligned_loss("ciou", pred, target, inner_ratio=0.7)
        expected = aligned_loss("iou", pred, target, inner_ratio=0.7) + penalty
        torch.testing.assert_close(found, expected, rtol=0, atol=8 * EPS)

    @pytest.mark.parametrize("regime", REGIMES)
    def test_a_ratio_of_1_changes_nothing(self, regime: str) -> None:
        pred, target = pairs(regime)
        found = aligned_loss("giou", pred, target, inner_ratio=1.0)
        torch.testing.assert_close(found, aligned_loss("giou", pred, target), rtol=0, atol=64 * EPS)

    def test_a_larger_box_reaches_where_none_was_met(self) -> None:
        pred, target = torch.tensor([1.2, 0, 2.2, 1]), torch.tensor([0.0, 0, 1, 1])
        assert torch.equal(gradient("iou", pred, target), torch.zeros(4))
        grad = gradient("iou", pred, target, inner_ratio=1.4)
        assert (grad[0] + grad[2]).item() > 0


class TestPinnedSubgradients:
    @pytest.mark.parametrize("kind", KINDS)
    def test_identical_boxes_rest(self, kind: str) -> None:
        pred, target = pairs("identical")
        assert torch.equal(gradient(kind, pred, target), torch.zeros_like(pred))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_tie_is_halfway_between_its_two_sides(self, kind: str) -> None:
        pred, target = torch.tensor([0.0, 0, 1, 1]).double(), torch.tensor([0.0, 0, 2, 2]).double()
        step = torch.tensor([2.0**-26, 0, 0, 0]).double()
        sides = gradient(kind, pred - step, target) + gradient(kind, pred + step, target)
        torch.testing.assert_close(gradient(kind, pred, target), 0.5 * sides, rtol=0, atol=2.0**-20)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_touching_box_can_move_in(self, kind: str) -> None:
        grad = gradient(kind, torch.tensor([0.0, 0, 1, 1]), torch.tensor([1.0, 0, 2, 1]))
        assert (grad[0] + grad[2]).item() < 0

    def test_the_gradient_of_a_touching_box_is_the_one_towards_overlap(self) -> None:
        # IoU of two unit squares with an overlap of t is t / (2 - t): derivative 1/2 at t = 0. It comes
        # from the box's right side alone, and halves where that side's minimum would be tied.
        grad = gradient("iou", torch.tensor([0.0, 0, 1, 1]), torch.tensor([1.0, 0, 2, 1]))
        torch.testing.assert_close(grad, torch.tensor([0.0, 0, -0.5, 0]))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("axis", [0, 1], ids=["x", "y"])
    def test_a_box_without_extent_can_grow(self, kind: str, axis: int) -> None:
        pred, target = torch.tensor([1.0, 1, 2, 2]), torch.tensor([0.0, 0, 3, 3])
        pred[axis + 2] = pred[axis]
        grad = gradient(kind, pred, target)
        assert (grad[axis + 2] - grad[axis]).item() < 0

    @pytest.mark.parametrize("regime", ["points", "point", "point-target", "flat-x", "flat-y"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_no_extent_has_a_finite_gradient(self, kind: str, regime: str) -> None:
        assert gradient(kind, *pairs(regime)).isfinite().all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_gradients_saturate_at_the_documented_side(self, kind: str) -> None:
        small = 2.0**-110
        grad = gradient(kind, torch.tensor([0, 0, small, small]), torch.tensor([0, 0, 2 * small, small]))
        assert 0 < grad.abs().max().item() <= 4 / geometry.SMALLEST
