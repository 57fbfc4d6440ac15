"""Checks of the boxes and images that are trained on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...boxes import FORMATS, convert
from .findings import Check, Finding, Found, NotCheckedError
from .probe import Probe

MOST_IMAGES = 1000
"""How many images are looked at, the first ones."""

OUTSIDE, STICKING_OUT = 0.02, 0.1
"""A box may stick out of its image by the first share of its side; the second share of the boxes may."""

THUMBNAIL, NEAR = 16, 1.5 / 255
"""The side of thumbnails in pixels, and the mean difference of two below which their images are the same."""

FEWEST_FOR_LABELS, MOST_LABELS = 30, 200
SURE = 5.0
"""Standard errors by which another reading of the labels must fit the images better."""


MOVES = {
    "a quarter of their width further right": (0.25, 0.0, 1.0),
    "a quarter of their width further left": (-0.25, 0.0, 1.0),
    "a quarter of their height lower": (0.0, 0.25, 1.0),
    "a quarter of their height higher": (0.0, -0.25, 1.0),
    "half as large": (0.0, 0.0, 0.5),
    "three quarters as large": (0.0, 0.0, 0.75),
    "a third larger": (0.0, 0.0, 4 / 3),
    "twice as large": (0.0, 0.0, 2.0),
}
"""Other places that labels are tried at: moved by shares of their size, and scaled."""


class Samples(NamedTuple):
    """Images (each (C, H, W), floating) and the boxes of each (K, 4)."""

    images: list[Tensor]
    boxes: list[Tensor]


def _samples(probe: Probe, data: Any, name: str) -> Samples:
    if data is None:
        raise NotCheckedError(f"needs {name}, pairs of an image and its boxes")
    pairs: Iterable[Any] = (data[index] for index in range(min(len(data), MOST_IMAGES)))
    images, boxes = [], []
    for image, box in islice(pairs, MOST_IMAGES):
        images.append(image.float() / 255 if image.dtype == torch.uint8 else image.float())
        boxes.append(probe.target_of(box))
    return Samples(images, boxes)


def _training(probe: Probe) -> Samples:
    return _samples(probe, probe.settings.train_data, "train_data")


def _validation(probe: Probe) -> Samples:
    return _samples(probe, probe.settings.val_data, "val_data")


def _boxes(probe: Probe) -> Tensor:
    """All target boxes that are known, in the format and unit of the targets."""
    if probe.settings.train_data is None:
        return probe.target
    return torch.cat(probe.once(_training).boxes)


def _fit(boxes: Tensor) -> float:
    """The share of boxes, xyxy in fractions, that have a size and lie in their image."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    slack = OUTSIDE * torch.maximum(x2 - x1, y2 - y1) + 1e-6
    inside = (x1 >= -slack) & (y1 >= -slack) & (x2 <= 1 + slack) & (y2 <= 1 + slack)
    return float((inside & (x2 > x1) & (y2 > y1)).float().mean())


def target_reading(probe: Probe) -> Found:
    """The targets are in the format and unit that they are said to be in."""
    boxes, fmt = probe.once(_boxes), probe.settings.fmt
    fit = _fit(probe.fractions(boxes))
    if fit >= 1 - STICKING_OUT:
        return
    width, height = probe.settings.image_size
    unit = boxes.new_tensor([width, height, width, height])
    readings = {f"{other}": _fit(probe.fractions(boxes, other)) for other in FORMATS if other != fmt}
    if max(width, height) > 1:
        readings["fractions"] = _fit(probe.fractions(boxes * unit))
    elif float(boxes.max()) > 2:
        readings["pixels"] = _fit(convert(boxes, fmt, "xyxy") / float(boxes.max()))
    reading = max(readings, key=readings.__getitem__)
    evidence: dict[str, Any] = {
        "share_in_image": fit,
        "low": boxes.amin(0).tolist(),
        "high": boxes.amax(0).tolist(),
    }
    if readings[reading] >= 0.99:
        yield Finding(
            "target-reading",
            "error",
            f"read as {fmt}, {fit:.0%} of the target boxes lie in their image; read as {reading}, "
            f"{readings[reading]:.0%}",
            evidence | {"reading": reading, "share_as_read": readings[reading]},
            "a model learns what the numbers mean to the loss: other boxes than those that were drawn",
            f"boxreg.convert(targets, {reading!r}, {fmt!r}), or say fmt={reading!r}"
            if reading in FORMATS
            else f"the targets are {reading}: divide or multiply by the image's size",
        )
        return
    yield Finding(
        "target-reading",
        "warning",
        f"{1 - fit:.0%} of the target boxes stick out of their image or are empty",
        evidence,
        "such boxes cannot be learnt, and draw the others with them",
        "clip them to the image and drop what is empty",
    )


