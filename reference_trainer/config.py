"""The configuration: one tree of validated settings, and the presets."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ConfigError
from .files import not_there, read_yaml, write_whole

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]
Task = Literal["single", "grid"]
Output = Literal["raw", "boxes", "detections"]
Assigner = Literal["task_aligned", "anchor_ratio", "responsible_cell"]
AnchorSizes = tuple[tuple[tuple[float, float], ...], ...]

ASSIGNERS: dict[str, Assigner] = {
    "cell": "responsible_cell",
    "yolov3": "responsible_cell",
    "yolov5": "anchor_ratio",
    "ltrb": "task_aligned",
    "dfl": "task_aligned",
}
"""Each decoder of the grid task with the assignment of the detectors that it comes from."""

WITH_ANCHORS = ("yolov3", "yolov5")

FINEST_STRIDE = 8
"""Pixels per cell of the finest level of the grid task; of each further one twice as many."""

STRIDE, SMALLEST_SIDE = 16, 32
"""Sides of training pictures are multiples of the first, at least the second."""

LARGEST_FACTOR = 8
"""A scale from here on is meant in pixels."""

_SHOWN = 3

PATIENCE = 20
"""Epochs of patience if no setting says it."""


class Settings(BaseModel):
    """A branch of the tree: unknown keys are refused, values are checked, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def refuse_unused(self, name: str, why: str) -> None:
        """Refuse a setting that was given although nothing reads it; what it is by default passes."""
        if getattr(self, name) != type(self).model_fields[name].default:
            raise ValueError(f"{name}: got {getattr(self, name)}, but {why}")


class DataConfig(Settings):
    """Where the pictures come from and how large they are."""

    path: Annotated[Path | None, tyro.conf.arg(aliases=["--data"], metavar="PATH")] = None
    """YOLO (a folder with data.yaml), COCO (a JSON file or its folder) or Pascal VOC (a folder); without one
    the toy pictures are generated. One picture in five is validated on if the data does not say which."""
    on_error: Literal["stop", "skip"] = "stop"
    """stop: list all that is wrong with the data, train nothing; skip: leave out each bad box or picture."""
    size: Annotated[int, Field(ge=SMALLEST_SIDE)] = 128
    """Side of the square that pictures are letterboxed to, in pixels; a multiple of 16."""
    scales: tuple[Positive, ...] = ()
    """Multi-scale training: each step draws one of these sides, in pixels or, below 8, as factors of size
    (then brought to multiples of 16), such as 0.92 1 1.08. Validation keeps to size."""
    pictures: Annotated[int, Field(ge=5)] = 1200
    """Toy pictures to generate: four fifths to train on, the rest to validate."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that augment pictures, 0 for none; if not given, the cores beyond 2, up to 4."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # A run is evaluated from other folders than the one it was started in.
        return path and path.expanduser().resolve()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides that training draws from, in pixels; none if all is trained at `size`."""
        sides = (
            round(scale * self.size / STRIDE) * STRIDE if scale < LARGEST_FACTOR else scale
            for scale in self.scales
        )
        return tuple(sorted({int(side) for side in sides}))

    @model_validator(mode="after")
    def _sizes_fit_stride(self) -> Self:
        if self.size % STRIDE:
            raise ValueError(f"size: got {self.size}, expected a multiple of {STRIDE} (the model's stride)")
        for scale in self.scales:
            in_pixels = scale >= LARGEST_FACTOR
            if in_pixels and (scale % STRIDE or scale < SMALLEST_SIDE):
                raise ValueError(
                    f"scales: got {scale:g}, expected a multiple of {STRIDE}, at least {SMALLEST_SIDE}, or a "
                    f"factor below {LARGEST_FACTOR}"
                )
            if not in_pixels and scale * self.size < SMALLEST_SIDE:
                raise ValueError(
                    f"scales: got {scale:g}, of {self.size} pixels less than the {SMALLEST_SIDE} needed"
                )
        return self

    @model_validator(mode="after")
    def _pictures_are_toys(self) -> Self:
        if self.path is not None:
            self.refuse_unused("pictures", f"none is generated: they come from {self.path}")
        else:
            self.refuse_unused("on_error", "generated pictures have no errors")
        return self


