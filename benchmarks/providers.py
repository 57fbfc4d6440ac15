"""Who computes: the libraries, the textbook's code, and boxreg."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from boxreg import CIoULoss, pairwise_box_iou
from boxreg.functional import ciou_loss
from boxreg.iou import aligned_loss
from boxreg.iou.spec import LONGEST, maths

from . import textbook
from .cases import DECODERS, IMAGE, Case

Loss = Callable[[Tensor, Tensor, int], Tensor]
"""Predictions, targets and their coordinate axis in, the mean loss out."""

FromRaw = Callable[[Tensor, Tensor, int, str], Tensor]
"""The same from raw outputs; the name of their decoder comes last."""

Weighted = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Predictions, targets, weights and the coordinate axis in, the weighted sum of the losses out."""

Scores = Callable[[Tensor, Tensor, str], Any]
"""Boxes (batch, N, 4) and (batch, M, 4) and the kind in, scores (batch, N, M) out."""


@dataclass(frozen=True)
class Provider:
    """CIoU by one library: a function for each job, None for what it does not offer."""

    loss: Loss | None = None
    from_raw: FromRaw | None = None
    pairwise: Scores | None = None
    weighted: Weighted | None = None
    other_loss: Callable[[Tensor, Tensor, int, str], Tensor] | None = None
    """The mean loss of any kind, which comes last."""
    fmt: str = "xyxy"
    """The format in which `from_raw` expects its targets."""
    double: bool = True
    """Whether it is compared in float64 too: what computes in it, and need not be compiled for that."""
    near: bool = False
    """Whether its formula is the paper's only where IoU is above 0.5."""
    zeros: bool = False
    """Whether half of the weights are 0."""
    distance: bool = False
    """Whether `pairwise` is 1 - IoU, of one image and without a gradient."""
    missing: str = ""
    """Why it cannot run here."""

    def compiled(self, **options: Any) -> Provider:
        """The same functions through torch.compile; by default compiled for each size."""
        compile = partial(torch.compile, **{"dynamic": False} | options)
        jobs = ("loss", "from_raw", "pairwise", "weighted")
        functions: dict[str, Any] = {
            job: compile(found) for job in jobs if (found := getattr(self, job)) is not None
        }
        return replace(self, double=False, **functions)

    def offers(self, case: Case) -> bool:
        """Whether it has a function for a case."""
        if self.distance:
            return case.kind == "iou" and case.batch == 1 and not case.grad
        if case.job == "loss" and case.kind != "ciou":
            return self.other_loss is not None
        return getattr(self, case.job) is not None


def providers(device: torch.device, compiling: bool) -> dict[str, Provider]:
    """All that can run on a device here; `compiling`: those that need torch.compile too."""
    others = {"torchvision": TORCHVISION, "textbook": TEXTBOOK} if TORCHVISION else {"textbook": TEXTBOOK}
    rivals = others if device.type == "cuda" else {"textbook": TEXTBOOK}
    compiled = {f"{name}, torch.compile": other.compiled() for name, other in rivals.items()}
    found = others | (compiled if compiling else {})
    found |= {peer.__name__: peer() for module, peer in PEERS.items() if find_spec(module)}
    if device.type == "cpu":
        found |= {"powerboxes": powerboxes(False), "powerboxes, parallel": powerboxes(True)}
    if compiling:  # what auto is in a model that is compiled
        eager = Provider(loss=ours("eager", device).loss)
        found |= {"boxreg, torch.compile": eager.compiled()}
    return found | {
        "boxreg auto": ours("auto", device),
        "boxreg eager": ours("eager", device),
        "boxreg auto, half the weights 0": Provider(weighted=weighted, zeros=True),
        "boxreg auto, loss times weight": Provider(weighted=loss_times_weight),
    }


RIVAL = "textbook, torch.compile"
"""Who is measured in every case, with CIoU where the case is another loss."""


