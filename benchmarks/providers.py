"""Who computes: the libraries, the textbook's code, and boxreg by each of its backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from boxreg import CIoULoss, UnitSquareDecoder, pairwise_box_iou
from boxreg.functional import ciou_loss
from boxreg.iou.backends import BACKENDS

Loss = Callable[[Tensor, Tensor, int], Tensor]
"""Predictions (or raw outputs), targets and their coordinate axis in, the mean loss out."""

Scores = Callable[[Tensor, Tensor], Tensor]
"""Boxes (batch, N, 4) and (batch, M, 4) in, scores (batch, N, M) out."""


@dataclass(frozen=True)
class Provider:
    """CIoU by one library: a function for each job, None for what it does not offer."""

    loss: Loss
    from_raw: Loss
    pairwise: Scores | None = None
    fmt: str = "xyxy"
    """The format in which `from_raw` wants its targets."""
    double: bool = True
    """Whether it is compared in float64 too: what computes in it, and need not be compiled for that."""
    near: bool = False
    """Whether its formula is the paper's only where IoU is above 0.5."""

    def compiled(self, **options: Any) -> Provider:
        """The same functions through torch.compile; by default compiled for each size."""
        compile = partial(torch.compile, **{"dynamic": False} | options)
        pairwise = None if self.pairwise is None else compile(self.pairwise)
        loss, from_raw = compile(self.loss), compile(self.from_raw)
        return replace(self, loss=loss, from_raw=from_raw, pairwise=pairwise, double=False)


def providers(device: torch.device, compiling: bool) -> dict[str, Provider]:
    """All that can run on a device here; `compiling`: those that need torch.compile too."""
    others = {"torchvision": TORCHVISION, "textbook": TEXTBOOK} if TORCHVISION else {"textbook": TEXTBOOK}
    compiled = {f"{name}, torch.compile": other.compiled() for name, other in others.items()}
    installed = {peer.__name__: peer() for module, peer in PEERS.items() if find_spec(module)}
    mine = {
        f"boxreg {backend}": ours(backend, device)
        for backend in ("auto", *BACKENDS)
        if serves(backend, device, torch.float32) and (compiling or backend != "compile")
    }
    return others | (compiled if compiling else {}) | installed | mine


def serves(backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a backend of boxreg computes on a device in a dtype."""
    boxes = torch.zeros(1, 4, device=device, dtype=dtype)
    return backend == "auto" or BACKENDS[backend](boxes, boxes) is None


def ours(backend: str, device: torch.device) -> Provider:
    """boxreg by a backend."""

    @cache
    def loss_of_raw(dim: int) -> CIoULoss:
        return CIoULoss(dim=dim, backend=backend).from_raw(UnitSquareDecoder())

    return Provider(
        loss=lambda pred, target, dim: ciou_loss(pred, target, reduction="mean", dim=dim, backend=backend),
        from_raw=lambda raw, target, dim: loss_of_raw(dim)(raw, target),
        pairwise=lambda a, b: pairwise_box_iou(a, b, "ciou", backend=backend),
        fmt="cxcywh",
        double=backend != "compile" and serves(backend, device, torch.float64),
    )


def ciou(pred: tuple[Tensor, ...], target: tuple[Tensor, ...]) -> Tensor:
    """CIoU as its formula is usually written, from planes of corners."""
    x1, y1, x2, y2 = pred
    u1, v1, u2, v2 = target
    w, h, wt, ht = x2 - x1, y2 - y1, u2 - u1, v2 - v1
    wide = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    high = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    overlap = wide * high
    iou = overlap / (w * h + wt * ht - overlap + 1e-7)
    cw, ch = torch.maximum(x2, u2) - torch.minimum(x1, u1), torch.maximum(y2, v2) - torch.minimum(y1, v1)
    distance = ((x1 + x2 - u1 - u2) ** 2 + (y1 + y2 - v1 - v2) ** 2) / 4 / (cw**2 + ch**2 + 1e-7)
    v = 4 / math.pi**2 * (torch.atan(wt / ht) - torch.atan(w / h)) ** 2
    with torch.no_grad():
        alpha = v / (1 - iou + v + 1e-7)
    return iou - distance - alpha * v


def decoded(raw: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Planes of corners from raw outputs: sigmoid centres, softplus sizes."""
    tx, ty, tw, th = raw.unbind(dim)
    cx, cy, w, h = tx.sigmoid(), ty.sigmoid(), F.softplus(tw) / 2, F.softplus(th) / 2
    return cx - w, cy - h, cx + w, cy + h


TEXTBOOK = Provider(
    loss=lambda pred, target, dim: (1 - ciou(pred.unbind(dim), target.unbind(dim))).mean(),
    from_raw=lambda raw, target, dim: (1 - ciou(decoded(raw, dim), target.unbind(dim))).mean(),
    pairwise=lambda a, b: ciou(a.unsqueeze(-2).unbind(-1), b.unsqueeze(-3).unbind(-1)),
)


def of_rows(mean_loss: Callable[[Tensor, Tensor], Tensor], pairwise: Scores | None = None) -> Provider:
    """A library whose loss takes xyxy boxes (..., 4): planes go in as a view, raw outputs decoded."""
    return Provider(
        loss=lambda pred, target, dim: mean_loss(pred.movedim(dim, -1), target.movedim(dim, -1)),
        from_raw=lambda raw, target, dim: mean_loss(
            torch.stack(decoded(raw, dim), -1), target.movedim(dim, -1)
        ),
        pairwise=pairwise,
    )


def torchvision() -> Provider:
    from torchvision.ops import complete_box_iou, complete_box_iou_loss

    return of_rows(
        lambda pred, target: complete_box_iou_loss(pred, target, reduction="mean"),
        lambda a, b: torch.stack([complete_box_iou(*image) for image in zip(a, b, strict=True)]),
    )


TORCHVISION = torchvision() if find_spec("torchvision") else None
"""None where it is not installed."""


def ultralytics() -> Provider:
    from ultralytics.utils.metrics import bbox_iou

    return of_rows(
        lambda pred, target: (1 - bbox_iou(pred, target, xywh=False, CIoU=True)).mean(),
        lambda a, b: bbox_iou(a.unsqueeze(-2), b.unsqueeze(-3), xywh=False, CIoU=True).squeeze(-1),
    )


def mmdetection() -> Provider:
    from mmdet.models.losses import CIoULoss

    loss = CIoULoss()
    peer = of_rows(lambda pred, target: loss(pred.reshape(-1, 4), target.reshape(-1, 4)))
    return replace(peer, near=True)  # its alpha is 0 below


PEERS = {"ultralytics": ultralytics, "mmdet": mmdetection}
"""Libraries that are measured where they happen to be installed, by the module that says so."""
