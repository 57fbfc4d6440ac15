"""YOLO folders: a data.yaml, images, and one text file of boxes an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..files import read_yaml
from .files import BoxFormat, Labels, Problem
from .folders import EXTENSIONS, files_below, read_lines
from .sample import DataError
from .shares import shared_out

FRACTIONS = BoxFormat("cxcywh", in_pixels=False)


class YoloFolder:
    """A YOLO folder, as its data.yaml describes it.

    A label file is found by putting "labels" for the last "images" in an image's path; where there is
    none it lies beside the image. An image whose label file is empty or missing has no boxes. Paths
    in data.yaml start at its `path`, which itself starts at the folder of data.yaml. A split is named by a
    folder, a .txt list, or several of them.

    Args:
        path: the folder that holds data.yaml, or the file itself.

    Raises:
        DataError: if data.yaml is not YAML, or its `path`, `names` or `nc` is wrong.
    """

    kind = "YOLO"
    looked_for = "a data.yaml (or another .yaml with train and names)"

    def __init__(self, path: Path) -> None:
        self.file = path if path.is_file() else self.files_at(path)[0]
        self._content = _read_yaml(self.file)
        self._root = self.file.parent / Path(str(self._content.get("path") or ".")).expanduser()
        problems = [] if self._root.is_dir() else [f"{self.file}: path: no such folder: {self._root}"]
        self.names = _read_names(self._content, self.file, problems)
        if problems:
            raise DataError(*problems)
        self.splits = [split for split in ("train", "val") if self._content.get(split) is not None]

    @staticmethod
    def files_at(folder: Path) -> list[Path]:
        """The data.yaml of a folder, or else the other files that could be one."""
        for name in ("data.yaml", "data.yml"):
            if (folder / name).is_file():
                return [folder / name]
        others = sorted(file for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
        return [file for file in others if _is_data_yaml(file)]

    def read(self, splits: Sequence[str]) -> dict[str, Labels]:
        """The labels of some splits."""
        return {split: self._read_split(split) for split in splits}

    def _read_split(self, split: str) -> Labels:
        labels = self._no_labels()
        images = self._images(split, labels)

        def read_part(part: range) -> Labels:
            found = self._no_labels()
            for image in images[part.start : part.stop]:
                _read_labels(found.add_image(image), label_file(image), found)
            return found

        for found in shared_out(read_part, len(images)):
            labels.take(found)
        return labels

    def _no_labels(self) -> Labels:
        labels = Labels(FRACTIONS, lambda image, line: f"{label_file(labels.files[image])}:{line}")
        labels.names = self.names
        return labels

    def _images(self, split: str, labels: Labels) -> list[str]:
        """The image files of a split, in a fixed order."""
        value = self._content.get(split)
        places = value if isinstance(value, list) else [value]
        if not places or not all(isinstance(place, str) and place for place in places):
            labels.add_fatal(f"{self.file}: {split}: expected a folder, a .txt list or several: {value!r}")
            return []
        images: list[str] = []
        for place in map(str, places):
            source = self._root / Path(place).expanduser()
            if not source.exists() and place.startswith("../"):
                # Roboflow's exports write ../train/images for the folder train/images.
                source = self._root / place.removeprefix("../")
            if source.is_dir():
                found = sorted(files_below(source, EXTENSIONS))
                _find_labels_without_image(source, found, labels)
            elif source.is_file() and source.suffix == ".txt":
                found = _images_listed(source, labels)
            else:
                labels.add_fatal(f"{self.file}: {split}: no such folder or .txt list: {source}")
                continue
            if not found:
                expected = f"no images ({', '.join(EXTENSIONS)})"
                labels.add_fatal(f"{self.file}: {split}: {expected}: {source}")
            images += found
        return list(dict.fromkeys(images))


def _is_data_yaml(file: Path) -> bool:
    try:
        content = read_yaml(file)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"train", "names"} <= set(content)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except ValueError as error:
        raise DataError(str(error)) from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected keys such as train, val and names: {content!r}")
    return content


def _read_names(content: dict[str, Any], file: Path, problems: list[str]) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            problems.append(f"{file}: names: the keys must be 0, 1, 2 and so on: {list(names)}")
            return []
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names:
        problems.append(f"{file}: names: expected a list or a mapping of class names: {names!r}")
        return []
    # YAML reads an unquoted yes, no, on and off as a truth value.
    wrong = [name for name in names if isinstance(name, bool) or not isinstance(name, str | int)]
    problems += [f"{file}: names: not text, put it in quotes: {name!r}" for name in wrong]
    if content.get("nc", len(names)) != len(names):
        problems.append(f"{file}: nc: there are {len(names)} names: {content['nc']!r}")
    return [str(name) for name in names]


def _images_listed(listing: Path, labels: Labels) -> list[str]:
    images = []
    try:
        lines = read_lines(listing)
    except ValueError as error:
        labels.add_fatal(f"{listing}: {error}")
        return []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image = str(listing.parent / line.strip())
        if os.path.isfile(image):
            images.append(image)
        else:
            labels.problems.append(Problem(-1, number, f"{listing}:{number}: no such image: {line.strip()}"))
    return images


def label_file(image: str | Path) -> str:
    """Where the boxes of an image are looked for."""
    folder, name = os.path.split(image)
    return os.path.join(_swap_images(folder), f"{os.path.splitext(name)[0]}.txt")


@lru_cache(maxsize=1024)
def _swap_images(folder: str) -> str:
    parts = list(Path(folder).parts)
    if "images" not in parts:
        return folder
    last = len(parts) - 1 - parts[::-1].index("images")
    return str(Path(*parts[:last], "labels", *parts[last + 1 :]))


def _find_labels_without_image(folder: Path, images: Sequence[str], labels: Labels) -> None:
    below = Path(_swap_images(str(folder)))
    # Beside the images there may be text files of any kind.
    if below == folder or not below.is_dir():
        return
    expected = {label_file(image) for image in images}
    for file in sorted(files_below(below, [".txt"])):
        # Labelling tools leave a classes.txt among the labels.
        if file not in expected and os.path.basename(file) != "classes.txt":
            labels.problems.append(Problem(-1, 0, f"{file}: label file without an image"))


def _read_labels(image: int, file: str, labels: Labels) -> None:
    try:
        lines = read_lines(file) if os.path.exists(file) else []
    except ValueError as error:
        labels.problems.append(Problem(image, 0, f"{file}: {error}"))
        labels.dropped.add(image)
        return
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns:
            continue
        try:
            label, numbers = _parse(columns, len(labels.names))
        except ValueError as error:
            labels.add_problem(image, number, str(error))
        else:
            labels.add_box(image, label, numbers, number)


def _parse(columns: Sequence[str], classes: int) -> tuple[int, list[float]]:
    """Class and numbers of a line, `class x-centre y-centre width height`, as fractions of the image."""
    if len(columns) != 5:
        hint = ", a polygon or key points?" if len(columns) > 5 else ""
        raise ValueError(
            f"expected 5 columns (class x y width height), got {len(columns)}{hint}: {' '.join(columns)}"
        )
    numbers = []
    for column in columns:
        try:
            numbers.append(float(column))
        except ValueError:
            raise ValueError(f"not a number: {column}") from None
    if not (numbers[0].is_integer() and 0 <= numbers[0] < classes):
        raise ValueError(f"class is not one of 0 to {classes - 1}: {columns[0]}")
    return int(numbers[0]), numbers[1:]
