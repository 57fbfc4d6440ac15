"""Assignment by what the network is already good at: class score and overlap together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_choice, check_number
from ..grids import centres_of
from ..iou import pairwise_box_iou
from ..iou.spec import FAMILY
from .base import Assigner, Layout, Objects, contest
from .cells import at_centre


@dataclass(frozen=True, kw_only=True)
class TaskAlignedAssigner(Assigner):
    r"""The k predictions that class score and overlap together rank highest.

    \[ t = s^{\alpha}\, u^{\beta}, \qquad
       \text{score} = \frac{t}{\max t}\, \max u \]

    for the predicted probability s of the object's class and the overlap u of the predicted box with the
    object; maxima are over the predictions that the object has got. From "TOOD: Task-aligned One-stage Object
    Detection" (Feng et al. 2021, arXiv:2108.07755), which has k = 13, alpha = 1 and the IoU; YOLOv8 takes the
    values that are the default here and CIoU, with negative values as 0.

    Candidates are the predictions whose point is inside the object (not on its edge). An object that contains
    no point has, on every level, the cell that holds its centre, if the centre is in the image. A
    prediction among the first k of several objects goes to the one it overlaps most (of equal ones, the
    smaller object); so an object can come away with fewer than k, or, among others that are nearly the same,
    with none.

    Where u is not above 0, t is 0, and the candidates come last, in the order of s^alpha e^(beta u), with
    score 0: so an untrained network starts from its nearest predictions. Among equals, `torch.topk` decides.

    Time and memory go with objects times predictions: two numbers for each pair are held at once, and a
    third for a moment.

    Args:
        topk: k, at least 1.
        alpha: exponent of the class probability, at least 0.
        beta: exponent of the overlap, at least 0.
        kind: the overlap, a loss of the IoU family.
        fmt: format of all boxes.

    Raises:
        TypeError: if a number is of the wrong type.
        ValueError: for an unknown name, or a number out of its range.

    Example:
        >>> import torch
        >>> from boxreg import TaskAlignedAssigner, pad_targets
        >>> targets = pad_targets([torch.tensor([[0.0, 0.0, 24.0, 8.0]])])  # contains three points
        >>> pred = targets.boxes.mT.expand(1, 4, 4).clone()
        >>> pred[0, 2, 1] = 12.0  # half of it
        >>> scores = torch.tensor([[[0.25, 1.0, 0.04, 1.0]]])
        >>> found = TaskAlignedAssigner(topk=2, kind="iou")(pred, targets, [(1, 4, 8)], scores)
        >>> found.score  # t = 0.5, 0.5^6, 0.2 and no candidate
        tensor([[1.0000, 0.0000, 0.4000, 0.0000]])
    """

    topk: int = 10
    alpha: float = 0.5
    beta: float = 6.0
    kind: str = "ciou"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, FAMILY)
        check_number("alpha", self.alpha, minimum=0)
        check_number("beta", self.beta, minimum=0)
        if isinstance(self.topk, bool) or not isinstance(self.topk, int):
            raise TypeError(f"topk: got {type(self.topk).__name__}, expected an int")
        check_number("topk", self.topk, minimum=1)

    def most_positives(self, objects: int, predictions: int) -> int:
        """At most k an object."""
        return min(self.topk * objects, predictions)

    def _assign(
        self, boxes: Tensor, scores: Tensor | None, objects: Objects, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        if scores is None:
            raise TypeError("scores: got None, expected class probabilities (B, C, A)")
        overlap = pairwise_box_iou(objects.boxes, boxes.mT, kind=self.kind)
        alignment = self._log_alignment(overlap, scores, objects.labels)
        alignment.masked_fill_(_excluded(objects, layout), -math.inf)
        alignment, index = alignment.topk(min(self.topk, boxes.shape[2]), sorted=False)
        overlap = overlap.gather(2, index).masked_fill_(alignment == -math.inf, -math.inf)
        owner, _, won = contest(index, overlap, boxes.shape[2])
        best = alignment.masked_fill(~won, -math.inf).amax(-1, keepdim=True)
        most = overlap.masked_fill(~won, 0.0).clamp(0, 1).amax(-1, keepdim=True)
        score = torch.where(won, (alignment - best).exp() * most, 0.0)
        # A prediction is won once at most, so this only puts each score in its place.
        score = torch.zeros_like(boxes[:, 0]).scatter_reduce(1, index.flatten(1), score.flatten(1), "amax")
        return owner, score

    def _log_alignment(self, overlap: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """The logarithm of t, (B, M + 1, A): it ranks as t does, and neither underflows nor ties at 0."""
        batch, classes, _ = scores.shape
        tiny = torch.finfo(scores.dtype).tiny
        likely = scores.nan_to_num(0.0).clamp_(tiny, 1.0).log_().mul_(self.alpha)
        # Whole rows are copied, which is several times faster than a gather of single numbers. A label out
        # of range must fail as an index, not read the next image's scores.
        row = labels + classes * torch.arange(batch, device=labels.device).unsqueeze(-1)
        row = torch.where((labels >= 0) & (labels < classes), row, -1)
        alignment = likely.flatten(0, 1).index_select(0, row.flatten()).view(overlap.shape)
        alignment.add_(overlap.clamp(min=tiny).log_(), alpha=self.beta)
        # Without overlap the logarithm is at its floor; from there a penalised kind goes on below 0.
        return alignment.add_(overlap.clamp(max=0), alpha=self.beta)


def _excluded(objects: Objects, layout: Layout) -> Tensor:
    """Which predictions are no candidates of which object: (B, M + 1, A), bool."""
    x1, y1, x2, y2 = objects.boxes.unsqueeze(-1).unbind(2)
    real = objects.real.unsqueeze(-1)
    outside, contains = [], torch.zeros_like(real)
    for level in layout.levels:
        # Along either axis first: there are many more cells than rows and columns.
        x, y = centres_of(level, x1.dtype, x1.device)
        across, down = (x > x1) & (x < x2) & real, (y > y1) & (y < y2)
        contains |= across.any(-1, keepdim=True) & down.any(-1, keepdim=True)
        cells = ~(down.unsqueeze(-1) & across.unsqueeze(-2)).flatten(-2)
        outside += [cells] * layout.per_cell
    excluded = torch.cat(outside, -1)
    index, inside = at_centre(objects.boxes, layout)
    return excluded.scatter_(2, index, excluded.gather(2, index) & ~(~contains & real & inside))
