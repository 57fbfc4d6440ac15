"""Boxes for pictures of any size, drawn and as JSON in the pictures' own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from boxreg import convert

from .checkpoint import load_run, pick_device
from .data.sample import Letterbox, decode_picture, letterbox
from .drawing import draw_found
from .files import as_json, write_whole
from .model import answer, prepare_images


class Found(NamedTuple):
    """The box found in a picture: xyxy in original pixels, inside the picture, and its confidence."""

    path: Path
    image: Tensor
    box: list[float]
    confidence: float

    def as_json(self) -> dict[str, Any]:
        """The prediction without the picture."""
        height, width = self.image.shape[-2:]
        return {
            "picture": str(self.path),
            "width": width,
            "height": height,
            "box_xyxy": [round(value, 2) for value in self.box],
            "confidence": round(self.confidence, 4),
        }


def predict_run(folder: Path, pictures: Sequence[Path], out: Path | None, device_name: str) -> dict[str, Any]:
    """Find the box in each picture with a run's weights; draw them and write predictions.json.

    Raises:
        UserError: if the run, the device or a picture cannot be used.
    """
    config, model, _ = load_run(folder)
    device = pick_device(device_name)
    model = model.to(device)
    found = [find_box(model, path, config.data.size, device) for path in pictures]
    out = folder / "predictions" if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "predictions.json", as_json([one.as_json() for one in found]))
    for number, one in enumerate(found):
        # Pictures of one name may come from several folders.
        drawing = out / f"{number:03d}-{one.path.stem}.png"
        title = f"{one.path.name}  confidence {one.confidence:.2f}"
        write_whole(drawing, draw_found(one.image, one.box, title))
    return {"run": str(folder), "predictions": str(out / "predictions.json"), "pictures": len(found)}


@torch.no_grad()
def find_box(model: nn.Module, path: Path, size: int, device: torch.device) -> Found:
    """Find the box in a picture of any size.

    Raises:
        DataError: if the picture cannot be read.
    """
    image = decode_picture(path)
    square, _, fitted = letterbox(image, torch.zeros(0, 4), size)
    boxes, confidence = answer(model(prepare_images(square[None].to(device))))
    return Found(path, image, in_original(boxes[0].cpu(), fitted, size), float(confidence[0]))


def in_original(box: Tensor, fitted: Letterbox, size: int) -> list[float]:
    """A box (4,), cxcywh as fractions of the square, as xyxy in original pixels inside the picture."""
    first, second = fitted.undo(convert(box, "cxcywh", "xyxy") * size).view(2, 2)
    # A linear output may name the corners the other way round.
    corners = torch.stack([torch.minimum(first, second), torch.maximum(first, second)])
    edges = corners.new_tensor([fitted.width, fitted.height])
    pixels: list[float] = torch.minimum(corners.clamp(min=0), edges).flatten().tolist()
    return pixels
