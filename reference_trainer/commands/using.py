"""The commands that use a run's weights: `evaluate`, `predict` and `export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ..config import Device, Output
from ..errors import UserError
from .arguments import read


@dataclass(frozen=True)
class EvaluateOptions:
    """Score a run's weights on its validation images."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: Path | None = None
    """Another dataset to score on, instead of the one trained on."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""


@dataclass(frozen=True)
class PredictOptions:
    """Find the boxes in images; draw them, and write them as JSON in the images' own pixels."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or an ONNX file that export wrote."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders: their images at any depth."""
    out: Path | None = None
    """Folder for the drawings and predictions.json; by default RUN/predictions, or beside the
    ONNX file."""
    confidence: float | None = None
    """Task grid: the confidence of the least sure box; by default the one with the best F1 in validation."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's network as ONNX and torch.export programs, with its weights and a model card.

    The programs are compared with the network on validation images; if one differs by more than 1e-4,
    nothing is written. Takes the extra onnx.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    output: Output = "boxes"
    """boxes: decoded, with scores, overlapping ones left in; detections: those that NMS leaves of them, from
    the confidence on that had the best F1 in validation; raw: the outputs before the decoder."""
    out: Path | None = None
    """Folder for the files; by default RUN/export."""
    data: Path | None = None
    """Another dataset to compare on, where the run's own is not at hand."""


def evaluate(arguments: list[str]) -> int:
    """The command `evaluate`."""
    options = read(EvaluateOptions, arguments, "evaluate")

    from ..evaluate import evaluate_run
    from ..report import print_result

    print_result(evaluate_run(options.run, options.data, options.device))
    return 0


def predict(arguments: list[str]) -> int:
    """The command `predict`."""
    options = read(PredictOptions, arguments, "predict")
    if not options.images:
        raise UserError("IMAGES: got none, expected at least one image file")

    from ..predict import predict_run
    from ..report import print_result

    print_result(predict_run(options.run, options.images, options.out, options.device, options.confidence))
    return 0


def export(arguments: list[str]) -> int:
    """The command `export`."""
    options = read(ExportOptions, arguments, "export")

    from ..export import export_run
    from ..report import print_result

    print_result(export_run(options.run, options.out, options.output, options.data))
    return 0