class AugmentConfig(Settings):
    """How strongly training pictures vary; 0 switches an augmentation off."""

    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    vflip: Share = 0.5
    """Probability of a vertical flip."""
    dflip: Share = 0.5
    """Probability of a flip along the diagonal, which turns a picture on its side."""
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest shift, as a share of the side; edge pixels fill what comes free."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Zoom by a factor between 1 - scale and 1 + scale."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Smallest share of the side that a random crop keeps; 1 keeps all."""
    rotate: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Largest angle to rotate by, in degrees; boxes are drawn anew around their rotated corners. A picture
    with an object at its edge stays upright."""
    colour: Share = 0.3
    """Probability of the colour jitter."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Brightness factor between 1 - x and 1 + x."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Contrast factor between 1 - x and 1 + x."""
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Saturation factor between 1 - x and 1 + x."""
    blur: NotNegative = 0.0
    """Largest standard deviation of a Gaussian blur, in pixels."""
    noise: Share = 0.0
    """Largest standard deviation of Gaussian noise, as a share of the range of a pixel."""

    @model_validator(mode="after")
    def _colour_has_a_strength(self) -> Self:
        if self.colour and not (self.brightness or self.contrast or self.saturation):
            raise ValueError(
                f"colour: got {self.colour}, but brightness, contrast and saturation are all 0; "
                "set one of them, or colour to 0"
            )
        return self


class ModelConfig(Settings):
    """The network."""

    head: Literal["dense", "pooled"] = "dense"
    """Task single. dense: a box and an objectness from every cell of the last map; pooled: one vector, one
    box."""
    output: Literal["boxhead", "sigmoid", "clamp", "linear"] = "boxhead"
    """Task single. boxhead: boxreg's, sigmoid for centres and softplus for sizes. The others are for one
    vector, one box: sigmoid for all four; clamp: cut off at 0 and 1, with no gradient beyond; linear: as
    they are."""
    prior: bool = True
    """Task single. Start the head at the median box of the training pictures; False starts it anywhere."""
    decoder: Literal["cell", "yolov3", "yolov5", "ltrb", "dfl"] = "cell"
    """Task grid: what the raw numbers of a cell stand for. cell: centre in or near the cell; yolov3, yolov5:
    three anchors; ltrb: distances of the sides; dfl: distributions of these."""
    assigner: Assigner | None = None
    """Task grid: which predictions answer for an object. If not given, that of the detectors which have the
    decoder: responsible_cell for cell and yolov3, anchor_ratio for yolov5, task_aligned for ltrb and dfl.
    With task_aligned classes alone score; with the others there is objectness."""
    levels: Annotated[int, Field(ge=1, le=3)] = 1
    """Task grid: maps that predict, of 8, 16 and 32 pixels a cell."""
    anchors: Annotated[AnchorSizes | None, tyro.conf.Suppress] = None
    """Task grid, yolov3 and yolov5: (width, height) in pixels of the square, of each level as many; if not
    given, found from the training boxes."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    """Channels of the first stage; each of the four stages doubles them."""
    norm: Literal["group", "batch", "layer", "none"] = "group"
    """Normalisation after each convolution: over eight groups of channels, over the pictures of a batch (of
    all GPUs), over all channels, or none."""
    activation: Literal["silu", "leaky_relu"] = "silu"
    """Activation after each convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the head."""

    @property
    def own_assigner(self) -> Assigner:
        """The assigner named, or that of the decoder."""
        return self.assigner or ASSIGNERS[self.decoder]

    @model_validator(mode="after")
    def _anchors_are_read(self) -> Self:
        if self.decoder in WITH_ANCHORS:
            if self.anchors is not None and len(self.anchors) != self.levels:
                raise ValueError(
                    f"anchors: got those of {len(self.anchors)} levels, but levels is {self.levels}"
                )
            return self
        self.refuse_unused("anchors", f"decoder {self.decoder!r} has none")
        if self.assigner == "anchor_ratio":
            with_anchors = " or ".join(map(repr, WITH_ANCHORS))
            raise ValueError(
                f"assigner: got 'anchor_ratio', but decoder {self.decoder!r} has no anchors; "
                f"set decoder to {with_anchors}, or assigner to another"
            )
        return self

    @model_validator(mode="after")
    def _dense_is_decoded(self) -> Self:
        if self.head == "dense" and self.output != "boxhead":
            raise ValueError(
                f"head 'dense' with output {self.output!r}: a cell's numbers are no box of the picture; "
                "set output to 'boxhead', or head to 'pooled'"
            )
        return self


class LossConfig(Settings):
    """The terms of the loss and their lambdas."""

    overlap: str = "ciou"
    """A row of boxreg's IoU family: iou, giou, diou, ciou, eiou, siou, wiou, mpdiou, shapeiou, nwd."""
    nwd_constant: Positive = 0.3
    """Overlap nwd: its constant, as a share of the picture's side; the usual size of the objects."""
    lambda_coord: NotNegative = 1.0
    """Factor of the centre term."""
    lambda_wh: NotNegative = 1.0
    """Factor of the size term."""
    lambda_iou: NotNegative = 5.0
    """Factor of the overlap term."""
    lambda_obj: NotNegative = 1.0
    """Factor of objectness where there is an object: in task single, in the cells near its centre."""
    lambda_noobj: NotNegative = 0.5
    """Factor of objectness in all other cells."""
    lambda_class: NotNegative = 1.0
    """Task grid: factor of the class term."""
    lambda_dfl: NotNegative = 1.0
    """Task grid, decoder dfl: factor of the distribution focal loss."""
    distance: Literal["mse", "smooth_l1", "l1"] = "smooth_l1"
    """What centre and size terms do with a difference."""
    size: Literal["wh", "sqrt_wh"] = "wh"
    """Compare sizes, or their square roots as in YOLOv1."""

    @model_validator(mode="after")
    def _boxes_are_learned(self) -> Self:
        if not (self.lambda_coord or self.lambda_wh or self.lambda_iou):
            raise ValueError("lambda_coord, lambda_wh, lambda_iou: all are 0, so no box would be learned")
        return self


