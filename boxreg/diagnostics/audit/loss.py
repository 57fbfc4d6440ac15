"""Checks of the loss by itself: where it moves outputs that are free to move, and what each term weighs."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...boxes import FORMATS, convert
from ...iou.functional import box_iou
from .findings import Check, Finding, Found, NotCheckedError
from .probe import Probe, floating, replaced

FREE_STEPS, FREE_RATE = 100, 0.12
"""The descent of outputs: its steps, and the largest change a step of outputs about 1."""

REACHED = 0.9
"""IoU that outputs which are free to move should come to."""

TOLERATED = 0.05
DROWNED = 0.15
"""Share of the box terms' gradient below which an overlap term is drowned."""

WITHOUT_EFFECT = 1e-4
"""Share of the whole gradient below which a term has no effect."""

OVERLAP_NAME = re.compile(r"iou|overlap|nwd|gwd|kld", re.IGNORECASE)
COORDINATE_NAME = re.compile(
    r"coord|(^|_)(wh|xy|xywh|centre|center|size|l1|l2|mse|reg|box)($|_)", re.IGNORECASE
)
NOT_A_BOX_TERM = re.compile(r"obj|cls|class|conf|score", re.IGNORECASE)


def _free(probe: Probe, objective: Any, rate: float) -> Any:
    """Move the model's outputs themselves down an objective, as if any output could be reached."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in floating(probe.output)]
    optimizer = torch.optim.Adam(leaves, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / FREE_STEPS)
    for _ in range(FREE_STEPS):
        loss = objective(replaced(probe.output, leaves))
        if not loss.requires_grad:
            break
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
        schedule.step()
    return replaced(probe.output, [leaf.detach() for leaf in leaves])


def _best(probe: Probe, objective: Any) -> Any:
    """The better of two such descents: one with steps for outputs about 1, one with steps of pixels."""
    scales = {1.0, max(1.0, *probe.settings.image_size, float(probe.target.abs().max()))}
    outputs = [_free(probe, objective, FREE_RATE * scale) for scale in sorted(scales)]
    with torch.no_grad():
        losses = [float(objective(output)) for output in outputs]
    return outputs[min(range(len(outputs)), key=lambda index: _or_infinity(losses[index]))]


def _or_infinity(value: float) -> float:
    return value if value == value else float("inf")


def _loss_optimum(probe: Probe) -> Any:
    """The output that the loss likes best."""
    return _best(probe, lambda output: probe.loss_of(output).total)


def _perfect(probe: Probe) -> Any:
    """An output whose boxes are the targets."""
    width, height = probe.settings.image_size
    unit = probe.target.new_tensor([width, height, width, height])

    def distance(output: Any) -> Tensor:
        difference = (probe.boxes_of(output) - probe.target) / unit
        return F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=0.01)

    return _best(probe, distance)


def _iou(probe: Probe, boxes: Tensor) -> float:
    return float(box_iou(boxes, probe.target, fmt=probe.settings.fmt).nan_to_num(0).mean())


def _readings(probe: Probe, boxes: Tensor) -> dict[str, float]:
    """The IoU of boxes with the targets when they are read in other ways."""
    fmt = probe.settings.fmt
    width, height = probe.settings.image_size
    target = probe.target
    scale = max(float(target.abs().max()), 1.0)
    unit = target.new_tensor([width, height, width, height]) if max(width, height) > 1 else scale
    read = {f"{other} instead of {fmt}": convert(boxes, other, fmt) for other in FORMATS if other != fmt}
    read |= {f"written as {other} first": convert(boxes, fmt, other) for other in FORMATS if other != fmt}
    read |= {
        "through a sigmoid": boxes.sigmoid(),
        "before a sigmoid": boxes.clamp(1e-6, 1 - 1e-6).logit(),
        "fractions instead of pixels": boxes * unit,
        "pixels instead of fractions": boxes / unit,
        "x and y swapped": boxes[:, [1, 0, 3, 2]],
    }
    return {name: _iou(probe, value) for name, value in read.items()}


def loss_optimum(probe: Probe) -> Found:
    """The output that the loss likes best is the one whose decoded boxes are the targets."""
    probe.boxes_of(probe.output)
    found = probe.once(_loss_optimum)
    with torch.no_grad():
        boxes = probe.boxes_of(found)
        iou = _iou(probe, boxes)
        if iou >= REACHED:
            return
        readings = _readings(probe, boxes)
        reading = max(readings, key=readings.__getitem__)
        at_optimum = float(probe.loss_of(found).total)
    evidence = {"iou_at_optimum": iou, "loss_at_optimum": at_optimum, "loss_now": float(_now(probe))}
    if readings[reading] > max(REACHED - 0.05, iou + 0.2):
        yield Finding(
            "loss-optimum",
            "error",
            f"where the loss is least, the boxes have an IoU of {iou:.2f}; read {reading}: "
            f"{readings[reading]:.2f}",
            evidence | {"reading": reading, "iou_as_read": readings[reading]},
            "the loss and the metric do not speak of the same boxes: one decodes, scales or orders "
            "them otherwise",
            f"give loss and metric the same decoded boxes ({reading}), in one format and one unit",
        )
        return
    if probe.aligned:
        perfect = probe.once(_perfect)
        with torch.no_grad():
            at_target = float(probe.loss_of(perfect).total)
            possible = _iou(probe, probe.boxes_of(perfect))
        evidence |= {"loss_at_targets": at_target, "iou_possible": possible}
        if possible < REACHED:
            yield Finding(
                "loss-optimum",
                "error",
                f"no output at all gives the target boxes: the best IoU found is {possible:.2f}",
                evidence,
                "the decoding cannot express the targets: a squashing too many, a clamp, or another unit",
                "bring boxes(output) and the targets to one unit, and drop clamps and second sigmoids",
            )
            return
        if at_target < at_optimum - 0.01 * abs(at_optimum):
            yield Finding(
                "loss-optimum",
                "error",
                f"outputs that are free to follow the gradient get stuck at an IoU of {iou:.2f}",
                evidence,
                "the loss is lower at the targets, but its gradient does not lead there: it is 0 "
                "or misleads, "
                "as behind a clamp or for boxes that do not overlap",
                "drop clamps before the loss; use a loss that sees boxes apart: boxreg.CIoULoss, GIoULoss",
            )
            return
    yield Finding(
        "loss-optimum",
        "error",
        f"the loss is least where the boxes have an IoU of {iou:.2f} with the targets",
        evidence,
        "minimising it makes boxes that are wrong",
        "compute the loss on pairs of identical boxes: it must be 0 there, and larger elsewhere",
    )


def _now(probe: Probe) -> Tensor:
    return probe.loss_of(probe.output).total.detach()


def loss_towards_target(probe: Probe) -> Found:
    """The loss falls when the prediction moves towards the target, and its gradient points there."""
    if not probe.aligned:
        raise NotCheckedError("the model gives more than one box a target")
    (start,), (end,) = floating(probe.output), floating(probe.once(_perfect))
    start = start.detach()
    with torch.no_grad():
        if _iou(probe, probe.boxes_of(replaced(probe.output, [end]))) < REACHED:
            raise NotCheckedError("no output was found whose boxes are the targets")
        losses = [
            float(probe.loss_of(replaced(probe.output, [start + (end - start) * step / 10])).total)
            for step in range(11)
        ]
    leaf = start.clone().requires_grad_()
    total = probe.loss_of(replaced(probe.output, [leaf])).total
    gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        yield Finding(
            "loss-towards-target",
            "error",
            "the loss has no gradient with respect to the model's output",
            {"losses": losses},
            "nothing can be learnt from it",
            "remove .detach(), .item(), torch.no_grad() or argmax between output and loss",
        )
        return
    towards = ((end - start).reshape(-1, 4) * gradient.reshape(-1, 4)).sum(-1)
    away, still = (
        float((towards > 0).float().mean()),
        float((~gradient.reshape(-1, 4).any(-1)).float().mean()),
    )
    evidence = {"loss_on_the_way": losses, "share_pointing_away": away, "share_without_gradient": still}
    if losses[-1] >= losses[0] and losses[0] > min(losses[-1], 0) and max(losses) > min(losses):
        yield Finding(
            "loss-towards-target",
            "error",
            f"the loss does not fall on the way to the target: {losses[0]:.3g} now, {losses[-1]:.3g} there",
            evidence,
            "minimising it moves boxes away from their targets, or to somewhere else",
            "check the sign (1 - IoU, not IoU), the order (pred, target) and the format of the loss",
        )
    elif still > TOLERATED:
        yield Finding(
            "loss-towards-target",
            "error" if still > 0.5 else "warning",
            f"{still:.0%} of the predicted boxes get no gradient at all",
            evidence,
            "a loss of boxes that do not overlap, or a clamp, is flat: these images teach nothing",
            "use a loss that sees boxes apart (boxreg.CIoULoss, GIoULoss), on unclamped outputs, "
            "from a good bias",
        )
    elif away > 0.5:
        yield Finding(
            "loss-towards-target",
            "warning",
            f"the gradient of {away:.0%} of the boxes points away from their target",
            evidence,
            "the first steps make the prediction worse",
            "start nearer to the targets (boxreg.BoxHead with a prior); give the coordinates a "
            "term of their own",
        )


def clamp_in_loss(probe: Probe) -> Found:
    """The loss itself does not clamp its predictions."""
    if not probe.aligned:
        raise NotCheckedError("the model gives more than one box a target")
    (start,) = floating(probe.output)
    same = torch.allclose(probe.predicted, start.reshape(-1, 4))
    if not same:
        raise NotCheckedError("outputs are decoded after the model: how far a clamp would be is not known")
    width, height = probe.settings.image_size
    xyxy = convert(probe.target, probe.settings.fmt, "xyxy")
    beyond = xyxy + xyxy.new_tensor([-2.0 * width, -1.5 * height, 1.5 * width, 2.0 * height])
    leaf = convert(beyond, "xyxy", probe.settings.fmt).view_as(start).requires_grad_()
    total = probe.loss_of(replaced(probe.output, [leaf])).total
    if not total.requires_grad:
        return
    gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0]
    # The overlap with a box that covers its target depends on its size alone, not on where it lies.
    pushed = slice(None) if probe.settings.fmt == "xyxy" else slice(2, None)
    share = 1.0 if gradient is None else float((gradient.reshape(-1, 4)[:, pushed] == 0).float().mean())
    if share > TOLERATED:
        yield Finding(
            "clamp-in-loss",
            "error",
            f"{share:.0%} of the coordinates get no gradient when boxes stick out of the image",
            {"share_without_gradient": share},
            "clamping before the loss has a gradient of exactly 0 outside the image: such boxes "
            "never come back",
            "compute the loss on unclamped boxes; clamp only for metrics and drawings",
        )


def _shares(probe: Probe) -> tuple[dict[str, float], dict[str, float]]:
    """Each weighted term's value, and the norm of its gradient in the parameters as a share of all."""
    loss = probe.loss(probe.model, probe.criterion, (probe.inputs, probe.targets))
    if len(loss.weighted) < 2:
        raise NotCheckedError("needs a criterion that names its terms: (total, terms) or a mapping")
    parameters = list(probe.trainable.values())
    norms = {}
    for name, term in loss.weighted.items():
        gradients: tuple[Tensor | None, ...] = ()
        if term.requires_grad:
            gradients = torch.autograd.grad(term.sum(), parameters, retain_graph=True, allow_unused=True)
        squares = [g.square().sum() for g in gradients if g is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    whole = sum(norms.values()) or 1.0
    values = {name: float(term.detach().sum()) for name, term in loss.weighted.items()}
    return values, {name: norm / whole for name, norm in norms.items()}


def loss_terms(probe: Probe) -> Found:
    """Every term has an effect, and coordinates do not drown the overlap."""
    values, shares = _shares(probe)
    evidence = {"values": values, "gradient_shares": shares}
    idle = [name for name, share in shares.items() if share < WITHOUT_EFFECT]
    silent = [name for name in idle if values[name] != 0]
    for name in idle:
        yield Finding(
            "loss-terms",
            "warning" if name in silent else "info",
            f"the term {name!r} has no effect: {shares[name]:.1e} of the gradient",
            evidence,
            "a term that is detached, 0 or tiny beside the others is not trained"
            if name in silent
            else "it is 0: switched off by its lambda, or met already",
            f"check that {name!r} is attached to the graph and that its lambda is applied",
        )
    overlap = [n for n in shares if OVERLAP_NAME.search(n) and not NOT_A_BOX_TERM.search(n)]
    coordinates = [
        n for n in shares if n not in overlap and COORDINATE_NAME.search(n) and not NOT_A_BOX_TERM.search(n)
    ]
    live = [name for name in overlap if values[name] > 0 and name not in idle]
    if live and coordinates:
        own = sum(shares[name] for name in live)
        share = own / max(own + sum(shares[name] for name in coordinates), 1e-12)
        if share < DROWNED:
            yield Finding(
                "overlap-drowned",
                "warning",
                f"the overlap gives {share:.0%} of the boxes' gradient, the coordinates the rest",
                evidence | {"overlap_share": share},
                "what is scored is the overlap; coordinates alone trade a small box's error for a "
                "large one's",
                "raise lambda_iou to 2 to 5, or lower lambda_coord and lambda_wh to 1",
            )


def lambdas(probe: Probe) -> Found:
    """The lambdas that were declared are applied."""
    declared = {
        name.removeprefix("lambda_"): float(value)
        for name, value in probe.settings.declared.items()
        if name.startswith("lambda_")
    }
    if not declared:
        raise NotCheckedError("needs declared={'lambda_coord': ..., ...}")
    loss = probe.loss(probe.model, probe.criterion, (probe.inputs, probe.targets))
    if not loss.unweighted:
        raise NotCheckedError(
            "needs a criterion that returns unweighted and weighted terms, as boxreg.BoxLoss does"
        )
    unknown = [name for name in declared if name not in loss.unweighted or name not in loss.weighted]
    if unknown:
        yield Finding(
            "lambdas",
            "error",
            f"lambdas are declared for terms that the loss does not have: {', '.join(unknown)}",
            {"declared": declared, "terms": list(loss.weighted)},
            "a lambda of no term does nothing",
            f"rename or remove lambda_{unknown[0]}; the terms are {', '.join(loss.weighted)}",
        )
    for name in (name for name in declared if name not in unknown):
        unweighted, weighted = (
            float(loss.unweighted[name].detach().sum()),
            float(loss.weighted[name].detach().sum()),
        )
        if abs(weighted - declared[name] * unweighted) > 1e-3 * abs(declared[name] * unweighted) + 1e-9:
            measured = weighted / unweighted if unweighted else float("nan")
            yield Finding(
                "lambdas",
                "error",
                f"lambda_{name} is declared as {declared[name]:g}, but the term enters with {measured:g}",
                {
                    "declared": declared[name],
                    "measured": measured,
                    "unweighted": unweighted,
                    "weighted": weighted,
                },
                "the balance that was chosen is not the one that is trained",
                f"pass lambda_{name}={declared[name]:g} to the loss",
            )
    parts = sum(float(term.detach().sum()) for term in loss.weighted.values())
    total = float(loss.total.detach())
    if abs(parts - total) > 1e-3 * abs(total) + 1e-6:
        yield Finding(
            "lambdas",
            "error",
            f"the terms add up to {parts:g}, the total is {total:g}",
            {"sum_of_terms": parts, "total": total},
            "a term is left out of the total, or counted with another factor than it says",
            "sum the weighted terms, and nothing else, into the total",
        )


CHECKS: list[Check] = [loss_optimum, loss_towards_target, clamp_in_loss, loss_terms, lambdas]
