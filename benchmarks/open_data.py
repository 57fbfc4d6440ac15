"""How long a dataset of many images takes to open, and how much memory: `python -m benchmarks.open_data`.

The dataset is generated: hard links to a few images, with seven boxes each.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import pickle
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from reference_trainer.__main__ import main as train_command
from reference_trainer.data.files import ImageFiles
from reference_trainer.data.opening import open_data
from reference_trainer.learner import Learner

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
    images = root / folder
    images.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((WIDTH, HEIGHT))
    sets = []
    for number in range(count):
        file = images / f"{number:06d}.jpg"
        if number % LINKS == 0:
            image.save(file)
            linked = file
        else:
            os.link(linked, file)
        sets.append([random_box() for _ in range(BOXES)])
    write_labels(root, sets)


def random_box() -> Box:
    x, y, width, height = (random.randint(1, most) for most in (300, 200, 150, 150))
    return x, y, width, height, random.randrange(CLASSES)


def memory(*kinds: str) -> float:
    """Memory of this process in MB, of some kinds that Linux tells apart."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(size) for name, size, _ in map(str.split, lines)}
    return sum(sizes[f"{kind}:"] for kind in kinds) * 1024 / 1e6


def busy_seconds() -> float:
    """CPU time of this process, and of those that it has waited for."""
    return sum(os.times()[:4])


def private_to_worker(files: ImageFiles) -> float:
    """MB that a forked process no longer shares once it has asked for the boxes and path of each image."""
    receiver, sender = os.pipe()
    if worker := os.fork():
        os.waitpid(worker, 0)
        return float(os.read(receiver, 64))
    before = memory("Private_Dirty", "Private_Clean")
    for number in range(len(files)):
        files.boxes(number)
        files.files[number]
    more = memory("Private_Dirty", "Private_Clean") - before
    os.write(sender, str(more).encode())
    os._exit(0)


def measure(root: Path) -> None:
    before, start, busy = memory("Rss"), time.perf_counter(), busy_seconds()
    opened = open_data(root)
    wall, busy = time.perf_counter() - start, busy_seconds() - busy
    gc.collect()
    files = opened.files["train"]
    more, private = memory("Rss") - before, private_to_worker(files)
    held = len(pickle.dumps(files)) / len(files)
    figures = f"{wall:.1f} | {busy:.1f} | {more:.0f} | {held:.0f} | {private:.1f}"
    print(f"| {opened.kind} | {len(files):,} | {figures} |", flush=True)


class FirstStepError(Exception):
    """Raised in place of the first optimizer step."""


def measure_start(root: Path) -> None:
    """From the command line, with torch loaded, to the first optimizer step of a small network."""

    def reached(*_: object) -> NoReturn:
        raise FirstStepError

    setattr(Learner, "move", reached)  # noqa: B010 (mypy: a method)
    settings = ["--task", "grid", "--data.size", "64", "--model.width", "8", "--device", "cpu"]
    before, start, busy = memory("Rss"), time.perf_counter(), busy_seconds()
    with contextlib.suppress(FirstStepError), contextlib.redirect_stderr(io.StringIO()):
        train_command(["train", "--data", str(root), *settings, "--out", str(root.parent / "runs")])
    wall, busy = time.perf_counter() - start, busy_seconds() - busy
    print(
        f"to the first step: {wall:.1f} s, {busy:.1f} s of CPU, {memory('Rss') - before:.0f} MB", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="images")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of datasets")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    if args.start:
        measure_start(args.start)
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    columns = [
        "kind",
        "images",
        "s",
        "s of CPU",
        "MB more",
        "bytes held an image",
        "MB own to a worker",
    ]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            write(kind, Path(folder) / "set", args.count)
            for what in ("--measure", "--start"):
                command = [sys.executable, "-m", "benchmarks.open_data", what, f"{folder}/set"]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
