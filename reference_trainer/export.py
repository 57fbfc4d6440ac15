"""A run's network for use elsewhere: ONNX, torch.export, weights and a card that says how to use them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim
from torchvision.ops import nms

from boxreg import GridCellDecoder, convert

from .checkpoint import WEIGHTS, load_run, saved_scores
from .config import TrainConfig
from .detection import MOST_DETECTIONS, NMS_IOU
from .errors import UserError
from .files import write_whole
from .grid_model import GridDetector, strides_of
from .model import STRIDE, DenseRegressor, answer
from .predict import UNSURE

Output = Literal["raw", "boxes", "detections"]

ONNX_FILE, PROGRAM_FILE, CARD = "model.onnx", "model.pt2", "MODELCARD.md"

MOST_DIFFERENCE = 1e-4
"""Boxes, as shares of the picture's side, and scores may differ from the network's by this much."""

CANDIDATES = 1000
"""Of each picture, so many of the most confident boxes compete in `detections`."""

NAMES: dict[Output, tuple[str, ...]] = {
    "boxes": ("boxes", "scores"),
    "detections": ("boxes", "scores", "labels", "pictures"),
}
"""What the outputs are called; raw numbers are `raw_0`, `raw_1` ..., one a level."""


class RawNumbers(nn.Module):
    """Images to the numbers before the decoder, level by level: (B, numbers, K, H, W), or (B, numbers)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) in [0, 1]."""
        features = self.model.features(images)  # type: ignore[operator]
        if isinstance(self.model, GridDetector):
            return tuple(self.model.head.raw(features))
        head: Any = self.model.head
        raw: Tensor = head.raw(features) if hasattr(head, "raw") else head(features)
        if isinstance(self.model, DenseRegressor):
            raw = torch.cat([raw, self.model.objectness(features)], dim=1).unsqueeze(2)
        return (raw,)


class Boxes(nn.Module):
    """Images to boxes (B, 4, A), cxcywh in pixels of the input, and scores (B, C, A)."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1]."""
        prediction = self.model(images)
        height, width = images.shape[-2:]
        if isinstance(self.model, GridDetector):
            boxes, scores = prediction.boxes, prediction.scores
            if not isinstance(self.model.head.levels[0].decoder, GridCellDecoder):
                return boxes, scores
            width, height = width / self.size, height / self.size
        else:
            chosen, sure = answer(prediction)
            boxes, scores = chosen[:, :, None], sure[:, None, None]
        x, y, w, h = boxes.unbind(1)
        return torch.stack([x * width, y * height, w * width, h * height], 1), scores


