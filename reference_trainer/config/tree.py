"""The whole configuration of a run: what is of no branch, and what the branches must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .branches import (
    FINEST_STRIDE,
    AugmentConfig,
    Count,
    DataConfig,
    Device,
    LossConfig,
    ModelConfig,
    NotNegative,
    OptimizerConfig,
    Positive,
    ScheduleConfig,
    Settings,
    Task,
)

PATIENCE = 20
"""Epochs of patience if no setting says it."""


class TrainConfig(Settings):
    """Everything that decides a training run."""

    task: Task = "single"
    """single: the one box of each image; grid: any number of boxes of several classes."""
    epochs: Count = 70
    """Passes over the training images."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides images, weights, order and augmentation."""
    device: Device = "auto"
    """Where to train; auto takes CUDA where there is one."""
    out: Path = Path("runs")
    """Folder that the run's own folder is made in."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """In forward and backward: auto takes bf16 on GPUs that have it, else fp16, and fp32 on the CPU."""
    batch_size: Count = 16
    """Images an optimizer step."""
    accumulate: Count = 1
    """Parts that the images of a step are worked on in, one after another, to save memory; the gradient is
    that of all of them. BatchNorm, if there is any, sees a part at a time."""
    clip_norm: Positive | None = 4.0
    """Clip the gradient to this norm; None does not clip."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the averaged weights that validate and are saved; 0 averages nothing."""
    patience: Count | None = None
    """Stop after this many epochs without a better validation score; 20 if patience_steps is not given."""
    patience_steps: Count | None = None
    """The same in optimizer steps instead, rounded up to whole epochs."""
    min_delta: NotNegative = 0.0
    """How much higher than before a validation score must be for patience to start anew."""
    validate_every: Count = 3
    """Epochs between validations; the last epoch always validates."""
    save_every: Count | None = None
    """Save the state of the run every this many optimizer steps too, not only after each epoch."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _settings_are_of_the_task(self) -> Self:
        if self.task == "single":
            for settings, names in (
                (self.model, ("decoder", "assigner", "levels", "anchors")),
                (self.loss, ("lambda_class", "lambda_dfl")),
            ):
                for name in names:
                    settings.refuse_unused(name, "task 'single' does not read it; set task to 'grid'")
            self._objectness_is_there(self.model.head != "pooled", "head 'pooled'", "head to 'dense'")
            return self
        for name in ("head", "output", "prior"):
            self.model.refuse_unused(name, "task 'grid' does not read it; set task to 'single'")
        aligned = self.model.own_assigner == "task_aligned"
        self._objectness_is_there(not aligned, "assigner 'task_aligned'", "assigner to another")
        if self.model.decoder != "dfl":
            self.loss.refuse_unused("lambda_dfl", f"decoder {self.model.decoder!r} has no distributions")
        if self.data.scales and self.model.decoder == "cell":
            raise ValueError("data.scales: decoder 'cell' knows one size of images; set decoder to another")
        coarsest = FINEST_STRIDE * 2 ** (self.model.levels - 1)
        for name, sides in (("size", (self.data.size,)), ("scales", self.data.sizes)):
            for side in sides:
                if side % coarsest:
                    raise ValueError(
                        f"data.{name}: got {side}, expected a multiple of {coarsest}, the cell of the "
                        f"coarsest of {self.model.levels} levels"
                    )
        return self

    def _objectness_is_there(self, there: bool, without: str, instead: str) -> None:
        for name in () if there else ("lambda_obj", "lambda_noobj"):
            self.loss.refuse_unused(name, f"{without} has no objectness; set {instead} or leave it out")

    @model_validator(mode="after")
    def _parts_have_images(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate: got {self.accumulate}, expected at most batch_size, {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _patience_is_said_once(self) -> Self:
        if self.patience is not None and self.patience_steps is not None:
            raise ValueError(
                f"patience: got {self.patience}, and patience_steps: got {self.patience_steps}; "
                "give one of them, and None for the other"
            )
        return self

    def patience_epochs(self, steps: int) -> int:
        """The patience in epochs of the given steps."""
        if self.patience_steps is not None:
            return -(-self.patience_steps // steps)
        return self.patience or PATIENCE

    def resolved(
        self,
        device: str,
        workers: int,
        warmup_steps: int,
        model: ModelConfig,
        precision: Literal["fp32", "bf16", "fp16"],
        epoch_steps: int,
    ) -> Self:
        """The same with the settings filled in that are decided when a run starts."""
        return self.model_copy(
            update={
                "device": device,
                "precision": precision,
                "patience": self.patience_epochs(epoch_steps),
                "patience_steps": None,
                "data": self.data.model_copy(update={"workers": workers, "scales": self.data.sizes}),
                "schedule": self.schedule.model_copy(
                    update={"warmup_steps": warmup_steps, "warmup_epochs": None}
                ),
                "model": model,
            }
        )
