"""Assignment in plain Python, object by object: what the assigners' tests compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from boxreg import AnchorRatioAssigner, Assigner, ResponsibleCellAssigner, Targets, TaskAlignedAssigner

Box = tuple[float, ...]
Levels = list[tuple[int, int, float]]


class Cell(NamedTuple):
    """Where a prediction is."""

    level: int
    box: int
    row: int
    col: int


class Thing(NamedTuple):
    """An object of an image: its box in xyxy, its label, its number in the list."""

    box: Box
    label: int
    number: int


Owners = dict[int, tuple[Thing, float]]
"""The object and the score of every prediction that has one."""


def cells_of(levels: Levels, per_cell: int) -> list[Cell]:
    return [
        Cell(level, box, row, col)
        for level, (rows, cols, _) in enumerate(levels)
        for box in range(per_cell)
        for row in range(rows)
        for col in range(cols)
    ]


def things_of(boxes: Tensor, labels: Tensor, mask: Tensor) -> list[Thing]:
    """The real objects of an image, in the order in which they win ties."""
    found = [
        Thing(tuple(box), int(label), number)
        for number, (box, label, there) in enumerate(
            zip(boxes.tolist(), labels.tolist(), mask.tolist(), strict=True)
        )
        if there and all(map(math.isfinite, box)) and box[2] > box[0] and box[3] > box[1]
    ]
    return sorted(found, key=lambda thing: (area(thing.box), thing.box, thing.label))


def area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def iou(a: Box, b: Box) -> float:
    shared = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    both = area(shared) if shared[2] > shared[0] and shared[3] > shared[1] else 0.0
    return both / (area(a) + area(b) - both)


def ciou(a: Box, b: Box) -> float:
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    span = [max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1)]
    distance = (offset[0] ** 2 + offset[1] ** 2) / (span[0] ** 2 + span[1] ** 2)
    turn = math.atan2(a[2] - a[0], a[3] - a[1]) - math.atan2(b[2] - b[0], b[3] - b[1])
    aspect, overlap = 4 / math.pi**2 * turn**2, iou(a, b)
    return overlap - distance - (aspect**2 / (1 - overlap + aspect) if aspect else 0.0)


OVERLAP = {"iou": iou, "ciou": ciou}


def centre(thing: Thing) -> tuple[float, float]:
    return (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2


def home(thing: Thing, levels: Levels) -> Iterator[tuple[int, int, int]]:
    """Level, row and column of the cells that hold the centre."""
    cx, cy = centre(thing)
    for level, (rows, cols, stride) in enumerate(levels):
        if 0 <= cx <= cols * stride and 0 <= cy <= rows * stride:
            yield level, min(int(cy // stride), rows - 1), min(int(cx // stride), cols - 1)


def responsible(
    assigner: ResponsibleCellAssigner, pred: list[Box], things: list[Thing], levels: Levels, per_cell: int
) -> Owners:
    cells = cells_of(levels, per_cell)
    waiting, owners = list(things), Owners()
    while waiting:
        claims: dict[int, list[Thing]] = {}
        for thing in waiting:
            homes = set(home(thing, levels))
            free = [
                p
                for p, cell in enumerate(cells)
                if p not in owners and (cell.level, cell.row, cell.col) in homes
            ]
            if free:
                worth = [OVERLAP[assigner.kind](pred[p], thing.box) for p in free]
                claims.setdefault(free[worth.index(max(worth))], []).append(thing)
        if not claims:
            break
        for p, claimants in claims.items():
            worth = [OVERLAP[assigner.kind](pred[p], thing.box) for thing in claimants]
            winner = claimants[worth.index(max(worth))]
            owners[p] = (winner, min(max(max(worth), 0.0), 1.0))
            waiting.remove(winner)
    return owners


def by_ratio(
    assigner: AnchorRatioAssigner, pred: list[Box], things: list[Thing], levels: Levels, per_cell: int
) -> Owners:
    owners = Owners()
    for p, cell in enumerate(cells_of(levels, per_cell)):
        stride = levels[cell.level][2]
        anchor = assigner.anchors[cell.level][cell.box]
        best = (False, -math.inf)
        for thing in things:
            sides = (thing.box[2] - thing.box[0], thing.box[3] - thing.box[1])
            ratio = max(max(s / a, a / s) for s, a in zip(sides, anchor, strict=True))
            homes = [(row, col) for level, row, col in home(thing, levels) if level == cell.level]
            if not homes or ratio >= assigner.max_ratio:
                continue
            row, col = homes[0]
            in_cell = (centre(thing)[1] / stride - row, centre(thing)[0] / stride - col)
            step = [(part > 0.5) - (part < 0.5) for part in in_cell]
            neighbours = [(row + step[0], col), (row, col + step[1])]
            if (cell.row, cell.col) in [(row, col), *neighbours]:
                worth = ((cell.row, cell.col) == (row, col), -ratio)
                if worth > best:
                    best, owners[p] = worth, (thing, 1.0)
    return owners


def task_aligned(
    assigner: TaskAlignedAssigner,
    pred: list[Box],
    things: list[Thing],
    levels: Levels,
    per_cell: int,
    scores: list[list[float]],
) -> Owners:
    cells = cells_of(levels, per_cell)
    overlap = OVERLAP[assigner.kind]
    claims: dict[int, list[Thing]] = {}

    def alignment(p: int, thing: Thing) -> tuple[float, float]:
        u, likely = overlap(pred[p], thing.box), scores[thing.label][p] ** assigner.alpha
        return likely * max(u, 0.0) ** assigner.beta, likely * math.exp(assigner.beta * u)

    for thing in things:
        x1, y1, x2, y2 = thing.box
        candidates = [
            p
            for p, cell in enumerate(cells)
            if x1 < (cell.col + 0.5) * levels[cell.level][2] < x2
            and y1 < (cell.row + 0.5) * levels[cell.level][2] < y2
        ]
        if not candidates:
            homes = set(home(thing, levels))
            candidates = [p for p, cell in enumerate(cells) if (cell.level, cell.row, cell.col) in homes]
        ranked = sorted(candidates, key=lambda p: alignment(p, thing), reverse=True)
        for p in ranked[: assigner.topk]:
            claims.setdefault(p, []).append(thing)
    winners = {
        p: max(claimants, key=lambda thing: overlap(pred[p], thing.box)) for p, claimants in claims.items()
    }
    owners = Owners()
    for thing in things:
        own = [p for p, winner in winners.items() if winner is thing]
        most = max((max(overlap(pred[p], thing.box), 0.0) for p in own), default=0.0)
        top = max((alignment(p, thing)[0] for p in own), default=0.0)
        for p in own:
            owners[p] = (thing, alignment(p, thing)[0] / top * most if top else 0.0)
    return owners


def reference(
    assigner: Assigner, boxes: Tensor, targets: Targets, levels: Levels, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """The number of each prediction's object, -1 for none, and its score; both (B, A)."""
    per_cell = boxes.shape[2] // sum(rows * cols for rows, cols, _ in levels)
    number = torch.full_like(boxes[:, 0], -1, dtype=torch.int64)
    score = torch.zeros_like(boxes[:, 0])
    for image in range(len(boxes)):
        things = things_of(*(part[image] for part in targets))
        pred = [tuple(row) for row in boxes[image].T.tolist()]
        if isinstance(assigner, ResponsibleCellAssigner):
            owners = responsible(assigner, pred, things, levels, per_cell)
        elif isinstance(assigner, AnchorRatioAssigner):
            owners = by_ratio(assigner, pred, things, levels, per_cell)
        else:
            assert isinstance(assigner, TaskAlignedAssigner)
            owners = task_aligned(assigner, pred, things, levels, per_cell, scores[image].tolist())
        for p, (thing, worth) in owners.items():
            number[image, p], score[image, p] = thing.number, worth
    return number, score
