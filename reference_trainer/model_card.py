"""MODELCARD.md: what an exported network is, what it scored, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .checkpoint import saved_scores
from .config import PRESETS, TrainConfig
from .data.loading import task_name
from .exported import About

OUTPUTS = {
    "raw": """\
`raw_0`, `raw_1` ..., one a level: the raw outputs, before the decoder, float32 (B, channels, K, H, W),
those of the box first, then the logit of objectness and those of the classes, where there are any; (B, 4)
for the pooled head.""",
    "boxes": """\
`boxes`, float32 (B, 4, A), cxcywh in pixels of the input, and `scores`, float32 (B, C, A), of every class
from 0 to 1. Boxes below the threshold and those that overlap are left in.""",
    "detections": """\
`boxes`, float32 (N, 4), xyxy in pixels of the input, and, (N,) each, `scores`, float32 from 0 to 1, `labels`,
int64, and `images`, int64, which of the B each is found in. The threshold and NMS are inside.""",
}

CARD = """\
# {name}

A network for {task}, trained by boxreg's `reference_trainer`.

| | |
|---|---|
| data | {data} |
| classes | {classes} |
| preset | {preset} |
| decoder | {decoder} |
| size | squares of {size} pixels |
| confidence threshold | {confidence} |
| licence | TO BE FILLED IN by who publishes these weights; see that of the data too |

## Validation

{scores}

## Files

- `model.onnx`: ONNX; `reference_trainer predict model.onnx IMAGE ...` runs it.
- `model.pt2`: for `torch.export.load`{torchvision}.
- `model.safetensors`: the weights alone.

Input: `images`, float32 (B, 3, H, W), RGB from 0 to 1, any B; {sides}. Images are letterboxed: padded to a
square with grey (114 / 255), centred, then resized.

Output: {output} Labels count from 0, in the order of the classes above.

On validation images the answers differ from those of the network in PyTorch by at most {differences}:
scores as they are, boxes as shares of the image's longer side, raw outputs as shares of their size where it
is above 1.
"""

MACHINE = {"device", "out", "precision", "data.path", "data.workers", "data.on_error", "save_every"}
"""Settings that say where a run was trained, not how."""


def model_card(folder: Path, config: TrainConfig, about: About, differences: Mapping[str, float]) -> str:
    """The content of the card of an exported run."""
    file = folder / "summary.json"
    counts = json.loads(file.read_text()).get("images", {}) if file.exists() else {}
    counted = ", ".join(f"{count} {split}" for split, count in counts.items()) or "unknown numbers of"
    scores = [f"| {name} | {value:.4f} |" for name, value in saved_scores(folder).items()]
    single = config.task == "single"
    size = about.size
    return CARD.format(
        name=folder.resolve().name,
        task="the one box of each image" if single else "any number of boxes in an image",
        data=f"{task_name(config.data.path)}: {counted} images",
        classes=", ".join(f"{label} {name}" for label, name in enumerate(about.names)),
        preset=preset_of(config),
        decoder=f"{config.model.head} head, {config.model.output}" if single else f"`{config.model.decoder}`",
        size=size,
        confidence="none: every image has its box" if single else f"{about.confidence:.4f}",
        scores="\n".join(["| score | value |", "|---|---|", *scores] if scores else ["Not validated."]),
        torchvision=", once `torchvision` is imported" if about.output == "detections" and not single else "",
        sides=f"H and W multiples of {about.stride}, best {size}" if about.stride else f"H and W {size}",
        output=OUTPUTS[about.output],
        differences=" and ".join(f"{value:.1e} (`{name}`)" for name, value in differences.items()),
    )


def preset_of(config: TrainConfig) -> str:
    """The preset with the fewest settings changed, and these; those that a preset leaves open count not."""
    own = dict(settings_of(config.model_dump(mode="json")))
    changed = {}
    for name, preset in PRESETS.items():
        was = dict(settings_of(preset.model_dump(mode="json")))
        changed[name] = [
            f"{key} {own[key]}" for key in own.keys() - MACHINE if was[key] not in (None, own[key])
        ]
    name = min(changed, key=lambda name: len(changed[name]))
    return ", ".join([f"`{name}`", *sorted(changed[name])])


def settings_of(branch: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a tree by their names, as the command line has them."""
    for name, value in branch.items():
        if isinstance(value, Mapping):
            yield from settings_of(value, f"{above}{name}.")
        else:
            yield above + name, value
