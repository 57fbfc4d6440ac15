"""Settings by name: strengths of augmentation, and whole configurations to start from."""

from __future__ import annotations

from .branches import AugmentConfig, DataConfig, LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from .tree import TrainConfig

AUGMENTATIONS: dict[str, AugmentConfig] = {
    "off": AugmentConfig(
        hflip=0,
        vflip=0,
        dflip=0,
        translate=0,
        scale=0,
        crop=1,
        colour=0,
        brightness=0,
        contrast=0,
        saturation=0,
    ),
    # What leaves photographs likely: no image upside down or on its side.
    "light": AugmentConfig(vflip=0, dflip=0, translate=0.05, scale=0.1, crop=0.95),
    "default": AugmentConfig(),
    "heavy": AugmentConfig(
        translate=0.2,
        scale=0.4,
        rotate=10,
        colour=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        blur=1.0,
        noise=0.05,
    ),
}
"""Strengths by name."""

GRID = TrainConfig(task="grid", epochs=50, patience=15, model=ModelConfig(decoder="ltrb", levels=2))

PRESETS: dict[str, TrainConfig] = {
    "reference": TrainConfig(),
    # The set-up that got stuck, faults included: SGD where its note said AdamW, linear outputs on [0, 1]
    # targets, batch 4, dropout 0.5, no norm, no augmentation, lambdas 5/5/1, fixed steps, clip 1.
    "baseline": TrainConfig(
        batch_size=4,
        clip_norm=1.0,
        ema_decay=0.0,
        patience=25,
        augment=AUGMENTATIONS["off"],
        model=ModelConfig(
            head="pooled", output="linear", prior=False, norm="none", activation="leaky_relu", dropout=0.5
        ),
        loss=LossConfig(lambda_coord=5.0, lambda_wh=5.0, lambda_iou=1.0, distance="mse"),
        optimizer=OptimizerConfig(name="sgd", lr=1e-2, weight_decay=5e-4, exempt=False),
        schedule=ScheduleConfig(name="steps"),
    ),
    "grid": GRID,
    # Photographs: larger, with smaller objects in them, and not to be turned upside down. Small datasets
    # have few steps an epoch, and nothing is found for many epochs.
    "photos": GRID.model_copy(
        update={
            "patience": GRID.epochs,
            "data": DataConfig(size=256),
            "augment": AugmentConfig(vflip=0, dflip=0, scale=0.4),
            "model": GRID.model.model_copy(update={"levels": 3}),
        }
    ),
}
