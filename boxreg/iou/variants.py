"""The table of the IoU family."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from . import penalties
from .family import Pair, Slopes


class Variant(NamedTuple):
    """A row of the table: what is added to 1 - IoU, and its slopes."""

    penalty: Callable[[Pair], Tensor]
    slopes: Callable[[Pair], Slopes]


VARIANTS: dict[str, Variant] = {
    "iou": Variant(penalties.no_penalty, penalties.no_slopes),
    "giou": Variant(penalties.empty_share, penalties.empty_share_slopes),
    "diou": Variant(penalties.centre_distance, penalties.centre_distance_slopes),
    "ciou": Variant(penalties.aspect_and_distance, penalties.aspect_and_distance_slopes),
    "eiou": Variant(penalties.sizes_and_distance, penalties.sizes_and_distance_slopes),
    "siou": Variant(penalties.distance_and_shape, penalties.distance_and_shape_slopes),
}
"""The family: a name for `kind`, its penalty and its slopes."""
