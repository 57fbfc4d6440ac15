"""The audit: each fault alone in a healthy set-up is found, nothing else is, and healthy ones are let be."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import boxreg
from boxreg import BoxHead, BoxLoss, CIoULoss, IoULoss, audit, convert, param_groups

SIDE, BATCH, IMAGES = 24, 16, 640


def draw(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise images with one bright rectangle each, and its box in cxcywh as fractions."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    size = torch.randint(6, 15, (count, 2), generator=generator)
    corner = (torch.rand(count, 2, generator=generator) * (SIDE - size)).long()
    xyxy = torch.cat((corner, corner + size), 1)
    for image, (x1, y1, x2, y2) in zip(images, xyxy.tolist(), strict=True):
        image[:, y1:y2, x1:x2] += 0.8
    return images, convert(xyxy / SIDE, "xyxy", "cxcywh")


PRIOR = (0.5, 0.5, 0.42, 0.42)


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self, head: nn.Module | None = None, norm: str = "group", dropout: float = 0.0) -> None:
        super().__init__()
        norms = [nn.GroupNorm(4, 8), nn.GroupNorm(4, 16)]
        if norm == "batch":
            norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(16)]  # type: ignore[list-item]
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), norms[0], nn.SiLU(), nn.Conv2d(8, 16, 3, 2, 1), norms[1], nn.SiLU()
        )
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(16 * 36, 32), nn.SiLU(), nn.Dropout(dropout))
        self.head = BoxHead(32, PRIOR) if head is None else head

    def forward(self, images: Tensor) -> Tensor:
        boxes: Tensor = self.head(self.neck(self.backbone(images)))
        return boxes


class Then(nn.Module):
    """A module, and what is done to its output."""

    def __init__(self, module: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.then = module, then

    def forward(self, inputs: Tensor) -> Tensor:
        return self.then(self.module(inputs))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(param_groups(model, weight_decay=0.05), lr=1e-3, betas=(0.9, 0.99))


def cosine(step: int, total: int = 70 * IMAGES // BATCH) -> float:
    return min((step + 1) / 201, 1.0) * 0.5 * (1 + math.cos(math.pi * step / total))


def jittered() -> Callable[[], tuple[Tensor, Tensor]]:
    calls = iter(range(100))

    def again() -> tuple[Tensor, Tensor]:
        images, targets = draw(BATCH)
        factor = 1 + 0.1 * next(calls)
        return images * factor, targets * targets.new_tensor([1, 1, factor, factor])

    return again


@dataclass
class SetUp:
    """A set-up that a fault is put into."""

    model: nn.Module = field(default_factory=Net)
    criterion: Any = field(default_factory=lambda: BoxLoss("ciou", 1.0, 1.0, 5.0, fmt="cxcywh"))
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw
    batch: tuple[Any, Any] = field(default_factory=lambda: draw(BATCH))
    options: dict[str, Any] = field(default_factory=dict)

    def report(self, **more: Any) -> boxreg.AuditReport:
        return audit(
            self.model, self.criterion, self.optimizer(self.model), self.batch, **self.options | more
        )


def samples(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*draw(count, seed), strict=True))


def healthy() -> SetUp:
    torch.manual_seed(0)
    declared = {"optimizer": "AdamW", "lr": 1e-3, "batch_size": BATCH}
    declared |= {"lambda_coord": 1.0, "lambda_wh": 1.0, "lambda_iou": 5.0}
    return SetUp(
        options={
            "declared": declared,
            "schedule": cosine,
            "epochs": 70,
            "images": IMAGES,
            "patience": 20,
            "clip_norm": 10.0,
            "ema_decay": 0.99,
            "redraw": jittered(),
            "train_data": samples(60, 1),
            "val_data": samples(20, 2),
        }
    )


def alarms(report: boxreg.AuditReport) -> set[str]:
    return {finding.check for finding in report.of("warning", "error")}


Fault = Callable[[SetUp], None]
FAULTS: dict[str, tuple[Fault, set[str]]] = {}
"""Each fault, and the checks that see it: the first must, the others may, for they are its symptoms."""


def fault(*checks: str) -> Callable[[Fault], Fault]:
    def add(put: Fault) -> Fault:
        FAULTS[put.__name__] = (put, checks)  # type: ignore[assignment]
        return put

    return add


def option(name: str, **options: Any) -> Fault:
    """A fault that is an argument."""

    def put(setup: SetUp) -> None:
        setup.options |= options

    put.__name__ = name
    return put


def declared(name: str, **settings: Any) -> Fault:
    def put(setup: SetUp) -> None:
        setup.options["declared"] = setup.options["declared"] | settings

    put.__name__ = name
    return put


def optimizer(name: str, build: Callable[[nn.Module], torch.optim.Optimizer]) -> Fault:
    def put(setup: SetUp) -> None:
        setup.optimizer = build
        setup.options["declared"] = {}

    put.__name__ = name
    return put


def head(name: str, build: Callable[[], nn.Module]) -> Fault:
    def put(setup: SetUp) -> None:
        torch.manual_seed(0)
        setup.model = Net(build())

    put.__name__ = name
    return put


def loss(name: str, criterion: Any) -> Fault:
    def put(setup: SetUp) -> None:
        setup.criterion = criterion
        setup.options["declared"] = {}

    put.__name__ = name
    return put


def sgd(lr: float = 0.05, **more: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.SGD(param_groups(model, weight_decay=5e-4), lr=lr, momentum=0.9, **more)


def started_head() -> nn.Linear:
    layer = nn.Linear(32, 4)
    nn.init.normal_(layer.weight, std=0.02)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(PRIOR))
    return layer


def started_sigmoid() -> nn.Linear:
    layer = started_head()
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(PRIOR).logit())
    return layer


def saturated() -> nn.Linear:
    layer = started_sigmoid()
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([12.0, -12.0, -0.3, -0.3]))
    return layer


class Detached(BoxLoss):
    """Its overlap term is cut off."""

    def forward(self, pred: Tensor, target: Tensor, *_: Any) -> Any:
        terms = super().forward(pred, target)
        iou = terms.weighted["iou"].detach()
        weighted = terms.weighted | {"iou": iou}
        return terms._replace(total=sum(weighted.values()), weighted=weighted)


def nothing(boxes: Tensor) -> Tensor:
    return boxes


TERMS = {"lambda_coord": 1.0, "lambda_wh": 1.0, "lambda_iou": 5.0}
fault("optimizer-kind")(declared("another_optimizer", optimizer="SGD"))
fault("declared-rates")(declared("another_rate", lr=1e-2))
fault("declared-rates")(declared("another_batch", batch_size=64))
fault("lambdas")(declared("another_lambda", lambda_coord=5.0))
fault("lambdas")(declared("a_lambda_of_nothing", lambda_noobj=0.5))
fault("learning-rate", "first-steps")(
    optimizer("adam_at_sgds_rate", lambda m: torch.optim.AdamW(param_groups(m, weight_decay=0.05), lr=0.1))
)
fault("learning-rate", "update-size")(optimizer("sgd_at_next_to_nothing", sgd(1e-6)))
fault("learning-rate")(optimizer("rate_of_zero", sgd(0.0)))
fault("learning-rate", "update-size")(
    optimizer("adam_at_next_to_nothing", lambda m: torch.optim.Adam(m.parameters(), lr=1e-7))
)
fault("beta2")(
    optimizer("beta2", lambda m: torch.optim.AdamW(param_groups(m, 0.05), lr=1e-3, betas=(0.9, 0.5)))
)
fault("weight-decay")(
    optimizer("decays_norms", lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.05))
)
fault("weight-decay")(
    optimizer("strong_decay", lambda m: torch.optim.AdamW(param_groups(m, weight_decay=2.0), lr=1e-3))
)
fault("parameters-in-groups")(
    optimizer("head_left_out", lambda m: adamw(m.backbone))  # type: ignore[arg-type]
)
fault("output-range", "invalid-boxes")(head("linear_outputs", started_head))
fault("untrained-prediction", "output-range", "invalid-boxes", "overlap-drowned", "loss-towards-target")(
    head("linear_outputs_at_zero", lambda: nn.Linear(32, 4))
)
fault("untrained-prediction")(head("prior_in_a_corner", lambda: BoxHead(32, (0.05, 0.05, 0.02, 0.02))))
fault("saturated-outputs", "untrained-prediction", "clamped-outputs", "loss-terms")(
    head("saturated_sigmoid", lambda: Then(saturated(), torch.sigmoid))
)
fault("clamped-outputs", "invalid-boxes", "untrained-prediction")(
    head("clamped_in_the_model", lambda: Then(started_head(), lambda boxes: boxes.clamp(0, 1)))
)
fault("output-range", "untrained-prediction")(
    head("cannot_reach", lambda: Then(started_sigmoid(), lambda boxes: 0.2 + 0.3 * boxes.sigmoid()))
)
fault("invalid-boxes", "output-range", "untrained-prediction", "loss-towards-target")(
    head("negative_sizes", lambda: Then(BoxHead(32, PRIOR), lambda b: b * b.new_tensor([1, 1, -1, -1])))
)
fault("clamp-in-loss")(
    loss("clamped_in_the_loss", lambda pred, target: F.smooth_l1_loss(pred.clamp(0, 1), target))
)
fault("loss-optimum", "loss-towards-target", "output-range")(
    loss("squashed_twice", lambda pred, target: F.mse_loss(pred.sigmoid(), target))
)
fault("loss-optimum", "loss-towards-target")(
    loss("wrong_sign", lambda pred, target: boxreg.box_iou(pred, target, fmt="cxcywh").mean())
)
fault("loss-optimum", "loss-towards-target")(loss("loss_reads_xyxy", CIoULoss(fmt="xyxy")))
fault("loss-optimum", "loss-towards-target")(
    loss("targets_converted_alone", lambda p, t: F.smooth_l1_loss(p, convert(t, "cxcywh", "xyxy")))
)
fault("loss-optimum", "loss-towards-target")(
    loss("pixels_against_fractions", lambda pred, target: F.smooth_l1_loss(pred, target * SIDE))
)
fault("overlap-drowned")(loss("drowned", BoxLoss("ciou", 50.0, 50.0, 1.0, fmt="cxcywh")))
fault("loss-terms")(loss("detached_term", Detached("ciou", 1.0, 1.0, 5.0, fmt="cxcywh")))
fault("warmup")(option("long_warmup", schedule=lambda step: min(step / 2000, 1.0), patience=None))
fault("schedule")(option("ended_schedule", schedule=lambda step: max(1 - step / 1000, 0.0)))
fault("schedule")(option("steps", schedule=lambda s: 1.0 if s < 1600 else 0.1 if s < 2200 else 0.01))
fault("patience")(option("patience_within_warmup", patience=4))
fault("patience")(option("long_patience", patience=40))
fault("updates")(option("few_updates", epochs=12, patience=None, schedule=None))
fault("clipping")(option("tight_clip", clip_norm=0.01))
fault("augmentation")(option("no_augmentation", redraw=lambda: draw(BATCH)))
fault("duplicates")(option("validated_on_trained", val_data=samples(60, 1)[:10] + samples(10, 2)))
fault("duplicates")(
    option("nearly_the_same", val_data=[((p + 0.004).clamp(0, 1), b) for p, b in samples(60, 1)[:10]])
)
fault("target-reading", "untrained-prediction", "labels-on-objects", "output-range")(
    option("labels_in_xyxy", train_data=[(p, convert(b, "cxcywh", "xyxy")) for p, b in samples(60, 1)])
)
fault("target-reading")(option("labels_in_pixels", train_data=[(p, b * SIDE) for p, b in samples(60, 1)]))
fault("empty-targets")(
    option("an_empty_box", train_data=[*samples(60, 1), (draw(1)[0][0], torch.tensor([0.5, 0.5, 0.0, 0.1]))])
)
fault("labels-on-objects", "target-reading")(
    option(
        "labels_moved", train_data=[(p, b + b[2] * torch.tensor([0.25, 0, 0, 0])) for p, b in samples(60, 1)]
    )
)
fault("labels-on-objects")(
    option(
        "labels_of_the_next_image",
        train_data=[(a[0], b[1]) for a, b in zip(samples(60, 1), samples(60, 1)[1:], strict=False)],
    )
)
fault("labels-on-objects")(option("labels_mirrored", train_data=[(p.flip(-1), b) for p, b in samples(60, 1)]))
fault("box-statistics")(
    option("slivers", train_data=[(p, b * torch.tensor([1, 1, 1, 0.01])) for p, b in samples(25, 1)])
)


@fault("batch-size")
def tiny_batch(setup: SetUp) -> None:
    setup.batch = draw(2)
    setup.options |= {"declared": {}, "schedule": None, "patience": None}


@fault("batch-size")
def batch_norm_on_four(setup: SetUp) -> None:
    setup.model, setup.batch = Net(norm="batch"), draw(4)
    setup.options |= {"declared": {}, "schedule": None, "patience": None}


@fault("updates")
def few_steps_an_epoch(setup: SetUp) -> None:
    setup.options |= {"images": 100, "epochs": 1000, "schedule": None, "patience": None}


@fault("dropout")
def strong_dropout(setup: SetUp) -> None:
    setup.model = Net(dropout=0.5)


@fault("normalisation", "update-size", "untrained-prediction")
def no_norms(setup: SetUp) -> None:
    stem = [nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.1)]
    deep = [layer for _ in range(6) for layer in (nn.Conv2d(8, 8, 3, 1, 1), nn.LeakyReLU(0.1))]
    setup.model = nn.Sequential(*stem, *deep, nn.AdaptiveAvgPool2d(4), nn.Flatten(), BoxHead(128, PRIOR))


@fault("frozen-parameters", "parameters-without-gradient")
def frozen_backbone(setup: SetUp) -> None:
    setup.model.backbone.requires_grad_(False)
    setup.optimizer = lambda model: torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.ndim > 1]}, *no_decay(model)], lr=1e-3
    )


def no_decay(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]


@fault("parameters-in-groups")
def twice_in_the_optimizer(setup: SetUp) -> None:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        built = adamw(model)
        built.param_groups[0]["params"].append(built.param_groups[0]["params"][0])
        return built

    setup.optimizer = build


@fault("parameters-in-groups")
def replaced_head(setup: SetUp) -> None:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        built = adamw(model)
        model.head = BoxHead(32, PRIOR)
        return built

    setup.optimizer = build


@fault("parameters-without-gradient")
def unused_layer(setup: SetUp) -> None:
    setup.model.extra = nn.Linear(4, 4)


@fault("parameters-without-gradient", "loss-towards-target")
def detached_backbone(setup: SetUp) -> None:
    setup.model.backbone = Then(setup.model.backbone, torch.Tensor.detach)  # type: ignore[assignment]


@fault("first-steps", "parameters-without-gradient", "loss-optimum", "clipping")
def not_finite(setup: SetUp) -> None:
    setup.criterion = lambda pred, target: F.mse_loss(pred, target) + (pred - target).abs().sum() * math.inf
    setup.options["declared"] = {}


@fault("loss-optimum", "loss-towards-target", "untrained-prediction", "output-range", "invalid-boxes")
def metric_on_raw_outputs(setup: SetUp) -> None:
    torch.manual_seed(0)
    setup.model = Net(started_sigmoid())
    setup.criterion = lambda pred, target: F.smooth_l1_loss(pred.sigmoid(), target)
    setup.options["declared"] = {}


@fault("loss-towards-target", "loss-optimum", "parameters-without-gradient", "untrained-prediction")
def blind_where_apart(setup: SetUp) -> None:
    setup.model = Net(BoxHead(32, (0.97, 0.97, 0.05, 0.05)))
    setup.criterion = IoULoss(fmt="cxcywh")
    setup.options["declared"] = {}


class TestFaults:
    @pytest.mark.parametrize("name", FAULTS)
    def test_found_and_nothing_else(self, name: str) -> None:
        put, checks = FAULTS[name]
        setup = healthy()
        put(setup)
        found = alarms(setup.report())
        first, *symptoms = checks
        assert first in found
        assert found <= {first, *symptoms}


def plain_regression() -> SetUp:
    """Sigmoid outputs, smooth L1, SGD; no more is said about it."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()
    )
    model.extend([nn.Linear(288, 32), nn.ReLU(), nn.Linear(32, 4), nn.Sigmoid()])
    return SetUp(model, nn.SmoothL1Loss(), lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))


