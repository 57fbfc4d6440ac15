"""The task of any number of boxes of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from boxreg import (
    AnchorRatioAssigner,
    DensePrediction,
    ResponsibleCellAssigner,
    Targets,
    TaskAlignedAssigner,
    YOLOLoss,
    pad_targets,
)
from boxreg.assigners import Assigner

from . import ranks
from .config import WITH_ANCHORS, ModelConfig, TrainConfig
from .data.loading import ObjectBatch, Opened, Squares, open_objects, to_object_batch
from .detection import LEAST_CONFIDENCE, DetectionMetrics, Detections, detect
from .drawing import IMAGES_SHOWN, PREDICTION, TARGET, Mark, draw_grid
from .errors import ConfigError
from .grid_model import GridDetector, boxes_per_cell, known_sizes, typical_sizes
from .model import prepare_images
from .objective import Objective, overlap_parameters

RESPONSIBLE_BY = "giou"
"""It tells boxes apart that do not overlap the object, as those of an untrained network."""


class Grid:
    """Any number of boxes an image, of one or more classes, scored by average precision.

    Args:
        config: the run's configuration.

    Raises:
        ConfigError: if its loss names no loss of the IoU family.
    """

    best_by = "ap"
    shown = MappingProxyType({"val_ap50": "val AP50", "val_ap": "val AP", "val_mean_iou": "val IoU"})
    collate = staticmethod(to_object_batch)

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        loss = config.loss
        try:
            self.criterion = YOLOLoss(
                assigner_of(config.model),
                loss.overlap,
                lambda_coord=loss.lambda_coord,
                lambda_wh=loss.lambda_wh,
                lambda_iou=loss.lambda_iou,
                lambda_obj=loss.lambda_obj,
                lambda_noobj=loss.lambda_noobj,
                lambda_class=loss.lambda_class,
                lambda_dfl=loss.lambda_dfl,
                distance=loss.distance,
                size=loss.size,
                **overlap_parameters(loss, config.data.size),
            )
        except ValueError as error:
            raise ConfigError(f"loss.{error}") from error

    @property
    def label(self) -> str:
        """For the folder's name."""
        return f"grid-{self.config.model.decoder}"

    def open_data(self, splits: Sequence[str] = ("train", "val")) -> Opened:
        """All images, those without an object too; what scores them must be there before."""
        DetectionMetrics([])
        return open_objects(self.config.data, self.config.seed, splits)

    def model_config(self, squares: Squares) -> ModelConfig:
        """With the assigner named, and anchors found from the training boxes."""
        model = self.config.model
        found: dict[str, Any] = {"assigner": model.own_assigner}
        if model.decoder in WITH_ANCHORS and model.anchors is None:
            found["anchors"] = self._sizes(squares)
        return model.model_copy(update=found)

    def _sizes(self, squares: Squares) -> Any:
        model = self.config.model
        return typical_sizes(squares.first_boxes(), model.levels, boxes_per_cell(model))

    def build_model(self, names: Sequence[str], squares: Squares | None = None) -> nn.Module:
        """The network, starting from the sizes and the number of the training boxes."""
        model, size = self.config.model, self.config.data.size
        if squares is None:
            return GridDetector(model, size, len(names))
        objects = float(squares.source.box_counts.mean())
        return GridDetector(model, size, len(names), model.anchors or self._sizes(squares), objects)

    def objective(self, prediction: DensePrediction, batch: ObjectBatch) -> Objective:
        """Assignment, and the loss of boxes, objectness and classes."""
        # A rank may have no image of the last batch.
        none = torch.zeros(0, 4, device=batch.images.device)
        targets = pad_targets(batch.boxes or [none], batch.labels or [none[:, 0].long()])
        terms = self.criterion(prediction, Targets(*(part[: len(batch.images)] for part in targets)))
        positives = ranks.all_reduce_sum(terms.positives.to(terms.total)).clamp(min=1) / ranks.world_size()
        return Objective(terms.total, terms.unweighted, terms.weighted, positives)

    def figures(self, prediction: DensePrediction, batch: ObjectBatch) -> dict[str, Tensor]:
        """None: the terms of the loss say it all."""
        return {}

    def alone(
        self, prediction: DensePrediction, batch: ObjectBatch, index: int
    ) -> tuple[DensePrediction, ObjectBatch]:
        """One image of a batch."""
        one = slice(index, index + 1)
        boxes, objectness, classes, bins = (None if part is None else part[one] for part in prediction[:4])
        assert boxes is not None
        return (
            DensePrediction(boxes, objectness, classes, bins, prediction.levels),
            ObjectBatch(batch.images[one], batch.boxes[one], batch.labels[one]),
        )

    def boxes(self, batch: ObjectBatch) -> list[Tensor]:
        """The target boxes."""
        return batch.boxes

    def scorer(self, names: Sequence[str], confidence: float | None = None) -> GridScorer:
        """By average precision."""
        return GridScorer(names, confidence)

    def find(self, prediction: DensePrediction, size: int, confidence: float) -> list[Detections]:
        """What is confident enough."""
        return detect(prediction, (size, size), confidence=max(confidence, LEAST_CONFIDENCE))

    def draw_batch(self, batch: ObjectBatch, names: Sequence[str]) -> bytes:
        """Each image with its objects."""
        parts = zip(batch.boxes, batch.labels, strict=True)
        marks = [marks_of(boxes, labels, names, TARGET) for boxes, labels in parts]
        return draw_grid(batch.images, marks, [""] * len(marks), (TARGET,))

    @torch.no_grad()
    def draw_predictions(
        self, model: nn.Module, squares: Squares, device: torch.device, scores: Mapping[str, float]
    ) -> bytes:
        """Each image with its objects, and what is found at the confidence of the best F1."""
        names = squares.source.names
        shown = range(min(IMAGES_SHOWN, len(squares)))
        images, boxes, _ = to_object_batch([squares[index] for index in shown])
        prediction = model(prepare_images(images.to(device)))
        drawn, titles = [], []
        every = self.find(prediction, images.shape[-1], scores.get("confidence", 0.5))
        for found, there in zip(every, boxes, strict=True):
            targets = marks_of(there, [], names, TARGET)
            drawn.append(targets + marks_of(found.boxes.cpu(), found.labels, names, PREDICTION))
            titles.append(f"{len(there)} object{'' if len(there) == 1 else 's'}, {len(found.boxes)} found")
        return draw_grid(images, drawn, titles, (TARGET, PREDICTION))


