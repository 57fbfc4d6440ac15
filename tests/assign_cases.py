"""The tables that tests of assigners share: schemes, predictions and objects of random images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from boxreg import (
    AnchorRatioAssigner,
    Assigner,
    Assignment,
    ResponsibleCellAssigner,
    Targets,
    TaskAlignedAssigner,
    pad_targets,
    points_of,
)
from tests.cases import seeded, uniform

SIZE = 64.0
LEVELS = [(8, 8, 8), (4, 4, 16), (2, 2, 32)]
CLASSES = 3
ANCHORS = [[(6, 8), (12, 9)], [(18, 24), (30, 16)], [(40, 40), (60, 30)]]
SCHEMES: dict[str, tuple[Assigner, int]] = {
    "responsible": (ResponsibleCellAssigner(), 2),
    "responsible-ciou": (ResponsibleCellAssigner(kind="ciou"), 1),
    "anchor-ratio": (AnchorRatioAssigner(anchors=ANCHORS), 2),
    "anchor-ratio-2": (AnchorRatioAssigner(anchors=ANCHORS, max_ratio=2.0), 2),
    "task-aligned": (TaskAlignedAssigner(), 1),
    "task-aligned-tood": (TaskAlignedAssigner(topk=13, alpha=1.0, kind="iou"), 1),
    "task-aligned-2": (TaskAlignedAssigner(topk=3, beta=2.0), 2),
}
"""A scheme with its settings, and how many boxes a cell has with it."""

NAN = float("nan")


def predictions(scheme: str, images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predicted boxes about their points, as large as a few cells, and class probabilities; float64."""
    generator = seeded(seed)
    points = points_of(LEVELS, per_cell=SCHEMES[scheme][1], dtype=torch.float64)
    reach = uniform(generator, images, 4, len(points.x), low=0.2, high=3.0) * points.stride
    left, top, right, bottom = reach.unbind(1)
    boxes = torch.stack((points.x - left, points.y - top, points.x + right, points.y + bottom), 1)
    return boxes, uniform(generator, images, CLASSES, len(points.x))


def objects(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes of all sizes, their centres in the image as a rule, and labels."""
    generator = seeded(seed)
    size = torch.exp(uniform(generator, count, 2, low=0.5, high=4.0))
    middle = uniform(generator, count, 2, low=-2.0, high=SIZE + 2)
    return torch.cat((middle - size / 2, middle + size / 2), -1), torch.randint(
        CLASSES, (count,), generator=generator
    )


def batch(counts: Sequence[int], seed: int = 0) -> Targets:
    """Random objects, the given number in each image."""
    boxes, labels = zip(*(objects(count, 100 * seed + n) for n, count in enumerate(counts)), strict=True)
    return pad_targets(boxes, labels)


def assign(scheme: str, targets: Targets, seed: int = 0) -> Assignment:
    boxes, scores = predictions(scheme, len(targets.mask), seed)
    return SCHEMES[scheme][0](boxes, targets, LEVELS, scores)


def one(boxes: list[list[float]], labels: list[int] | None = None) -> Targets:
    """The objects of one image, float64."""
    rows = torch.tensor(boxes, dtype=torch.float64).view(-1, 4)
    return pad_targets([rows], None if labels is None else [torch.tensor(labels)])


def planes(boxes: list[list[float]]) -> Tensor:
    """Predictions of one image, written one a row."""
    return torch.tensor(boxes, dtype=torch.float64).T.unsqueeze(0)


def owners(found: Assignment) -> list[int | None]:
    """The object of each prediction of the only image."""
    return [
        number if there else None
        for number, there in zip(found.target_index[0].tolist(), found.positive[0].tolist(), strict=True)
    ]


def same(a: Assignment, b: Assignment, *, but_indices: bool = False) -> None:
    """The same result: choices exactly, scores to a rounding, which depends on what is computed at once."""
    for name in Assignment._fields:
        if not (but_indices and name == "target_index"):
            tolerance = 1e-6 if name == "score" else 0.0
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance)
