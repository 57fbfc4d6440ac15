"""What an exported network computes, from images to boxes, and how its ONNX file is run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from boxreg import convert

from .config import Output, Task
from .detection import (
    LEAST_CONFIDENCE,
    MOST_CANDIDATES,
    MOST_DETECTIONS,
    NMS_IOU,
    Detections,
    in_order,
    one_each,
    select,
)
from .errors import CheckpointError, ConfigError, UserError
from .files import not_there
from .grid_model import GridDetector
from .model import DenseRegressor, answer

METADATA = "boxreg"
"""The entry of an ONNX file's metadata that holds an `About`."""

Answers = tuple[Tensor, ...]


@dataclass(frozen=True)
class About:
    """What it takes to use an exported network.

    Attributes:
        task: the run's task.
        output: what comes out.
        size: side in pixels of the squares that the network was trained on.
        stride: sides of images of other sizes are multiples of it; 0 if no other size is taken.
        names: the classes' names.
        confidence: from which on boxes are taken.
    """

    task: Task
    output: Output
    size: int
    stride: int
    names: list[str]
    confidence: float

    def as_json(self) -> str:
        """For the metadata of a file."""
        return json.dumps(asdict(self))


class Raw(nn.Module):
    """Images to the numbers before the decoder, level by level: (B, numbers, K, H, W), or (B, 4)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Answers:
        """Images (B, 3, H, W) in [0, 1]."""
        features, head = self.model.features(images), self.model.head
        if isinstance(self.model, GridDetector):
            return tuple(head.raw(features))
        if isinstance(head, nn.Sequential):  # a linear layer, and what squashes or clamps its numbers
            head = head[0]
        raw: Tensor = head(features) if isinstance(head, nn.Linear) else head.raw(features)
        if isinstance(self.model, DenseRegressor):
            raw = torch.cat([raw, self.model.objectness(features)], 1).unsqueeze(2)
        return (raw,)


class Boxes(nn.Module):
    """Images to boxes (B, 4, A), cxcywh in pixels, and scores (B, C, A), the unlikely ones too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Answers:
        """Images (B, 3, H, W) in [0, 1]."""
        prediction = self.model(images)
        if isinstance(self.model, GridDetector):
            return prediction.boxes, prediction.scores
        boxes, sure = answer(prediction)
        height, width = images.shape[-2:]
        x, y, w, h = boxes.unbind(1)
        boxes = torch.stack([x * width, y * height, w * width, h * height], 1)
        return boxes.unsqueeze(2), sure[:, None, None]


class OneBox(nn.Module):
    """Images to the one box of each, in the format of `Found`."""

    def __init__(self, boxes: Boxes) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, images: Tensor) -> Answers:
        """Images (B, 3, H, W) in [0, 1]."""
        boxes, scores = self.boxes(images)
        image_indices = torch.arange(images.shape[0], device=images.device)
        return in_order(boxes.squeeze(2)), scores[:, 0, 0], torch.zeros_like(image_indices), image_indices


