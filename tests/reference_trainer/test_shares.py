from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reference_trainer.data import DataError, decode_image, open_data
from reference_trainer.data import files as files_module
from reference_trainer.data import shares as shares_module
from reference_trainer.data.sample import measure_image
from reference_trainer.data.shares import apart, shared_out

COUNT = 150


@pytest.mark.parametrize("count", [0, 1, 31, 64, 1000])
def test_parts_come_in_order_and_are_all(count: int) -> None:
    parts = list(shared_out(lambda part: (os.getpid(), list(part)), count))
    assert [number for _, part in parts for number in part] == list(range(count))
    if count >= 64:
        assert os.getpid() not in dict(parts)
        assert len(dict(parts)) == len(parts) > 1


def test_a_process_that_dies_is_an_error_and_leaves_no_other_behind() -> None:
    def die(part: range) -> int:
        os._exit(3)

    with pytest.raises(RuntimeError, match="a process that read files ended with 3"):
        list(shared_out(die, 100))
    assert multiprocessing.active_children() == []


def test_what_a_process_refuses_is_refused_here() -> None:
    def refuse() -> None:
        raise DataError("a.txt:1: wrong", "b.txt:2: wrong")

    with pytest.raises(DataError) as caught:
        apart(refuse)
    assert caught.value.problems == ["a.txt:1: wrong", "b.txt:2: wrong"]


def write_yolo(root: Path) -> None:
    (root / "labels/train").mkdir(parents=True)
    (root / "data.yaml").write_text("train: images/train\nnames: [a, b]\n")
    for number in range(COUNT):
        wrong = "9 0.5 0.5 0.2 0.2\n" if number % 40 == 7 else ""
        text = f"{number % 2} 0.5 0.5 0.{1 + number % 5} 0.25\n{wrong}1 0.3 0.3 0.1 0.1\n"
        (root / f"labels/train/{number:03d}.txt").write_text(text)


def write_voc(root: Path) -> None:
    (root / "Annotations").mkdir(parents=True)
    for number in range(COUNT):
        # The last says to be about the first one's image, which lies in another part.
        name = 0 if number == COUNT - 1 else number
        edge = "x" if number % 40 == 7 else 3
        objects = "".join(
            f"<object><name>{'cba'[number % 3]}</name><bndbox><xmin>{edge}</xmin><ymin>2</ymin>"
            f"<xmax>{10 + extra + number % 5}</xmax><ymax>9</ymax></bndbox></object>\n"
            for extra in range(2)
        )
        text = f"<annotation><filename>{name:03d}.jpg</filename>\n{objects}</annotation>"
        (root / f"Annotations/{number:03d}{'' if name == number else 'x'}.xml").write_text(text)


@pytest.mark.parametrize(("write", "folder"), [(write_yolo, "images/train"), (write_voc, "JPEGImages")])
def test_what_processes_read_is_what_one_reads(
    write: Callable[[Path], None], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    write(root)
    (root / folder).mkdir(parents=True)
    for number in range(COUNT - (write is write_voc)):
        Image.new("RGB", (20 + number % 7, 16)).save(root / folder / f"{number:03d}.jpg")
    (root / folder / "100.jpg").write_bytes(b"no image")

    def opened() -> tuple[list[str], list[str], list[object]]:
        with pytest.raises(DataError) as caught:
            open_data(root, ["train"])
        files = open_data(root, ["train"], skip_bad=True).files["train"]
        boxes = [[part.tolist() for part in files.boxes(index)] for index in range(len(files))]
        rest = [files.names, files.sizes.tolist(), list(files.files), files.problems, boxes]
        return caught.value.problems, files.problems, rest

    together = opened()
    monkeypatch.setattr(shares_module, "_LEAST", 10 * COUNT)
    assert opened() == together
    # A wrong class in four label files, a broken image; or two wrong boxes each, and an image taken twice.
    assert len(together[0]) == (10 if write is write_voc else 5)


JPEGS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "comment": {"comment": b"c" * 3000},
    "comment longer than what is read": {"comment": b"c" * 9000},
    "profile": {"icc_profile": b"p" * 2000},
}


@pytest.mark.parametrize("exif", [None, 1, 6], ids=["no EXIF", "upright", "turned"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("how", JPEGS)
def test_the_size_of_a_jpeg_is_that_of_its_pixels(
    how: str, mode: str, exif: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "a.jpg"
    tags = Image.Exif()
    if exif:
        tags[0x0112] = exif
    noise = np.random.default_rng(0).integers(0, 255, (20, 34), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file, exif=tags, **JPEGS[how])  # type: ignore[arg-type]
    assert measure_image(file) == tuple(decode_image(file).shape[:0:-1])
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match="broken image"):
        measure_image(file)


def test_paths_that_are_joined_are_those_of_both() -> None:
    first, second = files_module.Paths(), files_module.Paths()
    for name in ("a", "bé/c.png"):
        first.append(name)
        second.append(f"x{name}")
    first.extend(second)
    first.append("end")
    assert [str(path) for path in first] == ["a", "bé/c.png", "xa", "xbé/c.png", "end"]
