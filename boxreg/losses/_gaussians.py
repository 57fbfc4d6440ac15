r"""Distances between rotated boxes (cx, cy, w, h, angle), the boxes taken as Gaussians.

A box is the Gaussian with its centre as mean and covariance \( k R\, \mathrm{diag}(w^2, h^2) R^T \). R turns
by the angle, in radians from the x axis towards the y axis; k is 1/12 or 1/4, as the paper of the distance
has it. So a box is the same after half a turn, and after a quarter turn with width and height exchanged.

How it stays finite and unbiased:

- Nothing is added to a denominator, and nothing cancels: every distance is a sum of squares, so identical
  boxes have a distance of exactly 0.
- Lengths are measured in the longest of the pair, a side of either box or an offset of the centres, before
  anything is squared. The losses do not change under scaling, so the unit is constant under
  differentiation.
- A side below `THINNEST` of the longest length counts as that, and keeps the gradient it has there, so that
  it can grow.
- Gradients grow as 1 / length; where the longest length is below `SMALLEST` they saturate.
- A negative side counts as its absolute value, constant under differentiation, and costs its length (in the
  longest of the pair) on top: it never costs less than the positive side, and its gradient makes it positive.
- The square root has a gradient of 0 at 0: identical boxes stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

THINNEST = 2.0**-20
"""The least side, in the longest length of the pair, that differs from 0."""

SMALLEST = 2.0**-56
"""The least longest length whose gradients do not saturate."""


class Pair(NamedTuple):
    """What is known of a predicted box and its target, in the longest side of the two boxes."""

    sides: tuple[Tensor, Tensor]
    target_sides: tuple[Tensor, Tensor]
    offset: tuple[Tensor, Tensor]
    own_offset: tuple[Tensor, Tensor]
    """The offset along the predicted box's width and height."""
    target_offset: tuple[Tensor, Tensor]
    """The offset along the target's width and height."""
    cos2: Tensor
    """The squared cosine of the angle between the boxes."""
    sin2: Tensor
    inversion: Tensor
    """Lengths of the negative sides, in the longest length of the pair."""


def _measure(length: Tensor, longest: Tensor) -> Tensor:
    """A length in a unit that is no shorter; 0 without one."""
    constant = length.detach()
    share = constant / torch.where(longest == 0, 1.0, longest)
    return share + (length - constant) * (1.0 / longest.clamp(min=SMALLEST))


def _thick(share: Tensor) -> Tensor:
    """The share, or the least that differs from 0, with the gradient of either."""
    return torch.where(share < THINNEST, THINNEST + (share - share.detach()), share)


