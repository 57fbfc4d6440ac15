"""The tables that tests of rotated boxes share: losses and their settings, regimes of box pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

import boxreg
from boxreg import functional
from boxreg.losses.rotated import RotatedLoss
from tests.cases import HALF_DTYPES, WORKING_DTYPES, named, seeded, uniform, wild_pairs

COUNT = 32

FAMILY: dict[str, tuple[str, dict[str, object]]] = {
    "probiou-l1": ("probiou", {"mode": "l1"}),
    "probiou-l2": ("probiou", {"mode": "l2"}),
    "kld-log1p": ("kld", {"fun": "log1p"}),
    "kld-sqrt": ("kld", {"fun": "sqrt"}),
    "kld-sqrt-2": ("kld", {"fun": "sqrt", "tau": 2.0}),
    "gwd-log1p": ("gwd", {"fun": "log1p"}),
    "gwd-sqrt": ("gwd", {"fun": "sqrt"}),
    "gwd-log1p-3": ("gwd", {"fun": "log1p", "tau": 3.0}),
}
"""What is tested: a name, the loss, its settings."""

MODULES: dict[str, Callable[..., RotatedLoss]] = {
    "probiou": boxreg.ProbIoULoss,
    "kld": boxreg.KLDLoss,
    "gwd": boxreg.GWDLoss,
}


def loss_of(variant: str, pred: Tensor, target: Tensor, **options: object) -> Tensor:
    name, settings = FAMILY[variant]
    found: Tensor = getattr(functional, f"{name}_loss")(pred, target, **settings, **options)
    return found


def value_and_gradients(variant: str, pred: Tensor, target: Tensor, **options: object) -> tuple[Tensor, ...]:
    """The loss a box, and the gradients of both sides under a random upstream gradient."""
    pred, target = pred.clone().requires_grad_(), target.clone().requires_grad_()
    loss = loss_of(variant, pred, target, **options)
    upstream = torch.randn(loss.shape, generator=seeded(9), dtype=loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, (pred, target), upstream)


def least(variant: str) -> float:
    """What identical boxes cost."""
    tau = FAMILY[variant][1].get("tau", 1.0)
    assert isinstance(tau, float)
    return 1 - 1 / tau


def boxes(generator: Generator, count: int = COUNT) -> Tensor:
    """Centres in [0, 2], sides in [0.2, 1], any angle."""
    return torch.cat(
        [
            uniform(generator, count, 2, high=2.0),
            uniform(generator, count, 2, low=0.2),
            uniform(generator, count, 1, low=-math.pi, high=math.pi),
        ],
        -1,
    )


def with_column(column: int, value: float) -> Callable[[Tensor], Tensor]:
    """Replace a coordinate."""

    def change(rows: Tensor) -> Tensor:
        return torch.cat([rows[:, :column], torch.full_like(rows[:, :1], value), rows[:, column + 1 :]], -1)

    return change


def scaled(rows: Tensor, factor: float) -> Tensor:
    """Lengths times `factor`."""
    return torch.cat([rows[:, :4] * factor, rows[:, 4:]], -1)


def turned(rows: Tensor, angle: float) -> Tensor:
    """Rotated about the origin."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y, w, h, own = rows.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y, w, h, own + angle], -1)


def exchanged(rows: Tensor) -> Tensor:
    """The same boxes: width and height exchanged, a quarter turn on."""
    x, y, w, h, angle = rows.unbind(-1)
    return torch.stack([x, y, h, w, angle + math.pi / 2], -1)


Regime = Callable[[Generator], tuple[Tensor, Tensor]]
Change = Callable[[Tensor], Tensor]


def two(change: Change, change_target: Change = lambda rows: rows) -> Regime:
    """A regime: independent boxes, changed."""

    def regime(generator: Generator) -> tuple[Tensor, Tensor]:
        return change(boxes(generator)), change_target(boxes(generator))

    return regime


def overlapping(generator: Generator) -> tuple[Tensor, Tensor]:
    target = boxes(generator)
    return target + uniform(generator, COUNT, 5, low=-0.05, high=0.05), target


def identical(generator: Generator) -> tuple[Tensor, Tensor]:
    target = boxes(generator)
    return target.clone(), target


def points(generator: Generator) -> tuple[Tensor, Tensor]:
    return tuple(with_column(2, 0.0)(with_column(3, 0.0)(rows)) for rows in identical(generator))  # type: ignore[return-value]


SLENDER = torch.tensor([1, 1, 30, 1 / 30, 1], dtype=torch.float64)
APART = torch.tensor([3, 3, 0, 0, 0], dtype=torch.float64)

SMOOTH = {
    "random": two(lambda rows: rows),
    "overlapping": overlapping,
    "disjoint": two(lambda rows: rows, lambda rows: rows + APART),
    "slender": two(lambda rows: rows * SLENDER, lambda rows: rows * SLENDER),
    "upright": two(with_column(4, 0.0), with_column(4, 0.0)),
}
REGIMES = {
    **SMOOTH,
    "identical": identical,
    "flat-w": two(with_column(2, 0.0)),
    "flat-h": two(with_column(3, 0.0)),
    "point": two(lambda rows: with_column(2, 0.0)(with_column(3, 0.0)(rows))),
    "flat-w-target": two(lambda rows: rows, with_column(2, 0.0)),
    "points": points,
    "negative-w": two(lambda rows: rows * torch.tensor([1, 1, -1, 1, 1])),
    "negative-both": two(lambda rows: rows * torch.tensor([1, 1, -1, -1, 1])),
    "negative-h-target": two(lambda rows: rows, lambda rows: rows * torch.tensor([1, 1, 1, -1, 1])),
    "huge-1e20": two(lambda rows: scaled(rows, 1e20), lambda rows: scaled(rows, 1e20)),
    "huge-3e38": two(lambda rows: scaled(rows - 1, 3e38), lambda rows: scaled(rows - 1, 3e38)),
    "tiny-1e-15": two(lambda rows: scaled(rows, 1e-15), lambda rows: scaled(rows, 1e-15)),
    "tiny-1e-38": two(lambda rows: scaled(rows, 1e-38), lambda rows: scaled(rows, 1e-38)),
    "far": two(lambda rows: rows, lambda rows: rows + 1e30 * APART),
    "huge-angle": two(with_column(4, 3e38), with_column(4, -3e38)),
}


def pairs(regime: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    most = torch.finfo(dtype).max
    pred, target = REGIMES[regime](seeded())
    return pred.clamp(-most, most).to(dtype), target.clamp(-most, most).to(dtype)


def wild(count: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Any five finite numbers a box."""
    one, other = wild_pairs(count, dtype, seed), wild_pairs(count, dtype, seed + 1)
    pred, target = (torch.cat([rows, angles[:, :1]], -1) for rows, angles in zip(one, other, strict=True))
    return pred, target


every_variant = pytest.mark.parametrize("variant", FAMILY)
every_regime = pytest.mark.parametrize("regime", REGIMES)
smooth = pytest.mark.parametrize("regime", SMOOTH)
working_dtypes = pytest.mark.parametrize("dtype", named(WORKING_DTYPES))
half_dtypes = pytest.mark.parametrize("dtype", named(HALF_DTYPES))
