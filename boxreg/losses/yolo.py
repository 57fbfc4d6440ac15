"""`YOLOLoss`: what a dense prediction is trained by, from assignment to one number."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from .._checks import check_boxes, check_choice, check_number, check_same_shape, check_tensor
from .._dtypes import promote
from ..assigners import Assigner, Assignment, Targets
from ..boxes import convert
from ..dense import DensePrediction
from ..grids import Level, points_of
from ..iou import box_iou
from ..reduction import reduce_loss, without_ignored
from . import LOSSES, Loss
from .box import BoxLoss, check_options
from .dfl import dfl_loss

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
"""The share of objects in the focal loss, and how much less what is nearly right counts; as in its paper."""


class YOLOLossTerms(NamedTuple):
    """What `YOLOLoss` returns.

    Attributes:
        total: the sum of the weighted terms.
        unweighted: the terms without their lambda: `coord`, `wh`, `iou`, and those of `dfl`, `obj`, `noobj`,
            `class` for which the prediction has an output.
        weighted: the terms with their lambda.
        positives: how many predictions have an object, on this rank; int64.
    """

    total: Tensor
    unweighted: dict[str, Tensor]
    weighted: dict[str, Tensor]
    positives: Tensor


def _bce(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    share = (1 - FOCAL_ALPHA) + (2 * FOCAL_ALPHA - 1) * target
    return share * (target - logits.sigmoid()).abs() ** FOCAL_GAMMA * _bce(logits, target)


def _mse(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.sigmoid() - target) ** 2


SCORE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": _bce, "focal": _focal, "mse": _mse}
"""What `YOLOLoss` may compare a logit and a target from 0 to 1 by."""

OBJECTNESS_TARGETS = ("one", "iou")
"""What the objectness of a prediction that has an object may be trained towards."""


class YOLOLoss(nn.Module):
    r"""Assignment and the loss of a dense prediction: boxes, objectness and classes, each with its lambda.

    \[ L = \frac{1}{N} \Big( \sum_{\text{positives}} \big( \lambda_{coord} L_{coord} + \lambda_{wh} L_{wh}
         + \lambda_{iou} L_{overlap} + \lambda_{dfl} L_{dfl} + \lambda_{obj}\, \ell(o, t) \big)
         + \lambda_{noobj} \sum_{\text{negatives}} \ell(o, 0)
         + \lambda_{class} \sum_{\text{classes}} \ell(c, t_c) \Big) \]

    The loss is that of "You Only Look Once" (Redmon et al. 2016, arXiv:1506.02640), and so are lambdas of 5
    and 0.5; `size="sqrt_wh"`, `lambda_iou=0`, `"mse"` for scores and a `ResponsibleCellAssigner` make it that
    paper's, but for the centres, which are measured in cells there. N is the number of positives, or 1 if
    there are none. The assigner's scores are no divisor: an untrained network's are near 0.

    Boxes are compared as fractions of the longer side of the image, that of the largest map times its
    stride. So the lambdas mean the same at any size; lengths among its parameters, such as `image_width`, are
    such fractions too.

    Objectness o of a prediction that has an object is trained towards t, 1 or the IoU of its box (a constant
    under differentiation), of any other towards 0. The classes of a positive then say which object it is:
    towards 1 for the object's own, 0 for others. Without objectness the classes alone score: those of
    negatives are trained too, towards 0, and that of a positive's object towards the assigner's score, as in
    "TOOD" (Feng et al. 2021, arXiv:2108.07755). Classes do not exclude each other: each has its own sigmoid.

    With torch.distributed initialised, N is the mean over the ranks, so that gradients which are averaged
    over ranks (DistributedDataParallel) are those of one rank with all images. Where no gradient is recorded
    nothing is exchanged: one rank may validate alone.

    Args:
        assigner: says which predictions answer for which object. Its `fmt` is the format of the targets; the
            predictions may be in another.
        overlap: a loss of the IoU family, such as `"ciou"`; or a loss module or a sum of them, with
            `fmt="cxcywh"` and `dim=1`.
        lambda_coord: factor of the centre term.
        lambda_wh: factor of the size term.
        lambda_iou: factor of the overlap term.
        lambda_obj: factor of objectness where there is an object.
        lambda_noobj: factor of objectness elsewhere.
        lambda_class: factor of the class term.
        lambda_dfl: factor of the distribution focal loss, the mean over the four sides, for predictions with
            bins. "Generalized Focal Loss" (Li et al. 2020, arXiv:2006.04388) has an eighth of the overlap's,
            YOLOv8 a fifth.
        objectness_target: `"one"` or `"iou"`.
        objectness_loss: `"bce"` for binary cross entropy, `"focal"` for the focal loss of Lin et al. 2017
            (arXiv:1708.02002; alpha 0.25, gamma 2; soft targets as in Li et al. 2020), or `"mse"` for the
            squared error of the probability.
        class_loss: likewise, for the classes.
        **box: further arguments of `BoxLoss`: `distance`, `size`, `mode`, `alpha`, `inner_ratio`,
            `weighting`, `backend`, and the options of the overlap: `loss_weight`, `image_width` and
            `image_height`, `scale`, `constant`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: for an unknown name, or a number out of its range.

    Example:
        >>> import torch
        >>> from boxreg import DensePrediction, Level, ResponsibleCellAssigner, YOLOLoss, pad_targets
        >>> criterion = YOLOLoss(ResponsibleCellAssigner(), objectness_target="one")
        >>> targets = pad_targets([torch.tensor([[9.0, 1.0, 15.0, 7.0]])])  # in the right one of two cells
        >>> boxes = torch.tensor([[[4.0, 12.0], [4.0, 4.0], [8.0, 8.0], [8.0, 8.0]]])
        >>> objectness = torch.zeros(1, 2, requires_grad=True)
        >>> terms = criterion(DensePrediction(boxes, objectness, None, None, (Level(1, 2, 8.0),)), targets)
        >>> {name: round(term.item(), 4) for name, term in terms.weighted.items()}
        {'coord': 0.0, 'wh': 0.1562, 'iou': 0.4375, 'obj': 0.6931, 'noobj': 0.3466}
        >>> terms.positives
        tensor(1)
    """

    def __init__(
        self,
        assigner: Assigner,
        overlap: str | Loss = "ciou",
        *,
        lambda_coord: float = 5.0,
        lambda_wh: float = 5.0,
        lambda_iou: float = 1.0,
        lambda_obj: float = 1.0,
        lambda_noobj: float = 0.5,
        lambda_class: float = 1.0,
        lambda_dfl: float = 0.2,
        objectness_target: str = "iou",
        objectness_loss: str = "bce",
        class_loss: str = "bce",
        **box: Any,
    ) -> None:
        super().__init__()
        if not isinstance(assigner, Assigner):
            raise TypeError(f"assigner: got {type(assigner).__name__}, expected an Assigner")
        check_choice("objectness_target", objectness_target, OBJECTNESS_TARGETS)
        check_choice("objectness_loss", objectness_loss, SCORE_LOSSES)
        check_choice("class_loss", class_loss, SCORE_LOSSES)
        for name in ("fmt", "dim", "reduction"):
            if name in box:
                raise TypeError(f"{name}: YOLOLoss takes none; see its prediction and targets")
        if isinstance(overlap, Loss) or overlap in LOSSES:
            check_options("YOLOLoss", overlap, box, inspect.signature(YOLOLoss).parameters)
        self.box = BoxLoss(overlap, lambda_coord, lambda_wh, lambda_iou, fmt="cxcywh", dim=1, **box)
        self.lambdas = {
            "dfl": lambda_dfl,
            "obj": lambda_obj,
            "noobj": lambda_noobj,
            "class": lambda_class,
        }
        for name, value in self.lambdas.items():
            check_number(f"lambda_{name}", value, minimum=0)
        self.assigner, self.objectness_target = assigner, objectness_target
        self.objectness_loss, self.class_loss = objectness_loss, class_loss

    def forward(self, prediction: DensePrediction, targets: Targets) -> YOLOLossTerms:
        """Assign, and compare.

        Args:
            prediction: of B images, in the unit of its strides.
            targets: their objects, padded, in that unit and the assigner's format. What the padding holds
                does not matter. A label that is not below the number of classes fails as an index out of
                range, if there are classes.

        Returns:
            Scalars, float32, or float64 for float64 input, all attached to the graph: without an object the
            terms of positives are 0.

        Raises:
            TypeError: if an argument is of the wrong type.
            ValueError: for shapes or devices that do not fit each other.
        """
        _check(prediction)
        pred, _ = promote(prediction.boxes, targets.boxes)
        found = self._assign(pred.detach(), prediction, targets)
        target = convert(found.boxes, self.assigner.fmt, "cxcywh", dim=1)
        positives = found.positive.sum()
        divisor = _mean_over_ranks(positives.to(pred.dtype))
        side = max(max(rows, cols) * stride for rows, cols, stride in prediction.levels)
        box = self.box(pred / side, target / side, weight=found.positive, normalizer=divisor)
        unweighted = {}
        if prediction.bins is not None:
            most = self.assigner.most_positives(targets.mask.shape[1], pred.shape[2])
            unweighted["dfl"] = _dfl(
                prediction.bins, target, found.positive, prediction.levels, divisor, most
            )
        if prediction.objectness is not None:
            unweighted |= self._objectness(
                prediction.objectness, pred.detach(), target, found.positive, divisor
            )
        if prediction.classes is not None:
            alone = prediction.objectness is None
            unweighted["class"] = self._classes(prediction.classes, found, alone, divisor)
        weighted = {name: self.lambdas[name] * term for name, term in unweighted.items()}
        total = sum(weighted.values(), box.total)
        return YOLOLossTerms(total, box.unweighted | unweighted, box.weighted | weighted, positives)

    @torch.no_grad()
    def _assign(self, boxes: Tensor, prediction: DensePrediction, targets: Targets) -> Assignment:
        boxes = convert(boxes, "cxcywh", self.assigner.fmt, dim=1)
        return self.assigner(boxes, targets, prediction.levels, prediction.scores)

    def _objectness(
        self, logits: Tensor, boxes: Tensor, target: Tensor, positive: Tensor, divisor: Tensor
    ) -> dict[str, Tensor]:
        """The terms of predictions with an object, and of those without."""
        expected = positive.to(boxes.dtype)
        if self.objectness_target == "iou":
            iou = box_iou(boxes, target, fmt="cxcywh", dim=1).clamp(0, 1)
            expected = torch.where(positive, iou, 0.0)
        loss = SCORE_LOSSES[self.objectness_loss](*promote(logits, expected))
        return {
            "obj": reduce_loss(loss, weight=positive, normalizer=divisor),
            "noobj": reduce_loss(loss, weight=~positive, normalizer=divisor),
        }

    def _classes(self, logits: Tensor, found: Assignment, alone: bool, divisor: Tensor) -> Tensor:
        """The term of the classes: of all predictions where they score alone, otherwise of positives."""
        share = found.score if alone else found.positive.to(found.score.dtype)
        if not alone:
            logits = without_ignored(logits, found.positive, 1)
        logits, share = promote(logits, share)
        expected = torch.zeros_like(logits).scatter(1, found.labels.unsqueeze(1), share.unsqueeze(1))
        loss = SCORE_LOSSES[self.class_loss](logits, expected).sum(1)
        return reduce_loss(loss, weight=None if alone else found.positive, normalizer=divisor)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        lambdas = ", ".join(f"lambda_{name}={value}" for name, value in self.lambdas.items())
        return (
            f"{self.assigner}, {lambdas}, objectness_target={self.objectness_target!r}, "
            f"objectness_loss={self.objectness_loss!r}, class_loss={self.class_loss!r}"
        )


def _dfl(
    bins: Tensor, target: Tensor, positive: Tensor, levels: tuple[Level, ...], divisor: Tensor, most: int
) -> Tensor:
    """The mean over sides of their distributions against the sides of boxes (B, 4, A), cxcywh, in strides."""
    cells = sum(rows * cols for rows, cols, _ in levels)
    points = points_of(levels, per_cell=positive.shape[1] // cells, dtype=target.dtype, device=target.device)
    x1, y1, x2, y2 = convert(target, "cxcywh", "xyxy", dim=1).unbind(1)
    sides = torch.stack((points.x - x1, points.y - y1, x2 - points.x, y2 - points.y), 1) / points.stride
    if most < positive.shape[1]:
        # Bins are most of what a head says, and few of them are of positives, which come first here.
        number = positive.to(torch.uint8).topk(most, sorted=False).indices
        positive, number = positive.gather(1, number), number.unsqueeze(1).expand(-1, 4, -1)
        sides = sides.gather(2, number)
        bins = bins.gather(3, number.unsqueeze(2).expand(-1, -1, bins.shape[2], -1))
    loss = dfl_loss(bins, sides, weight=positive.unsqueeze(1).expand_as(sides), dim=2)
    return reduce_loss(loss.mean(1), normalizer=divisor)


def _mean_over_ranks(positives: Tensor) -> Tensor:
    """What sums over the images of a rank are divided by: positives, the mean over ranks."""
    world_size = 1
    if torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized():
        world_size = distributed.get_world_size()
        distributed.all_reduce(positives)
    # Bounded before it is shared out: one rank with all images would divide by at least 1.
    return positives.clamp(min=1) / world_size


def _check(prediction: DensePrediction) -> None:
    """Raise for what neither the assigner nor the box loss looks at."""
    if not isinstance(prediction, DensePrediction):
        raise TypeError(f"prediction: got {type(prediction).__name__}, expected a DensePrediction")
    boxes, objectness, classes, bins, _ = prediction
    check_boxes("prediction.boxes", boxes, 1)
    if objectness is None and classes is None:
        raise ValueError("prediction: has neither objectness nor classes, expected at least one to score by")
    coordinate = ("prediction.boxes of a coordinate", boxes[:, 0])
    if objectness is not None:
        check_tensor("prediction.objectness", objectness, floating=True)
        check_same_shape("prediction.objectness", objectness, *coordinate)
    if classes is not None:
        check_tensor("prediction.classes", classes, floating=True)
        if classes.ndim != 3 or classes.shape[1] == 0:
            raise ValueError(f"prediction.classes: got shape {tuple(classes.shape)}, expected (B, C, A)")
        check_same_shape("prediction.classes of a class", classes[:, 0], *coordinate)
    if bins is not None:
        check_tensor("prediction.bins", bins, floating=True)
        if bins.ndim != 4 or bins.shape[2] < 2:
            raise ValueError(
                f"prediction.bins: got shape {tuple(bins.shape)}, expected (B, 4, bins, A), at least 2 bins"
            )
        check_same_shape("prediction.bins of a bin", bins[:, :, 0], "prediction.boxes", boxes)