def empty_targets(probe: Probe) -> Found:
    """No target box is empty, inverted or not finite."""
    boxes = probe.once(_boxes)
    x1, y1, x2, y2 = probe.fractions(boxes).unbind(-1)
    empty = ~((x2 > x1) & (y2 > y1)) | ~boxes.isfinite().all(-1)
    count = int(empty.sum())
    # Were it most of them, the format would be wrong, which is another finding.
    if count and count < 0.5 * len(boxes):
        yield Finding(
            "empty-targets",
            "error",
            f"{count} of {len(boxes)} target boxes are empty, inverted or not finite",
            {"boxes": len(boxes), "empty": count, "example": boxes[empty][0].tolist()},
            "no prediction overlaps with them; many losses return NaN for them",
            "drop them, or correct the labels",
        )


def box_statistics(probe: Probe) -> Found:
    """Sizes and aspect ratios of the targets are of a kind."""
    boxes = convert(probe.fractions(probe.once(_boxes)), "xyxy", "cxcywh")
    boxes = boxes[(boxes[:, 2:] > 0).all(-1)]
    if len(boxes) < 2:
        raise NotCheckedError("needs at least 2 boxes with a size")
    size, aspect = (boxes[:, 2] * boxes[:, 3]).sqrt(), boxes[:, 2] / boxes[:, 3]
    quantiles = boxes.new_tensor([0.01, 0.5, 0.99])
    evidence = {
        "boxes": len(boxes),
        "size_1_50_99_percent": size.quantile(quantiles).tolist(),
        "aspect_1_50_99_percent": aspect.quantile(quantiles).tolist(),
        "centre_mean": boxes[:, :2].mean(0).tolist(),
    }
    odd = int(((aspect > 20) | (aspect < 0.05)).sum())
    tiny = int((size < 0.005).sum())
    if odd or tiny:
        yield Finding(
            "box-statistics",
            "warning" if odd + tiny > 0.02 * len(boxes) else "info",
            f"{odd} boxes are over 20 times as long as wide, {tiny} smaller than 0.5 % of the image",
            evidence | {"odd_aspect": odd, "tiny": tiny},
            "most such boxes are slips of the hand, or parts of objects cut by a crop",
            "look at them; drop what no one could have labelled",
        )
    elif float(boxes.std(0).max()) < 1e-4:
        yield Finding(
            "box-statistics",
            "warning",
            "all target boxes are the same",
            evidence,
            "a constant solves this task",
            "check how the labels are read",
        )


def duplicates(probe: Probe) -> Found:
    """No image is validated on that is trained on as well."""
    train, val = probe.once(_training), probe.once(_validation)
    seen: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(train.images):
        seen[_hash(image)].append(index)
    exact = [(seen[key][0], index) for index, image in enumerate(val.images) if (key := _hash(image)) in seen]
    left, right = _thumbnails(train.images), _thumbnails(val.images)
    distances = torch.cdist(right, left, p=1) / left.shape[1]
    # Images without contrast all look alike.
    plain = right.std(1) < 8 / 255
    near = [
        (int(row.argmin()), index)
        for index, row in enumerate(distances)
        if float(row.min()) < NEAR and not plain[index] and index not in {second for _, second in exact}
    ]
    if exact or near:
        share = (len(exact) + len(near)) / len(val.images)
        yield Finding(
            "duplicates",
            "error" if share > 0.05 else "warning",
            f"{len(exact)} validation images are also trained on, {len(near)} more nearly so",
            {"same": len(exact), "nearly": len(near), "share": share, "pairs_train_val": (exact + near)[:5]},
            "the score says how well these images are remembered",
            "remove them from one side; split by scene or video, not by frame",
        )


def _hash(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().cpu().numpy().tobytes()).hexdigest()


def _thumbnails(images: list[Tensor]) -> Tensor:
    return torch.stack([F.adaptive_avg_pool2d(image.mean(0)[None], THUMBNAIL).flatten() for image in images])


