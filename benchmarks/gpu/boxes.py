"""Boxes to compare kernels on: ordinary ones, every edge case, and any float that there is."""

from __future__ import annotations

import torch
from torch import Tensor

EDGES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "identical": ((0.25, 0.5, 1.0, 1.5), (0.25, 0.5, 1.0, 1.5)),
    "nested": ((0.5, 0.5, 0.75, 1.0), (0.25, 0.25, 1.5, 1.25)),
    "touching": ((0.0, 0.0, 1.0, 1.0), (1.0, 0.25, 1.5, 0.75)),
    "shared corner": ((0.0, 0.0, 1.0, 1.5), (0.0, 0.0, 0.75, 1.0)),
    "disjoint": ((0.0, 0.0, 0.5, 0.75), (1.25, 2.0, 2.0, 2.25)),
    "slender": ((0.0, 0.5, 2.0, 0.5078125), (0.25, 0.50390625, 1.5, 0.51171875)),
    "flat": ((0.25, 0.25, 1.0, 0.25), (0.5, 0.0, 1.25, 1.0)),
    "point": ((0.5, 0.5, 0.5, 0.5), (0.25, 0.0, 1.25, 1.0)),
    "point target": ((0.25, 0.0, 1.25, 1.0), (0.5, 0.5, 0.5, 0.5)),
    "same point": ((0.5, 0.75, 0.5, 0.75), (0.5, 0.75, 0.5, 0.75)),
    "inverted": ((1.0, 0.25, 0.25, 1.0), (0.5, 0.0, 1.25, 0.75)),
    "inverted target": ((0.5, 0.0, 1.25, 0.75), (1.0, 1.0, 0.25, 0.25)),
    "far from the origin": ((1000.0, 1000.0, 1001.0, 1000.5), (1000.25, 1000.0, 1001.5, 1001.0)),
}
"""xyxy pairs that losses go wrong on, in values that every dtype holds."""

SCALES = (1.0, 2.0**-7, 2.0**6)
"""What the edge cases are multiplied by: float16 still holds them."""


def upright(count: int, generator: torch.Generator) -> Tensor:
    """Boxes (count, 4), xyxy, their corners in [0, 2] and their sides from 0.2 to 1.2."""
    corner, size = (torch.rand(count, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    return torch.cat([2 * corner, 2 * corner + size + 0.2], -1)


def edge_pairs() -> tuple[Tensor, Tensor]:
    """Every edge case at every scale: predictions and targets, xyxy, float64."""
    pairs = torch.tensor(list(EDGES.values()), dtype=torch.float64)
    pred, target = torch.cat([scale * pairs for scale in SCALES]).unbind(1)
    return pred, target


def some_pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Edge cases first, then upright boxes, most of which overlap; xyxy, float64."""
    generator = torch.Generator().manual_seed(seed)
    edges, others = edge_pairs(), (upright(count, generator), upright(count, generator))
    pred, target = (torch.cat(both)[:count] for both in zip(edges, others, strict=True))
    return pred, target


def wild_pairs(count: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes of arbitrary finite float32 values, each bit drawn at random; ties and points among them.

    One in eight targets is its prediction, one in eight predictions a point, one in eight targets lies beside
    its prediction, and one pair in eight has values of about one size.
    """
    generator = torch.Generator(device).manual_seed(seed)
    bits = torch.randint(
        -(2**31), 2**31, (2, count, 4), generator=generator, device=device, dtype=torch.int64
    ).to(torch.int32)
    pred, target = bits.view(torch.float32).nan_to_num(0.0, 3.4e38, -3.4e38).unbind(0)
    turn = (torch.arange(count, device=device) % 8)[:, None]
    target = torch.where(turn == 0, pred, target)
    pred = torch.where(turn == 1, pred[:, :2].repeat(1, 2), pred)
    target = torch.where(turn == 2, torch.cat([pred[:, 2:], target[:, 2:]], 1), target)
    near = torch.rand(2, count, 4, generator=generator, device=device) * 2 - 1
    unit = pred[:, :1]
    pred, target = (
        torch.where(turn == 3, part * unit, side) for part, side in zip(near, (pred, target), strict=True)
    )
    return pred, target