def boxhead_ciou() -> SetUp:
    torch.manual_seed(2)
    return SetUp(Net(), CIoULoss(fmt="cxcywh"), sgd())


def sigmoid_in_the_loss() -> SetUp:
    """The network gives logits; loss and metric both squash them."""
    torch.manual_seed(3)
    return SetUp(
        Net(started_sigmoid()),
        lambda pred, target: {"l1": F.l1_loss(pred.sigmoid(), target)},
        lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
        options={"boxes": torch.sigmoid},
    )


def pixels_xyxy() -> SetUp:
    """Boxes in pixels as corners, from a bounded centre and a size."""
    torch.manual_seed(4)
    images, targets = draw(BATCH)
    model = Net(Then(BoxHead(32, PRIOR), lambda boxes: convert(boxes * SIDE, "cxcywh", "xyxy")))
    batch = images, convert(targets * SIDE, "cxcywh", "xyxy")
    options = {"fmt": "xyxy", "image_size": (SIDE, SIDE), "images": IMAGES, "epochs": 50}
    return SetUp(model, boxreg.GIoULoss(), adamw, batch, options)


def batch_normed() -> SetUp:
    torch.manual_seed(5)
    return SetUp(Net(norm="batch", dropout=0.1), boxreg.SIoULoss(fmt="cxcywh"), adamw)


