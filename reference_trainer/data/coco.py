"""COCO detection data: JSON files with images, annotations and categories, and folders of image files."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from .files import BoxFormat, Labels
from .folders import SPLITS
from .json_elements import Element, JsonElements, short
from .sample import DataError

CORNER_AND_SIZE = BoxFormat("xywh", in_pixels=True)
LISTS = ("images", "annotations", "categories")

_TRIED = 100
_TOO_LARGE = 10**300
_LARGEST = 2**63


class CocoFiles:
    """COCO JSON files: one for each split, or one for all.

    A folder holds `annotations/*.json`, or JSON files itself, or one in each of its folders `train` and
    `valid`; where several are for one split, `instances_*.json` is taken. A file's split is a part of its
    name or of its folder's name. Images are looked for from the JSON file's folder and from the dataset's, in
    the folder that is called as the split is, such as `train2017`, and in `images`; the first one that holds
    an image of the file is taken for all of them. Crowds (`iscrowd` 1) are regions, not objects: they
    are left out and counted. Classes are matched by name from file to file, in the order of their ids in the
    file to train on.

    Args:
        path: the folder, or a JSON file.

    Raises:
        DataError: if it is not clear which file is which.
    """

    kind = "COCO"
    looked_for = "annotations/*.json, *.json or train/*.json with images, annotations and categories"

    def __init__(self, path: Path) -> None:
        self.root = path.parent if path.is_file() or path.name == "annotations" else path
        candidates = [path] if path.is_file() else self.files_at(self.root)
        self._jsons: dict[str, Path] = {}
        for file in candidates:
            split = None if path.is_file() else _split_of(file, self.root)
            split = split or ("train" if len(candidates) == 1 else None)
            if split == "test":
                continue
            if split in self._jsons:
                both = f"{self._jsons[split]} and {file}"
                raise DataError(f"{self.root}: two files for the split {split}; give one of them: {both}")
            if split:
                self._jsons[split] = file
        self.splits = sorted(self._jsons)
        if not self.splits:
            files = ", ".join(map(str, candidates))
            raise DataError(f"{self.root}: none of several files is called train or val: {files}")

    @staticmethod
    def files_at(folder: Path) -> list[Path]:
        """The JSON files of a folder that could be COCO's."""
        named = folder if folder.name == "annotations" else folder / "annotations"
        if found := sorted(named.glob("*.json")):
            return [file for file in found if file.name.startswith("instances")] or found
        beside = [*folder.glob("*.json"), *folder.glob("*/*.json")]
        return sorted(file for file in beside if not file.name.startswith(".") and _is_coco(file))

    def read(self, splits: Sequence[str]) -> dict[str, Labels]:
        """The labels of some splits."""
        # All files are read even so: a class has the same number whichever split is asked for.
        read = {split: _read(file, self.root) for split, file in self._jsons.items()}
        first = read.get("train") or next(iter(read.values()))
        for split, labels in read.items():
            if labels is not first and first.names:
                _renumber(labels, first.names, self._jsons[split])
        return {split: read[split] for split in splits}


def _is_coco(file: Path) -> bool:
    text = file.read_bytes()
    return b'"images"' in text and b'"annotations"' in text


