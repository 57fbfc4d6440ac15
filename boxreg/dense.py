"""What a dense head says of a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .grids import Level


class DensePrediction(NamedTuple):
    """A predictions of each of B pictures, in the order that `Assignment` describes.

    Attributes:
        boxes: (B, 4, A), decoded, cxcywh, in the unit of the strides.
        objectness: (B, A), logits; None where the classes alone score.
        classes: (B, C, A), logits; None for a single class, which objectness scores.
        bins: (B, 4, bins, A), logits of the distributions of the sides (left, top, right, bottom), in strides
            from the point; None unless the decoder reads such.
        levels: (rows, cols, stride) of each map.
    """

    boxes: Tensor
    objectness: Tensor | None
    classes: Tensor | None
    bins: Tensor | None
    levels: tuple[Level, ...]

    @property
    def scores(self) -> Tensor:
        """Probabilities (B, C, A): of an object there times of its class, as far as there is either."""
        if self.classes is None:
            assert self.objectness is not None
            return self.objectness.sigmoid().unsqueeze(1)
        scores = self.classes.sigmoid()
        return scores if self.objectness is None else scores * self.objectness.sigmoid().unsqueeze(1)