def one_step_an_epoch_schedulers() -> SetUp:
    """A scheduler of torch, warm-up before a cosine."""
    torch.manual_seed(6)
    setup = SetUp(options={"epochs": 70, "images": IMAGES, "patience": 20})
    built = adamw(setup.model)
    schedulers = torch.optim.lr_scheduler
    setup.options["schedule"] = schedulers.SequentialLR(
        built,
        [schedulers.LinearLR(built, 0.01, 1.0, 200), schedulers.CosineAnnealingLR(built, 2600)],
        milestones=[200],
    )
    setup.optimizer = lambda _: built
    return setup


def detector(name: str) -> SetUp:
    """One of torchvision's, with its own loss, on a backbone of two convolutions."""
    detection = pytest.importorskip("torchvision.models.detection")
    anchors = pytest.importorskip("torchvision.models.detection.anchor_utils").AnchorGenerator
    torch.manual_seed(7)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, 4, 1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 32, 3, 2, 1)
    )
    backbone.out_channels = 32  # type: ignore[assignment]
    sizes = ((8,),) if name == "FCOS" else ((8, 16, 32),)
    ratios = ((1.0,),) if name == "FCOS" else ((0.5, 1.0, 2.0),)
    model = getattr(detection, name)(
        backbone, num_classes=2, anchor_generator=anchors(sizes, ratios), min_size=64, max_size=64
    )
    images, targets = draw(BATCH)
    objects = [
        {"boxes": convert(box[None] * SIDE, "cxcywh", "xyxy"), "labels": torch.ones(1, dtype=torch.long)}
        for box in targets
    ]
    return SetUp(
        model,
        None,
        lambda m: torch.optim.SGD(param_groups(m, weight_decay=1e-4), lr=0.01, momentum=0.9),
        (list(images), objects),
        {
            "fmt": "xyxy",
            "image_size": (SIDE, SIDE),
            "target_boxes": lambda each: torch.cat([one["boxes"] for one in each]),
            "images": IMAGES,
            "epochs": 50,
        },
    )


