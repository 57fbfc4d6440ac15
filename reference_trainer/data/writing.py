"""Writing images of any source as a YOLO folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import yaml
from PIL import Image

from .sample import ImageSource


def write_yolo_folder(sources: Mapping[str, ImageSource], path: str | Path) -> None:
    """Write images as a YOLO folder: images/<split>/*.png, labels/<split>/*.txt and data.yaml.

    Everything is written to a hidden folder beside `path` that takes its name at the end: an
    interruption leaves no half-written dataset.

    Args:
        sources: the images of each split, such as "train" and "val".
        path: the folder to make; it may exist if it is empty.

    Raises:
        FileExistsError: if `path` is a file or a folder with something in it; nothing is touched.
        ValueError: if there are no splits or their class names differ.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: already there and not an empty folder; nothing was written")
    names = [source.names for source in sources.values()]
    if not names or any(other != names[0] for other in names):
        raise ValueError(f"sources: expected one or more splits with the same class names, got {names}")
    partial = target.parent / f".{target.name}.{uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    try:
        for split, source in sources.items():
            _write_split(source, partial, split)
        folders = {split: f"images/{split}" for split in sources}
        content = {"path": ".", **folders, "names": dict(enumerate(names[0]))}
        (partial / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        if target.exists():
            target.rmdir()
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_split(source: ImageSource, root: Path, split: str) -> None:
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(len(source)):
        annotated = source[index]
        height, width = annotated.image.shape[-2:]
        Image.fromarray(annotated.image.permute(1, 2, 0).numpy()).save(images / f"{index:06d}.png")
        lines = []
        for label, (x1, y1, x2, y2) in zip(annotated.labels.tolist(), annotated.boxes.tolist(), strict=True):
            numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            # 17 digits: what is read back is the same to the last bit but for rounding in float64.
            lines.append(" ".join([str(label), *(format(number, ".17g") for number in numbers)]))
        (labels / f"{index:06d}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
