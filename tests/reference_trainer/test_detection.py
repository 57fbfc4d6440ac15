"""Detections from dense predictions, and their scores: by hand, against pycocotools, in any batches."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from boxreg import DensePrediction, Level, convert
from reference_trainer.detection import (
    MOST_DETECTIONS,
    ClassScores,
    DetectionMetrics,
    Detections,
    DetectionScores,
    best_f1,
    detect,
)
from reference_trainer.errors import UserError
from tests.cases import seeded

NAMES = ["cat", "dog", "owl"]
Boxes = list[list[float]]


def dense(boxes: Boxes, classes: list[list[float]], objectness: list[float] | None = None) -> DensePrediction:
    """One image of boxes xyxy, each with its class probabilities."""
    planes = convert(torch.tensor(boxes), "xyxy", "cxcywh").T.unsqueeze(0)
    return DensePrediction(
        planes,
        None if objectness is None else torch.tensor([objectness]).logit(),
        torch.tensor(classes).T.unsqueeze(0).logit(),
        None,
        (Level(1, len(boxes), 8.0),),
    )


def rounded(found: Detections) -> list[tuple[list[float], float, int]]:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [([round(x, 3) for x in box], round(score, 3), label) for box, score, label in rows]


class TestDetect:
    def test_the_most_confident_of_a_class_stays(self) -> None:
        boxes = [[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]]
        (found,) = detect(dense(boxes, [[0.5, 0.01], [0.9, 0.01], [0.3, 0.02]]), (40, 40), confidence=0.1)
        assert rounded(found) == [(boxes[1], 0.9, 0), (boxes[2], 0.3, 0)]

    def test_classes_do_not_compete(self) -> None:
        (found,) = detect(dense([[0.0, 0, 10, 10]] * 2, [[0.5, 0.2], [0.3, 0.8]]), (40, 40), confidence=0.25)
        assert [(score, label) for _, score, label in rounded(found)] == [(0.8, 1), (0.5, 0)]

    @pytest.mark.parametrize(("nms_iou", "count"), [(0.8, 1), (0.83, 2)])
    def test_how_far_detections_may_overlap(self, nms_iou: float, count: int) -> None:
        prediction = dense([[0.0, 0, 10, 10], [1, 0, 11, 10]], [[0.5], [0.9]])  # 9 / 11
        assert len(detect(prediction, (40, 40), nms_iou=nms_iou)[0].scores) == count

    def test_objectness_and_class_are_multiplied(self) -> None:
        (found,) = detect(dense([[0.0, 0, 10, 10]], [[0.5]], [0.5]), (40, 40))
        assert rounded(found) == [([0, 0, 10, 10], 0.25, 0)]

    def test_at_the_confidence_asked_for(self) -> None:
        prediction = dense([[0.0, 0, 10, 10], [20, 0, 30, 10]], [[0.5], [0.9]])
        for score in prediction.scores.flatten().tolist():
            (found,) = detect(prediction, (40, 40), confidence=score)
            assert min(found.scores.tolist()) == score

    def test_boxes_end_with_the_image(self) -> None:
        boxes = [[-5.0, -5, 10, 10], [30, 10, 50, 70], [41, 0, 60, 10], [-9, 0, 0, 10]]
        (found,) = detect(dense(boxes, [[0.9], [0.8], [0.7], [0.6]]), (40, 60))
        assert rounded(found) == [([0, 0, 10, 10], 0.9, 0), ([30, 10, 40, 60], 0.8, 0)]

    def test_no_more_than_asked_for(self) -> None:
        boxes = [[20.0 * n, 0, 20 * n + 10, 10] for n in range(5)]
        prediction = dense(boxes, [[0.1 + 0.1 * n] for n in range(5)])
        (found,) = detect(prediction, (200, 40), most=2)
        assert rounded(found) == [(boxes[4], 0.5, 0), (boxes[3], 0.4, 0)]

    def test_what_is_broken_is_not_found(self) -> None:
        nan, inf = float("nan"), float("inf")
        boxes = [[nan, 0, 10, 10], [0, 0, inf, 10], [9, 9, 5, 5], [20, 20, 30, 30], [0, 0, 10, 10]]
        prediction = dense(boxes, [[0.9], [0.9], [0.9], [nan], [0.4]])
        for confidence in (0.0, 0.1):
            (found,) = detect(prediction, (40, 40), confidence=confidence)
            assert rounded(found)[0] == ([0, 0, 10, 10], 0.4, 0)
            assert len(found.scores) == (2 if confidence == 0 else 1)

    def test_nothing(self) -> None:
        (found,) = detect(dense([[0.0, 0, 10, 10]], [[0.5]]), (40, 40), confidence=0.6)
        assert [tuple(part.shape) for part in found] == [(0, 4), (0,), (0,)]

    def test_an_image_is_its_own(self) -> None:
        generator = seeded(3)
        centres = 640 * torch.rand(6, 2, 500, generator=generator)
        boxes = torch.cat((centres, 20 + 60 * torch.rand(6, 2, 500, generator=generator)), 1)
        classes = torch.randn(6, 80, 500, generator=generator)
        boxes[3] *= 1e4
        levels = (Level(20, 25, 32.0),)
        together = detect(DensePrediction(boxes, None, classes, None, levels), (640, 640), most=300)
        for number, found in enumerate(together):
            at = slice(number, number + 1)
            (alone,) = detect(
                DensePrediction(boxes[at], None, classes[at], None, levels), (640, 640), most=300
            )
            assert all(map(torch.equal, found, alone))


def found(boxes: Boxes, scores: list[float], labels: list[int]) -> Detections:
    return Detections(torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.tensor(labels).long())


def scored(
    images: Sequence[tuple[Detections, Boxes, list[int]]], names: Sequence[str] = NAMES
) -> DetectionScores:
    metrics = DetectionMetrics(names)
    for number, (detections, boxes, labels) in enumerate(images):
        objects = torch.tensor(boxes).view(-1, 4)
        metrics.update([number], [detections], [objects], [torch.tensor(labels).long()])
    return metrics.compute()


LEFT, RIGHT = [0.0, 0, 10, 10], [20.0, 0, 30, 10]
NOTHING = found([], [], [])


class TestScoresByHand:
    def test_perfect(self) -> None:
        right = (found([LEFT, RIGHT], [0.9, 0.4], [0, 2]), [LEFT, RIGHT], [0, 2])
        scores = scored([right, (found([RIGHT], [0.7], [1]), [RIGHT], [1])])
        assert scores[:6] == (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
        assert scores.confidence == pytest.approx(0.4)
        assert scores.classes == dict.fromkeys(NAMES, ClassScores(1.0, 1.0))

    def test_nothing_found(self) -> None:
        scores = scored([(NOTHING, [LEFT], [0]), (found([LEFT], [0.9], [0]), [RIGHT], [0])])
        assert scores[:7] == (0.0,) * 7
        assert scores.classes["cat"] == ClassScores(0.0, 0.0)
        assert scores.classes["dog"] == ClassScores(None, None)

    @pytest.mark.parametrize("images", [[], [(NOTHING, [], [])], [(found([LEFT], [0.9], [0]), [], [])]])
    def test_no_object_to_find(self, images: list[tuple[Detections, Boxes, list[int]]]) -> None:
        scores = scored(images)
        assert scores[:7] == (0.0,) * 7
        assert set(scores.classes.values()) == {ClassScores(None, None)}

    def test_empty_images_change_nothing(self) -> None:
        image = (found([LEFT], [0.9], [0]), [LEFT], [0])
        assert scored([image, (NOTHING, [], []), (NOTHING, [], [])]) == scored([image])

    def test_one_false_positive(self) -> None:
        # Less confident than the true one: the precision at all recalls is 1.
        below = scored([(found([LEFT, RIGHT], [0.9, 0.4], [0, 0]), [LEFT], [0])])
        assert (below.ap50, below.precision, below.recall, below.confidence) == (1, 1, 1, pytest.approx(0.9))
        # More confident: it is a half at all recalls.
        above = scored([(found([LEFT, RIGHT], [0.4, 0.9], [0, 0]), [LEFT], [0])])
        assert above.ap50 == above.ap == above.precision == pytest.approx(0.5)
        assert (above.recall, above.f1, above.confidence) == (1, pytest.approx(2 / 3), pytest.approx(0.4))

    def test_a_false_positive_on_an_empty_image(self) -> None:
        scores = scored([(found([LEFT], [0.4], [0]), [LEFT], [0]), (found([LEFT], [0.9], [0]), [], [])])
        assert scores.ap50 == pytest.approx(0.5)

    def test_the_wrong_class_is_no_match(self) -> None:
        assert scored([(found([LEFT], [0.9], [1]), [LEFT], [0])]).ap50 == 0

    def test_an_overlap_of_seven_tenths(self) -> None:
        scores = scored([(found([[0.0, 0, 7, 10]], [0.9], [0]), [LEFT], [0])])
        # It passes five of ten bounds: .5, .55, .6, .65 and .7.
        assert scores.ap50 == 1
        assert scores.ap == pytest.approx(0.5)
        assert scores.mean_iou == pytest.approx(0.7)

    def test_an_object_is_found_once(self) -> None:
        twice = found([[0.0, 0, 8, 10], LEFT], [0.9, 0.8], [0, 0])
        scores = scored([(twice, [LEFT], [0])])
        assert scores.precision == scores.recall == scores.ap50 == 1
        # The second one fits better, but at an IoU of 0.5 the first one has found the object.
        assert scores.mean_iou == pytest.approx(0.8)

    def test_the_best_f1_of_all_classes_together(self) -> None:
        detections = found([LEFT, RIGHT, [50, 0, 60, 10]], [0.9, 0.5, 0.3], [0, 1, 1])
        scores = scored([(detections, [LEFT, RIGHT, [80.0, 0, 90, 10]], [0, 1, 1])])
        assert (scores.precision, scores.recall) == (1.0, pytest.approx(2 / 3))
        assert scores.confidence == pytest.approx(0.5)

    def test_json(self) -> None:
        scores = scored([(found([LEFT], [0.9], [0]), [LEFT], [0])])
        again = json.loads(json.dumps(scores.summary()))
        assert again["ap50"] == 1.0
        assert again["classes"]["dog"] == {"ap50": None, "ap": None}


def test_equal_scores_are_taken_together() -> None:
    best = best_f1(*(torch.tensor(column).double().numpy() for column in ([0.5, 0.5, 0.5], [0.9, 0, 0.7])), 2)
    assert best == pytest.approx(
        {"precision": 2 / 3, "recall": 1, "f1": 0.8, "confidence": 0.5, "mean_iou": 0.8}
    )


def random_set(images: int, seed: int = 0) -> list[tuple[Detections, Tensor, Tensor]]:
    """Objects, most of them found more or less well, and what is not there; some images are empty."""
    generator, made = seeded(seed), []
    for number in range(images):
        count = number % 5
        corner = 100 * torch.rand(count, 2, generator=generator)
        objects = torch.cat((corner, corner + 5 + 40 * torch.rand(count, 2, generator=generator)), 1)
        labels = torch.randint(3, (count,), generator=generator)
        near = (objects + 1.5 * torch.randn(count, 4, generator=generator)).repeat(2, 1)
        stray = torch.cat(
            (torch.rand(2, 2, generator=generator), 20 + torch.rand(2, 2, generator=generator)), 1
        )
        boxes = torch.cat((near, 30 * stray))
        right = torch.cat((labels, labels, torch.tensor([0, 1])))
        wrong = torch.rand(len(right), generator=generator) < 0.1
        scores = (20 * torch.rand(len(boxes), generator=generator)).round() / 20  # with ties
        made.append((Detections(boxes, scores, torch.where(wrong, 2, right)), objects, labels))
    return made


def test_pycocotools_says_the_same() -> None:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    images = random_set(60)
    metrics = DetectionMetrics(NAMES)
    for number, (detections, objects, labels) in enumerate(images):
        metrics.update([number], [detections], [objects], [labels])
    scores = metrics.compute()

    annotations: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    for number, (detections, objects, labels) in enumerate(images):
        for box, label in zip(objects.double(), labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            entry = {"image_id": number, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            entry |= {"id": len(annotations) + 1, "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append(entry)
        for box, score, label in zip(*detections, strict=True):
            x1, y1, x2, y2 = box.double().tolist()
            entry = {"image_id": number, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            results.append(entry | {"score": score.item()})
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = {
            "images": [{"id": number} for number in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES)],
        }
        known.createIndex()
        evaluation = cocoeval.COCOeval(known, known.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert 0.2 < scores.ap < scores.ap50 < 0.9
    assert scores.ap == pytest.approx(evaluation.stats[0], rel=1e-12)
    assert scores.ap50 == pytest.approx(evaluation.stats[1], rel=1e-12)
    for label, name in enumerate(NAMES):
        precision = evaluation.eval["precision"][:, :, label, 0, -1]
        assert scores.classes[name] == pytest.approx((precision[0].mean(), precision.mean()), rel=1e-12)
    # The matches at an IoU of 0.5, as pycocotools lists them image by image.
    hits = {
        (entry["image_id"], found_id)
        for entry in evaluation.evalImgs
        if entry is not None and entry["aRng"] == [0, 1e10]
        for found_id, match in zip(entry["dtIds"], entry["dtMatches"][0], strict=True)
        if match
    }
    above = [row["score"] >= scores.confidence for row in results]
    numbers = {number + 1 for number, there in enumerate(above) if there}
    true = sum(found_id in numbers for _, found_id in hits)
    assert scores.precision == pytest.approx(true / sum(above), rel=1e-12)
    assert scores.recall == pytest.approx(true / len(annotations), rel=1e-12)
    assert 0.5 < scores.mean_iou < 1


class TestAccumulation:
    def scores(self, sizes: Sequence[int], order: Sequence[int] | None = None) -> DetectionScores:
        images, metrics, start = random_set(20, seed=1), DetectionMetrics(NAMES), 0
        order = range(len(images)) if order is None else order
        for size in sizes:
            at = order[start : start + size]
            metrics.update(at, *zip(*(images[number] for number in at), strict=True))
            start += size
        assert start == len(order)
        return metrics.compute()

    def test_batches_and_order_change_nothing(self) -> None:
        whole = self.scores([20])
        assert self.scores([1] * 20) == self.scores([7, 7, 6]) == whole
        assert self.scores([3, 17], torch.randperm(20, generator=seeded(5)).tolist()) == whole

    def test_an_image_counts_once(self) -> None:
        assert self.scores([20, 2], [*range(20), 0, 3]) == self.scores([20])

    def test_ranks_put_their_images_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = [DetectionMetrics(NAMES) for _ in range(2)]
        for number, image in enumerate(random_set(20, seed=1)):
            parts[number % 2].update([number], *([part] for part in image))
        parts[0].gather()  # alone there is nobody to ask
        assert len(parts[0].records) == 10

        def everybody(into: list[object], mine: object) -> None:
            assert mine is parts[1].records
            into[:] = [part.records for part in parts]

        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "all_gather_object", everybody)
        parts[1].gather()
        assert parts[1].compute() == self.scores([20])

    def test_more_detections_than_count(self) -> None:
        many = [[float(n), 0, n + 1, 1] for n in range(MOST_DETECTIONS + 1)]
        detections = found(many, [1 - 0.001 * n for n in range(len(many))], [0] * len(many))
        assert scored([(detections, [many[-1]], [0])]).ap50 == 0


def test_a_missing_evaluator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"faster-coco-eval.*boxreg\[coco\]"):
        DetectionMetrics(NAMES)