HEALTHY: dict[str, Callable[[], SetUp]] = {
    "ours": healthy,
    "plain_regression": plain_regression,
    "boxhead_ciou": boxhead_ciou,
    "sigmoid_in_the_loss": sigmoid_in_the_loss,
    "pixels_xyxy": pixels_xyxy,
    "batch_normed": batch_normed,
    "torch_schedulers": one_step_an_epoch_schedulers,
    "fcos": lambda: detector("FCOS"),
    "retinanet": lambda: detector("RetinaNet"),
}


class TestHealthy:
    @pytest.mark.parametrize("name", HEALTHY)
    def test_no_alarm(self, name: str) -> None:
        report = HEALTHY[name]().report()
        assert alarms(report) == set()
        assert len(report.passed) >= 8

    def test_nothing_is_passed_over_in_silence(self) -> None:
        report = boxhead_ciou().report()
        assert {"duplicates", "warmup", "clipping", "optimizer-kind"} <= set(report.not_checked)
        assert (
            "val_data" in report.not_checked["duplicates"] or "train_data" in report.not_checked["duplicates"]
        )

    def test_a_detector_is_said_to_be_half_checked(self) -> None:
        report = detector("FCOS").report()
        assert "criterion" in report.not_checked["loss-optimum"]
        assert {"parameters-without-gradient", "loss-terms", "target-reading"} <= set(report.passed)


