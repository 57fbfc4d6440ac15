"""No waiting, few launches: what a step asks of the GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from boxreg import (
    BoxHead,
    BoxLoss,
    CIoULoss,
    DFLDecoder,
    FocalWeighting,
    UnitSquareDecoder,
    WiseWeighting,
    YOLOv3Decoder,
    convert,
    pairwise_box_iou,
)
from boxreg import functional as F

from .boxes import upright
from .device import Cuda
from .report import Figures, Report

Leaves = tuple[Tensor, ...]
Loss = Callable[..., Tensor]

MOST_LAUNCHES = 2
"""Forward and backward together: the kernel, and the product with the upstream gradient."""


def main(device: Cuda, report: Report) -> None:
    losses = steps(device)
    for name, (loss, leaves) in losses.items():
        report.step(f"no wait: {name}", partial(no_wait, device, loss, leaves))
    for name, (loss, leaves) in losses.items():
        report.step(f"launches: {name}", partial(launches, device, loss, leaves, name in IN_ONE_PASS))
    for name in ("float32", "float16, planes, raw outputs", "pairwise"):
        report.step(f"CUDA graph: {name}", partial(graph, device, *losses[name]))
    report.step("several streams at once", partial(streams, device))
    report.step("two host threads at once", partial(threads, device))
    for backend, mode in (("triton", None), ("triton", "reduce-overhead"), ("auto", None)):
        name = f"torch.compile, {backend}" + (f", {mode}" if mode else "")
        report.step(name, partial(compiled, device, backend, mode), needs=device.pick(25, 1))


IN_ONE_PASS = (
    *("float32", "float16", "bfloat16", "sum", "none", "planes", "raw outputs", "anchors"),
    *("float16, planes, raw outputs", "weight", "normalizer, a number"),
)
"""Steps that take no more than `MOST_LAUNCHES`; the number of launches of the others is reported."""


def steps(device: Cuda) -> dict[str, tuple[Loss, Leaves]]:
    """Losses by name, each a function of the tensors beside it, which need gradients."""
    count = device.pick(8_400, 60)
    most, few = device.pick((count, 50), (10, 5))
    generator = torch.Generator().manual_seed(0)
    p, t = (upright(count, generator).float().to(device.torch) for _ in range(2))
    centred = convert(t, "xyxy", "cxcywh")
    half, bfloat = t.half(), t.bfloat16()
    weight = (torch.arange(count, device=device.torch) % 3).float()
    positives = torch.full((), 100.0, device=device.torch)
    rows, cols = device.pick((80, 105), (6, 10))
    raw = torch.randn(1, 4, rows, cols, generator=generator).to(device.torch)
    planes = t.t().reshape(1, 4, rows, cols).contiguous()
    half_planes = planes.half()
    per_anchor = torch.randn(1, 4, 3, rows, cols, generator=generator).to(device.torch)
    boxes = planes.unsqueeze(2).expand(1, 4, 3, rows, cols).contiguous()
    anchors = YOLOv3Decoder(stride=0.1, anchors=[(0.5, 0.5), (0.3, 0.8), (0.9, 0.2)])
    bins = DFLDecoder(stride=0.1, bins=9)
    sides = torch.randn(1, bins.channels, rows, cols, generator=generator).to(device.torch)
    head = BoxHead(16, prior=(0.5, 0.5, 0.2, 0.3)).to(device.torch)
    features = torch.randn(count, 16, generator=generator).to(device.torch)
    turned = torch.cat([centred, weight[:, None]], 1)
    logits = torch.randn(count, 4, 16, generator=generator).to(device.torch)
    wise = WiseWeighting().to(device.torch)
    backend: dict[str, Any] = {"backend": device.backend}
    mean: dict[str, Any] = {"reduction": "mean", **backend}
    ciou = partial(CIoULoss, **backend)
    return {
        "float32": (lambda p: F.ciou_loss(p, t, **mean), (p,)),
        "float16": (lambda p: F.ciou_loss(p, half, **mean), (p.half(),)),
        "bfloat16": (lambda p: F.ciou_loss(p, bfloat, **mean), (p.bfloat16(),)),
        "sum": (lambda p: F.giou_loss(p, t, reduction="sum", **backend), (p,)),
        "none": (lambda p: F.diou_loss(p, t, **backend), (p,)),
        "planes": (lambda p: F.ciou_loss(p, planes, dim=1, **mean), (raw,)),
        "raw outputs": (lambda p: ciou().from_raw(UnitSquareDecoder())(p, centred), (p,)),
        "float16, planes, raw outputs": (
            lambda p: ciou(dim=1).from_raw(UnitSquareDecoder())(p, half_planes),
            (raw.half(),),
        ),
        "anchors": (lambda p: ciou(dim=1).from_raw(anchors)(p, boxes), (per_anchor,)),
        "distributions": (lambda p: ciou(dim=1).from_raw(bins)(p, planes), (sides,)),
        "both gradients": (lambda p, q: F.ciou_loss(p, q, **mean), (p, t.clone())),
        "weight": (lambda p: F.ciou_loss(p, t, weight=weight, **mean), (p,)),
        "normalizer on the GPU": (lambda p: F.ciou_loss(p, t, normalizer=positives, **mean), (p,)),
        "normalizer, a number": (lambda p: F.ciou_loss(p, t, normalizer=100, **mean), (p,)),
        "FocalWeighting": (lambda p: F.eiou_loss(p, t, weighting=FocalWeighting(), **mean), (p,)),
        "WiseWeighting": (lambda p: F.wiou_loss(p, t, weighting=wise, **mean), (p,)),
        "eager": (lambda p: F.ciou_loss(p, t, reduction="mean", backend="eager"), (p,)),
        "BoxLoss": (lambda p: BoxLoss()(p, centred, normalizer=positives).total, (p,)),
        "BoxHead": (lambda p: ciou(fmt="cxcywh")(head(p), centred), (features,)),
        "pairwise": (lambda p: pairwise_box_iou(p, t[:few], "ciou", **backend), (p[:most],)),
        "ProbIoU": (lambda p: F.probiou_loss(p, turned, reduction="mean"), (turned + 0.1,)),
        "DFL": (lambda p: F.dfl_loss(p, 4 * t, reduction="mean"), (logits,)),
    }


def step_of(loss: Loss, leaves: Leaves) -> Callable[[], Leaves]:
    """A step: the loss, and its gradients at leaves; the upstream gradient is there beforehand."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    above = torch.ones_like(loss(*leaves))

    def step() -> Leaves:
        found = loss(*leaves)
        return found, *torch.autograd.grad(found, leaves, above)

    return step


