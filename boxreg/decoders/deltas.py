"""Boxes relative to other boxes: the deltas of Faster R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .._checks import check_boxes, check_number
from .._raw import EXP_BOUND, bounded_exp, inverse_bounded_exp
from ..boxes import Planes
from .base import Decoder, Prior


@dataclass(frozen=True)
class DeltaDecoder(Decoder):
    """How a box differs from a reference box: an anchor or a proposal.

    `cx = reference_cx + dx * reference_w`, `w = reference_w * exp(dw)`, where `dx = tx * std + mean`

    and likewise cy and h, each of the four numbers with its own mean and standard deviation. From "Rich
    feature hierarchies for accurate object detection and semantic segmentation" (Girshick, Donahue, Darrell
    and Malik, 2013, arXiv:1311.2524), and so in "Faster R-CNN" (Ren, He, Girshick and Sun, 2015,
    arXiv:1506.01497). With its own cell as the reference of each number, centred on the cell's upper left
    corner, the boxes are those of "YOLOX" (Ge et al., 2021, arXiv:2107.08430).

    The reference is bound by `about`, which gives a decoder like any other, for `decode`, `encode` and losses
    of raw outputs:

        boxes = decoder.about(proposals).decode(raw)
        loss = giou_loss(raw, targets, fmt="cxcywh", decoder=decoder.about(proposals))

    Implementations clip dw, which stops the gradient of a box that is too large, even where the loss would
    shrink it. Here the exponential goes on above `clip` as its tangent, so that every size has a gradient and
    can be encoded.

    Args:
        means: the means of dx, dy, dw, dh.
        stds: of dx, dy, dw, dh, above 0: torchvision's and detectron2's weights are their inverses. A second
            stage usually has (0.1, 0.1, 0.2, 0.2).
        clip: up to which dw and dh count as the exponential; ln(1000 / 16), as is usual.
        reference: (4, ...), as `about` sets it. Decoders compare by the other arguments alone.

    Raises:
        TypeError: if a number is of the wrong type.
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from boxreg import DeltaDecoder
        >>> decoder = DeltaDecoder(stds=(0.1, 0.1, 0.2, 0.2))
        >>> anchors = torch.tensor([[50.0, 50.0, 20.0, 40.0]])
        >>> decoder.about(anchors).decode(torch.tensor([[1.0, -1.0, 0.0, 0.0]]))
        tensor([[52., 46., 20., 40.]])
    """

    means: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    clip: float = EXP_BOUND
    reference: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, numbers in (("means", self.means), ("stds", self.stds)):
            if not isinstance(numbers, Sequence) or len(numbers) != 4:
                raise ValueError(f"{name}: got {numbers!r}, expected four numbers, of dx, dy, dw and dh")
            for number in numbers:
                check_number(name, number)
            # A list would not hash.
            object.__setattr__(self, name, tuple(numbers))
        if min(self.stds) <= 0:
            raise ValueError(f"stds: got {self.stds}, expected numbers above 0")
        check_number("clip", self.clip, minimum=0)
        if self.reference is not None:
            check_boxes("reference", self.reference, 0)

    def about(self, reference: Tensor, dim: int = -1) -> DeltaDecoder:
        """The decoder of raw outputs that are relative to these boxes.

        Args:
            reference: cxcywh, floating, of positive size, four coordinates along `dim`, in the unit of the
                boxes. Without the coordinates, its shape is that of the raw outputs, or broadcasts to it:
                anchors (4, A) serve raw outputs (B, 4, A).
            dim: its coordinate axis.

        Raises:
            TypeError: if `reference` is not a floating tensor.
            ValueError: if it has no such axis.
        """
        check_boxes("reference", reference, dim)
        return replace(self, reference=reference.movedim(dim, 0))

    def bias(self, prior: Prior, dtype: torch.dtype = torch.float32) -> Tensor:
        """As of every decoder; the prior is a fraction of the reference: (0.5, 0.5, 1, 1) is the same box."""
        whole = self.about(torch.tensor((0.5, 0.5, 1.0, 1.0), dtype=torch.float64, device="cpu"))
        return super(DeltaDecoder, whole).bias(prior, dtype)

    def _check_grid(self, name: str, value: Tensor, dim: int) -> None:
        if self.reference is None:
            raise ValueError(
                "reference: got none, expected the boxes that raw outputs are relative to: use "
                "decoder.about(reference) in place of decoder"
            )
        plane, given = value.select(dim, 0).shape, self.reference.shape[1:]
        pairs = zip(reversed(given), reversed(plane), strict=False)
        if len(given) > len(plane) or any(mine not in (1, other) for mine, other in pairs):
            raise ValueError(
                f"reference: got shape {tuple(given)} without coordinates, expected what broadcasts to "
                f"that of {name}, {tuple(plane)}"
            )

    def _decode(self, raw: tuple[Tensor, ...]) -> Planes:
        x, y, w, h = self._reference(raw[0])
        numbers = zip(raw, self.stds, self.means, strict=True)
        dx, dy, dw, dh = (number * std + mean for number, std, mean in numbers)
        return x + dx * w, y + dy * h, w * bounded_exp(dw, self.clip), h * bounded_exp(dh, self.clip)

    def _encode(self, boxes: Planes, dtype: torch.dtype) -> tuple[Tensor, ...]:
        most, tiny = torch.finfo(dtype).max, torch.finfo(boxes[0].dtype).smallest_normal
        x, y, w, h = self._reference(boxes[0])
        w, h = w.clamp(min=tiny), h.clamp(min=tiny)
        deltas = (
            (boxes[0] - x) / w,
            (boxes[1] - y) / h,
            inverse_bounded_exp(boxes[2] / w, self.clip, dtype),
            inverse_bounded_exp(boxes[3] / h, self.clip, dtype),
        )
        numbers = zip(deltas, self.stds, self.means, strict=True)
        return tuple(((delta - mean) / std).clamp(-most, most) for delta, std, mean in numbers)

    def _reference(self, like: Tensor) -> tuple[Tensor, ...]:
        assert self.reference is not None
        return self.reference.to(like.dtype).unbind()
