"""`YOLOLoss`: its terms by hand, every lambda, what must not leak, and several ranks."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from boxreg import (
    DensePrediction,
    Level,
    ResponsibleCellAssigner,
    Targets,
    TaskAlignedAssigner,
    WiseWeighting,
    YOLOLoss,
    YOLOLossTerms,
    convert,
    pad_targets,
    points_of,
)
from boxreg.iou import aligned_loss
from boxreg.losses.yolo import SCORE_LOSSES
from tests.assign_cases import CLASSES, LEVELS, NAN, SCHEMES, SIZE, batch
from tests.assign_cases import predictions as predicted_boxes
from tests.assign_reference import ciou, iou
from tests.cases import HALF_DTYPES, WAITING, Recorder, assert_all_finite, named, seeded

LAMBDAS = ("coord", "wh", "iou", "obj", "noobj", "class", "dfl")
BINS = 5
every_scheme = pytest.mark.parametrize("scheme", ["responsible", "anchor-ratio", "task-aligned"])
every_score_loss = pytest.mark.parametrize("kind", SCORE_LOSSES)


def everything(scheme: str, images: int, seed: int = 0) -> DensePrediction:
    """A random prediction that has all there is, float64."""
    boxes, _ = predicted_boxes(scheme, images, seed)
    generator, number = seeded(seed + 50), boxes.shape[2]
    objectness, classes, bins = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((images, number), (images, CLASSES, number), (images, 4, BINS, number))
    )
    levels = tuple(Level(*level) for level in LEVELS)
    return DensePrediction(convert(boxes, "xyxy", "cxcywh", dim=1), objectness, classes, bins, levels)


def leaves(prediction: DensePrediction) -> tuple[DensePrediction, list[Tensor]]:
    """The same, of tensors that ask for a gradient, and these."""
    parts = [None if part is None else part.detach().clone().requires_grad_() for part in prediction[:4]]
    return DensePrediction(*parts, prediction.levels), [part for part in parts if part is not None]


def gradients(criterion: YOLOLoss, prediction: DensePrediction, targets: Targets) -> list[Tensor]:
    prediction, parts = leaves(prediction)
    total = criterion(prediction, targets).total
    found = torch.autograd.grad(total, parts, allow_unused=True)
    return [torch.zeros_like(part) if grad is None else grad for part, grad in zip(parts, found, strict=True)]


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def score_loss(kind: str, p: float, t: float) -> float:
    """By the textbook, of a probability."""
    if kind == "mse":
        return (p - t) ** 2
    entropy = -t * math.log(p) - (1 - t) * math.log(1 - p)
    return entropy if kind == "bce" else (0.25 * t + 0.75 * (1 - t)) * abs(t - p) ** 2 * entropy


class TestByHand:
    """A map of 1 by 2 cells of 8; the object (10, 2) to (14, 6) is in the right one.

    Its prediction is twice as wide, so their IoU is 1/2, and centred 1 to the left: fractions are of 16.
    """

    targets = pad_targets([torch.tensor([[10.0, 2, 14, 6]], dtype=torch.float64)], [torch.tensor([1])])

    def prediction(self, **changes: object) -> DensePrediction:
        boxes = torch.tensor([[[4.0, 11], [4, 4], [8, 8], [8, 4]]], dtype=torch.float64)
        return DensePrediction(boxes, self.logits(0.25, 0.8), None, None, (Level(1, 2, 8.0),))._replace(
            **changes
        )

    def logits(self, *probabilities: float) -> Tensor:
        return torch.tensor([[logit(p) for p in probabilities]], dtype=torch.float64)

    def unweighted(self, prediction: DensePrediction, **options: object) -> dict[str, float]:
        criterion = YOLOLoss(ResponsibleCellAssigner(), **options)
        return {name: term.item() for name, term in criterion(prediction, self.targets).unweighted.items()}

    @pytest.mark.parametrize(
        ("size", "wh"), [("wh", (4 / 16) ** 2), ("sqrt_wh", (math.sqrt(8 / 16) - math.sqrt(4 / 16)) ** 2)]
    )
    def test_box(self, size: str, wh: float) -> None:
        unweighted = self.unweighted(self.prediction(), overlap="iou", size=size)
        assert unweighted["coord"] == pytest.approx((1 / 16) ** 2, rel=1e-12)
        assert unweighted["wh"] == pytest.approx(wh, rel=1e-12)
        assert unweighted["iou"] == pytest.approx(0.5, rel=1e-12)

    @every_score_loss
    @pytest.mark.parametrize(("target", "target_score"), [("one", 1.0), ("iou", 0.5)])
    def test_objectness(self, kind: str, target: str, target_score: float) -> None:
        unweighted = self.unweighted(self.prediction(), objectness_loss=kind, objectness_target=target)
        assert unweighted["obj"] == pytest.approx(score_loss(kind, 0.8, target_score), rel=1e-12)
        assert unweighted["noobj"] == pytest.approx(score_loss(kind, 0.25, 0.0), rel=1e-12)
        assert set(unweighted) == {"coord", "wh", "iou", "obj", "noobj"}

    @every_score_loss
    def test_classes_beside_objectness(self, kind: str) -> None:
        classes = torch.stack((self.logits(0.3, 0.9), self.logits(0.6, 0.2)), 1)
        unweighted = self.unweighted(self.prediction(classes=classes), class_loss=kind)
        # The scores of the positive alone: 0.9 for another class, 0.2 for its own.
        expected = score_loss(kind, 0.9, 0.0) + score_loss(kind, 0.2, 1.0)
        assert unweighted["class"] == pytest.approx(expected, rel=1e-12)

    @every_score_loss
    def test_classes_alone(self, kind: str) -> None:
        classes = torch.stack((self.logits(0.3, 0.9), self.logits(0.6, 0.2)), 1)
        unweighted = self.unweighted(self.prediction(classes=classes, objectness=None), class_loss=kind)
        # The assigner's score is the IoU.
        towards = [(0.3, 0.0), (0.9, 0.0), (0.6, 0.0), (0.2, 0.5)]
        assert unweighted["class"] == pytest.approx(
            sum(score_loss(kind, *pair) for pair in towards), rel=1e-12
        )
        assert set(unweighted) == {"coord", "wh", "iou", "class"}

    def test_bins(self) -> None:
        # From (12, 4), in strides of 8, all four sides are at 1/4: between bins 0 and 1.
        chances = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.4, 0.4]])
        bins = torch.full((1, 4, 3, 2), NAN, dtype=torch.float64)
        bins[..., 1] = chances.double().log()
        unweighted = self.unweighted(self.prediction(bins=bins))
        expected = [
            -0.75 * math.log(first) - 0.25 * math.log(second) for first, second, _ in chances.tolist()
        ]
        assert unweighted["dfl"] == pytest.approx(sum(expected) / 4, rel=1e-6)

    def test_two_positives_are_averaged(self) -> None:
        more = pad_targets([torch.tensor([[10.0, 2, 14, 6], [0, 0, 8, 8]]).double()])
        terms = YOLOLoss(ResponsibleCellAssigner(), "iou")(self.prediction(), more)
        assert terms.positives == 2
        assert terms.unweighted["iou"].item() == pytest.approx(0.25, rel=1e-12)
        assert terms.unweighted["noobj"].item() == 0


def textbook(scheme: str, prediction: DensePrediction, targets: Targets) -> dict[str, float]:
    """All terms, prediction by prediction in plain Python, given who has which object."""
    assigner, per_cell = SCHEMES[scheme]
    boxes = convert(prediction.boxes, "cxcywh", "xyxy", dim=1)
    found = assigner(boxes, targets, LEVELS, prediction.scores)
    points = torch.stack(points_of(LEVELS, per_cell=per_cell, dtype=torch.float64)).T.tolist()
    objectness, classes = prediction.objectness.sigmoid(), prediction.classes.sigmoid()
    chances = prediction.bins.softmax(2)
    sums = dict.fromkeys(LAMBDAS, 0.0)
    for b, a in torch.cartesian_prod(*map(torch.arange, found.positive.shape)).tolist():
        if not found.positive[b, a]:
            sums["noobj"] += score_loss("bce", objectness[b, a].item(), 0.0)
            continue
        own, matched = boxes[b, :, a].tolist(), found.boxes[b, :, a].tolist()
        both = torch.tensor([own, matched], dtype=torch.float64) / SIZE
        (cx, cy, w, h), (tx, ty, tw, th) = convert(both, "xyxy", "cxcywh").tolist()
        sums["coord"] += (cx - tx) ** 2 + (cy - ty) ** 2
        sums["wh"] += (w - tw) ** 2 + (h - th) ** 2
        sums["iou"] += 1 - ciou(tuple(own), tuple(matched))
        sums["obj"] += score_loss("bce", objectness[b, a].item(), iou(tuple(own), tuple(matched)))
        for c in range(CLASSES):
            sums["class"] += score_loss("bce", classes[b, c, a].item(), float(c == found.labels[b, a]))
        x, y, stride = points[a]
        for side, distance in enumerate((x - matched[0], y - matched[1], matched[2] - x, matched[3] - y)):
            near = min(max(distance / stride, 0.0), BINS - 1)
            below = min(int(near), BINS - 2)
            first, second = chances[b, side, below : below + 2, a].tolist()
            sums["dfl"] += (-(below + 1 - near) * math.log(first) - (near - below) * math.log(second)) / 4
    return {name: value / found.positive.sum().item() for name, value in sums.items()}


@every_scheme
class TestEveryAssigner:
    def criterion(self, scheme: str, **options: object) -> YOLOLoss:
        return YOLOLoss(SCHEMES[scheme][0], **options)

    @pytest.mark.parametrize("counts", [(4, 0, 7), (2, 15)], ids=str)  # few, and more than predictions
    def test_textbook(self, scheme: str, counts: tuple[int, ...]) -> None:
        prediction, targets = everything(scheme, len(counts)), batch(counts)
        terms = self.criterion(scheme)(prediction, targets)
        assert terms.positives > 4
        expected = textbook(scheme, prediction, targets)
        assert set(terms.unweighted) == set(expected)
        for name, value in expected.items():
            assert terms.unweighted[name].item() == pytest.approx(value, rel=1e-10), name

    @pytest.mark.parametrize("name", LAMBDAS)
    def test_a_lambda_scales_its_own_term_and_no_other(self, scheme: str, name: str) -> None:
        prediction, targets = everything(scheme, 2), batch((3, 5))
        off = {f"lambda_{term}": 0.0 for term in LAMBDAS}

        def alone(value: float) -> tuple[YOLOLossTerms, list[Tensor]]:
            criterion = self.criterion(scheme, **off | {f"lambda_{name}": value})
            return criterion(prediction, targets), gradients(criterion, prediction, targets)

        (terms, grads), (scaled, steeper) = alone(1.0), alone(8.0)
        assert torch.equal(terms.total, terms.unweighted[name])
        assert torch.equal(scaled.total, 8 * terms.unweighted[name])
        assert max(grad.abs().max() for grad in grads) > 0
        for grad, scaled_grad in zip(grads, steeper, strict=True):
            assert torch.equal(scaled_grad, 8 * grad)
        defaults = self.criterion(scheme)
        more = self.criterion(scheme, **{f"lambda_{name}": 3.0})
        least = self.criterion(scheme, **{f"lambda_{name}": 0.0})
        apart = more(prediction, targets).total - least(prediction, targets).total
        torch.testing.assert_close(apart, 3 * terms.unweighted[name], rtol=1e-12, atol=1e-12)
        for term, value in defaults(prediction, targets).unweighted.items():
            assert torch.equal(scaled.unweighted[term], value)

    def test_total_is_the_sum_of_the_weighted_terms(self, scheme: str) -> None:
        lambdas = {f"lambda_{name}": 0.5 + number for number, name in enumerate(LAMBDAS)}
        terms = self.criterion(scheme, **lambdas)(everything(scheme, 2), batch((3, 5)))
        assert set(terms.unweighted) == set(terms.weighted) == set(LAMBDAS)
        for name, value in terms.unweighted.items():
            assert torch.equal(terms.weighted[name], lambdas[f"lambda_{name}"] * value)
        torch.testing.assert_close(terms.total, sum(terms.weighted.values()))

    @pytest.mark.parametrize("padding", [0, 3])
    def test_images_without_objects(self, scheme: str, padding: int) -> None:
        targets = pad_targets([torch.zeros(0, 4, dtype=torch.float64)] * 2, max_objects=padding)
        prediction, parts = leaves(everything(scheme, 2))
        terms = self.criterion(scheme)(prediction, targets)
        assert terms.positives == 0
        assert {name for name, term in terms.unweighted.items() if term != 0} == {"noobj"}
        assert all(term.requires_grad for term in terms.unweighted.values())
        boxes, objectness, classes, bins = torch.autograd.grad(terms.total, parts)
        assert not boxes.any()
        assert not classes.any()
        assert not bins.any()
        assert_all_finite(objectness)
        assert (objectness > 0).all()

    @pytest.mark.parametrize("filler", [NAN, math.inf])
    def test_padding_never_leaks(self, scheme: str, filler: float) -> None:
        targets, prediction = batch((3, 0, 6)), everything(scheme, 3)
        dirty = Targets(
            torch.where(targets.mask.unsqueeze(-1), targets.boxes, filler),
            torch.where(targets.mask, targets.labels, -7),
            targets.mask,
        )
        criterion = self.criterion(scheme)
        clean, found = criterion(prediction, targets), criterion(prediction, dirty)
        for name, value in clean.unweighted.items():
            assert torch.equal(found.unweighted[name], value)
        both = (gradients(criterion, prediction, part) for part in (targets, dirty))
        for grad, reference in zip(*both, strict=True):
            assert torch.equal(grad, reference)
            assert_all_finite(grad)

    def test_what_negatives_say_of_boxes_never_leaks(self, scheme: str) -> None:
        prediction, targets = everything(scheme, 2), batch((3, 5))
        criterion = self.criterion(scheme)
        expected = gradients(criterion, prediction, targets)
        boxes, _, classes, bins, _ = prediction
        negative = ~expected[0].any(1)  # they give no box a gradient
        classes.masked_fill_(negative.unsqueeze(1), NAN)
        bins.masked_fill_(negative[:, None, None], NAN)
        boxes.masked_fill_(negative.unsqueeze(1), NAN)
        found = gradients(criterion, prediction, targets)
        for grad, reference in zip(found, expected, strict=True):
            assert torch.equal(grad, reference)

    def test_nothing_waits_for_the_device(self, scheme: str) -> None:
        prediction, _ = leaves(everything(scheme, 2))
        with Recorder() as seen:
            self.criterion(scheme)(prediction, batch((2, 3))).total.backward()
        assert "gather" in seen.names
        assert seen.names & WAITING == set()

    @pytest.mark.parametrize("counts", [(2, 3), (0, 0)], ids=str)
    def test_fake_tensors(self, scheme: str, counts: tuple[int, ...]) -> None:
        with FakeTensorMode(allow_non_fake_inputs=False) as mode:
            targets = Targets(*(mode.from_tensor(part) for part in batch(counts)))
            plain = everything(scheme, 2)
            parts = [mode.from_tensor(part).requires_grad_() for part in plain[:4]]
            terms = self.criterion(scheme)(DensePrediction(*parts, plain.levels), targets)
            terms.total.backward()
        assert terms.total.shape == terms.positives.shape == ()
        assert [part.grad.shape for part in parts] == [part.shape for part in plain[:4]]


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    criterion, prediction, targets = (
        YOLOLoss(TaskAlignedAssigner()),
        everything("task-aligned", 3),
        batch((4, 0, 7)),
    )
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    plain = criterion(prediction, targets)
    found = compiled(prediction, targets)
    torch.testing.assert_close(found.unweighted, plain.unweighted, rtol=1e-10, atol=1e-12)
    assert found.positives == plain.positives


class TestPredictions:
    """What a prediction may lack, and in which dtype and format it may come."""

    targets = batch((3, 5))

    @pytest.mark.parametrize("lacking", ["objectness", "classes", "bins"])
    def test_parts_that_are_lacking(self, lacking: str) -> None:
        terms_of = {"objectness": {"obj", "noobj"}, "classes": {"class"}, "bins": {"dfl"}}
        whole = everything("anchor-ratio", 2)
        criterion = YOLOLoss(SCHEMES["anchor-ratio"][0])
        terms = criterion(whole._replace(**{lacking: None}), self.targets)
        assert set(LAMBDAS) - set(terms.unweighted) == terms_of[lacking]
        for name, value in criterion(whole, self.targets).unweighted.items():
            if name in terms.unweighted and (lacking, name) != ("objectness", "class"):
                assert torch.equal(terms.unweighted[name], value)

    def test_an_assigner_that_looks_at_scores_gets_those_of_a_single_class(self) -> None:
        whole = everything("task-aligned", 2)._replace(classes=None)
        targets = self.targets._replace(labels=torch.zeros_like(self.targets.labels))
        criterion = YOLOLoss(TaskAlignedAssigner(topk=1))
        positives = criterion(whole, targets).positives
        best = whole.objectness.topk(3)[1]
        elsewhere = whole._replace(objectness=torch.full_like(whole.objectness, -9.0).scatter(1, best, 9.0))
        assert criterion(elsewhere, targets).positives <= positives
        found = TaskAlignedAssigner()(
            convert(whole.boxes, "cxcywh", "xyxy", dim=1),
            targets,
            LEVELS,
            whole.objectness.sigmoid()[:, None],
        )
        assert YOLOLoss(TaskAlignedAssigner())(whole, targets).positives == found.positive.sum()

    @pytest.mark.parametrize("fmt", ["xywh", "cxcywh"])
    def test_targets_are_in_the_assigner_s_format(self, fmt: str) -> None:
        prediction = everything("task-aligned", 2)
        expected = YOLOLoss(TaskAlignedAssigner())(prediction, self.targets)
        other = self.targets._replace(boxes=convert(self.targets.boxes, "xyxy", fmt))
        found = YOLOLoss(TaskAlignedAssigner(fmt=fmt))(prediction, other)
        torch.testing.assert_close(found.unweighted, expected.unweighted, rtol=1e-9, atol=1e-12)

    def test_lambdas_mean_the_same_at_any_size(self) -> None:
        prediction = everything("task-aligned", 2)
        expected = YOLOLoss(TaskAlignedAssigner(), "mpdiou", image_width=1.0, image_height=1.0)(
            prediction, self.targets
        )
        levels = tuple(Level(rows, cols, 4 * stride) for rows, cols, stride in LEVELS)
        larger = prediction._replace(boxes=4 * prediction.boxes, levels=levels)
        found = YOLOLoss(TaskAlignedAssigner(), "mpdiou", image_width=1.0, image_height=1.0)(
            larger, self.targets._replace(boxes=4 * self.targets.boxes)
        )
        assert expected.positives == found.positives
        torch.testing.assert_close(found.unweighted, expected.unweighted, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("dtype", named(HALF_DTYPES))
    def test_half_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        whole, targets = (
            everything("anchor-ratio", 2),
            self.targets._replace(boxes=self.targets.boxes.float()),
        )
        half = DensePrediction(*(part.to(dtype) for part in whole[:4]), whole.levels)
        wide = DensePrediction(*(part.float() for part in half[:4]), whole.levels)
        criterion = YOLOLoss(SCHEMES["anchor-ratio"][0])
        terms = criterion(half, targets)
        assert terms.total.dtype == torch.float32
        torch.testing.assert_close(terms.unweighted, criterion(wide, targets).unweighted)
        for part, grad in zip(half[:4], gradients(criterion, half, targets), strict=True):
            assert grad.dtype == part.dtype
            assert_all_finite(grad)

    @every_score_loss
    def test_extreme_logits_stay_finite(self, kind: str) -> None:
        whole = everything("anchor-ratio", 2)
        wild = torch.tensor([-3e38, -1e3, 0.0, 1e3, 3e38])
        objectness = wild[torch.arange(whole.objectness.numel()) % 5].view_as(whole.objectness)
        classes = wild[torch.arange(whole.classes.numel()) % 5].view_as(whole.classes) / 1e3
        criterion = YOLOLoss(SCHEMES["anchor-ratio"][0], objectness_loss=kind, class_loss=kind)
        found = gradients(criterion, whole._replace(objectness=objectness, classes=classes), self.targets)
        assert_all_finite(*found)

    @pytest.mark.parametrize(
        "options",
        [
            {"overlap": "giou", "mode": "alpha", "alpha": 2.0},
            {"overlap": "iou", "inner_ratio": 0.75},
            {"overlap": "wiou", "weighting": WiseWeighting()},
            {"overlap": "nwd", "constant": 0.2},
        ],
        ids=lambda options: options["overlap"],
    )
    def test_options_of_the_overlap(self, options: dict[str, object]) -> None:
        whole = everything("anchor-ratio", 2)
        assigner = SCHEMES["anchor-ratio"][0]
        terms = YOLOLoss(assigner, **options).eval()(whole, self.targets)
        found = assigner(convert(whole.boxes, "cxcywh", "xyxy", dim=1), self.targets, LEVELS)
        kind = options.pop("overlap")
        if "weighting" in options:
            options["weighting"].eval()
        positives = found.positive.mT.nonzero().flip(1)
        pred = convert(whole.boxes / SIZE, "cxcywh", "xyxy", dim=1).mT[positives.unbind(1)]
        target = (found.boxes / SIZE).mT[positives.unbind(1)]
        expected = aligned_loss(kind, pred, target, reduction="mean", **options)
        torch.testing.assert_close(terms.unweighted["iou"], expected, rtol=1e-9, atol=0)


class TestBadArguments:
    WHOLE = everything("task-aligned", 2)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"assigner": "tal"}, TypeError, "assigner: got str, expected an Assigner"),
            ({"overlap": "cio"}, ValueError, "overlap: got 'cio'"),
            ({"lambda_noobj": -1.0}, ValueError, "lambda_noobj: got -1.0"),
            ({"lambda_coord": NAN}, ValueError, "lambda_coord: got nan"),
            ({"lambda_dfl": "1"}, TypeError, "lambda_dfl: got str"),
            ({"objectness_target": "score"}, ValueError, "objectness_target: got 'score'.*'one', 'iou'"),
            ({"objectness_loss": "l2"}, ValueError, "objectness_loss: got 'l2'"),
            ({"class_loss": "softmax"}, ValueError, "class_loss: got 'softmax'.*'bce', 'focal', 'mse'"),
            ({"reduction": "sum"}, TypeError, "reduction: "),
            ({"gamma": 2.0}, TypeError, "unexpected keyword argument 'gamma'"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_of_the_loss(self, options: dict[str, object], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            YOLOLoss(**{"assigner": TaskAlignedAssigner()} | options)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"boxes": torch.rand(2, 3, 84)}, ValueError, r"prediction.boxes: got shape \(2, 3, 84\)"),
            ({"objectness": None, "classes": None}, ValueError, "neither objectness nor classes"),
            (
                {"objectness": torch.rand(2, 83)},
                ValueError,
                r"prediction.objectness and .*\(2, 83\) and \(2, 84\)",
            ),
            ({"classes": torch.rand(2, 84)}, ValueError, r"prediction.classes: got shape \(2, 84\)"),
            ({"classes": torch.ones(2, 3, 84, dtype=torch.int64)}, TypeError, "prediction.classes: got"),
            ({"bins": torch.rand(2, 4, 1, 84)}, ValueError, r"prediction.bins: .* at least 2 bins"),
            ({"bins": torch.rand(2, 3, 5, 84)}, ValueError, "prediction.bins of a bin and prediction.boxes"),
            ({"levels": ()}, ValueError, "levels: got none"),
            ({"levels": (Level(2, 2, 8.0),) * 5}, ValueError, "expected a multiple of the 20 cells"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_of_a_call(self, changes: dict[str, object], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            YOLOLoss(TaskAlignedAssigner())(self.WHOLE._replace(**changes), batch((1, 2)))

    def test_a_prediction_of_another_kind(self) -> None:
        with pytest.raises(TypeError, match="prediction: got Tensor, expected a DensePrediction"):
            YOLOLoss(TaskAlignedAssigner())(self.WHOLE.boxes, batch((1, 2)))


class Detector(nn.Module):
    """A layer that predicts everything at every point, and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Conv1d(6, 4 + 1 + CLASSES + 4 * BINS, 1).double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(3)))
        self.criterion = YOLOLoss(TaskAlignedAssigner())

    def forward(self, features: Tensor, targets: Targets) -> Tensor:
        offset, size, objectness, classes, bins = self.predict(features).split(
            [2, 2, 1, CLASSES, 4 * BINS], 1
        )
        x, y, stride = points_of(LEVELS, dtype=torch.float64)
        boxes = torch.cat((torch.stack((x, y)) + offset * stride, size.exp() * 3 * stride), 1)
        levels = tuple(Level(*level) for level in LEVELS)
        whole = DensePrediction(boxes, objectness[:, 0], classes, bins.unflatten(1, (4, BINS)), levels)
        return self.criterion(whole, targets).total


