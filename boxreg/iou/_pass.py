"""What a backend is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..decoders import Settings
from .variants import Form


class Pass(NamedTuple):
    """A loss or score of the family, and the gradients that are wanted with it.

    Attributes:
        form: how the loss or score of a pair is made.
        pred_fmt: format of the predicted boxes.
        target_fmt: format of the target boxes.
        reduction: what is made of the loss per pair: `"none"`, `"mean"` or `"sum"`.
        scheme: if `pred` holds raw numbers, how they stand for boxes: a key of `decoders.SCHEMES`; else "".
        settings: the numbers of that scheme.
        anchor_sides: the widths and heights of its anchors, if it has any.
        of_pred: whether the gradient of `pred` is wanted.
        of_target: whether the gradient of `target` is wanted.
    """

    form: Form
    pred_fmt: str
    target_fmt: str
    reduction: str = "none"
    scheme: str = ""
    settings: Settings = ((), ())
    anchor_sides: Settings = ((), ())
    of_pred: bool = False
    of_target: bool = False

    def of_pairs(self) -> Pass:
        """What is left between decoding and reducing: the loss per pair of boxes, and the same gradients."""
        return self._replace(reduction="none", scheme="", settings=((), ()), anchor_sides=((), ()))


Result = tuple[Tensor, Tensor | None, Tensor | None]
"""The loss, and the gradients of it, or of its sum if it is not reduced: of pred and of target, as wanted."""

Backend = Callable[[Pass, Tensor, Tensor, int], Tensor]
"""A differentiable loss of pred and target with their coordinate axis."""
