"""Box losses: each row of the IoU family as a module; as functions they are in `boxreg.functional`."""

from __future__ import annotations

import copy
from typing import ClassVar, Self

from torch import Tensor, nn

from ._checks import check_choice, check_number
from .boxes import FORMATS
from .decoders import Decoder, check_decoder
from .iou.backends import BACKENDS
from .iou.functional import overlap_loss
from .iou.variants import VARIANTS, form_of
from .reduction import REDUCTIONS, Normalizer
from .weighting import Weighting, check_weighting


class OverlapLoss(nn.Module):
    """A row of the IoU family as a module; the subclasses name the row.

    Args:
        fmt: `"xyxy"`, `"xywh"` or `"cxcywh"`, for predictions and targets.
        reduction: `"none"`, `"mean"` or `"sum"`.
        loss_weight: the lambda that scales the result.
        dim: the coordinate axis: -1 for rows (N, 4), 1 for planes (B, 4, H, W).
        backend: `"auto"`, or a name in `boxreg.iou.backends.BACKENDS`.
        mode: what becomes of IoU and penalty: `"linear"`, `"log"`, `"square"` or `"alpha"`.
        inner_ratio: scale of the boxes between which the IoU is taken; None for the boxes themselves.
        weighting: a factor per box from its IoU, such as `FocalWeighting()`; if it is a module, it is a
            submodule of the loss.
        **parameters: of the row and the mode, as of the row's function.

    Raises:
        TypeError: if a number is none, or `weighting` cannot be called.
        ValueError: for an unknown name, a negative or non-finite `loss_weight`, or a parameter that is
            missing or out of its range.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        kind = cls.__name__.removesuffix("Loss").lower()
        if kind in VARIANTS:  # a subclass of a row by any other name stays that row
            cls.kind = kind

    def __init__(
        self,
        fmt: str = "xyxy",
        reduction: str = "mean",
        loss_weight: float = 1.0,
        dim: int = -1,
        backend: str = "auto",
        mode: str = "linear",
        inner_ratio: float | None = None,
        weighting: Weighting | None = None,
        **parameters: float,
    ) -> None:
        super().__init__()
        check_choice("fmt", fmt, FORMATS)
        check_choice("reduction", reduction, REDUCTIONS)
        check_number("loss_weight", loss_weight, minimum=0)
        check_choice("backend", backend, ("auto", *BACKENDS))
        self.fmt, self.reduction, self.loss_weight = fmt, reduction, loss_weight
        form_of(self.kind, mode, inner_ratio, parameters)
        check_weighting(weighting)
        self.dim, self.backend = dim, backend
        self.mode, self.inner_ratio, self.weighting = mode, inner_ratio, weighting
        self.numbers = parameters
        self.decoder: Decoder | None = None

    def from_raw(self, decoder: Decoder, fmt: str = "cxcywh") -> Self:
        """This loss with the decoder inside: of a head's raw numbers instead of its boxes.

        The gradient is that of the raw numbers, found in the same pass as the loss. The loss is that of the
        decoded boxes, which are never rounded to the dtype of raw numbers in half precision.

        Args:
            decoder: how the raw numbers stand for boxes.
            fmt: format of the targets; the format that this loss was made with is for boxes.

        Returns:
            A copy of this loss that takes raw numbers, `decoder.channels` of them along `dim`.

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

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """The loss of `pred` against `target`; arguments as in `boxreg.iou.overlap_loss`.

        A loss made by `from_raw` takes raw numbers as `pred`.
        """
        loss = overlap_loss(
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
            inner_ratio=self.inner_ratio,
            weighting=self.weighting,
            **self.numbers,
        )
        return loss if self.loss_weight == 1 else loss * self.loss_weight

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        settings = {"fmt": self.fmt, "reduction": self.reduction, "loss_weight": self.loss_weight}
        settings |= {"dim": self.dim, "mode": self.mode, **self.numbers}
        settings |= {} if self.inner_ratio is None else {"inner_ratio": self.inner_ratio}
        settings |= {} if self.decoder is None else {"decoder": self.decoder}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


class IoULoss(OverlapLoss):
    """IoU loss (the linear form of Yu et al. 2016, arXiv:1608.01471): `iou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import IoULoss
        >>> IoULoss()(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        tensor(0.7500)
    """


class GIoULoss(OverlapLoss):
    """Generalised IoU loss (Rezatofighi et al. 2019, arXiv:1902.09630): `giou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import GIoULoss
        >>> left, right = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]])
        >>> GIoULoss(loss_weight=2.0)(left, right)
        tensor(3.)
    """


class DIoULoss(OverlapLoss):
    """Distance IoU loss (Zheng et al. 2020, arXiv:1911.08287): `diou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import DIoULoss
        >>> DIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 3.0]]), torch.tensor([[3.0, 0.0, 4.0, 3.0]]))
        tensor(1.3600)
    """


class CIoULoss(OverlapLoss):
    """Complete IoU loss (Zheng et al. 2020, arXiv:1911.08287): `ciou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import CIoULoss
        >>> boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3]])
        >>> CIoULoss(fmt="cxcywh")(boxes, boxes)
        tensor(0.)
    """


class EIoULoss(OverlapLoss):
    """Efficient IoU loss (Zhang et al. 2021, arXiv:2101.08158): `eiou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import EIoULoss
        >>> EIoULoss()(torch.tensor([[1.0, 0.0, 3.0, 4.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
        tensor(0.7500)
    """


class SIoULoss(OverlapLoss):
    """SIoU loss (Gevorgyan 2022, arXiv:2205.12740): `siou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import SIoULoss
        >>> SIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor(1.3377)
    """


class WIoULoss(OverlapLoss):
    """Wise-IoU loss (Tong et al. 2023, arXiv:2301.10051): `wiou_loss` as a module.

    With `weighting=WiseWeighting()` it is WIoU v3.

    Example:
        >>> import torch
        >>> from boxreg import WIoULoss
        >>> WIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor(1.6979)
    """


class MPDIoULoss(OverlapLoss):
    """MPDIoU loss (Ma and Xu 2023, arXiv:2307.07662): `mpdiou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import MPDIoULoss
        >>> criterion = MPDIoULoss(image_width=4.0, image_height=2.0)
        >>> criterion(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]]))
        tensor(1.1000)
    """


class ShapeIoULoss(OverlapLoss):
    """Shape-IoU loss (Zhang and Zhang 2023, arXiv:2312.17663): `shapeiou_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import ShapeIoULoss
        >>> criterion = ShapeIoULoss(scale=1.0)
        >>> criterion(torch.tensor([[1.0, 0.0, 3.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))
        tensor(0.7333)
    """


class NWDLoss(OverlapLoss):
    """NWD loss (Wang et al. 2021, arXiv:2110.13389): `nwd_loss` as a module.

    Example:
        >>> import torch
        >>> from boxreg import NWDLoss
        >>> criterion = NWDLoss(constant=10.0)
        >>> criterion(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[3.0, 4.0, 7.0, 8.0]]))
        tensor(0.3935)
    """


ROWS: dict[str, type[OverlapLoss]] = {row.kind: row for row in OverlapLoss.__subclasses__()}
"""The module of each row."""
