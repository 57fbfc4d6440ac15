"""From one loss a box to one number: weight, normaliser, reduction. The only place that reduces."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_choice, check_number, check_same_shape, check_tensor

REDUCTIONS = ("none", "mean", "sum")
"""What `reduction` may be."""

Normalizer = float | Tensor
"""A divisor in place of the number of boxes: a Python number, or a tensor with one element."""


def reduce_loss(
    loss: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    normalizer: Normalizer | None = None,
) -> Tensor:
    r"""Weigh and reduce a loss given per box.

    \[ \text{mean} = \frac{1}{n} \sum_i w_i\, l_i, \qquad n = \text{normalizer, or the number of boxes} \]

    A box of weight 0 adds exactly 0, whatever its loss is. An empty loss, or a normaliser of 0 (no
    positives in this batch), gives 0 that is attached to the graph. Nothing waits for the device.

    Args:
        loss: a loss per box, any shape, floating.
        reduction: `"none"` keeps the shape, `"sum"` adds up, `"mean"` divides the sum by `normalizer`.
        weight: a factor per box, same shape as `loss`.
        normalizer: the divisor of `"mean"`, not negative; by default the number of boxes (weights
            do not change it). The sign of a tensor is not looked at: that would wait for the device.

    Returns:
        The loss's shape for `"none"`, else a scalar; dtype of `loss`.

    Raises:
        TypeError: if `loss` is not a floating tensor.
        ValueError: for an unknown reduction, a weight of another shape, a negative normaliser, or a
            normaliser with a reduction that does not divide.

    Example:
        >>> import torch
        >>> from boxreg.reduction import reduce_loss
        >>> reduce_loss(torch.tensor([1.0, 3.0]), "mean", weight=torch.tensor([1.0, 0.0]), normalizer=1)
        tensor(1.)
    """
    check_tensor("loss", loss, floating=True)
    check_choice("reduction", reduction, REDUCTIONS)
    if normalizer is not None:
        check_normalizer(normalizer, reduction)
    if weight is not None:
        check_weight(weight, loss)
        weighed = loss * weight.to(loss.dtype)
        loss = torch.where(weight == 0, torch.zeros_like(weighed), weighed)
    if reduction == "none":
        return loss
    if reduction == "mean" and normalizer is None and loss.numel():
        return loss.mean()
    total = loss.sum()
    if reduction == "sum":
        return total
    return total if normalizer is None else divide(total, normalizer)


def check_weight(weight: object, loss: Tensor) -> None:
    """Raise unless `weight` is a tensor that has one number for every entry of `loss`."""
    check_tensor("weight", weight, floating=False, boolean=True)
    assert isinstance(weight, Tensor)
    check_same_shape("weight", weight, "the loss per box", loss)


def without_ignored(
    values: Tensor, weight: Tensor, dim: int | None = None, instead: Tensor | float = 0.0
) -> Tensor:
    """`values`, and `instead` where `weight` is 0; `dim` is the axis that `weight` lacks, None for none.

    A NaN times a weight of 0 is NaN, in the gradient too: what is ignored must not enter at all.
    """
    ignored = weight == 0 if dim is None else (weight == 0).unsqueeze(dim)
    return torch.where(ignored, instead, values)


def check_normalizer(normalizer: Normalizer, reduction: str) -> None:
    """Raise unless `normalizer` is one number, not negative, that divides a mean."""
    if reduction != "mean":
        raise ValueError(f"normalizer: it is the divisor of reduction='mean', but reduction is {reduction!r}")
    if not isinstance(normalizer, Tensor):
        check_number("normalizer", normalizer, minimum=0)
    elif normalizer.numel() != 1:
        raise ValueError(f"normalizer: got a tensor of shape {tuple(normalizer.shape)}, expected one number")


def divide(total: Tensor, normalizer: Normalizer) -> Tensor:
    """The sum divided by the normaliser; 0, attached to the graph, if that is 0."""
    if isinstance(normalizer, Tensor):
        divisor = normalizer.reshape(()).to(total)
    else:
        divisor = total.new_full((), normalizer)
    empty = divisor == 0
    return torch.where(empty, torch.zeros_like(total), total / torch.where(empty, 1.0, divisor))
