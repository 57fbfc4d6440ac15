"""Objects of a batch of images, however many each has: padded tensors and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .._checks import check_tensor


class Targets(NamedTuple):
    """The objects of B images, each padded to M, which may be 0.

    What the padding holds does not matter, NaN and labels out of range included: `mask` alone says
    what is an object.

    Attributes:
        boxes: (B, M, 4), floating, in one unit and format for all.
        labels: (B, M), int64, class numbers from 0.
        mask: (B, M), bool, True where there is an object.
    """

    boxes: Tensor
    labels: Tensor
    mask: Tensor


def pad_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor] | None = None, *, max_objects: int | None = None
) -> Targets:
    """Lay the objects of several images into one padded batch; what a `collate_fn` ends with.

    The padding is ordinary: boxes (0, 0, 1, 1), labels 0.

    Args:
        boxes: for every image (M_i, 4), floating, of one dtype and device; M_i may be 0.
        labels: for every image (M_i,), integer; None if there is but one class, 0.
        max_objects: M, where it must not depend on the batch (a compiled step, say); by default the
            largest M_i.

    Returns:
        Boxes (B, M, 4), labels (B, M) and mask (B, M), on the device of `boxes`.

    Raises:
        TypeError: if a tensor is of the wrong type.
        ValueError: for no image, shapes that do not fit, or more objects than `max_objects`.

    Example:
        >>> import torch
        >>> from boxreg import pad_targets
        >>> one, none = torch.tensor([[8.0, 8.0, 24.0, 40.0]]), torch.zeros(0, 4)
        >>> pad_targets([one, none], [torch.tensor([2]), torch.tensor([], dtype=torch.int64)])
        Targets(boxes=tensor([[[ 8.,  8., 24., 40.]],
            [[ 0.,  0.,  1.,  1.]]]), labels=tensor([[2],
            [0]]), mask=tensor([[ True],
            [False]]))
    """
    _check_images(boxes, labels)
    mask = pad_sequence([torch.ones_like(rows[:, 0], dtype=torch.bool) for rows in boxes], batch_first=True)
    padded = pad_sequence(list(boxes), batch_first=True)
    if labels is None:
        numbers = torch.zeros_like(mask, dtype=torch.int64)
    else:
        numbers = pad_sequence([label.to(torch.int64) for label in labels], batch_first=True)
    missing = 0 if max_objects is None else max_objects - mask.shape[1]
    if missing < 0:
        raise ValueError(
            f"max_objects: got {max_objects}, expected at least {mask.shape[1]}, the objects of an image"
        )
    padded, numbers, mask = (
        F.pad(padded, (0, 0, 0, missing)),
        F.pad(numbers, (0, missing)),
        F.pad(mask, (0, missing)),
    )
    return Targets(torch.where(mask.unsqueeze(-1), padded, ordinary_box(padded)), numbers, mask)


def ordinary_box(like: Tensor) -> Tensor:
    """(0, 0, 1, 1), a box in any format, for the place of what is no object; made on the device."""
    return (torch.arange(4, device=like.device) > 1).to(like.dtype)


def _check_images(boxes: Sequence[Tensor], labels: Sequence[Tensor] | None) -> None:
    if not isinstance(boxes, Sequence):
        raise TypeError(f"boxes: got {type(boxes).__name__}, expected a sequence of tensors, one an image")
    if not boxes:
        raise ValueError("boxes: got none, expected those of at least one image")
    for number, rows in enumerate(boxes):
        check_tensor(f"boxes[{number}]", rows, floating=True)
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise ValueError(f"boxes[{number}]: got shape {tuple(rows.shape)}, expected (M, 4)")
    if labels is None:
        return
    if len(labels) != len(boxes):
        raise ValueError(f"labels: got those of {len(labels)} images, expected {len(boxes)}, as boxes")
    for number, (label, rows) in enumerate(zip(labels, boxes, strict=True)):
        check_integers(f"labels[{number}]", label)
        if label.shape != rows.shape[:1]:
            raise ValueError(
                f"labels[{number}]: got shape {tuple(label.shape)}, expected {tuple(rows.shape[:1])}"
            )


def check_integers(name: str, value: Tensor) -> None:
    """Raise unless `value` is a tensor of integers."""
    check_tensor(name, value, floating=False)
    if value.is_floating_point():
        raise TypeError(f"{name}: got a tensor of {value.dtype}, expected integers")