def fingerprint(value: Any) -> str:
    """A hash of all the numbers in nested state."""
    digest = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, Tensor):
            digest.update(str((item.dtype, item.shape, item.requires_grad)).encode())
            digest.update(item.detach().contiguous().numpy().tobytes())
            feed(item.grad if item.is_leaf else None)
        elif isinstance(item, dict):
            for key, each in item.items():
                feed(key)
                feed(each)
        elif isinstance(item, list | tuple):
            for each in item:
                feed(each)
        else:
            digest.update(repr(item).encode())

    feed(value)
    return digest.hexdigest()


class TestNothingIsChanged:
    @pytest.mark.parametrize("training", [True, False])
    def test_bit_for_bit(self, training: bool) -> None:
        setup = healthy()
        setup.model = Net(norm="batch", dropout=0.3)
        built = adamw(setup.model)
        setup.optimizer = lambda _: built
        setup.options["schedule"] = torch.optim.lr_scheduler.CosineAnnealingLR(built, 2800)
        setup.criterion(setup.model(setup.batch[0]), setup.batch[1]).total.backward()
        built.step()
        setup.model.train(training)
        calls: list[int] = []
        setup.model.backbone[0].register_forward_hook(lambda *_: calls.append(1) and None)

        def state() -> list[Any]:
            model = setup.model
            return [
                fingerprint([dict(model.named_parameters()), dict(model.named_buffers()), model.training]),
                fingerprint([list(built.state.values()), built.param_groups]),
                fingerprint(setup.batch),
                fingerprint(setup.options["schedule"].state_dict()),
                fingerprint(torch.get_rng_state()),
                random.getstate(),
                repr(np.random.get_state()),
                [[id(hook) for hook in m._forward_hooks.values()] for m in model.modules()],
                [module.training for module in model.modules()],
            ]

        before = state()
        report = setup.report(val_batch=draw(BATCH, 3))
        assert state() == before
        assert {"collapsed-boxes", "train-val-gap"} & set(report.passed) or "collapsed-boxes" in alarms(
            report
        )

    def test_twice_is_the_same(self) -> None:
        setup = healthy()
        setup.model = Net(dropout=0.5)
        setup.options["redraw"] = None
        assert setup.report().as_dict() == setup.report().as_dict()