class Found(nn.Module):
    """Images to what is found in them: boxes (N, 4), xyxy in pixels, scores, classes and pictures (N,).

    As `detect` finds it, the pictures of a batch at once: the most confident first.
    """

    def __init__(self, boxes: Boxes, confidence: float) -> None:
        super().__init__()
        self.boxes, self.confidence = boxes, confidence

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1]."""
        boxes, scores = self.boxes(images)
        batch, classes, count = scores.shape
        # Filled up with what is never confident enough, so that there are always enough to choose from.
        flat = torch.cat([scores.flatten(1), scores.new_full((batch, CANDIDATES), -1.0)], dim=1)
        values, place = flat.topk(CANDIDATES, dim=1)
        place = torch.where(values >= 0, place, 0)
        labels = place // count
        number = place - labels * count
        corners = convert(boxes, "cxcywh", "xyxy", dim=1).transpose(1, 2)
        corners = corners.gather(1, number[:, :, None].expand(-1, -1, 4)).flatten(0, 1)
        pictures = torch.arange(batch, device=images.device)[:, None].expand(-1, CANDIDATES).flatten()
        values, labels = values.flatten(), labels.flatten()

        height, width = images.shape[-2:]
        x, y = corners[:, 0::2].clamp(0, width), corners[:, 1::2].clamp(0, height)
        cut = torch.stack([x, y], dim=2).flatten(1)
        sure = (values >= self.confidence) & (cut[:, 2:] > cut[:, :2]).all(1)
        cut, corners, values, labels, pictures = (
            part[sure] for part in (cut, corners, values, labels, pictures)
        )
        # Boxes of other classes and pictures are moved apart, so that one pass serves all.
        apart = (pictures * classes + labels).to(boxes.dtype) * (4 * (height + width))
        kept = nms(corners + apart[:, None], values, NMS_IOU)
        cut, values, labels, pictures = (part[kept] for part in (cut, values, labels, pictures))
        mine = pictures[:, None] == torch.arange(batch, device=images.device)
        rank = (mine.to(torch.int64).cumsum(0) * mine).sum(1)
        few = rank <= MOST_DETECTIONS
        return cut[few], values[few], labels[few], pictures[few]


def export_run(folder: Path, out: Path | None, output: Output) -> dict[str, Any]:
    """Write a run's network as ONNX and torch.export programs, beside its weights and a card.

    The ONNX program is run and compared with the network before it is kept.

    Raises:
        UserError: if onnx is not installed, the run cannot be used, or the programs differ from the network.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed; pip install 'boxreg[onnx]'")
    config, model, names = load_run(folder)
    out = folder / "export" if out is None else out
    confidence = saved_scores(folder).get("confidence", UNSURE)
    module = module_of(config, model, output, confidence)
    size, stride, dynamic = config.data.size, coarsest_stride(config), config.model.head == "dense"
    out.mkdir(parents=True, exist_ok=True)

    program = traced(module, size, stride, dynamic)
    unfinished = out / f"{PROGRAM_FILE}.unfinished"
    torch.export.save(program, unfinished)
    unfinished.replace(out / PROGRAM_FILE)
    outputs = names_of(output, config)
    facts: dict[str, Any] = {
        "task": config.task,
        "output": output,
        "size": size,
        "stride": stride,
        "dynamic_size": dynamic,
        "names": names,
        "confidence": confidence,
    }
    content = as_onnx(program, outputs, facts)
    worst = compare(module, content, size, stride, dynamic, output)
    if not worst <= MOST_DIFFERENCE:
        raise UserError(
            f"the ONNX program's answers differ from the network's by {worst:.2g}, more than "
            f"{MOST_DIFFERENCE:g}; {ONNX_FILE} was not written"
        )
    write_whole(out / ONNX_FILE, content)
    shutil.copyfile(folder / WEIGHTS, out / WEIGHTS)
    write_whole(out / CARD, card(folder, config, facts, worst).encode())
    return {"run": str(folder), "export": str(out), "output": output, "difference": worst}


def module_of(config: TrainConfig, model: nn.Module, output: Output, confidence: float) -> nn.Module:
    """What is exported: images in, the wanted outputs out."""
    model = model.eval()
    if output == "raw":
        return RawNumbers(model).eval()
    boxes = Boxes(model, config.data.size)
    if output == "boxes":
        return boxes.eval()
    # Of the task of one box every picture has its box, however unsure.
    return Found(boxes, confidence if config.task == "grid" else 0.0).eval()


def coarsest_stride(config: TrainConfig) -> int:
    """What the sides of a picture must be multiples of."""
    return strides_of(config.model)[-1] if config.task == "grid" else STRIDE


def names_of(output: Output, config: TrainConfig) -> tuple[str, ...]:
    """What the outputs are called."""
    levels = config.model.levels if config.task == "grid" else 1
    return NAMES.get(output) or tuple(f"raw_{level}" for level in range(levels))


def traced(module: nn.Module, size: int, stride: int, dynamic: bool) -> torch.export.ExportedProgram:
    """The module as a program for any number of pictures, of any multiple of the stride where it allows."""
    example = torch.rand(2, 3, size, size + stride * dynamic)
    shape: dict[int, Any] = {0: Dim("batch", min=1, max=4096)}
    if dynamic:
        cells = {"min": 2, "max": 4096}
        shape |= {2: stride * Dim("rows", **cells), 3: stride * Dim("columns", **cells)}
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(shape,))