def features_of(images: int) -> Tensor:
    number = sum(rows * cols for rows, cols, _ in LEVELS)
    return torch.randn(images, 6, number, generator=seeded(4), dtype=torch.float64)


SHARED = ((0, 4, 3), (0, 0, 0))
"""Objects of images of which one rank has the first."""

PROCESS = """
import sys
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from tests.assign_cases import batch
from tests.boxreg.test_yolo_loss import SHARED, Detector, features_of
from boxreg import Targets
from boxreg.losses.yolo import _mean_over_ranks as mean_over_ranks

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
mine = slice(0, 1) if rank == 0 else slice(1, 3)
for number, counts in enumerate(SHARED):
    model = Detector()
    features, targets = features_of(3)[mine], Targets(*(part[mine] for part in batch(counts)))
    with torch.no_grad():
        alone = model(features, targets) if rank == 0 else None  # would wait for the other one
    parallel = DistributedDataParallel(model)
    parallel(features, targets).backward()
    torch.save([parameter.grad for parameter in model.parameters()], f"{folder}/{rank}-{number}.pt")
compiled = torch.compile(mean_over_ranks, fullgraph=True, backend="aot_eager")
assert compiled(torch.tensor([1.0, 6.0])[rank]) == 3.5
with FakeTensorMode() as mode:
    mean_over_ranks(mode.from_tensor(torch.ones(())))
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without torch.distributed")
def test_two_ranks_find_the_gradient_of_one(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path)],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    for number, counts in enumerate(SHARED):
        model = Detector()
        expected = torch.autograd.grad(model(features_of(3), batch(counts)), tuple(model.parameters()))
        assert max(grad.abs().max() for grad in expected) > 0
        for rank in range(2):
            torch.testing.assert_close(torch.load(tmp_path / f"{rank}-{number}.pt"), list(expected))
