"""Checks of what the model gives: its range, what bounds it, where it starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...boxes import convert
from ...decoders import UnitSquareDecoder
from ...heads import BoxHead
from ...iou.functional import box_iou
from .findings import Check, Finding, Found, NotCheckedError
from .probe import Probe, floating

PUSH, FAR_PUSH = 8.0, 200.0
"""What is added to the last layer's outputs: a lively training gets to the first; the second shows bounds."""

TOLERATED = 0.05
"""Share of boxes or images that may be odd before it is a finding."""

SATURATED = 0.004
"""Distance to a bound, as a share of the range, where a sigmoid's derivative is 1/60 of its largest."""

STUCK_SPREAD = 0.35
"""Spread of a trained model's boxes, as a share of the targets', below which they are one box."""


def _invalid(boxes: Tensor) -> Tensor:
    """Which boxes, xyxy, are empty, inverted or not finite."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return ~((x2 > x1) & (y2 > y1))


def _percent(share: float) -> str:
    return f"{share:.0%}"


def invalid_boxes(probe: Probe) -> Found:
    """Predicted boxes have a width and a height above 0."""
    boxes = probe.fractions(probe.predicted.detach())
    share = float(_invalid(boxes).float().mean())
    if share > TOLERATED:
        yield Finding(
            "invalid-boxes",
            "error" if share > 0.5 else "warning",
            f"{_percent(share)} of the predicted boxes are inverted or empty as {probe.settings.fmt}",
            {
                "share": share,
                "fmt": probe.settings.fmt,
                "example": probe.predicted[_invalid(boxes)][0].tolist(),
            },
            "such a box has no overlap with anything: most overlap losses cannot tell it where to go",
            "decode sizes with softplus or exp (boxreg.BoxHead), or correct the format if it is not "
            f"{probe.settings.fmt}",
        )


def _reach(probe: Probe, push: float) -> tuple[Tensor, float]:
    """The outputs' boxes when the last layer is pushed by random signs, and how many are invalid (share)."""
    generator = torch.Generator().manual_seed(0)
    found, raw = [], probe.layer.raw
    with torch.no_grad():
        for _ in range(4):
            signs = torch.randint(0, 2, raw.shape, generator=generator) * 2.0 - 1.0
            output, _ = probe.pushed(push * signs.to(raw))
            found.append(probe.boxes_of(output))
    boxes = torch.cat(found)
    return boxes, float(_invalid(probe.fractions(boxes)).float().mean())


def output_range(probe: Probe) -> Found:
    """What the model can give contains the targets, and little that is no box."""
    _, invalid = _reach(probe, PUSH)
    far, _ = _reach(probe, FAR_PUSH)
    low, high = far.amin(0), far.amax(0)
    target = probe.target
    slack = 0.01 * (high - low)
    # One cell of many need not reach every target.
    outside = probe.aligned * ((target < low - slack) | (target > high + slack)).any(-1).float().mean()
    evidence: dict[str, Any] = {
        "reach_low": low.tolist(),
        "reach_high": high.tolist(),
        "target_low": target.amin(0).tolist(),
        "target_high": target.amax(0).tolist(),
    }
    if outside > TOLERATED:
        yield Finding(
            "output-range",
            "error",
            f"{_percent(float(outside))} of the targets lie outside what the model can output",
            evidence,
            "no training reaches them; pixels against fractions, or a squashing too many, are the "
            "usual reasons",
            "bring targets and outputs to one unit: divide pixels by the image's size, or scale the decoder",
        )
        return
    spans = probe.fractions(far)
    unbounded = bool((spans.abs() > 20).any())
    if unbounded and invalid > TOLERATED:
        yield Finding(
            "output-range",
            "warning",
            f"nothing bounds the outputs: pushed by {PUSH:g}, {_percent(invalid)} are no boxes any more",
            evidence | {"invalid_share_when_pushed": invalid},
            "targets fill a small part of what a linear output can give; a bad step leaves boxes "
            "of negative size",
            "sigmoid for the centre and softplus for the size: boxreg.BoxHead(features, prior=...), or "
            "boxreg.decoders.UnitSquareDecoder on the outputs",
        )


def clamped_outputs(probe: Probe) -> Found:
    """No clamp lies between the last layer and the boxes."""
    if not probe.aligned:
        raise NotCheckedError("the model gives more than one box a target")
    worst, where = 0.0, 0.0
    for push in (0.0, -PUSH, PUSH):
        output, raw = probe.pushed(push)
        (given,) = floating(output)
        # Every coordinate counts differently, so that gradients do not cancel.
        total = (given * torch.linspace(1.0, 2.0, given.numel(), device=given.device).view_as(given)).sum()
        grad = torch.autograd.grad(total, raw, allow_unused=True)[0] if total.requires_grad else None
        share = 1.0 if grad is None else float((grad == 0).float().mean())
        if share > worst:
            worst, where = share, push
    if worst > TOLERATED:
        yield Finding(
            "clamped-outputs",
            "error",
            f"{_percent(worst)} of the last layer's outputs have no effect on the output, not even "
            "a small one",
            {"share_without_gradient": worst, "pushed_by": where},
            "a clamp or ReLU before the loss has a gradient of exactly 0 outside its range: what gets there "
            "stays there, and the boxes collapse",
            "compute the loss on unclamped outputs; use a sigmoid or softplus, and clamp only for metrics",
        )


