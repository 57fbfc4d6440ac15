"""What is in a dataset, and everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .files import ImageFiles
from .opening import open_data
from .sample import DataError


def check_data(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Check a dataset, every image to its last byte.

    Returns:
        The counts, and lines for people: the problems if there are any, otherwise what is there.
    """
    try:
        opened = open_data(path, skip_bad=True, decode=True)
    except DataError as error:
        return {"data": str(path), "problems": len(error.problems)}, error.problems
    problems = opened.problems
    splits = {split: _counts(files) for split, files in opened.files.items()}
    result = {"data": str(path), "kind": opened.kind, "problems": len(problems), "splits": splits}
    if problems:
        return result, problems
    lines = [f"{opened.kind}: {path}: nothing is wrong"]
    for split, files in opened.files.items():
        lines += [f"{split}: {sentence}" for sentence in _sentences(files)]
        lines += [f"  {name}: {count} boxes" for name, count in splits[split]["classes"].items()]
    if "val" not in opened.files:
        lines.append(f"val: {len(opened.splits['val'])} of these images, drawn by lot")
    return result, lines


def _counts(files: ImageFiles) -> dict[str, Any]:
    return {
        "images": len(files),
        "boxes": int(files.box_counts.sum()),
        "classes": dict(zip(files.names, files.class_counts, strict=True)),
        "backgrounds": files.backgrounds,
        "clipped": files.clipped,
        "left_out": files.left_out,
    }


def _sentences(files: ImageFiles) -> list[str]:
    sizes = np.quantile(files.sizes, (0, 0.5, 1), axis=0).astype(int)
    low, middle, high = (f"{width} x {height}" for width, height in sizes)
    sentences = [
        f"{len(files)} images of {low} to {high}, median {middle}",
        f"{files.backgrounds} of them without an object",
    ]
    if len(files.box_shares):
        low, middle, high = (f"{share:.1%}" for share in np.quantile(files.box_shares, (0, 0.5, 1)))
        sizes_of_boxes = f"{low} to {high} of their image's side, median {middle}"
        sentences.append(f"{len(files.box_shares)} boxes, {sizes_of_boxes}")
    if files.clipped:
        sentences.append(f"{files.clipped} boxes stick out by up to 1 % and are clipped")
    if files.left_out:
        sentences.append(f"{files.left_out} difficult objects or crowds are left out")
    return sentences
