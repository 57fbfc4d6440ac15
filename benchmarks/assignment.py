"""What assignment and loss add to a training step: `python -m benchmarks.assignment`.

Each is held against forward and backward of the reference trainer's backbone with a dense head on three maps.
A step's time is the processor's, of one thread, so that what else a machine does matters little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from boxreg import (
    AnchorRatioAssigner,
    Assigner,
    DensePrediction,
    Level,
    ResponsibleCellAssigner,
    Targets,
    TaskAlignedAssigner,
    YOLOLoss,
    convert,
    points_of,
)
from reference_trainer.config import ModelConfig
from reference_trainer.model import Backbone, convolution

from .machine import describe

SIDE, BATCH, OBJECTS, CLASSES, BINS = 640, 16, 50, 3, 16
STRIDES = (8, 16, 32)
LEVELS = tuple(Level(SIDE // stride, SIDE // stride, float(stride)) for stride in STRIDES)
AT_ONCE = 4
"""Images that the model sees at once; its activations take memory, its time goes with their number."""

AIM = 0.10
CASES: dict[str, tuple[Assigner, bool]] = {
    "ResponsibleCellAssigner": (ResponsibleCellAssigner(), False),
    "AnchorRatioAssigner": (
        AnchorRatioAssigner(anchors=[[(2.0 * stride, 2.0 * stride)] for stride in STRIDES]),
        False,
    ),
    "TaskAlignedAssigner": (TaskAlignedAssigner(), False),
    "TaskAlignedAssigner, bins": (TaskAlignedAssigner(), True),
}


class Model(nn.Module):
    """The default backbone, a map of half the size more, and a tower and a projection on three maps."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        config = ModelConfig()
        self.backbone = Backbone(config)
        last = self.backbone.out_channels
        self.coarser = convolution(last, last, 2, config)
        widths = (last // 2, last, last)
        self.towers = nn.ModuleList(convolution(width, width, 1, config) for width in widths)
        self.project = nn.ModuleList(nn.Conv2d(width, outputs, 1) for width in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for stage in (*self.backbone, self.coarser):
            maps.append(stage(maps[-1]))
        heads = zip(maps[-3:], self.towers, self.project, strict=True)
        return [project(tower(features)) for features, tower, project in heads]


def objects() -> Targets:
    """Objects of all sizes, from 10 to 200 pixels."""
    size = torch.exp(3 * torch.rand(BATCH, OBJECTS, 2) + 2.3)
    boxes = torch.cat((SIDE * torch.rand(BATCH, OBJECTS, 2), size), -1)
    labels = torch.randint(CLASSES, (BATCH, OBJECTS))
    mask = torch.ones(BATCH, OBJECTS, dtype=torch.bool)
    return Targets(convert(boxes, "cxcywh", "xyxy").clamp(0, SIDE), labels, mask)


def prediction(bins: bool) -> DensePrediction:
    """Boxes of about four cells about their points."""
    x, y, stride = points_of(LEVELS)
    place = torch.stack((x, y)) + 0.5 * stride * torch.randn(BATCH, 2, len(x))
    size = 4 * stride * torch.exp(0.4 * torch.randn(BATCH, 2, len(x)))
    sides = torch.randn(BATCH, 4, BINS, len(x), requires_grad=True) if bins else None
    boxes = torch.cat((place, size), 1).requires_grad_()
    objectness = (torch.randn(BATCH, len(x)) - 3).requires_grad_()
    classes = torch.randn(BATCH, CLASSES, len(x), requires_grad=True)
    return DensePrediction(boxes, objectness, classes, sides, LEVELS)


def model_step(bins: bool) -> Callable[[], None]:
    model = Model(1 + CLASSES + 4 * (BINS if bins else 1)).to(memory_format=torch.channels_last)
    images = torch.rand(AT_ONCE, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        for _ in range(BATCH // AT_ONCE):
            torch.stack([part.sum() for part in model(images)]).sum().backward()  # type: ignore[no-untyped-call]

    return step


def loss_steps(assigner: Assigner, bins: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """Assignment alone, and the whole of it with its gradient."""
    criterion, targets, whole = YOLOLoss(assigner), objects(), prediction(bins)
    corners, scores = convert(whole.boxes.detach(), "cxcywh", "xyxy", dim=1), whole.scores.detach()

    def assign() -> None:
        assigner(corners, targets, LEVELS, scores)

    def step() -> None:
        criterion(whole, targets).total.backward()

    return assign, step


def seconds(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Medians of the processor's seconds, one of each in turn."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.thread_time()
            step()
            if turn:  # the first is a warm-up
                taken[name].append(time.thread_time() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "assignment.md")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    machine = describe(torch.device("cpu"))
    lines = [
        "# Assignment and loss of a step",
        "",
        f"Written by `python -m benchmarks.assignment`: {BATCH} images of {SIDE} x {SIDE}, "
        f"{OBJECTS} objects each; seconds of the processor, medians. "
        f"{machine['processor']}, one thread, Python {machine['python']}, torch {machine['torch']}. "
        "The model is the reference trainer's default backbone with a dense head on maps of stride "
        f"{', '.join(map(str, STRIDES))}, forward and backward, in parts of {AT_ONCE} images. "
        f"At most {AIM:.0%} of the model is aimed at.",
        "",
        "| assigner | assignment | with the loss, forward and backward | model | share |",
        "|---|---|---|---|---|",
    ]
    for name, (assigner, bins) in CASES.items():
        assign, step = loss_steps(assigner, bins)
        steps = {"assign": assign, "loss": step, "model": model_step(bins)}
        taken = seconds(steps, options.repeats)
        share = taken["loss"] / taken["model"]
        reached = "reached" if share <= AIM else "missed"
        figures = " | ".join(f"{taken[part]:.3f}" for part in steps)
        lines.append(f"| {name} | {figures} | {share:.1%}: {reached} |")
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