def _split_of(file: Path, root: Path) -> str | None:
    """The split that a file's name, or the names of the folders on the way to it, speak of."""
    for part in reversed(file.relative_to(root).with_suffix("").parts):
        for word in re.findall("[a-z]+", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return None


def _renumber(labels: Labels, names: list[str], file: Path) -> None:
    for name in sorted(set(labels.names) - set(names)):
        labels.add_fatal(f"{file}: categories: not in the file to train on: {name!r}")
    numbers = {name: number for number, name in enumerate(names)}
    labels.renumber([numbers.get(name, 0) for name in labels.names], names)


class _Reader:
    """Takes in the elements of a file, in whatever order its lists come."""

    def __init__(self, elements: JsonElements) -> None:
        self.labels = Labels(CORNER_AND_SIZE, lambda image, number: elements.where(number))
        self.categories: dict[int, str] = {}
        self.images: dict[int, tuple[str, int, int, int]] = {}
        self.known: set[int] = set()
        self.file_names: set[str] = set()
        # For each annotation where it is, its id, image and category; and its box.
        self.keys, self.boxes = array("q"), array("d")
        self._readers: dict[str, Callable[[int, dict[str, Any]], None]] = {
            "images": self._image,
            "annotations": self._annotation,
            "categories": self._category,
        }

    def take(self, element: Element) -> None:
        """Take in one element; what is wrong with it becomes a problem."""
        if element.key not in self._readers:
            return
        try:
            if not isinstance(element.value, dict):
                raise ValueError(f"expected an object: {short(element.value)}")
            self._readers[element.key](element.number, element.value)
        except ValueError as error:
            self.labels.add_problem(-1, element.number, str(error))

    def _category(self, number: int, value: dict[str, Any]) -> None:
        identity = _whole(value, "id")
        name = value.get("name")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"name: expected text: {short(name)}")
        if identity in self.categories:
            raise ValueError(f"id: comes twice: {identity}")
        if name in self.categories.values():
            raise ValueError(f"name: comes twice: {name!r}")
        self.categories[identity] = name

    def _image(self, number: int, value: dict[str, Any]) -> None:
        identity = _whole(value, "id")
        if identity in self.known:
            raise ValueError(f"id: comes twice: {identity}")
        self.known.add(identity)
        name = value.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"file_name: expected text: {short(name)}")
        if name in self.file_names:
            raise ValueError(f"file_name: comes twice: {name!r}")
        self.file_names.add(name)
        size = [_whole(value, side) if value.get(side) is not None else 0 for side in ("width", "height")]
        self.images[identity] = (name, size[0], size[1], number)

    def _annotation(self, number: int, value: dict[str, Any]) -> None:
        # An annotation without an id differs from the others by its place.
        identity = _whole(value, "id") if "id" in value else -1 - number
        crowd = value.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise ValueError(f"iscrowd: expected 0 or 1: {short(crowd)}")
        if crowd:
            self.labels.left_out += 1
            return
        keys = (number, identity, _whole(value, "image_id"), _whole(value, "category_id"))
        box = value.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise ValueError(f"bbox: expected 4 numbers (x, y, width, height): {short(box)}")
        self.boxes.extend(map(float, box))
        self.keys.extend(keys)

    def finish(self, root: Path, file: Path) -> Labels:
        """Put the lists together: images in the order of their ids, then their boxes."""
        labels = self.labels
        order = sorted(self.categories)
        labels.names = [self.categories[identity] for identity in order]
        label_of = {identity: label for label, identity in enumerate(order)}
        folder = _image_folder([name for name, *_ in self.images.values()], root, file)
        if self.images and folder is None:
            looked = ", ".join(map(str, _image_folders(root, file)))
            labels.add_fatal(f"{file}: its images are in none of these folders: {looked}")
        image_of = {
            identity: labels.add_image(os.path.join(folder or root, name), width, height, number)
            for identity, (name, width, height, number) in sorted(self.images.items())
        }
        keys = np.array(self.keys, dtype=np.int64).reshape(-1, 4)
        twice = np.ones(len(keys), dtype=np.bool_)
        twice[np.unique(keys[:, 1], return_index=True)[1]] = False
        for row, (number, identity, image_id, category) in enumerate(map(np.ndarray.tolist, keys)):
            image = image_of.get(image_id, -1)
            if twice[row]:
                labels.add_problem(image, number, f"id: comes twice: {identity}")
            elif category not in label_of:
                labels.add_problem(image, number, f"category_id: none has it: {category}")
            elif image >= 0:
                labels.add_box(image, label_of[category], self.boxes[4 * row : 4 * row + 4], number)
            elif image_id not in self.known:  # one that is known but bad has been named
                labels.add_problem(-1, number, f"image_id: no image has it: {image_id}")
        return labels


def _read(file: Path, root: Path) -> Labels:
    """Read a JSON file; one that is no COCO file at all is a problem of its own."""
    nothing = Labels(CORNER_AND_SIZE, lambda image, number: str(file))
    try:
        elements = JsonElements(file)
        reader = _Reader(elements)
        for element in elements.elements():
            reader.take(element)
    except ValueError as error:
        nothing.add_fatal(str(error))
        return nothing
    missing = [key for key in LISTS if key not in elements.lists]
    for key in missing:
        nothing.add_fatal(f"{file}: {key}: expected a list: {short(elements.values.get(key))}")
    return nothing if missing else reader.finish(root, file)


def _image_folders(root: Path, file: Path) -> list[Path]:
    """Where images are looked for, the likeliest first."""
    # instances_train2017.json is about the images in train2017.
    words = re.split(r"[_.\-]", file.stem)
    below = [Path(word) for word in reversed(words) if word]
    below += [Path("images") / word for word in below] + [Path(), Path("images"), Path("JPEGImages")]
    parents: Iterable[Path] = dict.fromkeys([file.parent, root, root.parent])
    return [parent / each for parent in parents for each in below if (parent / each).is_dir()]


def _image_folder(names: Sequence[str], root: Path, file: Path) -> Path | None:
    """The first folder that holds one of the first images."""
    for folder in _image_folders(root, file):
        if any((folder / name).is_file() for name in names[:_TRIED]):
            return folder
    return None


def _whole(value: dict[str, Any], key: str) -> int:
    """A whole number that fits 64 bits; COCO's own ids are, and arrays hold them."""
    number = value.get(key)
    if type(number) is int and -_LARGEST <= number < _LARGEST:  # nearly always
        return number
    # NaN is not below anything.
    if not _is_number(number) or not abs(number) < _LARGEST or number != int(number):
        raise ValueError(f"{key}: expected a whole number: {short(number)}")
    return int(number)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a number, and not too large for a float; NaN and infinity are."""
    return type(value) is float or (type(value) is int and abs(value) < _TOO_LARGE)
