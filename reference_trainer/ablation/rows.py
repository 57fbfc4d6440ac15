"""What is tried: each row of the table as data, and the recommendations that it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from boxreg.losses import LOSSES

from ..config import PRESETS, TrainConfig

RECOMMENDATIONS = {
    "quick 1": "batches of 16 or 8 instead of over a hundred: more steps an epoch",
    "quick 2": "augment more, and with more variety",
    "quick 3": "a short warm-up, then a cosine or ReduceLROnPlateau",
    "quick 4": "no clamp between the outputs and the loss",
    "quick 5": "less dropout or none, less weight decay",
    "quick 6": "GroupNorm or LayerNorm instead of BatchNorm where batches are small",
    "quick 7": "learn a few images by heart first",
    "quick 8": "see that the lambdas are applied, and IoU is that of decoded boxes",
    "quick 9": "no decay on norms and biases; AdamW with beta2 0.99 to 0.999; a learning rate of 2e-2",
    "point 1": "make the optimizer what the configuration says, AdamW",
    "point 2": "bring the outputs to the range of the targets: sigmoid, softplus for sizes",
    "point 3": "batches of 8 or 16 instead of 4",
    "point 4": "dropout of 0.2 to 0.3, or none, instead of 0.5",
    "point 5": "augment: flips, crops, colours",
    "point 6": "start the last layer's bias at reasonable boxes",
    "point 7": "a cosine, OneCycleLR or ReduceLROnPlateau instead of fixed steps",
    "point 8": "a lambda of 2 to 5 for the overlap; or 1, 1 and 5",
    "point 9": "normalisation after each convolution: BatchNorm, GroupNorm with small batches",
    "point 10": "clip at 3 to 5 instead of 1, or with AdamW not at all",
    "point 11": "validate an exponential moving average of the weights",
    "point 12": "a warm-up two to three times as long",
    "point 13": "stop early after 15 to 20 epochs instead of 25",
    "point 14": "train at several sizes",
    "quick test": "batch 8, dropout 0.3, sigmoid and lambda_iou 3 together pass an IoU of 0.50",
    "priority": "all in this order: AdamW, outputs, batch, dropout, augmentation, lambda_iou, bias, cosine, "
    "EMA, GroupNorm",
}
"""What somebody recommended to whoever is stuck with `baseline`: each is served by a row, or is in NO_ROW."""

NO_ROW = {
    "quick 7": "`reference_trainer overfit` does it",
    "quick 8": "`reference_trainer audit` looks at it",
    "point 13": "no row stops early; its best epoch beside its last shows what stopping could gain",
}
"""Recommendations without a row of their own, and why."""

Claim = Literal[-1, 0, 1]


@dataclass(frozen=True)
class Row:
    """A set-up, as changes to another one.

    Attributes:
        name: also what other rows call it as their base.
        base: the row that it is compared with; None for a preset itself.
        changes: settings by their dotted name. Those in epochs are of the preset's run; a shorter run takes
            the same share of its own.
        notes: the recommendations that it serves.
        claim: what these say of it: 1 better than its base, -1 worse, 0 nothing.
    """

    name: str
    base: str | None
    changes: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    claim: Claim = 0


class Part(NamedTuple):
    """Settings in which the presets differ, and which change together.

    Attributes:
        name: the part's name.
        settings: by their dotted names.
        notes: the recommendations that it serves.
        finding: the check of `boxreg.audit` that asks for it in a set-up without it.
        added_to: the base of the row that adds it.
        removed_from: the base of the row that removes it.
    """

    name: str
    settings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    finding: str | None = None
    added_to: str = "baseline"
    removed_from: str = "reference"


PARTS = (
    Part(
        "AdamW",
        ("optimizer.name", "optimizer.lr", "optimizer.weight_decay"),
        ("quick 9", "point 1"),
        "update-size",
    ),
    Part("no decay on norms and biases", ("optimizer.exempt",), ("quick 9",), "weight-decay"),
    Part(
        "decoded outputs",
        ("model.output",),
        ("quick 4", "point 2"),
        "output-range",
        removed_from="reference - dense head",
    ),
    Part("prior bias", ("model.prior",), ("point 6",), "untrained-prediction"),
    Part("batch 16", ("batch_size",), ("quick 1", "point 3"), "batch-size"),
    Part("no dropout", ("model.dropout",), ("quick 5", "point 4"), "dropout"),
    Part("augmentation", ("augment",), ("quick 2", "point 5"), "augmentation"),
    Part("GroupNorm", ("model.norm",), ("quick 6", "point 9"), "normalisation"),
    Part(
        "lambdas 1, 1, 5",
        ("loss.lambda_coord", "loss.lambda_wh", "loss.lambda_iou"),
        ("point 8",),
        "overlap-drowned",
    ),
    Part("warm-up and cosine", ("schedule",), ("quick 3", "point 7"), "schedule"),
    Part("clipping at 4", ("clip_norm",), ("point 10",), "clipping"),
    Part("EMA", ("ema_decay",), ("point 11",), "averaged-weights"),
    Part("dense head", ("model.head",), added_to="baseline + decoded outputs"),
    Part("smooth L1", ("loss.distance",)),
    Part("SiLU", ("model.activation",)),
)
"""Together they are all that the presets differ in, but for patience; those without notes are this trainer's
own."""


def setting(config: TrainConfig, name: str) -> Any:
    """The value of a setting, by its dotted name; a branch of the tree as a dictionary."""
    value: Any = config.model_dump()
    for key in name.split("."):
        value = value[key]
    return value


def added(part: Part) -> Row:
    """The part of reference, alone, in baseline."""
    changes = {name: setting(PRESETS["reference"], name) for name in part.settings}
    return Row(f"baseline + {part.name}", part.added_to, changes, part.notes, 1 if part.notes else 0)


def removed(part: Part) -> Row:
    """Reference without the part: as in baseline."""
    changes = {name: setting(PRESETS["baseline"], name) for name in part.settings}
    return Row(f"reference - {part.name}", part.removed_from, changes, part.notes, -1 if part.notes else 0)


BASES = (Row("baseline", None), Row("reference", None))

OF_BASELINE = (
    Row("AdamW at SGD's rate", "baseline", {"optimizer.name": "adamw"}, ("point 1",), 1),
    Row(
        "AdamW at 1e-3, beta2 0.999",
        "baseline",
        {"optimizer.name": "adamw", "optimizer.lr": 1e-3, "optimizer.beta2": 0.999},
        ("quick 9",),
        1,
    ),
    Row("learning rate 2e-2", "baseline", {"optimizer.lr": 2e-2}, ("quick 9",), 1),
    Row("weight decay 5e-5", "baseline", {"optimizer.weight_decay": 5e-5}, ("quick 5",), 1),
    Row("sigmoid for all four", "baseline", {"model.output": "sigmoid"}, ("point 2",), 1),
    Row("clamped outputs", "baseline", {"model.output": "clamp"}, ("quick 4",), -1),
    Row("batch 8", "baseline", {"batch_size": 8}, ("quick 1", "point 3"), 1),
    Row("dropout 0.3", "baseline", {"model.dropout": 0.3}, ("point 4",), 1),
    Row("BatchNorm", "baseline", {"model.norm": "batch"}, ("point 9",), 1),
    Row("lambda_iou 3", "baseline", {"loss.lambda_iou": 3.0}, ("point 8",), 1),
    Row(
        "ReduceLROnPlateau",
        "baseline",
        {"schedule.name": "plateau", "schedule.patience": 5},
        ("quick 3", "point 7"),
        1,
    ),
    Row("longer warm-up", "baseline", {"schedule.warmup_epochs": 6.0}, ("point 12",), 1),
    Row("no clipping", "baseline", {"clip_norm": None}, ("point 10",), 1),
    Row("several sizes", "baseline", {"data.scales": (0.75, 1.0, 1.25)}, ("point 14",), 1),
)

OF_REFERENCE = (
    Row("reference, batch 64", "reference", {"batch_size": 64}, ("quick 1",), -1),
    Row("reference, heavy augmentation", "reference", {"augment": "heavy"}, ("quick 2",), 1),
    Row("reference, weight decay 0.01", "reference", {"optimizer.weight_decay": 0.01}, ("quick 5",), 1),
    Row("reference, learning rate 1e-3", "reference", {"optimizer.lr": 1e-3}),
    Row("reference, learning rate 1e-2", "reference", {"optimizer.lr": 1e-2}),
    Row("reference, beta2 0.999", "reference", {"optimizer.beta2": 0.999}, ("quick 9",)),
    Row(
        "reference, SGD with Nesterov",
        "reference",
        {
            "optimizer.name": "sgd",
            "optimizer.nesterov": True,
            "optimizer.lr": 1e-2,
            "optimizer.weight_decay": 5e-4,
        },
    ),
    Row("reference, BatchNorm", "reference", {"model.norm": "batch"}, ("quick 6",), -1),
    Row("reference, no clipping", "reference", {"clip_norm": None}, ("point 10",), 1),
    Row("reference, several sizes", "reference", {"data.scales": (0.75, 1.0, 1.25)}, ("point 14",), 1),
)

FAMILY = tuple(
    Row(f"reference, {kind}", "reference", {"loss.overlap": kind})
    for kind in LOSSES
    if kind != PRESETS["reference"].loss.overlap
)

_QUICK = {"batch_size": 8, "model.dropout": 0.3, "model.output": "sigmoid", "loss.lambda_iou": 3.0}

QUICK_TEST = (
    Row("quick test", "baseline", _QUICK, ("quick test",), 1),
    Row("quick test, AdamW at 1e-2", "baseline", {**_QUICK, "optimizer.name": "adamw"}, ("quick test",), 1),
    Row(
        "quick test, AdamW at 1e-3",
        "baseline",
        {**_QUICK, "optimizer.name": "adamw", "optimizer.lr": 1e-3},
        ("quick test",),
        1,
    ),
)
"""As it was said, with SGD; and with the optimizer mended, at the rate beside it and at a usual one."""


def _in_turn() -> tuple[Row, ...]:
    reference = PRESETS["reference"]
    steps: dict[str, dict[str, Any]] = {
        "AdamW": dict(added(PARTS[0]).changes),
        "decoded outputs": {"model.output": "boxhead"},
        "batch 16": {"batch_size": 16},
        "dropout 0.2": {"model.dropout": 0.2},
        "augmentation": {"augment": setting(reference, "augment")},
        "lambda_iou 3": {"loss.lambda_iou": 3.0},
        "prior bias": {"model.prior": True},
        "cosine": {"schedule.name": "cosine"},
        "EMA": {"ema_decay": reference.ema_decay},
        "GroupNorm": {"model.norm": "group"},
    }
    rows, before = [], "baseline"
    for number, (name, changes) in enumerate(steps.items(), 1):
        rows.append(Row(f"priority {number}: {name}", before, changes, ("priority",), 1))
        before = rows[-1].name
    return tuple(rows)


IN_TURN = _in_turn()

SECTIONS: dict[str, tuple[Row, ...]] = {
    "The two set-ups": BASES,
    "Added alone to baseline": tuple(map(added, PARTS)),
    "Other values in baseline": OF_BASELINE,
    "The quick test": QUICK_TEST,
    "In the order of priority, each against the one before": IN_TURN,
    "Removed alone from reference": tuple(map(removed, PARTS)),
    "Other values in reference": OF_REFERENCE,
    "The IoU family in reference": FAMILY,
}
"""All rows, as they are shown."""

ROWS: dict[str, Row] = {row.name: row for rows in SECTIONS.values() for row in rows}
"""All rows, by name."""
