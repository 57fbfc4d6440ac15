"""The command `export`: a run's network as ONNX and torch.export programs, its weights, and a card."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from .checkpoint import WEIGHTS, load_run
from .config import STRIDE, DataConfig, Output, TrainConfig
from .data.loading import open_objects, open_sources
from .data.sample import ImageSource, letterbox
from .errors import UserError
from .exported import METADATA, About, Answers, Boxes, OnnxFile, module_of, per_image
from .files import write_whole
from .grid_model import strides_of
from .model_card import model_card
from .predict import usual_confidence

ONNX_FILE, PROGRAM_FILE, CARD_FILE = "model.onnx", "model.pt2", "MODELCARD.md"

NEEDED = ("onnx", "onnxscript", "onnxruntime")

MOST_DIFFERENCE = 1e-4
"""What programs may differ from the network by: in scores, in boxes as shares of the image's longer side,
in raw outputs as shares of their size where that is above 1."""

INFINITE = float("inf")

COMPARED = 16
"""Validation images that programs and network are compared on."""


def export_run(folder: Path, out: Path | None, output: Output, data: Path | None = None) -> dict[str, Any]:
    """Write a run's network as programs, beside its weights and a card.

    Both programs are read back and compared with the network on validation images, in several numbers and,
    where they take them, in other sizes; nothing is written unless they agree.

    Args:
        folder: the run's folder.
        out: where to write; by default a folder of the run.
        output: what the programs give; see `exported`.
        data: a dataset to take the images from, instead of the run's own.

    Raises:
        UserError: if onnx is not installed, the run or its images cannot be used, or a program differs.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}; pip install 'boxreg[onnx]'")
    config, model, names = load_run(folder)
    source = validation_images(config, data)
    out = folder / "export" if out is None else out
    about = About(
        task=config.task,
        output=output,
        size=config.data.size,
        stride=stride_of(config),
        names=names,
        confidence=usual_confidence(config, folder),
    )
    # Warnings of what torch means to change in torch.
    warnings.simplefilter("ignore", FutureWarning)
    program = traced(module_of(model, about), about)
    contents = {ONNX_FILE: as_onnx(program, about), PROGRAM_FILE: as_archive(program)}
    programs: dict[str, Callable[[Tensor], Answers]] = {
        ONNX_FILE: OnnxFile(contents[ONNX_FILE], ONNX_FILE),
        PROGRAM_FILE: torch.export.load(BytesIO(contents[PROGRAM_FILE])).module(),
    }
    differences = {
        name: largest_difference(program, reference_of(model, about), about, source)
        for name, program in programs.items()
    }
    apart = {
        name: difference for name, difference in differences.items() if not difference <= MOST_DIFFERENCE
    }
    if apart:
        figures = ", ".join(f"{name} by {difference:.2g}" for name, difference in apart.items())
        raise UserError(
            f"{out}: nothing is written: answers differ from the network's: {figures}, where "
            f"{MOST_DIFFERENCE:g} is allowed"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_whole(out / name, content)
    shutil.copyfile(folder / WEIGHTS, out / WEIGHTS)
    write_whole(out / CARD_FILE, model_card(folder, config, about, differences).encode())
    compared = min(len(source), COMPARED)
    return {"run": str(folder), "export": str(out), "output": output, "compared": compared} | {
        "differences": differences
    }


def validation_images(config: TrainConfig, data: Path | None) -> ImageSource:
    """The images that the run was validated on, or those of another dataset.

    Raises:
        DataError: if they cannot be read.
    """
    data_config = config.data
    if data:
        data_config = DataConfig(path=data, size=data_config.size, on_error=data_config.on_error)
    open_all = open_sources if config.task == "single" else open_objects
    return open_all(data_config, config.seed, ["val"]).splits["val"]


def stride_of(config: TrainConfig) -> int:
    """See `About.stride`: the decoder `cell` and the pooled head know one size of images."""
    if config.task == "single":
        return STRIDE if config.model.head == "dense" else 0
    return 0 if config.model.decoder == "cell" else max(STRIDE, strides_of(config.model)[-1])


def traced(module: nn.Module, about: About) -> ExportedProgram:
    """The module as a program for any number of images, and their sizes as far as it takes them."""
    # Not 1, not square: what is so in the example might be taken for a rule.
    example = torch.rand(2, 3, about.size, about.size + about.stride)
    shape: dict[int, Any] = {0: Dim("batch", min=1, max=4096)}
    if about.stride:
        shape[2] = about.stride * Dim("rows", min=2, max=1024)
        shape[3] = about.stride * Dim("columns", min=2, max=1024)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(shape,))


