"""Arithmetic of losses: `0.5 * CIoULoss() + 0.5 * NWDLoss(constant=12.8)` is a loss."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from torch import Tensor, nn

from .._checks import check_number, suggests_keywords
from ..decoders import Decoder
from ..reduction import Normalizer

COMMON_OPTIONS = ("fmt", "reduction", "dim", "decoder")
"""The options in which all terms of a sum must agree."""


class Loss(nn.Module):
    """A loss of boxes that adds to others and scales by a number."""

    reduction: str
    dim: int

    def __add__(self, other: object) -> LossSum:
        if not isinstance(other, Loss):
            return NotImplemented
        return LossSum([self, other])

    def __radd__(self, other: object) -> Self:
        # `sum` starts at 0.
        return self if type(other) is int and other == 0 else NotImplemented

    def __mul__(self, factor: float) -> LossSum:
        if not isinstance(factor, int | float):
            return NotImplemented
        return LossSum([self], [factor])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> LossSum:
        if not isinstance(divisor, int | float):
            return NotImplemented
        check_number("divisor", divisor, minimum=sys.float_info.min)
        return LossSum([self], [1 / divisor])


def _common(name: str) -> Any:
    """An option that all terms of a sum have in common: read from the first, set on each."""

    def get(self: LossSum) -> object:
        return getattr(self.terms[0], name)

    def set_all(self: LossSum, value: object) -> None:
        for term in self.terms:
            setattr(term, name, value)

    return property(get, set_all)


class LossSum(Loss):
    r"""A weighted sum of losses, \( \sum_i \lambda_i L_i \), as `+`, `*` and `/` make it.

    The losses become submodules. A sum within a sum is taken apart into its terms.

    Args:
        losses: the losses, such as `CIoULoss()`, or sums of them; all of upright or all of rotated boxes.
        factors: lambda for each loss, finite and not negative; None for 1 each.

    Raises:
        TypeError: if a loss is no `Loss`, or a factor is not a number.
        ValueError: without losses, for a factor that is negative or not finite, more or fewer factors than
            losses, or losses that differ in `fmt`, `reduction`, `dim` or `decoder`.

    Example:
        >>> import torch
        >>> from boxreg import CIoULoss, NWDLoss
        >>> criterion = 0.75 * CIoULoss() + 0.25 * NWDLoss(constant=10.0)
        >>> criterion(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[3.0, 4.0, 7.0, 8.0]]))
        tensor(1.0143)
    """

    @suggests_keywords
    def __init__(self, losses: Iterable[Loss], factors: Sequence[float] | None = None) -> None:
        super().__init__()
        losses = list(losses)
        factors = [1.0] * len(losses) if factors is None else factors
        if not losses or len(losses) != len(factors):
            raise ValueError(
                f"losses: got {len(losses)} losses and {len(factors)} factors, expected one factor a loss"
            )
        terms: list[tuple[float, Loss]] = []
        for loss, factor in zip(losses, factors, strict=True):
            if not isinstance(loss, Loss):
                raise TypeError(f"losses: got {type(loss).__name__}, expected losses such as CIoULoss()")
            check_number("factor", factor, minimum=0)
            inner = loss.weighted_terms() if isinstance(loss, LossSum) else [(1.0, loss)]
            terms += [(factor * own_factor, term) for own_factor, term in inner]
        first = terms[0][1]
        for factor, term in terms:
            check_number("factor", factor, minimum=0)
            check_agreement(type(first).__name__, first, type(term).__name__, term)
        self.terms = nn.ModuleList([term for _, term in terms])
        self.factors = tuple(factor for factor, _ in terms)

    fmt, reduction, dim, decoder = map(_common, COMMON_OPTIONS)

    def from_raw(self, decoder: Decoder, fmt: str = "cxcywh") -> LossSum:
        """A copy of this sum that takes a head's raw outputs, as `IoUFamilyLoss.from_raw` has it."""
        for term in self.terms:
            if not hasattr(term, "from_raw"):
                raise TypeError(f"from_raw: {type(term).__name__} takes boxes, not raw outputs")
        terms: Any = self.terms
        return LossSum([term.from_raw(decoder, fmt) for term in terms], self.factors)

    def weighted_terms(self) -> Iterator[tuple[float, Loss]]:
        """The losses that are added, each with its factor."""
        return zip(self.factors, self.terms, strict=True)  # type: ignore[arg-type]

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """The sum of the losses of `pred` against `target`; arguments as in `IoUFamilyLoss.forward`."""
        # Scaled inside of the term's own pass: a product afterwards would be another one over all gradients.
        options = {"weight": weight, "normalizer": normalizer}
        losses = [term(pred, target, factor=factor, **options) for factor, term in self.weighted_terms()]
        total: Tensor = sum(losses[1:], losses[0])
        return total

    def __repr__(self) -> str:
        parts = (
            f"{term}" if factor == 1 else f"{factor:g} * {term}" for factor, term in self.weighted_terms()
        )
        return f"LossSum({' + '.join(parts)})"


def check_agreement(name: str, loss: object, other_name: str, other: object) -> None:
    """Raise `ValueError` unless two losses agree in format, reduction, coordinate axis and decoder."""
    if hasattr(loss, "fmt") != hasattr(other, "fmt"):
        raise ValueError(
            f"losses: {name} and {other_name} compare upright and rotated boxes; they do not add"
        )
    for option in COMMON_OPTIONS:
        mine, others = getattr(loss, option, None), getattr(other, option, None)
        if mine != others:
            raise ValueError(
                f"{option}: {name} has {mine!r} and {other_name} has {others!r}, but they are given the same "
                "boxes and their results are added; make both with the same"
            )