def labels_on_objects(probe: Probe) -> Found:
    """The labels' sides lie where the images have edges."""
    train = probe.once(_training)
    labelled = [(p, b[0]) for p, b in zip(train.images, train.boxes, strict=True) if len(b)]
    if len(labelled) < FEWEST_FOR_LABELS:
        raise NotCheckedError(f"needs at least {FEWEST_FOR_LABELS} images with a box")
    labelled = labelled[:MOST_LABELS]
    readings = _other_readings(probe, torch.stack([box for _, box in labelled]))
    boxes = torch.stack(list(readings.values()), dim=1)
    contrast = torch.stack([_contrast(image, boxes[i]) for i, (image, _) in enumerate(labelled)])
    gain = contrast[:, 1:] - contrast[:, :1]
    scores = gain.mean(0) / (gain.std(0) / len(gain) ** 0.5).clamp(min=1e-9)
    best = int(scores.argmax())
    if scores[best] > SURE:
        reading = list(readings)[1 + best]
        yield Finding(
            "labels-on-objects",
            "warning",
            f"the images' edges fit the labels better {reading}",
            {
                "images": len(gain),
                "standard_errors": float(scores[best]),
                "contrast_at_labels": float(contrast[:, 0].mean()),
                "contrast_as_read": float(contrast[:, 1 + best].mean()),
            },
            "labels that do not cover their object teach another box than the one that is meant",
            "draw some labels over their images and look; correct how they are read, or pair them anew",
        )


def _other_readings(probe: Probe, boxes: Tensor) -> dict[str, Tensor]:
    """Labels (N, 4) as they are and in other ways, each xyxy in fractions; the first is as they are."""
    fmt, target = probe.settings.fmt, probe.fractions(boxes)
    x1, y1, x2, y2 = target.unbind(1)
    readings = {"as they are": target}
    readings |= {f"as {other}, not {fmt}": probe.fractions(boxes, other) for other in FORMATS if other != fmt}
    readings |= {
        "with x and y swapped": torch.stack((y1, x1, y2, x2), 1),
        "mirrored from left to right": torch.stack((1 - x2, y1, 1 - x1, y2), 1),
        "mirrored from top to bottom": torch.stack((x1, 1 - y2, x2, 1 - y1), 1),
        "one image further on": target.roll(1, 0),
        "one image further back": target.roll(-1, 0),
    }
    cxcywh = convert(target, "xyxy", "cxcywh")
    for name, (dx, dy, scale) in MOVES.items():
        moved = torch.cat(
            (cxcywh[:, :2] + cxcywh[:, 2:] * boxes.new_tensor((dx, dy)), cxcywh[:, 2:] * scale), 1
        )
        readings[name] = convert(moved, "cxcywh", "xyxy")
    return readings


def _contrast(image: Tensor, boxes: Tensor) -> Tensor:
    """How much strips just inside and just outside of boxes (R, 4) differ, averaged over its sides (R,)."""
    _, height, width = image.shape
    x1, y1, x2, y2 = (boxes * boxes.new_tensor([width, height, width, height])).unbind(1)
    across, down = ((0.1 * (high - low)).clamp(min=2.0) for low, high in ((x1, x2), (y1, y2)))
    inner = (
        (x1, y1, x1 + across, y2),
        (x2 - across, y1, x2, y2),
        (x1, y1, x2, y1 + down),
        (x1, y2 - down, x2, y2),
    )
    outer = (
        (x1 - across, y1, x1, y2),
        (x2, y1, x2 + across, y2),
        (x1, y1 - down, x2, y1),
        (x1, y2, x2, y2 + down),
    )
    strips = torch.stack([torch.stack(strip, -1) for strip in (*inner, *outer)])  # (8, R, 4)
    limits = strips.new_tensor([width, height, width, height])
    left, top, right, bottom = torch.minimum(strips.round().clamp(min=0), limits).long().unbind(-1)
    # A table of sums gives the mean of any strip at once.
    sums = F.pad(image.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    total = sums[:, bottom, right] - sums[:, top, right] - sums[:, bottom, left] + sums[:, top, left]
    pixels = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    mean = total / pixels.clamp(min=1)
    seen = (pixels[:4] > 0) & (pixels[4:] > 0)
    return torch.where(seen, (mean[:, :4] - mean[:, 4:]).abs().mean(0), 0.0).mean(0)


CHECKS: list[Check] = [
    target_reading,
    empty_targets,
    box_statistics,
    duplicates,
    labels_on_objects,
]
