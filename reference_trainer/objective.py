"""What is minimised: boxreg's `BoxLoss` on the boxes, and objectness where cells compete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from boxreg import BoxLoss, box_iou
from boxreg.iou.spec import FAMILY

from . import ranks
from .config import LossConfig
from .errors import ConfigError
from .model import Prediction

CELLS_AROUND_CENTRE = 1.5
"""A cell learns the box when its centre lies within this many cells of the object's: 3 x 3 cells at most."""


class Objective(NamedTuple):
    """A loss and its named terms, without and with their lambda, and what their sums were divided by.

    The loss of a batch that is worked on in parts is the parts' sums over the sum of their divisors. That is
    the loss of the whole, unless parts without an object are divided by 1: each adds 1 to the divisor then.
    """

    total: Tensor
    unweighted: dict[str, Tensor]
    weighted: dict[str, Tensor]
    divisor: Tensor

    def detached(self) -> Objective:
        """The same numbers without their graph."""
        unweighted, weighted = (
            {name: value.detach() for name, value in terms.items()}
            for terms in (self.unweighted, self.weighted)
        )
        return Objective(self.total.detach(), unweighted, weighted, self.divisor.detach())


def whole_objective(parts: Sequence[Objective]) -> Objective:
    """The objective of a batch, from those of its parts: their sums over the sum of their divisors."""
    if len(parts) == 1:
        return parts[0]
    divisors = torch.stack([part.divisor for part in parts])
    shares = divisors / divisors.sum()

    def mean(values: Iterable[Tensor]) -> Tensor:
        return (torch.stack(list(values)) * shares).sum()

    return Objective(
        mean(part.total for part in parts),
        {name: mean(part.unweighted[name] for part in parts) for name in parts[0].unweighted},
        {name: mean(part.weighted[name] for part in parts) for name in parts[0].weighted},
        divisors.sum(),
    )


def overlap_parameters(config: LossConfig, side: float) -> dict[str, Any]:
    """The parameters of the overlap that depend on the images; `side` is theirs, in the unit of the boxes."""
    known = {"image_width": side, "image_height": side, "constant": config.nwd_constant * side}
    taken = {parameter.name for term in FAMILY.get(config.overlap, ()) for parameter in term.parameters}
    return {name: value for name, value in known.items() if name in taken}


class Criterion:
    """The objective of a prediction, pooled or dense, against one box an image.

    Raises:
        ConfigError: if `overlap` names no loss of the IoU family.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        try:
            self.losses = {
                dim: BoxLoss(
                    config.overlap,
                    config.lambda_coord,
                    config.lambda_wh,
                    config.lambda_iou,
                    distance=config.distance,
                    size=config.size,
                    fmt="cxcywh",
                    dim=dim,
                    **overlap_parameters(config, 1.0),
                )
                for dim in (-1, 1)
            }
        except ValueError as error:
            raise ConfigError(f"loss.{error}") from error

    def __call__(self, prediction: Prediction, target: Tensor) -> Objective:
        """Predicted boxes, and objectness if there is one, against `target` (B, 4) in cxcywh.

        Where several ranks share a batch, sums are divided by the mean of their divisors, so that
        gradients which are averaged over ranks are those of the whole batch.
        """
        if prediction.objectness is None:
            images = ranks.all_reduce_mean(prediction.boxes.new_full((), len(target)))
            total, unweighted, weighted = self.losses[-1](prediction.boxes, target, normalizer=images)
            return Objective(total, unweighted, weighted, images)
        return self._dense(prediction.boxes, prediction.objectness, target)

    def _dense(self, boxes: Tensor, objectness: Tensor, target: Tensor) -> Objective:
        everywhere = target[:, :, None, None].expand_as(boxes)
        positive = cells_near_centre(target, boxes.shape[-2], boxes.shape[-1])
        positives = ranks.all_reduce_mean(positive.sum())
        box = self.losses[1](boxes, everywhere, weight=positive, normalizer=positives)

        own_iou = box_iou(boxes.detach(), everywhere, fmt="cxcywh", dim=1).clamp(0, 1)
        surprise = F.binary_cross_entropy_with_logits(objectness, own_iou, reduction="none")
        unweighted = {
            "obj": torch.where(positive, surprise, 0.0).sum() / positives,
            "noobj": torch.where(positive, 0.0, surprise).sum() / positives,
        }
        weighted = {
            "obj": self.config.lambda_obj * unweighted["obj"],
            "noobj": self.config.lambda_noobj * unweighted["noobj"],
        }
        total = box.total + weighted["obj"] + weighted["noobj"]
        return Objective(
            total, box.unweighted | unweighted, box.weighted | weighted, positives.to(total.dtype)
        )


def cells_near_centre(target: Tensor, rows: int, columns: int) -> Tensor:
    """Which cells learn the box: those around the object's centre, and always the one that holds it.

    Args:
        target: boxes (B, 4) in cxcywh, fractions of the square.
        rows: height of the map in cells.
        columns: width of the map in cells.

    Returns:
        A mask (B, rows, columns).
    """
    cx, cy = target[:, 0, None, None] * columns, target[:, 1, None, None] * rows
    x = torch.arange(columns, device=target.device) + 0.5
    y = (torch.arange(rows, device=target.device) + 0.5)[:, None]
    return ((x - cx).abs() < CELLS_AROUND_CENTRE) & ((y - cy).abs() < CELLS_AROUND_CENTRE)