class TestTrained:
    def test_a_model_that_gives_the_mean_box_has_collapsed(self) -> None:
        setup = boxhead_ciou()
        nn.init.zeros_(setup.model.head.projection.weight)
        report = setup.report(trained=True)
        (finding,) = [finding for finding in report.findings if finding.check == "collapsed-boxes"]
        assert finding.severity == "error"
        assert finding.evidence["spread_ratio"] == pytest.approx(0.0, abs=1e-4)

    def test_images_learnt_by_heart(self) -> None:
        setup = boxhead_ciou()
        optimizer = torch.optim.AdamW(setup.model.parameters(), lr=3e-3)
        inputs, targets = setup.batch
        for _ in range(150):
            optimizer.zero_grad()
            setup.criterion(setup.model(inputs), targets).backward()
            optimizer.step()
        report = setup.report(trained=True, val_batch=(torch.rand(16, 3, SIDE, SIDE), draw(BATCH, 9)[1]))
        assert "train-val-gap" in alarms(report)
        assert "collapsed-boxes" not in alarms(report)


class TestReport:
    def test_what_it_prints_and_gives_as_json(self) -> None:
        setup = healthy()
        setup.options["declared"] = {"optimizer": "SGD"}
        report = setup.report()
        assert report.worst == "error"
        loaded = json.loads(json.dumps(report.as_dict()))
        (finding,) = loaded["findings"]
        assert finding["check"] == "optimizer-kind"
        assert finding["evidence"] == {"declared": "SGD", "actual": "AdamW"}
        for part in ("what", "why", "fix"):
            assert finding[part]
        text = str(report)
        assert "optimizer-kind" in text
        assert "declared-rates: needs" in text
        assert "1 error, 0 warning" in text

    def test_the_bias_that_is_proposed_mends_the_finding(self) -> None:
        setup = healthy()
        setup.model = Net(nn.Linear(32, 4))
        finding = next(f for f in setup.report().findings if f.check == "untrained-prediction")
        with torch.no_grad():
            setup.model.head.bias.copy_(torch.tensor(finding.evidence["bias"]))
        assert "untrained-prediction" not in alarms(setup.report())


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"fmt": "yxyx"}, "fmt: got 'yxyx'"),
            ({"steps": -1}, "steps: got -1"),
        ],
    )
    def test_arguments(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            healthy().report(**change)

    def test_what_is_no_model_optimizer_or_batch(self) -> None:
        model, batch = Net(), draw(BATCH)
        with pytest.raises(TypeError, match="model: got function"):
            audit(nothing, None, adamw(model), batch)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="optimizer: got dict"):
            audit(model, None, {}, batch)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="batch: got Tensor"):
            audit(model, None, adamw(model), batch[0])  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("criterion", "message"),
        [
            (lambda pred, target: (pred - target).abs(), r"criterion: returned a loss of shape \(16, 4\)"),
            (lambda pred, target: 1.0, "criterion: returned float"),
        ],
    )
    def test_losses_that_are_none(self, criterion: Any, message: str) -> None:
        setup = healthy()
        setup.criterion = criterion
        with pytest.raises((TypeError, ValueError), match=message):
            setup.report()
