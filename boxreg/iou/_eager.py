"""The reference backend: autograd through the shared maths, differentiable as often as one likes."""

from __future__ import annotations

import torch
from torch import Tensor

from .._dtypes import promote
from ..boxes import Planes, corners
from ..decoders import decode_planes
from ..reduction import reduce_loss
from . import family
from ._pass import Pass
from .variants import Formula


def eager(wanted: Pass, pred: Tensor, target: Tensor, dim: int) -> Tensor:
    """The loss by autograd."""
    pred, target = promote(pred, target)
    if wanted.scheme:
        of_scheme = (wanted.scheme, wanted.settings, wanted.anchor_sides)
        pred = torch.stack(decode_planes(*of_scheme, pred.unbind(dim)), dim)
    a, b = planes(pred, target, wanted.pred_fmt, wanted.target_fmt, dim)
    return reduce_loss(Formula(wanted.form).value(family.pair(*a, *b)), wanted.reduction)


def planes(pred: Tensor, target: Tensor, pred_fmt: str, target_fmt: str, dim: int) -> tuple[Planes, Planes]:
    """The corners of both, scaled together where their lengths would overflow."""
    large = family.is_large(*pred.unbind(dim), *target.unbind(dim)).unsqueeze(dim)
    return (
        corners(family.in_range(pred, large), pred_fmt, dim),
        corners(family.in_range(target, large), target_fmt, dim),
    )
