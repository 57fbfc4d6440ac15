"""The base class of the IoU family's modules."""

from __future__ import annotations

import copy
from typing import ClassVar, Self

from torch import Tensor, nn

from .._checks import check_choice, check_number, suggests_keywords
from ..boxes import FORMATS
from ..decoders import Decoder, check_decoder
from ..iou.dispatch import NAMES
from ..iou.functional import aligned_loss
from ..iou.spec import FAMILY, check_parameters
from ..reduction import REDUCTIONS, Normalizer
from ..weighting import Weighting, check_weighting
from ._options import FACTOR, IOU_FAMILY
from ._sum import Loss


class IoUFamilyLoss(Loss):
    """A loss of the IoU family as a module; each subclass states its `kind`.

    Options are attributes, read at each call. A loss with parameters of its own has an `__init__` that sets
    them, as attributes of their names, before it calls this one.
    """

    kind: ClassVar[str]
    """The loss, a key of `boxreg.losses.LOSSES`; a subclass of any name keeps it."""

    @suggests_keywords
    def __init__(
        self,
        fmt: str = "xyxy",
        reduction: str = "mean",
        loss_weight: float = 1.0,
        *,
        dim: int = -1,
        backend: str = "auto",
        decoder: Decoder | None = None,
        mode: str = "linear",
        alpha: float | None = None,
        inner_ratio: float | None = None,
        weighting: Weighting | None = None,
    ) -> None:
        super().__init__()
        check_choice("fmt", fmt, FORMATS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_number("loss_weight", loss_weight, minimum=0)
        check_choice("backend", backend, NAMES)
        if decoder is not None:
            check_decoder(decoder)
        check_weighting(weighting)
        self.fmt, self.reduction, self.loss_weight = fmt, reduction, loss_weight
        self.dim, self.backend, self.decoder = dim, backend, decoder
        self.mode, self.alpha, self.inner_ratio, self.weighting = mode, alpha, inner_ratio, weighting
        check_parameters(self.kind, mode, inner_ratio, {**self.own_parameters(), "alpha": alpha})

    def from_raw(self, decoder: Decoder, fmt: str = "cxcywh") -> Self:
        """A copy of this loss that takes a head's raw outputs instead of boxes.

        The gradient is that of the raw outputs, found in the same pass as the loss. The loss is that of the
        decoded boxes, which are never rounded to the dtype of raw outputs in half precision.

        Args:
            decoder: how the raw outputs stand for boxes.
            fmt: format of the targets; the format that this loss was made with is for boxes.

        Returns:
            A copy whose `pred` is `decoder.channels` raw outputs along `dim`.

        Raises:
            TypeError: if `decoder` is no `Decoder`.
            ValueError: if `fmt` is not a format.

        Example:
            >>> import torch
            >>> from boxreg import BoxHead, CIoULoss
            >>> head = BoxHead(16, prior=(0.5, 0.5, 0.2, 0.3))
            >>> criterion = CIoULoss(dim=head.dim).from_raw(head.decoder)
            >>> features, target = torch.zeros(8, 16), torch.tensor([[0.5, 0.5, 0.2, 0.3]]).expand(8, 4)
            >>> criterion(head.raw(features), target).round(decimals=4)
            tensor(0., grad_fn=<RoundBackward1>)
        """
        check_decoder(decoder)
        check_choice("fmt", fmt, FORMATS)
        of_raw = copy.deepcopy(self)
        of_raw.decoder, of_raw.fmt = decoder, fmt
        return of_raw

    def own_parameters(self) -> dict[str, float]:
        """The parameters that the losses do not share, such as `image_width`, by name."""
        penalty, overlap = FAMILY[self.kind]
        names = overlap.parameters + penalty.parameters
        return {name: getattr(self, name) for name, *_ in names} if names else {}

    @IOU_FAMILY.arguments(factor=FACTOR)
    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """The loss of `pred` against `target`."""
        return aligned_loss(
            self.kind,
            pred,
            target,
            fmt=self.fmt,
            reduction=self.reduction,
            weight=weight,
            normalizer=normalizer,
            dim=self.dim,
            backend=self.backend,
            decoder=self.decoder,
            mode=self.mode,
            alpha=self.alpha,
            inner_ratio=self.inner_ratio,
            weighting=self.weighting,
            loss_weight=factor * self.loss_weight,
            **self.own_parameters(),
        )

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        names = [*self.own_parameters(), "fmt", "reduction", "loss_weight", "dim", "backend", "mode"]
        names += [name for name in ("alpha", "inner_ratio", "decoder") if getattr(self, name) is not None]
        names += [] if self.weighting is None or isinstance(self.weighting, nn.Module) else ["weighting"]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
