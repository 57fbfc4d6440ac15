"""What every assigner has in common: arguments, the order of objects, contests, and the result."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import check_boxes, check_choice, check_same_shape, check_tensor
from .._dtypes import promote
from ..boxes import FORMATS, area, convert
from ..grids import Levels, check_levels
from .targets import Targets, check_integers, ordinary_box


class Assignment(NamedTuple):
    """What each of A predictions of B images should be: dense maps, so that a loss gathers nothing.

    The A predictions are maps (B, ..., K, H, W), K boxes per cell, flattened from K on and laid end to end:
    level by level, and within a level box by box, row by row.

    A prediction without an object, a negative, has target_index 0, label 0, score 0 and the box (0, 0, 1, 1).
    These are ordinary, so losses of negatives are finite, and a weight of `positive` takes them out.

    Attributes:
        positive: (B, A), bool: has an object. Weight of box and class terms; the target of objectness.
        target_index: (B, A), int64: which object of the image, 0 to M - 1.
        boxes: (B, 4, A): its box in the assigner's format; planes, as `dim=1` of every loss takes them.
        labels: (B, A), int64: its class.
        score: (B, A), from 0 to 1: how good a match it is, in the sense of the assigner. A soft target of
            objectness or of the object's class, or a weight of the box term.

    Example:
        >>> import torch
        >>> from boxreg import AnchorRatioAssigner, CIoULoss, pad_targets
        >>> assigner = AnchorRatioAssigner(anchors=[[(16.0, 16.0)]])
        >>> targets = pad_targets([torch.tensor([[8.0, 8.0, 24.0, 26.0]])], [torch.tensor([2])])
        >>> pred = torch.tensor([8.0, 8.0, 24.0, 24.0]).view(1, 4, 1).expand(1, 4, 16)
        >>> found = assigner(pred, targets, [(4, 4, 8)])  # 4 by 4 cells of 8 pixels
        >>> found.positive.view(4, 4).int()
        tensor([[0, 0, 0, 0],
                [0, 0, 1, 0],
                [0, 1, 1, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
        >>> positives = found.positive.sum()
        >>> loss = CIoULoss(dim=1)(pred, found.boxes, weight=found.positive, normalizer=positives)
        >>> classes = torch.zeros(1, 3, 16).scatter(1, found.labels[:, None], found.score[:, None])
        >>> classes.sum(2)
        tensor([[0., 0., 3.]])
    """

    positive: Tensor
    target_index: Tensor
    boxes: Tensor
    labels: Tensor
    score: Tensor


class Objects(NamedTuple):
    """The objects of B images in an order that is theirs, ordinary everywhere, a spare slot at the end.

    Among equal claims the first object wins. So that a shuffled list changes nothing, the order is by area,
    then coordinates, then label. Slots that hold no object come last; the spare one is what predictions
    without an object point at, and keeps an empty list from being empty.
    """

    boxes: Tensor
    """(B, M + 1, 4), xyxy."""
    labels: Tensor
    """(B, M + 1)."""
    real: Tensor
    """(B, M + 1), bool: is an object."""

    @property
    def spare(self) -> int:
        """The number of the spare slot."""
        return self.boxes.shape[1] - 1


class Layout(NamedTuple):
    """How the predictions lie: level by level, of each level box by box, row by row."""

    levels: Levels
    per_cell: int

    def places(self, number: int, row: Tensor, col: Tensor) -> Tensor:
        """The predictions of a cell of level `number`: (..., per_cell)."""
        cells = [rows * cols for rows, cols, _ in self.levels]
        box = torch.arange(self.per_cell, device=row.device)
        _, cols, _ = self.levels[number]
        return self.per_cell * sum(cells[:number]) + box * cells[number] + (row * cols + col).unsqueeze(-1)


@dataclass(frozen=True, kw_only=True)
class Assigner(ABC):
    """Which predictions answer for which object.

    A scheme derives from this class, as a frozen dataclass, and states `_assign`. All run on the device of
    their input and never wait for it: no shape depends on data.

    Args:
        fmt: format of predicted boxes, of target boxes and so of the result: `"xyxy"`, `"xywh"` or
            `"cxcywh"`.
    """

    fmt: str = "xyxy"

    def __post_init__(self) -> None:
        check_choice("fmt", self.fmt, FORMATS)

    @torch.no_grad()
    def __call__(
        self, boxes: Tensor, targets: Targets, levels: Levels, scores: Tensor | None = None
    ) -> Assignment:
        """Assign objects to predictions. Nothing of it is differentiated.

        An object takes part if its mask is True, its numbers are finite and its sides are positive. Targets
        that fail this are left out without an error, because to see them would wait for the device. A
        permutation of an image's objects changes nothing but `target_index`.

        Args:
            boxes: predicted boxes (B, 4, A), floating, in the unit of the strides, in the order that
                `Assignment` describes. One that is not finite counts as (0, 0, 1, 1).
            targets: objects, in the unit and format of `boxes`.
            levels: (rows, cols, stride) of each map; A is a multiple of their cells, the boxes per cell.
            scores: predicted class probabilities (B, C, A), for schemes that look at them; NaN counts as 0.
                A label that is not below C fails as an index out of range.

        Returns:
            Dense maps; floating ones in float32, or float64 for float64 input.

        Raises:
            TypeError: if an argument is of the wrong type.
            ValueError: for shapes or devices that do not fit each other, or bad levels.
        """
        layout = _check(boxes, targets, levels, scores)
        pred, target = promote(boxes, targets.boxes)
        finite = pred.isfinite().all(1, keepdim=True)
        pred = torch.where(finite, pred, ordinary_box(pred).unsqueeze(-1))
        if scores is not None:
            scores = scores.to(pred.dtype)
        objects, own, order = _in_order(targets._replace(boxes=target), self.fmt)
        owner, score = self._assign(convert(pred, self.fmt, "xyxy", dim=1), scores, objects, layout)
        positive = owner < objects.spare
        return Assignment(
            positive=positive,
            target_index=torch.where(positive, order.gather(1, owner), 0),
            boxes=own.mT.gather(2, owner.unsqueeze(1).expand(-1, 4, -1)),
            labels=objects.labels.gather(1, owner),
            score=score,
        )

    def most_positives(self, objects: int, predictions: int) -> int:
        """The largest number of positives that an image can have.

        What a loss computes for positives alone, it then computes for this many predictions. A scheme that
        does not say returns all of them.

        Args:
            objects: M, how many an image has at most.
            predictions: A.
        """
        return predictions

    @abstractmethod
    def _assign(
        self, boxes: Tensor, scores: Tensor | None, objects: Objects, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """The slot of the object of each predicted box, and its score; boxes (B, 4, A) in xyxy, all finite.

        Slots (B, A), int64, are the spare one where there is none, and scores (B, A) are 0 there.
        """


def contest(index: Tensor, value: Tensor, predictions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Settle which object gets a prediction that several claim: the one with the highest value.

    Among equal values the first object wins.

    Args:
        index: (B, M + 1, n), int64: the predictions that each object claims, none of them twice.
        value: (B, M + 1, n): what each claim is worth; -inf where it is none.
        predictions: A.

    Returns:
        For each prediction (B, A) the slot of the winner (M where there is none) and the value of its claim;
        for each claim (B, M + 1, n) whether it won.
    """
    flat, spare = index.flatten(1), index.shape[1] - 1
    best = value.new_full((index.shape[0], predictions), -math.inf)
    best = best.scatter_reduce(1, flat, value.flatten(1), "amax")
    won = (value > -math.inf) & (value == best.gather(1, flat).view_as(value))
    slot = torch.arange(spare + 1, device=index.device).unsqueeze(-1)
    owner = torch.full_like(best, spare, dtype=torch.int64)
    owner = owner.scatter_reduce(1, flat, torch.where(won, slot, spare).flatten(1), "amin")
    return owner, best, won & (owner.gather(1, flat).view_as(index) == slot)


def _in_order(targets: Targets, fmt: str) -> tuple[Objects, Tensor, Tensor]:
    """The objects in their own order, their boxes in their own format, and where each of them came from."""
    x1, y1, x2, y2 = convert(targets.boxes, fmt, "xyxy").unbind(-1)
    real = targets.mask & targets.boxes.isfinite().all(-1) & (x2 > x1) & (y2 > y1)
    real = F.pad(real, (0, 1))
    boxes = F.pad(targets.boxes, (0, 0, 0, 1))
    boxes = torch.where(real.unsqueeze(-1), boxes, ordinary_box(boxes))
    labels = torch.where(real, F.pad(targets.labels.to(torch.int64), (0, 1)), 0)
    order = torch.arange(real.shape[1], device=real.device).expand_as(labels)
    # The least significant first: a stable sort keeps what the sorts before it made of ties.
    for key in (labels, *boxes.unbind(-1), area(boxes, fmt), ~real):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    own = boxes.gather(1, order.unsqueeze(-1).expand_as(boxes))
    objects = Objects(convert(own, fmt, "xyxy"), labels.gather(1, order), real.gather(1, order))
    return objects, own, order


def _check(boxes: Tensor, targets: Targets, levels: Levels, scores: Tensor | None) -> Layout:
    check_boxes("boxes", boxes, 1)
    if not isinstance(targets, Targets):
        raise TypeError(f"targets: got {type(targets).__name__}, expected Targets, as pad_targets makes them")
    check_boxes("targets.boxes", targets.boxes, -1)
    check_integers("targets.labels", targets.labels)
    if targets.mask.dtype != torch.bool:
        raise TypeError(f"targets.mask: got a tensor of {targets.mask.dtype}, expected torch.bool")
    check_levels(levels)
    rows = targets.boxes[..., 0]
    check_same_shape("targets.labels", targets.labels, "targets.boxes without coordinates", rows)
    check_same_shape("targets.mask", targets.mask, "targets.boxes without coordinates", rows)
    batch = boxes.shape[0]
    if boxes.ndim != 3 or targets.boxes.ndim != 3 or targets.boxes.shape[0] != batch:
        raise ValueError(
            "boxes and targets.boxes must be (B, 4, A) and (B, M, 4): "
            f"got {tuple(boxes.shape)} and {tuple(targets.boxes.shape)}"
        )
    if boxes.device != targets.boxes.device:
        raise ValueError(
            f"boxes and targets must be on one device: got {boxes.device} and {targets.boxes.device}"
        )
    if scores is not None:
        check_tensor("scores", scores, floating=True)
        if scores.ndim != 3 or scores.shape[1] == 0:
            raise ValueError(f"scores: got shape {tuple(scores.shape)}, expected (B, C, A)")
        check_same_shape("scores of a class", scores[:, 0], "boxes of a coordinate", boxes[:, 0])
    cells, predictions = sum(rows * cols for rows, cols, _ in levels), boxes.shape[2]
    if predictions == 0 or predictions % cells:
        raise ValueError(
            f"boxes: got {predictions} predictions, expected a multiple of the {cells} cells of levels"
        )
    return Layout(levels, predictions // cells)
