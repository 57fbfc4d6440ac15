"""Every loss and mode against its paper's formula, written as it stands there, with 50 digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from boxreg.iou.spec import FAMILY, IOU, MODES
from tests.cases import KINDS, aligned_loss, eps, in_unit, named, pairs

mp.dps = 50

Box = list[mpf]
"""x1, y1, x2, y2 of an upright box with an area."""

PER_REGIME = 5
DIFFERENTIABLE = ("random", "overlapping", "disjoint", "nested", "slender", "far", "huge-1e20", "tiny-1e-15")
WITH_AREA = (*DIFFERENTIABLE, "identical", "touching", "shared-corner")

dtypes = pytest.mark.parametrize("dtype", named((torch.float32, torch.float64)))


def sides(b: Box) -> tuple[mpf, mpf]:
    return b[2] - b[0], b[3] - b[1]


def centre(b: Box) -> tuple[mpf, mpf]:
    return (b[0] + b[2]) / 2, (b[1] + b[3]) / 2


def enclosing(b: Box, g: Box) -> tuple[mpf, mpf]:
    return max(b[2], g[2]) - min(b[0], g[0]), max(b[3], g[3]) - min(b[1], g[1])


def squared_distance(b: Box, g: Box) -> mpf:
    return sum((p - q) ** 2 for p, q in zip(centre(b), centre(g), strict=True))


def squared_diagonal(b: Box, g: Box) -> mpf:
    return sum(side**2 for side in enclosing(b, g))


def iou(b: Box, g: Box) -> mpf:
    width = max(min(b[2], g[2]) - max(b[0], g[0]), mpf(0))
    height = max(min(b[3], g[3]) - max(b[1], g[1]), mpf(0))
    (w, h), (wt, ht) = sides(b), sides(g)
    return width * height / (w * h + wt * ht - width * height)


def inner(b: Box, ratio: float) -> Box:
    (x, y), (w, h) = centre(b), sides(b)
    half = mpf(ratio) / 2
    return [x - w * half, y - h * half, x + w * half, y + h * half]


# Penalties take the boxes, the boxes at which constants are held, and the parameters.


def iou_penalty(b: Box, g: Box, held: tuple[Box, Box]) -> mpf:
    return mpf(0)


def giou_penalty(b: Box, g: Box, held: tuple[Box, Box]) -> mpf:
    width, height = enclosing(b, g)
    (w, h), (wt, ht) = sides(b), sides(g)
    union = (w * h + wt * ht) / (1 + iou(b, g))
    return (width * height - union) / (width * height)


def diou_penalty(b: Box, g: Box, held: tuple[Box, Box]) -> mpf:
    return squared_distance(b, g) / squared_diagonal(b, g)


def ciou_penalty(b: Box, g: Box, held: tuple[Box, Box]) -> mpf:
    def v(b: Box, g: Box) -> mpf:
        (w, h), (wt, ht) = sides(b), sides(g)
        return 4 / mp.pi**2 * (mp.atan(wt / ht) - mp.atan(w / h)) ** 2

    total = 1 - iou(*held) + v(*held)
    alpha = v(*held) / total if total else mpf(0)
    return diou_penalty(b, g, held) + alpha * v(b, g)


def eiou_penalty(b: Box, g: Box, held: tuple[Box, Box]) -> mpf:
    gaps = zip(sides(b), sides(g), enclosing(b, g), strict=True)
    return diou_penalty(b, g, held) + sum((s - t) ** 2 / c**2 for s, t, c in gaps)


def shape_cost(b: Box, g: Box, weights: tuple[mpf, mpf]) -> mpf:
    omegas = [w * abs(s - t) / max(s, t) for s, t, w in zip(sides(b), sides(g), weights, strict=True)]
    return sum((1 - mp.exp(-omega)) ** 4 for omega in omegas)


def siou_penalty(b: Box, g: Box, held: tuple[Box, Box]) -> mpf:
    offsets = [p - q for p, q in zip(centre(b), centre(g), strict=True)]
    far = mp.sqrt(squared_distance(b, g))
    sine = abs(offsets[1]) / far if far else mpf(0)
    angle = 1 - 2 * mp.sin(mp.asin(sine) - mp.pi / 4) ** 2
    distance = sum(
        1 - mp.exp(-(2 - angle) * (offset / side) ** 2)
        for offset, side in zip(offsets, enclosing(b, g), strict=True)
    )
    return (distance + shape_cost(b, g, (mpf(1), mpf(1)))) / 2


def wiou_penalty(b: Box, g: Box, held: tuple[Box, Box]) -> mpf:
    attention = mp.exp(squared_distance(b, g) / squared_diagonal(*held))
    return (attention - 1) * (1 - iou(b, g))


def mpdiou_penalty(b: Box, g: Box, held: tuple[Box, Box], image_width: float, image_height: float) -> mpf:
    first = (b[0] - g[0]) ** 2 + (b[1] - g[1]) ** 2
    second = (b[2] - g[2]) ** 2 + (b[3] - g[3]) ** 2
    return (first + second) / (mpf(image_width) ** 2 + mpf(image_height) ** 2)


def shapeiou_penalty(b: Box, g: Box, held: tuple[Box, Box], scale: float) -> mpf:
    w, h = (side ** mpf(scale) for side in sides(held[1]))
    across, along = 2 * h / (w + h), 2 * w / (w + h)
    (x, y), (xt, yt) = centre(b), centre(g)
    distance = (across * (x - xt) ** 2 + along * (y - yt) ** 2) / squared_diagonal(b, g)
    return distance + shape_cost(b, g, (across, along)) / 2


def nwd_penalty(b: Box, g: Box, held: tuple[Box, Box], constant: float) -> mpf:
    return mpf(0)


def nwd(b: Box, g: Box, constant: float) -> mpf:
    gaps = sum((s - t) ** 2 for s, t in zip(sides(b), sides(g), strict=True))
    return mp.exp(-mp.sqrt(squared_distance(b, g) + gaps / 4) / mpf(constant))


MODE_FORMULAS: dict[str, Callable[[mpf, mpf], mpf]] = {
    "linear": lambda overlap, penalty: 1 - overlap + penalty,
    "log": lambda overlap, penalty: -mp.log(overlap) + penalty,
    "square": lambda overlap, penalty: 1 - overlap**2 + penalty,
    "alpha": lambda overlap, penalty: 1 - overlap**3 + penalty**3,
}


def formula(
    kind: str, mode: str, ratio: float | None, parameters: dict[str, float]
) -> Callable[[Box, Box, tuple[Box, Box]], mpf]:
    """The loss of two boxes; a new loss or mode needs its formula above."""
    penalty = globals()[f"{kind}_penalty"]

    def loss(b: Box, g: Box, held: tuple[Box, Box]) -> mpf:
        if kind == "nwd":
            overlap = nwd(b, g, **parameters)
        else:
            overlap = iou(b, g) if ratio is None else iou(inner(b, ratio), inner(g, ratio))
        return MODE_FORMULAS[mode](overlap, penalty(b, g, held, **parameters))

    return loss


def exact(boxes: Tensor) -> list[Box]:
    return [[mpf(number) for number in box] for box in boxes.double().tolist()]


def derivative(loss: Callable[[Box, Box, tuple[Box, Box]], mpf], b: Box, g: Box) -> list[mpf]:
    """By central differences at all eight coordinates, exact to 25 digits or so."""
    step = min(*sides(b), *sides(g)) * mpf(10) ** -14
    found = []
    for side in (0, 1):
        for number in range(4):
            ends = []
            for sign in (1, -1):
                moved = ([*b], [*g])
                moved[side][number] += sign * step
                ends.append(loss(*moved, (b, g)))
            found.append((ends[0] - ends[1]) / (2 * step))
    return found


def unit_of_regime(regime: str) -> float:
    return float(regime.partition("-")[2]) if "-1e" in regime else 1.0


def compare(
    kind: str, regime: str, dtype: torch.dtype, mode: str = "linear", ratio: float | None = None
) -> None:
    """Value and both gradients, in units of their largest number and in the dtype's roundings."""
    pred, target = (side[:PER_REGIME] for side in pairs(regime, dtype, seed=8))
    parameters = in_unit(kind, unit_of_regime(regime))
    loss = formula(kind, mode, ratio, parameters)
    options = {**parameters, "mode": mode, "inner_ratio": ratio}
    value = aligned_loss(kind, pred, target, **options)
    for found, b, g in zip(value.tolist(), exact(pred), exact(target), strict=True):
        expected = loss(b, g, (b, g))
        assert abs(found - expected) <= 32 * eps(dtype) * max(1, expected), (found, expected)
    if regime not in DIFFERENTIABLE:
        return
    pred, target = pred.requires_grad_(), target.requires_grad_()
    grads = torch.autograd.grad(aligned_loss(kind, pred, target, **options).sum(), (pred, target))
    for found, b, g in zip(torch.cat(grads, -1).tolist(), exact(pred), exact(target), strict=True):
        expected = derivative(loss, b, g)
        tolerance = 256 * eps(dtype) * max(abs(reference) for reference in expected)
        errors = [abs(value - reference) for value, reference in zip(found, expected, strict=True)]
        assert max(errors) <= tolerance, (found, expected)


@dtypes
@pytest.mark.parametrize("regime", WITH_AREA)
@pytest.mark.parametrize("kind", KINDS)
def test_every_loss(kind: str, regime: str, dtype: torch.dtype) -> None:
    compare(kind, regime, dtype)


@dtypes
@pytest.mark.parametrize("regime", ["overlapping", "nested"])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_modes(kind: str, mode: str, regime: str, dtype: torch.dtype) -> None:
    compare(kind, regime, dtype, mode)


@dtypes
@pytest.mark.parametrize("ratio", [0.75, 1.5])
@pytest.mark.parametrize("regime", ["random", "overlapping", "nested", "slender", "far"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if FAMILY[kind].overlap is IOU])
def test_inner_boxes(kind: str, regime: str, ratio: float, dtype: torch.dtype) -> None:
    compare(kind, regime, dtype, ratio=ratio)