def _in_axes_of(angle: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos(), angle.sin()
    return cos * x + sin * y, cos * y - sin * x


def pair_of(pred: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Pair:
    """The geometry of planes cx, cy, w, h, angle of either box."""
    # Halves: the difference of two numbers may be beyond the largest float, that of their halves is not.
    offset = [0.5 * p - 0.5 * t for p, t in zip(pred[:2], target[:2], strict=True)]
    sides = [0.5 * side for side in (*pred[2:4], *target[2:4])]
    half_turn = 0.5 * pred[4] - 0.5 * target[4]

    longest = reduce(torch.maximum, [length.detach().abs() for length in (*offset, *sides)])
    inverted = [torch.where(side < 0, -side, 0.0) for side in sides]
    upright = [torch.where(side < 0, -side.detach(), side) for side in sides]
    shares = [_thick(_measure(side, longest)) for side in upright]
    # Far boxes are small beside their offset; in their own unit no product underflows.
    largest = reduce(torch.maximum, [share.detach() for share in shares])
    w, h, target_w, target_h = (share / largest for share in shares)
    x, y = (_measure(part, longest) / largest for part in offset)

    cos, sin = half_turn.cos(), half_turn.sin()
    return Pair(
        sides=(w, h),
        target_sides=(target_w, target_h),
        offset=(x, y),
        own_offset=_in_axes_of(pred[4], x, y),
        target_offset=_in_axes_of(target[4], x, y),
        cos2=((cos - sin) * (cos + sin)).square(),
        sin2=(2.0 * sin * cos).square(),
        inversion=sum((_measure(part, longest) for part in inverted), torch.zeros_like(x)),
    )


def _blend(pair: Pair, term: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """A term of w, h, target w, target h for turned boxes.

    Traces and determinants of two covariances depend on the angle between them through its squared cosine
    alone: they are a mean of the term for parallel boxes and the term for boxes at right angles.
    """
    target_w, target_h = pair.target_sides
    parallel, crossed = term(*pair.sides, target_w, target_h), term(*pair.sides, target_h, target_w)
    return pair.cos2 * parallel + pair.sin2 * crossed


def root(value: Tensor) -> Tensor:
    """The square root, whose derivative at 0 is 0."""
    rest = value <= 0
    return torch.where(rest, 0.0, torch.where(rest, 1.0, value).sqrt())


def _determinant(w: Tensor, h: Tensor, target_w: Tensor, target_h: Tensor) -> Tensor:
    """The determinant of the sum of two parallel boxes' diag(w^2, h^2)."""
    return (w * w + target_w * target_w) * (h * h + target_h * target_h)


def _unlikeness(w: Tensor, h: Tensor, target_w: Tensor, target_h: Tensor) -> Tensor:
    """By how much `_determinant` is above 4 w h wt ht, in that: the mean's excess over the geometric mean."""
    first = (w - target_w).square() / (2.0 * w * target_w)
    second = (h - target_h).square() / (2.0 * h * target_h)
    return first + second + first * second


def bhattacharyya(pair: Pair) -> Tensor:
    """Bhattacharyya distance, k = 1/12: 1/8 d^T S^-1 d + 1/2 ln(|S| / sqrt(|Sp| |St|)), S their mean."""
    (w, h), (target_w, target_h) = pair.sides, pair.target_sides
    (x, y), (target_x, target_y) = pair.own_offset, pair.target_offset
    # d^T adj(Sp + St) d: adjugates of 2 x 2 matrices add, and each is diagonal in its box's own axes.
    near = (h * x).square() + (w * y).square()
    near = near + (target_h * target_x).square() + (target_w * target_y).square()
    return 3.0 * near / _blend(pair, _determinant) + 0.5 * _blend(pair, _unlikeness).log1p()


def _stretch(side: Tensor, target: Tensor) -> Tensor:
    """r^2 - 1 - 2 ln r for a ratio of sides r, without the cancellation at r = 1."""
    excess = (side - target) / target
    log = torch.where(excess.abs() < 0.5, excess.log1p(), (side / target).log())
    return excess.square() + 2.0 * (excess - log)


def _stretches(w: Tensor, h: Tensor, target_w: Tensor, target_h: Tensor) -> Tensor:
    return _stretch(w, target_w) + _stretch(h, target_h)


def kullback_leibler(pair: Pair) -> Tensor:
    """KL(p || t) at k = 1/4: 1/2 (d^T St^-1 d + tr(St^-1 Sp) + ln(|St| / |Sp|)) - 1."""
    (target_w, target_h), (x, y) = pair.target_sides, pair.target_offset
    return 2.0 * ((x / target_w).square() + (y / target_h).square()) + 0.5 * _blend(pair, _stretches)


def _squared_trace(w: Tensor, h: Tensor, target_w: Tensor, target_h: Tensor) -> Tensor:
    """The squared trace of the root of Sp^(1/2) St Sp^(1/2)."""
    return (w * target_w + h * target_h).square()


def _trace_gap(w: Tensor, h: Tensor, target_w: Tensor, target_h: Tensor) -> Tensor:
    """tr(Sp + St)^2 - 4 `_squared_trace`, as a product of sums of squares."""
    apart = (w - target_w).square() + (h - target_h).square()
    return apart * ((w + target_w).square() + (h + target_h).square())


def wasserstein(pair: Pair) -> Tensor:
    """The squared Wasserstein distance at k = 1/4 over the geometric mean of the boxes' areas."""
    (w, h), (target_w, target_h), (x, y) = pair.sides, pair.target_sides, pair.offset
    traces = w * w + h * h + target_w * target_w + target_h * target_h
    # a - 2 b as (a^2 - 4 b^2) / (a + 2 b): the numerator is a sum of squares.
    shape = _blend(pair, _trace_gap) / (traces + 2.0 * _blend(pair, _squared_trace).sqrt())
    return (x * x + y * y + 0.25 * shape) / (w * h * target_w * target_h).sqrt()
