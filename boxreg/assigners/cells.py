"""Assignment by cells: the cell that holds an object's centre, and its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_choice, check_number
from ..iou import box_iou
from ..iou.spec import FAMILY
from .base import Assigner, Layout, Objects, contest


def cell_along(centre: Tensor, cells: int, stride: float) -> tuple[Tensor, Tensor]:
    """Which cell of a row holds a centre, and whether one does.

    A cell holds its lower end; the last one holds both of its ends. Where none does, the nearest is named.
    """
    inside = (centre >= 0) & (centre <= cells * stride)
    return (centre / stride).floor().clamp(0, cells - 1).to(torch.int64), inside


def centre_of(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres x and y of xyxy boxes (..., 4)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return 0.5 * x1 + 0.5 * x2, 0.5 * y1 + 0.5 * y2


def at_centre(boxes: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The predictions of the cells, one a level, that hold the centres of boxes (B, M, 4).

    Returns:
        Predictions (B, M, levels * per_cell), and whether there is such a cell, of the same shape.
    """
    cx, cy = centre_of(boxes)
    index, inside = [], []
    for number, (rows, cols, stride) in enumerate(layout.levels):
        col, in_x = cell_along(cx, cols, stride)
        row, in_y = cell_along(cy, rows, stride)
        index.append(layout.places(number, row, col))
        inside.append((in_x & in_y).unsqueeze(-1).expand_as(index[-1]))
    return torch.cat(index, -1), torch.cat(inside, -1)


