"""Checks of what surrounds the steps: batch, norms, dropout, augmentation, clipping, averaging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...boxes import convert
from ...iou.functional import box_iou
from .findings import Check, Finding, Found, NotCheckedError
from .probe import Probe, floating, kept_buffers, without_dropout

SMALL_BATCH = 8
SMALL_DATA, STRONG_DROPOUT = 10_000, 0.4
RESTRICTED = 3.0
"""Times the limit from which on clipping is no guard against odd steps, but a smaller learning rate."""

DEEP, FADING, FADED = 6, 0.3, 0.01
"""Layers with weights from which norms are missed, and what may be left of the contrast between images."""

GAP = 0.15
"""IoU on images trained on above that on others from which they are learnt by heart."""

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


def batch_size(probe: Probe) -> Found:
    """The batch is large enough for steady gradients, and for the norm that is used."""
    try:
        boxes = len(probe.target)
    except NotCheckedError:
        boxes = sum(leaf.numel() // 4 for leaf in floating(probe.targets) if leaf.shape[-1:] == (4,))
    if not boxes:
        raise NotCheckedError("needs target_boxes, to count the boxes of a batch")
    batch_norms = [
        name
        for name, module in probe.model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and not isinstance(module, nn.SyncBatchNorm)
        and module.training
    ]
    evidence: dict[str, Any] = {"images": probe.batch_size, "boxes": boxes, "batch_norms": len(batch_norms)}
    if batch_norms and probe.batch_size < SMALL_BATCH:
        yield Finding(
            "batch-size",
            "warning",
            f"BatchNorm on batches of {probe.batch_size}",
            evidence,
            "statistics of a few images are noise, and not those that evaluation uses",
            "nn.GroupNorm(8, channels) instead, SyncBatchNorm over several GPUs, or batches of 16",
        )
    elif probe.batch_size < SMALL_BATCH and boxes < SMALL_BATCH:
        yield Finding(
            "batch-size",
            "warning",
            f"{boxes} boxes a step",
            evidence,
            "the gradient of a few boxes is mostly noise, and steps of it go back and forth",
            "batches of 8 or 16, as long as an epoch keeps 16 steps or more",
        )


def normalisation(probe: Probe) -> Found:
    """A deep network has normalisation layers."""
    layers = [(name, m) for name, m in probe.model.named_modules() if isinstance(m, WEIGHTED)]
    norms = [m for m in probe.model.modules() if isinstance(m, NORMS) or "Norm" in type(m).__name__]
    if norms or len(layers) < DEEP:
        return
    spreads: dict[str, float] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            # What differs between images is what the next layer can learn from.
            rows = output.detach().flatten(1)
            spreads[name] = float(rows.std(0).mean() / rows.abs().mean().clamp(min=1e-12))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in layers]
    try:
        with torch.no_grad(), without_dropout(probe.model), kept_buffers(probe.model):
            probe.loss(probe.model, probe.criterion, (probe.inputs, probe.targets))
    finally:
        for hook in hooks:
            hook.remove()
    first, *_, last = spreads.values()
    yield Finding(
        "normalisation",
        "error" if last < FADED * first else "warning" if last < FADING * first else "info",
        f"{len(layers)} layers with weights and no normalisation: what tells images apart fades "
        f"from {first:.2g} to {last:.2g} of the activations",
        {"layers": len(layers), "first_contrast": first, "last_contrast": last},
        "without norms every layer passes on less of what differs between images, and the boxes "
        "come out alike",
        "a normalisation after each convolution: GroupNorm(8, channels) for batches of up to 8, "
        "else BatchNorm2d",
    )


def dropout(probe: Probe) -> Found:
    """Dropout is mild where images are few."""
    dropped = {
        name: m.p
        for name, m in probe.model.named_modules()
        if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0
    }
    if not dropped:
        return
    if probe.settings.images is None:
        raise NotCheckedError("needs images, the number of training images")
    strongest = max(dropped, key=dropped.__getitem__)
    if dropped[strongest] < STRONG_DROPOUT or probe.settings.images >= SMALL_DATA:
        return
    yield Finding(
        "dropout",
        "warning",
        f"dropout of {dropped[strongest]:g} in {strongest}, for {probe.settings.images} images",
        {"dropout": dropped[strongest], "images": probe.settings.images},
        "a regressor cannot place a box to the pixel while half of what it sees comes and goes: it "
        "settles for "
        "the mean box",
        "0.1 to 0.3, or none; augment instead",
    )


def augmentation(probe: Probe) -> Found:
    """Images vary from epoch to epoch, in size too."""
    if probe.settings.redraw is None:
        raise NotCheckedError("needs redraw, a function that draws the same images again as training does")
    draws = [probe.settings.redraw() for _ in range(2)]
    (first, targets), (second, others) = draws
    same = all(map(torch.equal, floating(first), floating(second))) and floating(first) != []
    if not floating(first):
        same = all(torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(second), strict=True))
    if same:
        yield Finding(
            "augmentation",
            "warning",
            "the same images come out the same when they are drawn again",
            {"images": probe.batch_size, "share_unchanged": 1.0},
            "without augmentation the model learns its few images by heart",
            "flips first, then shifts, scale of 0.8 to 1.2, crops of 0.9 to 1 and colour jitter",
        )
    sizes = [
        convert(probe.target_of(each), probe.settings.fmt, "cxcywh")[:, 2:] for each in (targets, others)
    ]
    if len(sizes[0]) != len(sizes[1]) or _shape(first) != _shape(second):
        return
    changed = float(((sizes[0] - sizes[1]).abs() > 0.01 * sizes[0]).float().mean())
    if changed < 0.5:
        yield Finding(
            "one-scale",
            "info",
            "objects and images keep their size from epoch to epoch",
            {"share_of_sizes_that_change": changed},
            "a model that never sees an object larger or smaller is sure of sizes that it has seen",
            "zoom by 0.8 to 1.2, or train on several image sizes",
        )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _shape(tree: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in _tensors(tree)]


def first_steps(probe: Probe) -> Found:
    """A few real steps on one batch bring its loss down."""
    losses = [step.loss for step in probe.steps]
    if len(losses) < 4:
        raise NotCheckedError("needs steps of at least 4")
    evidence = {"losses": losses}
    if not all(abs(loss) < float("inf") for loss in losses):
        yield Finding(
            "first-steps",
            "error",
            "the loss is not finite",
            evidence,
            "one NaN makes every weight NaN",
            "look for NaN in inputs and targets, then lower the learning rate; boxreg's losses stay finite",
        )
    elif sum(losses[-2:]) / 2 > 1.5 * losses[0] + 1e-6:
        yield Finding(
            "first-steps",
            "warning",
            f"the loss of one batch rises over {len(losses)} steps on it: {losses[0]:.3g} to "
            f"{losses[-1]:.3g}",
            evidence,
            "steps are too large, or the gradient is not that of this loss",
            "a tenth of the learning rate, or warm up",
        )


def clipping(probe: Probe) -> Found:
    """The gradient is clipped seldom."""
    from statistics import median  # which takes 3 ms to import

    limit = probe.settings.clip_norm
    if limit is None:
        raise NotCheckedError("needs clip_norm, math.inf for none")
    norms = [step.gradient_norm for step in probe.steps]
    if not norms:
        raise NotCheckedError("needs steps of at least 1")
    share, usual = sum(norm > limit for norm in norms) / len(norms), median(norms)
    if usual > RESTRICTED * limit:
        yield Finding(
            "clipping",
            "warning",
            f"{share:.0%} of the first {len(norms)} steps are clipped, to 1/{usual / limit:.0f} of "
            "the gradient",
            {"share": share, "clip_norm": limit, "usual_norm": usual},
            "then the clip, not the learning rate, decides how long a step is",
            "clip at 3 to 10, above the usual norm; Adam needs none",
        )


def averaged_weights(probe: Probe) -> Found:
    """Weights are averaged for evaluation."""
    if probe.settings.ema_decay is None:
        raise NotCheckedError("needs ema_decay, 0 for none")
    if not probe.settings.ema_decay:
        yield Finding(
            "averaged-weights",
            "info",
            "weights are not averaged",
            {"ema_decay": 0.0},
            "an average over the last few hundred steps often scores better than the last step",
            "torch.optim.swa_utils.AveragedModel with a decay of 0.99 to 0.999, validated and saved",
        )


def train_val_gap(probe: Probe) -> Found:
    """What was learnt holds for images that were not trained on."""
    if probe.settings.val_batch is None:
        raise NotCheckedError("needs val_batch, inputs and targets that were not trained on")
    if not probe.settings.trained:
        raise NotCheckedError("the model is untrained")
    ious = {}
    probe.model.eval()
    with torch.no_grad():
        for name, (inputs, targets) in {
            "train": (probe.inputs, probe.targets),
            "val": probe.settings.val_batch,
        }.items():
            output = probe.model(inputs)
            boxes = probe.settings.boxes(output) if probe.settings.boxes else output
            iou = box_iou(boxes.reshape(-1, 4), probe.target_of(targets), fmt=probe.settings.fmt)
            ious[name] = float(iou.mean())
    probe.model.train()
    if ious["train"] - ious["val"] > GAP:
        yield Finding(
            "train-val-gap",
            "warning",
            f"IoU {ious['train']:.2f} on images trained on, {ious['val']:.2f} on others",
            {"train_iou": ious["train"], "val_iou": ious["val"]},
            "the images are learnt by heart",
            "augment more, stop earlier, average the weights; get more images",
        )


CHECKS: list[Check] = [
    batch_size,
    normalisation,
    dropout,
    augmentation,
    first_steps,
    clipping,
    averaged_weights,
    train_val_gap,
]