class GridScorer:
    """Average precision, and precision, recall and IoU of matches at a confidence.

    Args:
        names: the classes' names.
        confidence: to take detections from; by default that of the best F1.
    """

    def __init__(self, names: Sequence[str], confidence: float | None = None) -> None:
        self.metrics, self.confidence = DetectionMetrics(names), confidence

    def add(self, prediction: DensePrediction, batch: ObjectBatch) -> None:
        """Take in a batch."""
        first, size = len(self.metrics.records), batch.images.shape[-1]
        # The images rank, rank + world size, rank + 2 * world size ... are this rank's.
        image_ids = [ranks.rank() + ranks.world_size() * (first + own) for own in range(len(batch.images))]
        self.metrics.update(image_ids, detect(prediction, (size, size)), batch.boxes, batch.labels)

    def scores(self) -> dict[str, float]:
        """The scores of all images so far; `ap50/NAME` and `ap/NAME` for each class that has objects."""
        self.metrics.gather()
        found = self.metrics.compute(self.confidence)
        scores = {name: value for name, value in found._asdict().items() if name != "classes"}
        for name, of_class in found.classes.items():
            if of_class.ap50 is not None:
                scores |= {f"ap50/{name}": of_class.ap50, f"ap/{name}": of_class.ap}
        return scores


def assigner_of(config: ModelConfig) -> Assigner:
    """Which predictions answer for an object."""
    if config.own_assigner == "task_aligned":
        return TaskAlignedAssigner()
    if config.own_assigner == "anchor_ratio":
        return AnchorRatioAssigner(anchors=known_sizes(config))
    return ResponsibleCellAssigner(kind=RESPONSIBLE_BY)


def marks_of(boxes: Tensor, labels: Tensor | Sequence[int], names: Sequence[str], colour: str) -> list[Mark]:
    """Boxes (K, 4), xyxy in pixels, to be drawn, with the names of their classes if labels are given."""
    texts = [names[int(label)] for label in labels] or [""] * len(boxes)
    return [Mark(box, colour, text) for box, text in zip(boxes.tolist(), texts, strict=True)]