def as_archive(program: ExportedProgram) -> bytes:
    """The content of a file for torch.export.load."""
    content = BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def as_onnx(program: ExportedProgram, about: About) -> bytes:
    """The content of an ONNX file, with what it takes to use it."""
    import onnx

    levels = len(program.graph_signature.user_outputs)
    names = {
        "raw": [f"raw_{level}" for level in range(levels)],
        "boxes": ["boxes", "scores"],
        "detections": ["boxes", "scores", "labels", "image_indices"],
    }[about.output]
    found = torch.onnx.export(program, input_names=["images"], output_names=names, dynamo=True, verbose=False)
    assert found is not None
    model = found.model_proto
    onnx.helper.set_model_props(model, {METADATA: about.as_json()})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def reference_of(model: nn.Module, about: About) -> Callable[[Tensor], Answers]:
    """What the exported program should answer; for detections, what `predict` finds by other means."""
    if about.output != "detections":
        return module_of(model, about)
    boxes = Boxes(model).eval()
    before = About(**vars(about) | {"output": "boxes"})

    def find(images: Tensor) -> Answers:
        found = per_image(boxes(images), before, images, about.confidence)
        numbers = [torch.full_like(each.labels, number) for number, each in enumerate(found)]
        return *(torch.cat(parts) for parts in zip(*found, strict=True)), torch.cat(numbers)

    return find


def batches(source: ImageSource, about: About) -> Iterator[Tensor]:
    """Images spread over a split, as networks take them: one, all, and where possible in another size."""
    count = min(len(source), COMPARED)
    images = [source[place * len(source) // count].image for place in range(count)]

    def squares(size: int) -> Tensor:
        fitted = [letterbox(image, torch.zeros(0, 4), size)[0] for image in images]
        return torch.stack(fitted).float() / 255.0

    yield squares(about.size)[:1]
    yield squares(about.size)
    if about.stride:
        yield squares(about.size + 2 * about.stride)[:, :, : about.size + about.stride]


@torch.no_grad()
def largest_difference(
    program: Callable[[Tensor], Answers],
    reference: Callable[[Tensor], Answers],
    about: About,
    source: ImageSource,
) -> float:
    """The most that a program's answers differ from the reference's, in the units of `MOST_DIFFERENCE`."""
    largest = 0.0
    for images in batches(source, about):
        found, expected = program(images), reference(images)
        side = max(images.shape[-2:])
        if about.output == "detections":
            difference = set_difference(found, expected, side, about.confidence)
        else:
            units = [side, 1.0] if about.output == "boxes" else [1.0] * len(expected)
            pairs = zip(found, expected, units, strict=True)
            difference = max(plain_difference(*pair, about.output == "raw") for pair in pairs)
        largest = max(largest, difference)
    return largest


def plain_difference(found: Tensor, expected: Tensor, unit: float, relative: bool) -> float:
    """Between numbers at the same places; NaN and another shape differ without end."""
    if found.shape != expected.shape:
        return INFINITE
    size = expected.abs().clamp(min=1.0) if relative else unit
    return ((found - expected).abs() / size).nan_to_num(INFINITE, INFINITE).max().item()


def set_difference(found: Answers, expected: Answers, side: int, confidence: float) -> float:
    """Between detections in any order: from each to the nearest of the other side, the largest distance.

    One that the other side lacks differs without end, unless its score is so near the confidence that it may
    fall on either side of it: the confidence is, as a rule, the score of a validation image's detection.
    """

    def rows(answers: Answers) -> Tensor:
        boxes, scores, labels, image_indices = answers
        # One class or image further is further away than any difference that is allowed.
        return torch.cat([boxes / side, torch.stack([scores, labels, image_indices], 1)], 1).double()

    distances = (rows(found)[:, None] - rows(expected)).abs().amax(2).nan_to_num(INFINITE, INFINITE)
    largest = 0.0
    for answers, apart in ((found, distances), (expected, distances.T)):
        nearest = F.pad(apart, (0, 1), value=INFINITE).amin(1)
        unclear = (answers[1] - confidence).abs() <= MOST_DIFFERENCE
        largest = max([largest, *nearest[~unclear | (nearest <= MOST_DIFFERENCE)].tolist()])
    return largest