def no_wait(device: Cuda, loss: Loss, leaves: Leaves) -> Figures:
    """Nothing of a step makes the host wait, once its kernels are compiled."""
    step = step_of(loss, leaves)
    if not device.rehearsal:
        step()
    device.synchronize()
    with device.no_waiting():
        step()
    return {}


def launches(device: Cuda, loss: Loss, leaves: Leaves, few: bool) -> Figures:
    """How many kernels, fills and copies a step is."""
    names = device.launches(step_of(loss, leaves))
    assert not few or len(names) <= MOST_LAUNCHES, f"{len(names)} launches: {names}"
    return {"launches": len(names)}


def graph(device: Cuda, loss: Loss, leaves: Leaves) -> Figures:
    """A captured step, when replayed, uses the current values of its inputs."""
    inputs = tuple(leaf.detach().clone() for leaf in leaves)
    step = step_of(loss, inputs)  # of views of them: they share memory
    kept = [torch.empty_like(part) for part in step()]

    def keep() -> None:
        for place, part in zip(kept, step(), strict=True):
            place.copy_(part)

    replay = device.captured(keep)
    for factor in (0.5, 2.0, 1.5):
        for place, leaf in zip(inputs, leaves, strict=True):
            place.copy_(factor * leaf)
        replay()
        device.synchronize()
        expected = step_of(loss, tuple(factor * leaf for leaf in leaves))()
        for found, part in zip(kept, expected, strict=True):
            assert torch.equal(found, part), f"at {factor}: off by {(found - part).abs().max()}"
    return {"replays": 3}


def some_steps(device: Cuda, number: int) -> list[Callable[[], Leaves]]:
    """Steps of different boxes."""
    count, generator = device.pick(134_400, 60), torch.Generator().manual_seed(1)
    loss = partial(F.ciou_loss, reduction="mean", backend=device.backend)
    found = []
    for _ in range(number):
        pred, target = (upright(count, generator).float().to(device.torch) for _ in range(2))
        found.append(step_of(lambda p, target=target: loss(p, target), (pred,)))
    return found


def streams(device: Cuda) -> Figures:
    """Steps that run at once on four streams have the results that each has alone."""
    every = some_steps(device, 4)
    alone = [step() for step in every]
    found = []
    entries = device.streams(len(every))
    for _ in range(device.pick(10, 1)):
        for enter in entries:
            with enter():
                # Launching takes longer than running: without this, the steps would never overlap.
                device.hold()
        for _ in range(device.pick(5, 1)):
            for enter, step, expected in zip(entries, every, alone, strict=True):
                with enter():
                    found.append((step(), expected))
    device.synchronize()
    for results, expected in found:
        assert all(map(torch.equal, results, expected)), "another result than alone"
    return {"steps": len(found)}


def threads(device: Cuda) -> Figures:
    """Two host threads at once, on one stream and on streams of their own, have the results of one alone."""
    every = some_steps(device, 2)
    alone = [step() for step in every]
    device.synchronize()
    turns, entries = device.pick(200, 1), device.streams(2)

    def work(number: int) -> bool:
        same = all(all(map(torch.equal, every[number](), alone[number])) for _ in range(turns))
        with entries[number]():
            return same and all(all(map(torch.equal, every[number](), alone[number])) for _ in range(turns))

    assert device.at_once([partial(work, 0), partial(work, 1)]) == [True, True], "another result than alone"
    return {"steps": 4 * turns}


def compiled(device: Cuda, backend: str, mode: str | None) -> Figures:
    """torch.compile(fullgraph=True) of a step, for two sizes, against the step itself."""
    options: dict[str, Any] = {"mode": mode} if mode and not device.rehearsal else {}
    loss = torch.compile(
        partial(F.ciou_loss, reduction="mean", backend=backend),
        fullgraph=True,
        backend=device.compiler,
        **options,
    )
    generator, worst = torch.Generator().manual_seed(2), 0.0
    for count in device.pick((8_400, 1_024), (60, 30)):
        pred, target = (upright(count, generator).float().to(device.torch) for _ in range(2))
        pred.requires_grad_()
        for _ in range(3):
            if mode:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            found = loss(pred, target)
            (gradient,) = torch.autograd.grad(found, pred)
            found, gradient = found.detach().clone(), gradient.clone()
        expected = F.ciou_loss(pred, target, reduction="mean", backend="eager")
        (reference,) = torch.autograd.grad(expected, pred)
        apart = (
            (found - expected).abs() / expected,
            (gradient - reference).abs().max() / reference.abs().max(),
        )
        worst = max(worst, *(float(part.detach()) for part in apart))
    assert worst < 1e-4, f"apart by {worst}"
    return {"apart": worst}
