"""What is learned: a `Task` is all that the training loop asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from boxreg import box_iou, convert

from .config import TrainConfig
from .data.loading import Batch, Collate, Opened, Squares, open_sources, to_batch
from .drawing import PICTURES_SHOWN, draw_batch, draw_predictions
from .model import Prediction, answer, build_model, prepare_images
from .objective import Criterion, Objective


class Scorer(Protocol):
    """Collects what a model answers over a validation set."""

    def add(self, prediction: Any, batch: Any) -> None:
        """Take in the answers of a batch; both are on the device."""
        ...

    def scores(self) -> dict[str, float]:
        """What the answers so far are worth."""
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
    def collate(self) -> Collate:
        """Makes a batch of samples."""
        ...

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> Opened:
        """The pictures, checked.

        Raises:
            DataError: if they are broken, or none is of use.
        """
        ...

    def build_model(self, names: Sequence[str], pictures: Squares | None = None) -> nn.Module:
        """The network, for classes of these names; without `pictures` to start from it awaits its weights."""
        ...

    def objective(self, prediction: Any, batch: Any) -> Objective:
        """The loss of a batch."""
        ...

    def figures(self, prediction: Any, batch: Any) -> dict[str, Tensor]:
        """Other figures of a training batch, each (K,): metrics.jsonl gets their means over the epoch."""
        ...

    def alone(self, prediction: Any, batch: Any, index: int) -> tuple[Any, Any]:
        """The prediction and the batch that hold one picture of these."""
        ...

    def boxes(self, batch: Any) -> list[Tensor]:
        """Each picture's target boxes (K, 4), xyxy in pixels."""
        ...

    def scorer(self) -> Scorer:
        """A new one for a pass over the validation set."""
        ...

    def draw_batch(self, batch: Any) -> bytes:
        """A training batch with its targets, as PNG."""
        ...

    def draw_predictions(self, model: nn.Module, pictures: Squares, device: torch.device) -> bytes:
        """What a model, in evaluation mode, finds in the first pictures, as PNG."""
        ...


class SingleBox:
    """One box a picture, scored by its IoU.

    Args:
        config: of the run.

    Raises:
        ConfigError: if its loss names no row of the IoU family.
    """

    best_by = "mean_iou"
    shown = MappingProxyType({"val_mean_iou": "val IoU", "train_iou": "train IoU"})
    collate = staticmethod(to_batch)

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.criterion = Criterion(config.loss)

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> Opened:
        """The pictures with exactly one box."""
        return open_sources(self.config.data, self.config.seed, splits)

    def build_model(self, names: Sequence[str], pictures: Squares | None = None) -> nn.Module:
        """The network, starting from the median box of the pictures; it does not tell classes apart."""
        prior = pictures.prior() if pictures else (0.5, 0.5, 0.5, 0.5)
        return build_model(self.config.model, prior)

    def objective(self, prediction: Prediction, batch: Batch) -> Objective:
        """The box loss, and objectness where cells compete."""
        return self.criterion(prediction, batch.targets)

    def figures(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """The IoU of each picture's answer."""
        return {"iou": box_iou(answer(prediction)[0], batch.targets, fmt="cxcywh")}

    def alone(self, prediction: Prediction, batch: Batch, index: int) -> tuple[Prediction, Batch]:
        """One picture of a batch."""
        one = slice(index, index + 1)
        boxes, objectness = prediction
        return (
            Prediction(boxes[one], None if objectness is None else objectness[one]),
            Batch(batch.images[one], batch.targets[one]),
        )

    def boxes(self, batch: Batch) -> list[Tensor]:
        """The one box of each picture."""
        return list(convert(batch.targets, "cxcywh", "xyxy")[:, None] * batch.images.shape[-1])

    def scorer(self) -> BoxScorer:
        """Scores by IoU."""
        return BoxScorer()

    def draw_batch(self, batch: Batch) -> bytes:
        """Each picture with its target."""
        return draw_batch(batch.images, batch.targets)

    @torch.no_grad()
    def draw_predictions(self, model: nn.Module, pictures: Squares, device: torch.device) -> bytes:
        """Each picture with target, answer and their IoU."""
        shown = min(PICTURES_SHOWN, len(pictures))
        images, targets = to_batch([pictures[index] for index in range(shown)])
        boxes = answer(model(prepare_images(images.to(device))))[0].cpu()
        return draw_predictions(images, targets, boxes, box_iou(boxes, targets, fmt="cxcywh"))


class BoxScorer:
    """Mean and median IoU, and the share of pictures above some IoU."""

    def __init__(self) -> None:
        self._iou: list[Tensor] = []

    def add(self, prediction: Prediction, batch: Batch) -> None:
        """Take in a batch."""
        self._iou.append(box_iou(answer(prediction)[0], batch.targets, fmt="cxcywh").cpu())

    def scores(self) -> dict[str, float]:
        """The IoU of all pictures so far, in short."""
        iou = torch.cat(self._iou)
        shares = {f"iou_over_{bar}": (iou > bar).float().mean().item() for bar in (0.5, 0.75, 0.9)}
        return {"mean_iou": iou.mean().item(), "median_iou": iou.median().item()} | shares


def build_task(config: TrainConfig) -> Task:
    """The task that `config` names.

    Raises:
        ConfigError: if its settings contradict each other.
    """
    return SingleBox(config)