def saturated_outputs(probe: Probe) -> Found:
    """Outputs that are bounded do not start at their bounds."""
    if not probe.aligned:
        raise NotCheckedError("the model gives more than one box a target")
    far, _ = _reach(probe, FAR_PUSH)
    low, high = far.amin(0), far.amax(0)
    width, height = probe.settings.image_size
    bounded = high - low < 20 * max(width, height)
    inside = (probe.predicted.detach() - low) / (high - low)
    fraction = (probe.target - low) / (high - low)
    close = ((inside < SATURATED) | (inside > 1 - SATURATED)) & ~(
        (fraction < SATURATED) | (fraction > 1 - SATURATED)
    )
    share = float(close[:, bounded].float().mean()) if bounded.any() else 0.0
    if share > TOLERATED:
        yield Finding(
            "saturated-outputs",
            "error",
            f"{_percent(share)} of the bounded outputs sit at their bound, where the targets do not",
            {"share": share, "raw_largest": float(probe.layer.raw.detach().abs().max())},
            "a saturated sigmoid passes on next to no gradient, so these outputs hardly move",
            "make the last layer's weights smaller at the start and set its bias (boxreg.BoxHead does both); "
            "check that inputs are normalised and the learning rate is not too high",
        )


def _bias_for(probe: Probe, box: Tensor) -> list[float] | None:
    """What the last layer should give for a box, if it is decoded in a way that is known."""
    raw, boxes = probe.layer.raw.detach(), probe.predicted.detach()
    if raw.numel() != boxes.numel():
        return None
    raw = raw.reshape(-1, 4)
    if torch.allclose(raw, boxes, atol=1e-5):
        return list(box.tolist())
    if torch.allclose(raw.sigmoid(), boxes, atol=1e-5):
        return list(box.logit(eps=1e-4).tolist())
    if torch.allclose(UnitSquareDecoder().decode(raw), boxes, atol=1e-5):
        return list(UnitSquareDecoder().encode(box).tolist())
    return None


def untrained_prediction(probe: Probe) -> Found:
    """An untrained model starts near the middle of its targets."""
    if probe.settings.trained:
        raise NotCheckedError("the optimizer has taken steps already")
    settings, target = probe.settings, probe.target
    prior = target.new_tensor(BoxHead.prior_from(target, settings.fmt))
    predicted = probe.predicted.detach()
    if not predicted.isfinite().all():
        raise NotCheckedError("the predicted boxes are not finite")
    as_target = convert(prior, "cxcywh", settings.fmt).expand_as(target)
    reached = float(box_iou(as_target, target, fmt=settings.fmt).mean())
    if probe.aligned:
        iou = float(box_iou(predicted, target, fmt=settings.fmt).mean())
        far = iou < 0.5 * reached
    else:
        # Which of many boxes an untrained model picks is chance; their sizes are not.
        size = convert(predicted, settings.fmt, "cxcywh")[:, 2:].median(0).values
        iou = float("nan")
        far = bool(((size < prior[2:] / 3) | (size > prior[2:] * 3)).any())
    if far:
        bias = _bias_for(probe, as_target[0])
        shown = ", ".join(f"{value:.3g}" for value in prior.tolist())
        exact = (
            f"set the bias of {probe.layer.name} to ({', '.join(f'{b:.3g}' for b in bias)})" if bias else ""
        )
        evidence = {
            "predicted_median": predicted.median(0).values.tolist(),
            "prior_cxcywh": prior.tolist(),
            "prior_iou": reached,
        }
        yield Finding(
            "untrained-prediction",
            "warning",
            f"the untrained model predicts boxes far from the targets' median ({shown})",
            evidence | ({"untrained_iou": iou} if probe.aligned else {}) | ({"bias": bias} if bias else {}),
            "until it has found the mean box it learns nothing about images, and the weights that were "
            "used to get there are spent",
            " or ".join(filter(None, [exact, f"use boxreg.BoxHead(features, prior=({shown}))"])),
        )


def collapsed_boxes(probe: Probe) -> Found:
    """A trained model gives different boxes for different images."""
    if not probe.settings.trained:
        raise NotCheckedError("the model is untrained: only its steps can bring it to one box")
    if len(probe.target) < 4:
        raise NotCheckedError("needs a batch of at least 4 boxes")
    was = probe.model.training
    probe.model.eval()
    with torch.no_grad():
        predicted = probe.boxes_of(probe.model(probe.inputs))
    probe.model.train(was)
    target, given = probe.target.std(0), predicted.std(0)
    if not target.any():
        raise NotCheckedError("the targets of the batch are all the same")
    ratio = float((given / target.clamp(min=1e-6)).median())
    if ratio < STUCK_SPREAD:
        iou = float(box_iou(predicted, probe.target, fmt=probe.settings.fmt).mean())
        constant = probe.target.median(0).values.expand_as(probe.target)
        yield Finding(
            "collapsed-boxes",
            "error",
            f"the boxes spread {ratio:.2f} times as much as the targets: nearly one box for every image",
            {
                "spread_ratio": ratio,
                "iou": iou,
                "iou_of_the_median_box": float(
                    box_iou(constant, probe.target, fmt=probe.settings.fmt).mean()
                ),
            },
            "the mean box is what a model gives that cannot read the image: too much regularisation, "
            "gradients that vanish, or too few updates",
            "run boxreg.overfit on 8 images; lower dropout and weight decay; see the findings on "
            "the gradient",
        )


CHECKS: list[Check] = [
    invalid_boxes,
    output_range,
    clamped_outputs,
    saturated_outputs,
    untrained_prediction,
    collapsed_boxes,
]
