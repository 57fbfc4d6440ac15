"""Augmentation of a training picture, by torchvision's v2 transforms on tv_tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ..config import AugmentConfig


class ZoomShiftCrop(v2.Transform):  # type: ignore[misc]
    """Zoom, shift and crop in one resampling; every object stays whole, edge pixels fill what comes free.

    Reflected or constant borders would put a second object, or a frame, beside the first.

    Args:
        scale: zoom by a factor between 1 - scale and 1 + scale.
        translate: largest shift, as a share of the side.
        crop: smallest share of the side that the crop keeps.
    """

    def __init__(self, scale: float, translate: float, crop: float) -> None:
        super().__init__()
        self.scale, self.translate, self.crop = scale, translate, crop

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window of the picture that becomes the new picture, around all boxes."""
        boxes = next(item for item in flat_inputs if isinstance(item, tv_tensors.BoundingBoxes))
        side = boxes.canvas_size[0]
        zoom, kept, x, y = torch.rand(4).tolist()
        kept = self.crop + (1.0 - self.crop) * kept
        window = max(round(side * kept / (1.0 + self.scale * (2.0 * zoom - 1.0))), 1)
        x1, y1 = boxes.as_subclass(Tensor)[:, :2].amin(0).floor().int().tolist()
        x2, y2 = boxes.as_subclass(Tensor)[:, 2:].amax(0).ceil().int().tolist()
        window = max(window, x2 - x1, y2 - y1)
        if max(x2 - x1, y2 - y1) >= side:
            window = side
        play = 0.5 * (1.0 - kept) * side + self.translate * side
        left = round(0.5 * (side - window) + play * (2.0 * x - 1.0))
        top = round(0.5 * (side - window) + play * (2.0 * y - 1.0))
        left = _start_of_window(left, x1, x2, window, side)
        top = _start_of_window(top, y1, y2, window, side)
        return {"left": left, "top": top, "window": window, "side": side}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut the window out and bring it to the picture's size."""
        left, top, window, side = params["left"], params["top"], params["window"], params["side"]
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            return functional.resized_crop(inpt, top, left, window, window, [side, side])
        # torchvision's edge padding takes no boxes; rows and columns beyond the edge repeat it just as well.
        rows = torch.arange(top, top + window).clamp_(0, side - 1)
        columns = torch.arange(left, left + window).clamp_(0, side - 1)
        cut = inpt.as_subclass(Tensor).index_select(1, rows).index_select(2, columns)
        return tv_tensors.wrap(functional.resize(cut, [side, side], antialias=True), like=inpt)


def _start_of_window(wanted: int, low: int, high: int, window: int, side: int) -> int:
    """Where the window starts: all of low..high in it, and not past an edge that the object touches.

    Repeated beyond the edge, the object would outgrow its box.
    """
    first = 0 if low <= 0 else high - window
    last = side - window if high >= side else low
    return min(max(wanted, first), last)


def build_augmentation(config: AugmentConfig) -> v2.Compose:
    """The transforms that `config` asks for, and none that it switches off."""
    transforms: list[v2.Transform] = []
    if config.hflip:
        transforms.append(v2.RandomHorizontalFlip(config.hflip))
    if config.vflip:
        transforms.append(v2.RandomVerticalFlip(config.vflip))
    if config.geometry and (config.scale or config.translate or config.crop < 1):
        window = ZoomShiftCrop(config.scale, config.translate, config.crop)
        transforms.append(v2.RandomApply([window], config.geometry))
    if config.colour and (config.brightness or config.contrast or config.saturation):
        jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation)
        transforms.append(v2.RandomApply([jitter], config.colour))
    return v2.Compose(transforms or [v2.Identity()])
