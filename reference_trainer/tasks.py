"""What is learned: a `Task` is all that the training loop asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from boxreg import box_iou, convert

from . import ranks
from .config import ModelConfig, TrainConfig
from .data.loading import Batch, Collate, Opened, Squares, open_sources, to_batch
from .detection import Detections, one_each
from .drawing import IMAGES_SHOWN, PREDICTION, TARGET, Mark, draw_grid
from .errors import ConfigError
from .grid import Grid
from .model import Prediction, answer, build_model, prepare_images
from .objective import Criterion, Objective


class Scorer(Protocol):
    """Collects what a model answers over a validation set."""

    def add(self, prediction: Any, batch: Any) -> None:
        """Take in the answers of a batch; both are on the device."""
        ...

    def scores(self) -> dict[str, float]:
        """What the answers so far are worth, those of all ranks.

        Image number i of this rank is image `ranks.share(n)[i]` of the split's n.
        """
        ...


class Task(Protocol):
    """All that a run knows of what it is to find.

    Predictions and batches are whatever the task makes them: a batch has `images` and `to(device)`, and comes
    from the task's `collate`; the loop hands both through.
    """

    @property
    def best_by(self) -> str:
        """Name of the score that says which weights are best; higher is better."""
        ...

    @property
    def shown(self) -> Mapping[str, str]:
        """Keys of a row of metrics.jsonl that people see, with their labels.

        Scores of the validation set start with `val_`, means of `figures` with `train_`.
        """
        ...

    @property
    def label(self) -> str:
        """What is trained, in the name of a run's folder."""
        ...

    @property
    def collate(self) -> Collate:
        """Makes a batch of samples."""
        ...

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> Opened:
        """The images, checked.

        Raises:
            DataError: if they are broken, or none is of use.
        """
        ...

    def model_config(self, squares: Squares) -> ModelConfig:
        """The network's settings with those filled in that depend on the training images."""
        ...

    def build_model(self, names: Sequence[str], squares: Squares | None = None) -> nn.Module:
        """The network, for classes of these names; without `squares` to start from it awaits its weights."""
        ...

    def objective(self, prediction: Any, batch: Any) -> Objective:
        """The loss of a batch."""
        ...

    def figures(self, prediction: Any, batch: Any) -> dict[str, Tensor]:
        """Other figures of each image (B,) of a training batch: metrics.jsonl gets their means."""
        ...

    def alone(self, prediction: Any, batch: Any, index: int) -> tuple[Any, Any]:
        """The prediction and the batch that hold one image of these."""
        ...

    def boxes(self, batch: Any) -> list[Tensor]:
        """Each image's target boxes (K, 4), xyxy in pixels."""
        ...

    def scorer(self, names: Sequence[str], confidence: float | None = None) -> Scorer:
        """A new one for a pass over a validation set with classes of these names.

        Where confidence decides what is found, it is the one given, or else the best for that validation set.
        """
        ...

    def find(self, prediction: Any, size: int, confidence: float) -> list[Detections]:
        """What is found in each square image of this size, from a confidence on if that decides."""
        ...

    def draw_batch(self, batch: Any, names: Sequence[str]) -> bytes:
        """A training batch with its targets, as PNG."""
        ...

    def draw_predictions(
        self, model: nn.Module, squares: Squares, device: torch.device, scores: Mapping[str, float]
    ) -> bytes:
        """What a model with these scores, in evaluation mode, finds in the first images, as PNG."""
        ...