def as_onnx(program: torch.export.ExportedProgram, outputs: Sequence[str], facts: dict[str, Any]) -> bytes:
    """The program as the content of an ONNX file, with what it takes to use it."""
    import onnx

    found = torch.onnx.export(
        program, input_names=["images"], output_names=list(outputs), dynamo=True, verbose=False
    )
    assert found is not None
    model = found.model_proto
    onnx.helper.set_model_props(model, {"boxreg": json.dumps(facts)})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def examples(size: int, stride: int, dynamic: bool) -> Iterator[Tensor]:
    """Pictures to compare by: smooth ones, of several sizes and numbers."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, size, size), (3, size, size)]
    shapes += [(2, size + stride, size + 2 * stride)] if dynamic else []
    for batch, height, width in shapes:
        coarse = torch.rand(batch, 3, 6, 6, generator=generator)
        yield nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def compare(
    module: nn.Module, content: bytes, size: int, stride: int, dynamic: bool, output: Output
) -> float:
    """The largest difference between an ONNX program and the module: boxes in shares of the side."""
    session = session_of(content)
    worst = 0.0
    for images in examples(size, stride, dynamic):
        with torch.no_grad():
            expected = module(images)
        found = session.run(None, {"images": images.numpy()})
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            if one.shape != tuple(other.shape):
                return float("inf")
            unit = float(size) if number == 0 and output != "raw" else 1.0
            difference = (torch.from_numpy(one).double() - other.double()).abs() / unit
            if output == "raw":
                difference = difference / other.abs().clamp(min=1).double()
            worst = max(worst, difference.max().item() if difference.numel() else 0.0)
    return worst


def session_of(model: bytes | str) -> Any:
    """An ONNX program, ready to run on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def card(folder: Path, config: TrainConfig, facts: dict[str, Any], worst: float) -> str:
    """What the network is, what it scored, and how to use it."""
    scores = saved_scores(folder)
    shown = [f"| {name} | {value:.4f} |" for name, value in scores.items()]
    side = f"multiples of {facts['stride']}" if facts["dynamic_size"] else f"{facts['size']} by {facts['size']}"
    trained = config.data.path.name if config.data.path else "generated toy pictures"
    means = {
        "raw": "the numbers before the decoder of each level, (B, numbers, K, H, W): those of the box, then "
        "the logit of objectness and those of the classes, as far as there are any",
        "boxes": "`boxes` (B, 4, A), cxcywh in pixels of the input, and `scores` (B, C, A); suppression of "
        "overlapping boxes is left to the caller",
        "detections": "`boxes` (N, 4), xyxy in pixels of the input, `scores`, `labels` and `pictures` (N,): "
        "which picture of the batch each is of",
    }
    return "\n".join(
        [
            f"# {folder.name}",
            "",
            f"Task `{config.task}`, trained on {trained} at {facts['size']} pixels. "
            f"Classes: {', '.join(facts['names'])}.",
            "",
            "## Input",
            "",
            f"`images`, float32 (B, 3, H, W) in [0, 1], RGB, letterboxed; sides: {side}.",
            "",
            f"## Output: {facts['output']}",
            "",
            f"{means[facts['output']]}.",
            "",
            f"The ONNX program's answers differ from the network's by at most {worst:.1g} (boxes as shares of "
            "the side).",
            "",
            "## Validation",
            "",
            "| score | value |",
            "| --- | --- |",
            *shown,
            "",
            "## Files",
            "",
            f"`{ONNX_FILE}`: ONNX. `{PROGRAM_FILE}`: for torch.export.load. `{WEIGHTS}`: the weights alone.",
            "",
        ]
    )