class Found(nn.Module):
    """Images to what `select` finds in them, the images of a batch at once, the most confident first.

    Boxes (N, 4), xyxy in pixels, with scores, labels and the number of the image in the batch, (N,) each.
    """

    def __init__(self, boxes: Boxes, confidence: float) -> None:
        super().__init__()
        self.boxes, self.confidence = boxes, max(confidence, LEAST_CONFIDENCE)

    def forward(self, images: Tensor) -> Answers:
        """Images (B, 3, H, W) in [0, 1]."""
        planes, chances = self.boxes(images)
        batch, classes, count = chances.shape
        # Filled up with what is never confident enough, so that there are always enough to choose from.
        chances = F.pad(chances.flatten(1), (0, MOST_CANDIDATES), value=-1.0)
        scores, place = chances.topk(MOST_CANDIDATES, dim=1)
        image_indices, rank = (scores >= self.confidence).nonzero().unbind(1)
        scores, place = scores[image_indices, rank], place[image_indices, rank]
        labels = place // count
        number = place - labels * count  # ONNX has no remainder by a size
        corners = convert(planes, "cxcywh", "xyxy", dim=1).transpose(1, 2)[image_indices, number]

        kept = nms(self._apart(corners, image_indices, labels, classes), scores, NMS_IOU)
        corners, scores, labels, image_indices = (
            corners[kept],
            scores[kept],
            labels[kept],
            image_indices[kept],
        )

        height, width = images.shape[-2:]
        x1, y1, x2, y2 = corners.unbind(1)
        corners = torch.stack(
            [x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], 1
        )
        whole = (corners[:, 2:] > corners[:, :2]).all(1)
        mine = (image_indices[:, None] == torch.arange(batch, device=images.device)) & whole[:, None]
        few = whole & ((mine.long().cumsum(0) * mine).sum(1) <= MOST_DETECTIONS)
        return corners[few], scores[few], labels[few], image_indices[few]

    @staticmethod
    def _apart(corners: Tensor, image_indices: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Boxes moved so that those of other classes or images do not overlap; one pass then serves all.

        Each image has a square of fields, one for each class: in a row of them the last would be so far
        away that float32, which is all that ONNX suppresses in, rounds overlaps.
        """
        across = math.isqrt(classes - 1) + 1
        pitch = 2 * F.pad(corners.flatten(), (0, 1)).abs().amax(0) + 1
        column, row = labels % across, image_indices * across + labels // across
        return corners + torch.stack([column, row, column, row], 1) * pitch


def module_of(model: nn.Module, about: About) -> nn.Module:
    """What is exported: floating images (B, 3, H, W) in [0, 1] in, the output asked for out."""
    if about.output == "raw":
        return Raw(model).eval()
    boxes = Boxes(model)
    if about.output == "boxes":
        return boxes.eval()
    return (OneBox(boxes) if about.task == "single" else Found(boxes, about.confidence)).eval()


def per_image(answers: Answers, about: About, images: Tensor, confidence: float) -> list[Detections]:
    """What boxes, or detections, of these images come to, image by image."""
    if about.output == "detections":
        boxes, scores, labels, image_indices = answers
        chosen = [(image_indices == number) & (scores >= confidence) for number in range(len(images))]
        return [Detections(boxes[mine], scores[mine], labels[mine]) for mine in chosen]
    boxes, scores = answers
    if about.task == "single":
        return one_each(boxes.squeeze(2), scores[:, 0, 0])
    height, width = images.shape[-2:]
    return select(boxes, scores, (width, height), confidence=max(confidence, LEAST_CONFIDENCE))


class OnnxFile:
    """An exported network, run by onnxruntime on the CPU.

    Args:
        content: what the file contains.
        name: the name of the file, for messages.

    Raises:
        UserError: if onnxruntime is not installed.
        CheckpointError: if it is no ONNX file, or `export` did not write it.
    """

    def __init__(self, content: bytes, name: str) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "an ONNX file needs onnxruntime, which is not installed: pip install 'boxreg[onnx]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common
            raise CheckpointError(f"{name}: onnxruntime cannot read it: {error}") from error
        self.name = name
        try:
            about = self.session.get_modelmeta().custom_metadata_map[METADATA]
            self.about = About(**json.loads(about))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{name}: expected a file that reference_trainer export wrote; its metadata does not say so"
            ) from error

    @classmethod
    def read(cls, path: Path) -> OnnxFile:
        """Open a file.

        Raises:
            CheckpointError: if it is not there, or as for a call of the class.
        """
        if not path.exists():
            raise CheckpointError(not_there(path))
        return cls(path.read_bytes(), str(path))

    def __call__(self, images: Tensor) -> Answers:
        """The answers to floating images (B, 3, H, W) in [0, 1]."""
        return tuple(map(torch.from_numpy, self.session.run(None, {"images": images.contiguous().numpy()})))

    def find(self, images: Tensor, confidence: float) -> list[Detections]:
        """What is found in squares uint8 (B, 3, size, size), from a confidence on.

        Raises:
            ConfigError: if the file gives raw outputs, or nothing below a higher confidence.
        """
        about = self.about
        if about.output == "raw":
            raise ConfigError(f"{self.name}: it gives raw outputs; export with --output boxes or detections")
        if about.output == "detections" and confidence < about.confidence:
            raise ConfigError(
                f"confidence: got {confidence:g}, but {self.name} finds nothing below {about.confidence:g}; "
                "export with --output boxes"
            )
        images = images.float() / 255.0
        return per_image(self(images), about, images, confidence)
