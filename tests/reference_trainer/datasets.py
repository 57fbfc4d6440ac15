"""Datasets of each kind in a temporary folder, good ones and ones with a fault."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.reference_trainer.images import ramp, save

HEIGHT, WIDTH = 20, 30
"""The size of the images."""


def content_of(root: Path) -> dict[str, str]:
    """Every file below a folder, with a hash of what it holds."""
    files = (file for file in root.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def add_image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save(ramp(HEIGHT, WIDTH), file)


class Coco:
    """The content of a COCO file; each element gets a line of its own."""

    def __init__(self, root: Path, names: Sequence[str] = ("cat", "dog")) -> None:
        self.root = root
        self.images: list[Any] = []
        self.annotations: list[Any] = []
        self.categories: list[Any] = [{"id": 3 * number, "name": name} for number, name in enumerate(names)]

    def add(self, name: str, *boxes: Any, folder: str = "images") -> dict[str, Any]:
        """Add an image with boxes of the first class; returns its last annotation."""
        add_image(self.root / folder / f"{name}.png")
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT})
        for box in boxes:
            identity = 100 + len(self.annotations)
            self.annotations.append({"id": identity, "image_id": number, "category_id": 0, "bbox": box})
        return self.annotations[-1] if boxes else {}

    def text(self) -> str:
        lists = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        parts = [
            f'"{key}": [\n' + ",\n".join(map(json.dumps, elements)) + "\n]" for key, elements in lists.items()
        ]
        return "{" + ",\n".join(parts) + "}\n"

    def line(self, key: str, index: int) -> int:
        """The line of an element."""
        before = {"images": 0, "annotations": len(self.images) + 2}
        before["categories"] = before["annotations"] + len(self.annotations) + 2
        return before[key] + 2 + index

    def write(self, file: str = "annotations/instances_default.json") -> Path:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text())
        return path


def voc_object(box: Sequence[Any] = (3, 4, 12, 14), name: str = "cat", extra: str = "") -> str:
    """An object on one line: xmin, ymin, xmax, ymax."""
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inside = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    return f"<object><name>{name}</name>{extra}<bndbox>{inside}</bndbox></object>"


def voc_xml(*lines: str, name: str = "a", size: tuple[Any, Any] = (WIDTH, HEIGHT)) -> str:
    """An annotation with its objects from line 3 on."""
    head = f"<annotation><filename>{name}.png</filename>\n"
    head += f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>\n"
    return head + "\n".join(lines) + "\n</annotation>\n"


def add_voc(root: Path, name: str, *lines: str, **options: Any) -> Path:
    """Add an image and its annotation to a VOC folder; returns the annotation's file."""
    add_image(root / "JPEGImages" / f"{name}.png")
    file = root / "Annotations" / f"{name}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(voc_xml(*lines, name=name, **options))
    return file