class OptimizerConfig(Settings):
    """The optimizer; what is reported after a run is read from the live object."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with momentum."""
    lr: Positive = 3e-3
    """Peak learning rate."""
    weight_decay: NotNegative = 0.1
    """Weight decay of the parameters that decay."""
    exempt: bool = True
    """Keep weight decay off norms and biases (boxreg.param_groups); False decays everything."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum, AdamW's beta1."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """AdamW's beta2, 0.99 to 0.999; SGD has none."""
    nesterov: bool = False
    """SGD: look ahead along the momentum, as Nesterov does."""

    @model_validator(mode="after")
    def _beta2_is_adamws(self) -> Self:
        if self.name == "sgd":
            self.refuse_unused("beta2", "sgd has no beta2; set name to 'adamw' or leave it out")
        return self

    @model_validator(mode="after")
    def _nesterov_is_sgds(self) -> Self:
        if self.name != "sgd":
            self.refuse_unused("nesterov", f"{self.name} has none; set name to 'sgd' or leave it out")
        elif self.nesterov and not self.momentum:
            raise ValueError("nesterov: got True, but momentum is 0; set momentum, or leave nesterov out")
        return self


class ScheduleConfig(Settings):
    """The learning rate over the run: of each optimizer step."""

    name: Literal["constant", "steps", "cosine", "onecycle", "plateau"] = "cosine"
    """constant; steps: the peak, from 4/7 of the run a tenth of it, from 11/14 a hundredth; cosine to 0;
    onecycle: from 1/25 of the peak up to it and down to nearly nothing, both along a cosine; plateau: times
    `factor` whenever `patience` validations brought nothing better. All after their warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Warm-up in optimizer steps: linear, of onecycle the rise. If neither this nor warmup_epochs is given:
    30 % of the run for onecycle, 1/28 of it for steps, else 200 steps or at most a fifth of it."""
    warmup_epochs: NotNegative | None = None
    """Warm-up in epochs instead."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """plateau: what the learning rate is multiplied by."""
    patience: Annotated[int, Field(ge=0)] = 3
    """plateau: validations without a better score that pass; the next one lowers the rate."""
    min_delta: NotNegative = 0.0
    """plateau: how much higher a score has to be to be better."""

    @model_validator(mode="after")
    def _warmup_is_said_once(self) -> Self:
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError(
                f"warmup_steps: got {self.warmup_steps}, and warmup_epochs: got {self.warmup_epochs:g}; "
                "give one of them, and None for the other"
            )
        return self

    @model_validator(mode="after")
    def _reductions_are_a_plateaus(self) -> Self:
        if self.name != "plateau":
            for name in ("factor", "patience", "min_delta"):
                self.refuse_unused(name, f"schedule {self.name!r} does not read it; set name to 'plateau'")
        return self


class TrainConfig(Settings):
    """Everything that decides a training run."""

    task: Task = "single"
    """single: the one box of each picture; grid: any number of boxes of several classes."""
    epochs: Count = 70
    """Passes over the training pictures."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides pictures, weights, order and augmentation."""
    device: Device = "auto"
    """Where to train; auto takes CUDA where there is one."""
    out: Path = Path("runs")
    """Folder that the run's own folder is made in."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of forward and backward pass: auto takes bf16 on GPUs that have it, else fp16, and fp32 on the CPU."""
    batch_size: Count = 16
    """Pictures an optimizer step."""
    accumulate: Count = 1
    """Parts that the pictures of a step are worked on in, one after another, to save memory; the gradient is
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
    """Save the state of the run after so many optimizer steps too, not only after each epoch."""
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
            raise ValueError("data.scales: decoder 'cell' knows one size of pictures; set decoder to another")
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
    def _parts_have_pictures(self) -> Self:
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
        """The patience in epochs of so many steps."""
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
    # What leaves photographs likely: no picture upside down or on its side.
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

GRID = TrainConfig(task="grid", epochs=50, model=ModelConfig(decoder="ltrb", levels=2))

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
    # Photographs: larger, with smaller objects in them, and not to be turned upside down. Small sets have few
    # steps an epoch, and nothing is found for many epochs.
    "photos": GRID.model_copy(
        update={
            "patience": GRID.epochs,
            "data": DataConfig(size=256),
            "augment": AugmentConfig(vflip=0, dflip=0, scale=0.4),
            "model": GRID.model.model_copy(update={"levels": 3}),
        }
    ),
}


def load_config(path: Path) -> TrainConfig:
    """Read a configuration that `save_config` wrote, or one written by hand; missing keys keep their default.

    Raises:
        ConfigError: if the file cannot be read, is no YAML mapping, or holds an unknown or wrong value.
    """
    if not path.exists():
        raise ConfigError(not_there(path))
    try:
        tree = read_yaml(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(tree).__name__}")
    return parse_config(tree, f"{path}: ")


def parse_config(tree: Mapping[str, Any], where: str = "") -> TrainConfig:
    """The configuration that a tree of settings spells.

    Raises:
        ConfigError: if it holds an unknown or wrong value; each line starts with `where`.
    """
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}{line}" for line in explain(error))) from error


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    write_whole(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def explain(error: ValidationError) -> Iterator[str]:
    """One line a fault: where it is, what is wrong, and for an unknown key the nearest known one."""
    faults = error.errors()
    listed: list[list[str]] = []
    for fault in faults[:_SHOWN]:
        where = ".".join(map(str, (*_branch(error.title), *fault["loc"])))
        if fault["type"] == "value_error":  # ours: it says what came
            yield f"{where}: {fault['msg'].removeprefix('Value error, ')}"
            continue
        if fault["type"] != "extra_forbidden":
            yield f"{where}: {fault['msg']} (got {fault['input']!r})"
            continue
        known = _keys(fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        # The list of all of them is long: once is enough.
        hint = (
            f"; did you mean {near[0]!r}?"
            if near
            else ""
            if known in listed
            else f"; known are {', '.join(known)}"
        )
        listed += [] if near else [known]
        yield f"{where}: unknown setting{hint}"
    if len(faults) > _SHOWN:
        yield f"and {len(faults) - _SHOWN} more"


def _branch(title: str) -> list[str]:
    """Where the branch is that was checked by itself, and not as part of the whole tree."""
    fields = TrainConfig.model_fields.items()
    return [name for name, field in fields if getattr(field.annotation, "__name__", "") == title]


def _keys(location: tuple[Any, ...]) -> list[str]:
    branch: type[Settings] = TrainConfig
    for key in location:
        branch = cast("type[Settings]", branch.model_fields[key].annotation)
    return list(branch.model_fields)