@dataclass(frozen=True, kw_only=True)
class ResponsibleCellAssigner(Assigner):
    """One prediction an object: the box that fits it best, in the cell that holds its centre.

    From "You Only Look Once: Unified, Real-Time Object Detection" (Redmon et al. 2016, arXiv:1506.02640): of
    the B boxes that the cell predicts, the one with the highest IoU with the object is responsible for it.
    Here the map may be a pyramid; then the boxes of the cells of all levels that hold the centre compete.

    The paper does not say what happens to two objects in one cell. Here objects claim in turns: each object
    that has none claims the best box that is free, and of several objects that claim one box, the one with
    the highest IoU gets it (of equal ones the smaller object). So objects share a cell as long as it has
    boxes; those beyond that get none. A centre on the edge between cells belongs to the one to the right or
    below, a centre on the far border to the last cell; an object whose centre is outside the map gets none.

    `score` is the IoU of the predicted box with its object, the paper's target of confidence.

    Args:
        kind: what fits best, a loss of the IoU family; `"giou"` or `"ciou"` tell boxes apart that do not
            overlap the object at all, as those of an untrained network. `score` is then that, and 0 below 0.
        fmt: format of all boxes.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> import torch
        >>> from boxreg import ResponsibleCellAssigner, pad_targets
        >>> targets = pad_targets([torch.tensor([[9.0, 1.0, 15.0, 7.0]])])  # in the right one of two cells
        >>> pred = torch.tensor([  # two boxes a cell: the first of either cell, then the second of either
        ...     [[0.0, 8.0, 0.0, 9.0], [0.0, 0.0, 0.0, 1.0], [8.0, 16.0, 4.0, 15.0], [8.0, 8.0, 4.0, 4.0]]
        ... ])
        >>> found = ResponsibleCellAssigner()(pred, targets, [(1, 2, 8)])
        >>> found.score
        tensor([[0.0000, 0.5625, 0.0000, 0.0000]])
    """

    kind: str = "iou"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, FAMILY)

    def most_positives(self, objects: int, predictions: int) -> int:
        """One an object."""
        return min(objects, predictions)

    def _assign(
        self, boxes: Tensor, scores: Tensor | None, objects: Objects, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        index, inside = at_centre(objects.boxes, layout)
        candidates = boxes.gather(2, index.flatten(1).unsqueeze(1).expand(-1, 4, -1))
        expanded = objects.boxes.mT.unsqueeze(-1).expand(-1, -1, -1, index.shape[-1]).flatten(2)
        value = box_iou(candidates, expanded, self.kind, dim=1).view(index.shape)
        value = value.masked_fill(~(inside & objects.real.unsqueeze(-1)), -math.inf)
        owner = torch.full_like(boxes[:, 0], objects.spare, dtype=torch.int64)
        score = torch.zeros_like(boxes[:, 0])
        # Every turn an object gets a box or loses one that it had chosen: that many turns settle it.
        for _ in range(index.shape[-1]):
            best, favourite = value.max(-1, keepdim=True)
            winner, worth, won = contest(index.gather(-1, favourite), best, boxes.shape[2])
            taken = winner < objects.spare
            owner = torch.where(taken, winner, owner)
            score = torch.where(taken, worth.clamp(0, 1), score)
            gone = won | taken.gather(1, index.flatten(1)).view_as(index)
            value = value.masked_fill(gone, -math.inf)
        return owner, score


@dataclass(frozen=True, kw_only=True)
class AnchorRatioAssigner(Assigner):
    r"""Every anchor of about an object's shape, in the cell of its centre and in the two nearest cells.

    \[ r = \max\Big( \frac{w}{w_a}, \frac{w_a}{w}, \frac{h}{h_a}, \frac{h_a}{h} \Big) < \text{max_ratio} \]

    for an object of w by h and an anchor of w_a by h_a. Cells are that of the centre, its neighbour to the
    left or to the right, whichever the centre is nearer to, and likewise the one above or below: three, two
    where the nearer one would be off the map or the centre is exactly between the two. This is the rule of
    YOLOv5 (Jocher 2020, doi:10.5281/zenodo.3908559; "Build Targets" in its description at
    docs.ultralytics.com/yolov5/tutorials/architecture_description), without a paper; "YOLOv7: Trainable
    bag-of-freebies" (Wang et al. 2022, arXiv:2207.02696) starts from it. Predictions are not looked at.

    YOLOv5 lets several objects have one prediction, and adds up the losses. Here a prediction has one: an
    object with its centre in the cell goes before one from a neighbour, then the one with the smallest r,
    then the smaller object. An object that no anchor fits, or whose centre is outside the map, gets none.

    `score` is 1.

    Args:
        anchors: for every level its anchors (width, height), in the unit of the boxes, as many for each.
        max_ratio: bound on r, above 1; YOLOv5 has 4.
        fmt: format of all boxes.

    Raises:
        TypeError: if a number is of the wrong type.
        ValueError: for an unknown format, anchors that are not as above, or a number out of its range.

    Example:
        >>> import torch
        >>> from boxreg import AnchorRatioAssigner, pad_targets
        >>> assigner = AnchorRatioAssigner(anchors=[[(10.0, 10.0), (60.0, 60.0)]])
        >>> targets = pad_targets([torch.tensor([[5.0, 4.0, 17.0, 16.0]])])  # 12 by 12 about (11, 10)
        >>> found = assigner(torch.zeros(1, 4, 18), targets, [(3, 3, 8)])
        >>> found.positive.view(2, 3, 3).int()
        tensor([[[0, 1, 0],
                 [1, 1, 0],
                 [0, 0, 0]],
        <BLANKLINE>
                [[0, 0, 0],
                 [0, 0, 0],
                 [0, 0, 0]]], dtype=torch.int32)
    """

    anchors: Sequence[Sequence[tuple[float, float]]]
    max_ratio: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("max_ratio", self.max_ratio, minimum=1.0)
        # Lists would not hash.
        anchors = tuple(tuple((width, height) for width, height in level) for level in self.anchors)
        if not anchors or not anchors[0] or any(len(level) != len(anchors[0]) for level in anchors):
            raise ValueError(
                f"anchors: got {self.anchors!r}, expected as many (width, height) for every level"
            )
        for side in (side for level in anchors for anchor in level for side in anchor):
            check_number("anchors", side)
            if not side > 0:
                raise ValueError(f"anchors: got a side of {side}, expected sides above 0")
        object.__setattr__(self, "anchors", anchors)

    def most_positives(self, objects: int, predictions: int) -> int:
        """Three cells an object, of every anchor."""
        return min(3 * len(self.anchors) * len(self.anchors[0]) * objects, predictions)

    def _assign(
        self, boxes: Tensor, scores: Tensor | None, objects: Objects, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        if (len(layout.levels), layout.per_cell) != (len(self.anchors), len(self.anchors[0])):
            raise ValueError(
                f"anchors: got {len(self.anchors[0])} for each of {len(self.anchors)} levels, expected "
                f"{layout.per_cell} for each of {len(layout.levels)}, as boxes and levels have it"
            )
        claims = [self._claims(objects, layout, number) for number in range(len(self.anchors))]
        index, value = (torch.cat(parts, -1) for parts in zip(*claims, strict=True))
        owner, _, _ = contest(index, value, boxes.shape[2])
        return owner, (owner < objects.spare).to(boxes.dtype)

    def _claims(self, objects: Objects, layout: Layout, number: int) -> tuple[Tensor, Tensor]:
        """The 3 cells by K anchors of a level that objects claim, (B, M + 1, 3 K), and what each is worth."""
        rows, cols, stride = layout.levels[number]
        cx, cy = centre_of(objects.boxes)
        col, in_x = cell_along(cx, cols, stride)
        row, in_y = cell_along(cy, rows, stride)
        beside, is_beside = _nearer_neighbour(cx / stride, col, cols)
        below, is_below = _nearer_neighbour(cy / stride, row, rows)
        index = layout.places(number, torch.stack((row, row, below), -1), torch.stack((col, beside, col), -1))
        there = torch.stack((objects.real, is_beside, is_below), -1)
        there &= (in_x & in_y & objects.real).unsqueeze(-1)
        x1, y1, x2, y2 = objects.boxes.unbind(-1)
        ratio = torch.stack([_ratio(x2 - x1, y2 - y1, *anchor) for anchor in self.anchors[number]], -1)
        # From 0 to 1 in a neighbour; in the cell of the centre from 1 to 2.
        at_home = (torch.arange(3, device=col.device) == 0).to(ratio.dtype)
        value = at_home.unsqueeze(-1) + 1 / ratio.unsqueeze(-2)
        claimed = there.unsqueeze(-1) & (ratio < self.max_ratio).unsqueeze(-2)
        return index.flatten(-2), value.masked_fill(~claimed, -math.inf).flatten(-2)


def _nearer_neighbour(centre: Tensor, cell: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The neighbour along an axis that a centre, in cells, is nearer to, and whether there is one."""
    step = (centre - cell - 0.5).sign().to(torch.int64)
    neighbour = cell + step
    there = (step != 0) & (neighbour >= 0) & (neighbour < cells)
    return neighbour.clamp(0, cells - 1), there


def _ratio(width: Tensor, height: Tensor, anchor_width: float, anchor_height: float) -> Tensor:
    """How many times larger or smaller the longer mismatch of an object with an anchor is."""
    across, down = width / anchor_width, height / anchor_height
    return torch.maximum(torch.maximum(across, 1 / across), torch.maximum(down, 1 / down))