class SingleBox:
    """One box an image, scored by its IoU.

    Args:
        config: the run's configuration.

    Raises:
        ConfigError: if its loss names no loss of the IoU family.
    """

    best_by = "mean_iou"
    shown = MappingProxyType({"val_mean_iou": "val IoU", "train_iou": "train IoU"})
    collate = staticmethod(to_batch)

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.criterion = Criterion(config.loss)

    @property
    def label(self) -> str:
        """For the folder's name."""
        return self.config.model.head

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> Opened:
        """The images with exactly one box."""
        return open_sources(self.config.data, self.config.seed, splits)

    def model_config(self, squares: Squares) -> ModelConfig:
        """As it is."""
        return self.config.model

    def build_model(self, names: Sequence[str], squares: Squares | None = None) -> nn.Module:
        """The network, starting from the median box of the images; it does not tell classes apart."""
        prior = squares.prior() if squares else (0.5, 0.5, 0.5, 0.5)
        return build_model(self.config.model, prior)

    def objective(self, prediction: Prediction, batch: Batch) -> Objective:
        """The box loss, and objectness where cells compete."""
        return self.criterion(prediction, batch.targets)

    def figures(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """The IoU of each image's answer."""
        return {"iou": box_iou(answer(prediction)[0], batch.targets, fmt="cxcywh")}

    def alone(self, prediction: Prediction, batch: Batch, index: int) -> tuple[Prediction, Batch]:
        """One image of a batch."""
        one = slice(index, index + 1)
        boxes, objectness = prediction
        return (
            Prediction(boxes[one], None if objectness is None else objectness[one]),
            Batch(batch.images[one], batch.targets[one]),
        )

    def boxes(self, batch: Batch) -> list[Tensor]:
        """The one box of each image."""
        return list(convert(batch.targets, "cxcywh", "xyxy")[:, None] * batch.images.shape[-1])

    def scorer(self, names: Sequence[str], confidence: float | None = None) -> BoxScorer:
        """By IoU; every image gets its one box, however unsure."""
        return BoxScorer()

    def find(self, prediction: Prediction, size: int, confidence: float) -> list[Detections]:
        """The one box of each image, of the one class there is."""
        boxes, sure = answer(prediction)
        return one_each(boxes * size, sure)

    def draw_batch(self, batch: Batch, names: Sequence[str]) -> bytes:
        """Each image with its target."""
        marks = [[Mark(boxes[0].tolist(), TARGET)] for boxes in self.boxes(batch)]
        return draw_grid(batch.images, marks, [""] * len(marks), (TARGET,))

    @torch.no_grad()
    def draw_predictions(
        self, model: nn.Module, squares: Squares, device: torch.device, scores: Mapping[str, float]
    ) -> bytes:
        """Each image with target, answer and their IoU."""
        shown = min(IMAGES_SHOWN, len(squares))
        batch = to_batch([squares[index] for index in range(shown)])
        prediction = model(prepare_images(batch.images.to(device)))
        found = self.find(prediction, batch.images.shape[-1], 0.0)
        marks = [
            [Mark(boxes[0].tolist(), TARGET), Mark(one.boxes[0].tolist(), PREDICTION)]
            for boxes, one in zip(self.boxes(batch), found, strict=True)
        ]
        iou = box_iou(answer(prediction)[0].cpu(), batch.targets, fmt="cxcywh")
        titles = [f"IoU {value:.2f}" for value in iou.tolist()]
        return draw_grid(batch.images, marks, titles, (TARGET, PREDICTION))


class BoxScorer:
    """Mean and median IoU, and the share of images above some IoU."""

    def __init__(self) -> None:
        self._iou: list[Tensor] = []

    def add(self, prediction: Prediction, batch: Batch) -> None:
        """Take in a batch."""
        self._iou.append(box_iou(answer(prediction)[0], batch.targets, fmt="cxcywh").cpu())

    def scores(self) -> dict[str, float]:
        """The IoU of all images so far, in short."""
        iou = ranks.gather(torch.cat([torch.empty(0), *self._iou]))
        shares = {f"iou_over_{bar}": (iou > bar).float().mean().item() for bar in (0.5, 0.75, 0.9)}
        return {"mean_iou": iou.mean().item(), "median_iou": iou.median().item()} | shares


def refuse_grid(config: TrainConfig, command: str) -> None:
    """Say that a command is for one box an image.

    Raises:
        ConfigError: if `config` is of another task.
    """
    if config.task != "single":
        raise ConfigError(f"task: got {config.task!r}, but {command} knows task 'single' only")


def build_task(config: TrainConfig) -> Task:
    """The task that `config` names.

    Raises:
        ConfigError: if its settings contradict each other.
    """
    return SingleBox(config) if config.task == "single" else Grid(config)
