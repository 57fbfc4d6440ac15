"""Boxes for images of any size, drawn and as JSON in the images' own pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checkpoint import load_run, pick_device, saved_scores
from .config import TrainConfig
from .data.folders import EXTENSIONS, files_below
from .data.sample import DataError, Letterbox, decode_image, letterbox
from .detection import Detections
from .drawing import Mark, draw_image
from .errors import ConfigError
from .files import as_json, write_whole
from .model import prepare_images
from .tasks import build_task

UNSURE = 0.25
"""The confidence from which on boxes are shown, of a run that was never validated."""

COLOURS = 10
"""Classes that are drawn in colours of their own."""


class Finder(NamedTuple):
    """What finds boxes, from a run or from the file that was exported of one.

    Attributes:
        task: the run's task.
        names: the classes' names.
        size: side of the squares that it takes.
        confidence: the confidence from which on boxes are shown, unless another is given.
        find: what is found in each of the squares uint8 (B, 3, size, size), from a confidence on.
        folder: where its predictions go.
    """

    task: str
    names: list[str]
    size: int
    confidence: float
    find: Callable[[Tensor, float], list[Detections]]
    folder: Path


def predict_run(
    source: Path,
    images: Sequence[Path],
    out: Path | None,
    device_name: str,
    confidence: float | None = None,
) -> dict[str, Any]:
    """Find the boxes in each image with a run's weights; draw them and write predictions.json.

    The file is a list in the format of COCO's results: `image_id`, the number of the image, `category_id`,
    the number of the class, `bbox` (x, y, width, height) in pixels and `score`; and beside them `file_name`,
    `category_name`, and the image's `width` and `height`. Both numbers count from 0.

    Args:
        source: folder of the run, or an ONNX file that was exported of one.
        images: files, and folders whose images are found at any depth.
        out: where to write; by default a folder of the run, or beside the file.
        device_name: where to compute.
        confidence: the confidence of the least sure box; by default the one that was best in validation.

    Raises:
        UserError: if the run, the device or an image cannot be used.
    """
    finder = open_onnx(source, device_name) if source.suffix == ".onnx" else open_run(source, device_name)
    if finder.task == "single" and confidence is not None:
        raise ConfigError(
            f"confidence: got {confidence}, but task 'single' gives every image its box, however unsure"
        )
    if confidence is not None and not 0 <= confidence <= 1:
        raise ConfigError(f"confidence: got {confidence}, expected 0 to 1")
    confidence = finder.confidence if confidence is None else confidence
    out = finder.folder / "predictions" if out is None else out
    files = list(files_of(images))
    results: list[dict[str, Any]] = []
    for number, path in enumerate(files):
        image = decode_image(path)
        found = find_boxes(finder, image, confidence)
        rows = as_results(found, finder.names, finder.task == "grid")
        out.mkdir(parents=True, exist_ok=True)
        # Images of one name may come from several folders.
        drawing = draw_image(image, marks_of(rows), path.name)
        write_whole(out / f"{number:03d}-{path.stem}.png", drawing)
        height, width = image.shape[-2:]
        of_image = {"file_name": str(path), "width": width, "height": height}
        results += [{"image_id": number, **row, **of_image} for row in rows]
    write_whole(out / "predictions.json", as_json(results))
    counts: dict[str, Any] = {"images": len(files), "boxes": len(results)}
    if finder.task == "grid":
        counts["confidence"] = confidence
    return {"run": str(source), "predictions": str(out / "predictions.json"), **counts}


def open_run(folder: Path, device_name: str) -> Finder:
    """The network of a run.

    Raises:
        UserError: if the run or the device cannot be used.
    """
    config, model, names = load_run(folder)
    device, task, size = pick_device(device_name), build_task(config), config.data.size
    model = model.to(device)

    def find(squares: Tensor, confidence: float) -> list[Detections]:
        return task.find(model(prepare_images(squares.to(device))), size, confidence)

    return Finder(config.task, names, size, usual_confidence(config, folder), find, folder)


def open_onnx(file: Path, device_name: str) -> Finder:
    """A file that `export` wrote.

    Raises:
        UserError: if it cannot be used, or is to run elsewhere than on the CPU.
    """
    from .exported import OnnxFile

    if device_name == "cuda":
        raise ConfigError("device: got 'cuda', but an ONNX file runs on the CPU; use --device cpu or auto")
    network = OnnxFile.read(file)
    about = network.about
    return Finder(about.task, about.names, about.size, about.confidence, network.find, file.parent)


def usual_confidence(config: TrainConfig, folder: Path) -> float:
    """The confidence from which on boxes of a run are shown: the one with the best F1 in validation."""
    return 0.0 if config.task == "single" else saved_scores(folder).get("confidence", UNSURE)


def files_of(images: Sequence[Path]) -> Iterator[Path]:
    """The image files that are meant: those named, and those at any depth in folders named.

    Raises:
        DataError: if a folder holds none.
    """
    for path in images:
        if not path.is_dir():
            yield path
            continue
        inside = [Path(file) for file in files_below(path, EXTENSIONS)]
        if not inside:
            raise DataError(f"{path}: no image in this folder: {', '.join(EXTENSIONS)}")
        yield from sorted(inside)


@torch.no_grad()
def find_boxes(finder: Finder, image: Tensor, confidence: float) -> Detections:
    """What is found in an image (3, H, W) of any size, in its own pixels and inside it."""
    square, _, fitted = letterbox(image, torch.zeros(0, 4), finder.size)
    (found,) = finder.find(square[None], confidence)
    return Detections(in_original(found.boxes.cpu(), fitted), found.scores.cpu(), found.labels.cpu())


def in_original(boxes: Tensor, fitted: Letterbox) -> Tensor:
    """Boxes (K, 4), xyxy in pixels of the square, in pixels of the original and cut at its edges."""
    edges = boxes.new_tensor([fitted.width, fitted.height] * 2)
    return torch.minimum(fitted.undo(boxes).clamp(min=0), edges)


def as_results(found: Detections, names: Sequence[str], classes: bool) -> list[dict[str, Any]]:
    """Rows in the format of COCO's results; a box that lies beside the image, in the grey, is none."""
    rows = []
    for box, score, label in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
    ):
        x1, y1, x2, y2 = box
        if classes and not (x2 > x1 and y2 > y1):
            continue
        bbox = [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)]
        row = {"category_id": label, "bbox": bbox, "score": round(score, 4)}
        rows.append(row | ({"category_name": names[label]} if classes else {}))
    return rows


def marks_of(rows: Sequence[dict[str, Any]]) -> list[Mark]:
    """Boxes in the colours of their classes, with name and score."""
    marks = []
    for row in rows:
        x, y, width, height = row["bbox"]
        text = f"{row.get('category_name', '')} {row['score']:.2f}".strip()
        marks.append(Mark((x, y, x + width, y + height), f"C{row['category_id'] % COLOURS}", text))
    return marks
