"""From a dense prediction to detections, and how good they are on images with many objects."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from boxreg import DensePrediction, convert

from .errors import UserError

LEAST_CONFIDENCE = 0.001
"""From here on a detection counts for the average precision, which looks at all confidences."""

NMS_IOU = 0.6
"""Two detections of a class that overlap by more are one."""

MOST_DETECTIONS = 100
"""How many detections of an image are kept, the most confident; COCO's metrics look at no more."""

MOST_CANDIDATES = 3000
"""How many boxes of an image compete in NMS: its time goes with their square."""

MATCHED = 0.5
"""The IoU from which a detection has found an object, for precision, recall and the mean IoU of matches."""

Floats = npt.NDArray[np.float64]


class Detections(NamedTuple):
    """What is found in one image, the most confident first.

    Attributes:
        boxes: (N, 4), xyxy in pixels, inside the image.
        scores: (N,), confidence from 0 to 1.
        labels: (N,), int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def detect(
    prediction: DensePrediction,
    size: tuple[int, int],
    *,
    confidence: float = LEAST_CONFIDENCE,
    nms_iou: float = NMS_IOU,
    most: int = MOST_DETECTIONS,
) -> list[Detections]:
    """What a prediction comes to, image by image; see `select`."""
    return select(
        prediction.boxes, prediction.scores, size, confidence=confidence, nms_iou=nms_iou, most=most
    )


@torch.no_grad()
def select(
    boxes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    *,
    confidence: float = LEAST_CONFIDENCE,
    nms_iou: float = NMS_IOU,
    most: int = MOST_DETECTIONS,
) -> list[Detections]:
    """What boxes with scores come to, image by image: each result depends on its own image alone.

    Every class of every box is a candidate. Candidates below `confidence` are dropped; then, class by class,
    so is each that overlaps a more confident one by more than `nms_iou`. Boxes are then cut off at the
    image's edges, and dropped where nothing is left.

    Args:
        boxes: (B, 4, A), cxcywh in pixels, of B images.
        scores: (B, C, A), one for each class.
        size: width and height of the images.
        confidence: the least score of a detection, at least 0.
        nms_iou: how far detections of a class may overlap.
        most: how many an image may have.

    Returns:
        B times what is found, on the device of the boxes.
    """
    # As slow to import as torch, and what trains without detections does without.
    from torchvision.ops import batched_nms

    corners = convert(boxes, "cxcywh", "xyxy", dim=1).mT
    # A box that is nowhere is none.
    nowhere = ~corners.isfinite().all(-1).unsqueeze(1)
    scores = scores.float().nan_to_num(0.0).masked_fill(nowhere, -1.0)
    edges = corners.new_tensor((*size, *size))
    found = []
    for own, chances in zip(corners, scores, strict=True):
        values, place = chances.flatten().topk(min(chances.numel(), MOST_CANDIDATES))
        sure = values >= confidence
        values, place = values[sure], place[sure]
        labels, number = place // chances.shape[1], place % chances.shape[1]
        # Classes are told apart by moving their boxes apart: what float32 has left there rounds overlaps.
        kept = batched_nms(own[number].double(), values.double(), labels, nms_iou)
        cut = torch.minimum(own[number[kept]].clamp(min=0), edges)
        kept_whole = (cut[:, 2:] > cut[:, :2]).all(1)
        chosen = kept[kept_whole][:most]
        found.append(Detections(cut[kept_whole][:most].float(), values[chosen], labels[chosen]))
    return found


def in_order(boxes: Tensor) -> Tensor:
    """Boxes (N, 4), cxcywh, as xyxy; a linear output may name the corners the other way round."""
    first, second = convert(boxes, "cxcywh", "xyxy").chunk(2, dim=1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)


def one_each(boxes: Tensor, sure: Tensor) -> list[Detections]:
    """The one box of each image: boxes (B, 4), cxcywh in pixels, and how sure (B,)."""
    nothing = torch.zeros(1, dtype=torch.int64, device=boxes.device)
    rows = zip(in_order(boxes), sure, strict=True)
    return [Detections(box[None], score[None], nothing) for box, score in rows]


class ClassScores(NamedTuple):
    """Average precision of a class at an IoU of 0.5, and its mean over 0.5 to 0.95; None without objects."""

    ap50: float | None
    ap: float | None


class DetectionScores(NamedTuple):
    """What detections score on a split; all 0 where there is no object or none is found.

    Attributes:
        ap50: average precision at an IoU of 0.5, the mean over classes.
        ap: the same over IoUs of 0.5, 0.55 to 0.95: COCO's AP.
        mean_iou: the mean IoU of the objects found with their detections, at `confidence`.
        precision: share of detections that find an object, at `confidence`.
        recall: share of objects that are found, at `confidence`.
        f1: harmonic mean of the two, over all classes together.
        confidence: the score from which on detections are taken for these, where `f1` is best if nobody named
            another.
        classes: by name.
    """

    ap50: float
    ap: float
    mean_iou: float
    precision: float
    recall: float
    f1: float
    confidence: float
    classes: dict[str, ClassScores]

    def summary(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return self._asdict() | {"classes": {name: of._asdict() for name, of in self.classes.items()}}


class Record(NamedTuple):
    """What is kept of an image: boxes as (x, y, w, h)."""

    found: Floats
    scores: Floats
    found_labels: npt.NDArray[np.int64]
    objects: Floats
    labels: npt.NDArray[np.int64]


class DetectionMetrics:
    """Collects detections and objects image by image, and scores them at the end.

    Scores depend on the images alone, not on batches, their order or ranks. faster-coco-eval computes
    the average precision and who found what.

    Args:
        names: the classes' names.

    Raises:
        UserError: if faster-coco-eval is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        try:
            import faster_coco_eval
        except ImportError as error:
            raise UserError(
                "scores of detections need faster-coco-eval, which is not installed: "
                "pip install 'boxreg[coco]'"
            ) from error
        self.coco = faster_coco_eval
        self.names = list(names)
        self.records: dict[int, Record] = {}

    def update(
        self,
        images: Sequence[int],
        found: Sequence[Detections],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
    ) -> None:
        """Add images, or replace them: one that two ranks saw counts once.

        Args:
            images: a number for each image of the split.
            found: what was found in each.
            boxes: what there is, (K, 4) each, xyxy in pixels.
            labels: their classes, (K,) each.
        """
        for image, detections, objects, classes in zip(images, found, boxes, labels, strict=True):
            self.records[int(image)] = Record(
                _corner_and_size(detections.boxes),
                detections.scores.double().cpu().numpy(),
                detections.labels.cpu().numpy(),
                _corner_and_size(objects),
                classes.cpu().numpy(),
            )

    def gather(self) -> None:
        """Gather the images of all ranks, on each of them."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        everybody: list[dict[int, Record]] = [{} for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(everybody, self.records)
        self.records = {image: record for records in everybody for image, record in records.items()}

    def compute(self, confidence: float | None = None) -> DetectionScores:
        """The scores of all images so far.

        Args:
            confidence: from which on detections are taken; by default that of the best F1.
        """
        objects, found = self._as_coco()
        classes = dict.fromkeys(self.names, ClassScores(None, None))
        if not objects.anns:
            return DetectionScores(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, classes)
        # Axes: IoU, recall, class, area and number of detections; -1 for a class without objects.
        precision = self._evaluated(objects, found).eval["precision"][:, :, :, 0, 0]
        has_objects = (precision > -1).any((0, 1))
        by_class = precision[:, :, has_objects].mean(1)
        for name, values in zip(np.array(self.names)[has_objects], by_class.T, strict=True):
            classes[str(name)] = ClassScores(float(values[0]), float(values.mean()))
        matches = self._evaluated(objects, found, [MATCHED]).eval["matched"]
        overlaps = {int(pair.split("_")[0]): iou for pair, iou in matches.items()}
        scores = np.array([annotation["score"] for annotation in found.anns.values()])
        iou = np.array([overlaps.get(number, 0.0) for number in found.anns])
        best = best_f1(scores, iou, len(objects.anns), confidence)
        return DetectionScores(float(by_class[0].mean()), float(by_class.mean()), **best, classes=classes)

    def _as_coco(self) -> tuple[Any, Any]:
        """Objects and detections in COCO's format, images in the order of their numbers."""
        objects: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        for image in sorted(self.records):
            record = self.records[image]
            for box, label in zip(record.objects.tolist(), record.labels.tolist(), strict=True):
                # The evaluator takes number 0 for none.
                entry = {"id": len(objects) + 1, "image_id": image, "category_id": label, "bbox": box}
                objects.append(entry | {"area": box[2] * box[3], "iscrowd": 0})
            detections = (record.found.tolist(), record.scores.tolist(), record.found_labels.tolist())
            for box, score, label in zip(*detections, strict=True):
                found.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
        content = {
            "images": [{"id": image} for image in self.records],
            "annotations": objects,
            "categories": [{"id": label, "name": name} for label, name in enumerate(self.names)],
        }
        known = self.coco.COCO(content)
        return known, known.loadRes(found)

    def _evaluated(self, objects: Any, found: Any, overlaps: Sequence[float] | None = None) -> Any:
        evaluation = self.coco.COCOeval_faster(objects, found, "bbox", print_function=_quiet.debug)
        evaluation.params.maxDets = [MOST_DETECTIONS]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        if overlaps is not None:
            evaluation.params.iouThrs = np.array(overlaps)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


