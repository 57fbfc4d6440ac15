"""The branches of the configuration: data, augmentation, model, loss, optimizer, schedule.

A setting is one field; the docstring under it is also its help text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import tyro
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

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
"""Pixels per cell of the finest level of the grid task; each further level has twice as many."""

STRIDE, SMALLEST_SIDE = 16, 32
"""Sides of training images are multiples of the first, at least the second."""

LARGEST_FACTOR = 8
"""A scale from here on is meant in pixels."""


class Settings(BaseModel):
    """A branch of the tree: unknown keys are refused, values are checked, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def refuse_unused(self, name: str, why: str) -> None:
        """Refuse a setting that was given although nothing reads it; what it is by default passes."""
        if getattr(self, name) != type(self).model_fields[name].default:
            raise ValueError(f"{name}: got {getattr(self, name)}, but {why}")


class DataConfig(Settings):
    """Where the images come from and how large they are."""

    path: Annotated[Path | None, tyro.conf.arg(aliases=["--data"], metavar="PATH")] = None
    """YOLO (a folder with data.yaml), COCO (a JSON file or its folder) or Pascal VOC (a folder); without one
    the toy images are generated. One image in five is validated on if the data does not say which."""
    on_error: Literal["stop", "skip"] = "stop"
    """stop: list all that is wrong with the data, train nothing; skip: leave out each bad box or image."""
    size: Annotated[int, Field(ge=SMALLEST_SIDE)] = 128
    """Side of the square that images are letterboxed to, in pixels; a multiple of 16."""
    scales: tuple[Positive, ...] = ()
    """Multi-scale training: each step draws one of these sides, in pixels or, below 8, as factors of size
    (then brought to multiples of 16), such as 0.92 1 1.08. Validation keeps to size."""
    images: Annotated[int, Field(ge=5)] = 1200
    """Toy images to generate: four fifths to train on, the rest to validate."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that augment images, 0 for none; if not given, the cores beyond 2, up to 4."""

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
    def _images_are_toys(self) -> Self:
        if self.path is not None:
            self.refuse_unused("images", f"none is generated: they come from {self.path}")
        else:
            self.refuse_unused("on_error", "generated images have no errors")
        return self


class AugmentConfig(Settings):
    """How strongly training images vary; 0 switches an augmentation off.

    One object of each image stays whole. Others are cut at the new edges, and removed with their labels
    if less than a quarter of them is left, or less than 2 pixels either way.
    """

    hflip: Share = 0.5
    """Probability of a horizontal flip."""
    vflip: Share = 0.5
    """Probability of a vertical flip."""
    dflip: Share = 0.5
    """Probability of a flip along the diagonal, which turns an image on its side."""
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest shift, as a share of the side; edge pixels fill what comes free."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Zoom by a factor between 1 - scale and 1 + scale."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Smallest share of the side that a random crop keeps; 1 keeps all."""
    rotate: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Largest angle to rotate by, in degrees; boxes are drawn anew around their rotated corners. An image
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
    """Task single. Start the head at the median box of the training images; False starts it anywhere."""
    decoder: Literal["cell", "yolov3", "yolov5", "ltrb", "dfl"] = "cell"
    """Task grid: what the raw outputs of a cell stand for. cell: centre in or near the cell; yolov3, yolov5:
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
    """Normalisation after each convolution: over eight groups of channels, over the images of a batch (of
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
                f"head 'dense' with output {self.output!r}: a cell's numbers are no box of the image; "
                "set output to 'boxhead', or head to 'pooled'"
            )
        return self


class LossConfig(Settings):
    """The terms of the loss and their lambdas."""

    overlap: str = "ciou"
    """A loss of boxreg's IoU family: iou, giou, diou, ciou, eiou, siou, wiou, mpdiou, shapeiou, nwd."""
    nwd_constant: Positive = 0.3
    """Overlap nwd: its constant, as a share of the image's side; the usual size of the objects."""
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
    """The learning rate of each optimizer step over the run."""

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
