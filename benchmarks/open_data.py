"""How long a data set of many pictures takes to open, and how much memory: `python benchmarks/open_data.py`.

The set is generated: hard links to a few pictures, with seven boxes each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, BOXES, CLASSES = 500, 375, 7, 20

LINKS = 10_000

Box = tuple[int, int, int, int, int]
Boxes = list[Box]


def write_yolo(root: Path, sets: list[Boxes]) -> None:
    (root / "labels/train").mkdir(parents=True)
    names = ", ".join(f"c{label}" for label in range(CLASSES))
    (root / "data.yaml").write_text(f"train: images/train\nnames: [{names}]\n")
    for number, boxes in enumerate(sets):
        lines = [
            f"{c} {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}\n"
            for x, y, w, h, c in boxes
        ]
        (root / f"labels/train/{number:06d}.txt").write_text("".join(lines))


def write_coco(root: Path, sets: list[Boxes]) -> None:
    (root / "annotations").mkdir(parents=True)
    images = [
        {"id": n, "file_name": f"{n:06d}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(len(sets))
    ]
    boxes = ((n, *box) for n, boxes in enumerate(sets) for box in boxes)
    annotations = [
        {"id": i, "image_id": n, "category_id": c, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        for i, (n, x, y, w, h, c) in enumerate(boxes)
    ]
    categories = [{"id": label, "name": f"c{label}"} for label in range(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_train.json").write_text(json.dumps(content))


def write_voc(root: Path, sets: list[Boxes]) -> None:
    (root / "Annotations").mkdir(parents=True)
    for number, boxes in enumerate(sets):
        objects = [
            f"<object><name>c{c}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>\n"
            for x, y, w, h, c in boxes
        ]
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>\n"
        text = f"<annotation><filename>{number:06d}.jpg</filename>\n{size}{''.join(objects)}</annotation>"
        (root / f"Annotations/{number:06d}.xml").write_text(text)


KINDS = {
    "YOLO": (write_yolo, "images/train"),
    "COCO": (write_coco, "images"),
    "VOC": (write_voc, "JPEGImages"),
}


def write(kind: str, root: Path, count: int) -> None:
    random.seed(0)
    write_labels, folder = KINDS[kind]
    pictures = root / folder
    pictures.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((WIDTH, HEIGHT))
    sets = []
    for number in range(count):
        file = pictures / f"{number:06d}.jpg"
        if number % LINKS == 0:
            picture.save(file)
            linked = file
        else:
            os.link(linked, file)
        sets.append([random_box() for _ in range(BOXES)])
    write_labels(root, sets)


def random_box() -> Box:
    x, y, width, height = (random.randint(1, most) for most in (300, 200, 150, 150))
    return x, y, width, height, random.randrange(CLASSES)


def resident() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(root: Path) -> None:
    from reference_trainer.data.opening import open_data

    before, start, busy = resident(), time.perf_counter(), time.process_time()
    opened = open_data(root)
    wall, busy = time.perf_counter() - start, time.process_time() - busy
    gc.collect()
    pictures = len(opened.files["train"])
    print(
        f"| {opened.kind} | {pictures:,} | {wall:.1f} | {busy:.1f} | {resident() - before:.0f} |", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="pictures")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    print("| kind | pictures | s | s of CPU | MB more |\n|---|---|---|---|---|", flush=True)
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            write(kind, Path(folder) / "set", args.count)
            subprocess.run([sys.executable, __file__, "--measure", f"{folder}/set"], check=True)


if __name__ == "__main__":
    main()