def ours(backend: str, device: torch.device) -> Provider:
    """boxreg by a backend."""

    @cache
    def loss_of_raw(dim: int, decoder: str) -> CIoULoss:
        return CIoULoss(fmt="cxcywh", dim=dim, backend=backend, decoder=DECODERS[decoder][0])

    def other_loss(pred: Tensor, target: Tensor, dim: int, kind: str) -> Tensor:
        lengths = [each.name for each in maths(kind, "linear", False).parameters() if each.maximum == LONGEST]
        parameters: dict[str, Any] = dict.fromkeys(lengths, IMAGE)
        return aligned_loss(kind, pred, target, reduction="mean", dim=dim, backend=backend, **parameters)

    return Provider(
        loss=lambda pred, target, dim: ciou_loss(pred, target, reduction="mean", dim=dim, backend=backend),
        from_raw=lambda raw, target, dim, decoder: loss_of_raw(dim, decoder)(raw, target),
        pairwise=lambda a, b, kind: pairwise_box_iou(a, b, kind, backend=backend),
        weighted=partial(weighted, backend=backend),
        other_loss=other_loss,
        fmt="cxcywh",
        double=backend == "eager" or device.type == "cpu",
    )


def weighted(pred: Tensor, target: Tensor, weight: Tensor, dim: int, backend: str = "auto") -> Tensor:
    return ciou_loss(pred, target, weight=weight, reduction="sum", dim=dim, backend=backend)


def loss_times_weight(pred: Tensor, target: Tensor, weight: Tensor, dim: int) -> Tensor:
    return (ciou_loss(pred, target, dim=dim) * weight).sum()


TEXTBOOK = Provider(
    loss=lambda pred, target, dim: textbook.loss(pred.unbind(dim), target.unbind(dim)).mean(),
    from_raw=lambda raw, target, dim, decoder: textbook.loss(
        textbook.DECODED[decoder](raw.unbind(dim)), target.unbind(dim)
    ).mean(),
    pairwise=lambda a, b, kind: textbook.SCORES[kind](a.unsqueeze(-2).unbind(-1), b.unsqueeze(-3).unbind(-1)),
    weighted=lambda pred, target, weight, dim: (
        textbook.loss(pred.unbind(dim), target.unbind(dim)) * weight
    ).sum(),
)


def of_rows(each: Callable[[Tensor, Tensor], Tensor], pairwise: Scores | None = None) -> Provider:
    """A library whose loss takes xyxy boxes (..., 4): planes go in as a view, raw outputs decoded."""

    def from_raw(raw: Tensor, target: Tensor, dim: int, decoder: str) -> Tensor:
        decoded = textbook.DECODED[decoder](raw.unbind(dim))
        return each(torch.stack(decoded, -1), target.movedim(dim, -1)).mean()

    return Provider(
        loss=lambda pred, target, dim: each(pred.movedim(dim, -1), target.movedim(dim, -1)).mean(),
        from_raw=from_raw,
        pairwise=pairwise,
        weighted=lambda pred, target, weight, dim: (each(pred, target) * weight).sum(),
    )


def torchvision() -> Provider:
    from torchvision.ops import box_iou, complete_box_iou, complete_box_iou_loss

    scores = {"iou": box_iou, "ciou": complete_box_iou}
    return of_rows(
        complete_box_iou_loss,
        lambda a, b, kind: torch.stack([scores[kind](*image) for image in zip(a, b, strict=True)]),
    )


TORCHVISION = torchvision() if find_spec("torchvision") else None
"""None where it is not installed."""


def ultralytics() -> Provider:
    from ultralytics.utils.metrics import bbox_iou

    def scores(a: Tensor, b: Tensor, kind: str) -> Tensor:
        every = a.unsqueeze(-2), b.unsqueeze(-3)
        found: Tensor = bbox_iou(*every, xywh=False, CIoU=kind == "ciou").squeeze(-1)
        return found

    return of_rows(lambda pred, target: 1 - bbox_iou(pred, target, xywh=False, CIoU=True).squeeze(-1), scores)


def mmdetection() -> Provider:
    from mmdet.models.losses import CIoULoss

    loss = CIoULoss(reduction="none")
    peer = of_rows(lambda pred, target: loss(pred.reshape(-1, 4), target.reshape(-1, 4)))
    return replace(peer, near=True)  # its alpha is 0 below


PEERS = {"ultralytics": ultralytics, "mmdet": mmdetection}
"""Libraries that are measured where they happen to be installed, by the module that says so."""


def powerboxes(parallel: bool) -> Provider:
    """Distances 1 - IoU of NumPy arrays, in Rust."""
    if not find_spec("powerboxes"):
        return Provider(distance=True, missing="not installed (pip install 'boxreg[bench]')")
    import powerboxes

    distance = powerboxes.parallel_iou_distance if parallel else powerboxes.iou_distance
    return Provider(pairwise=lambda a, b, kind: distance(a[0].numpy(), b[0].numpy()), distance=True)