_quiet = logging.getLogger(__name__)


def best_f1(
    scores: Floats, iou: Floats, objects: int, confidence: float | None = None
) -> Mapping[str, float]:
    """The confidence from which on detections have the best F1, and what they are like there.

    Args:
        scores: the scores of the detections.
        iou: the IoU of each with the object that it has found; 0 for none.
        objects: how many there are to be found.
        confidence: another than the best.

    Returns:
        `precision`, `recall`, `f1`, `confidence`, and `mean_iou` of what is found.
    """
    order = np.argsort(-scores, kind="stable")
    scores, iou = scores[order], iou[order]
    taken, hits = np.arange(1, len(scores) + 1), np.cumsum(iou > 0)
    f1 = 2 * hits / (taken + objects)
    # Equal scores are taken together.
    f1[:-1][scores[:-1] == scores[1:]] = 0.0
    best = int(f1.argmax()) if len(f1) else -1
    if confidence is not None:
        best = int((scores >= confidence).sum()) - 1
    if best < 0 or not hits[best]:
        nothing = dict.fromkeys(("precision", "recall", "f1", "mean_iou"), 0.0)
        return nothing | {"confidence": confidence or 0.0}
    return {
        "precision": float(hits[best] / taken[best]),
        "recall": float(hits[best] / objects),
        "f1": float(f1[best]),
        "confidence": float(scores[best]) if confidence is None else confidence,
        "mean_iou": float(iou[: best + 1].sum() / hits[best]),
    }


def _corner_and_size(boxes: Tensor) -> Floats:
    array: Floats = convert(boxes.double(), "xyxy", "xywh").cpu().numpy()
    return array
