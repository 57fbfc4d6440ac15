"""YOLO folders: a data.yaml, pictures, and one text file of boxes a picture.

Everything is checked when a folder is opened, in one pass. The user's files are only ever read.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
import yaml
from PIL import Image
from torch import Tensor

from .sample import DataError, Picture, PictureSource, decode_picture

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MARGIN = 0.01

_DECODERS = 8
# Below this, sticking out of the picture is the rounding of a label written with few digits.
_ROUNDING = 1e-6


class Layout(NamedTuple):
    """What a data.yaml says: the file, the folder that its paths start from, its content, the names."""

    file: Path
    root: Path
    content: dict[str, Any]
    names: list[str]


class Box(NamedTuple):
    """One checked label line: the class and the corners as fractions of the picture, clipped to it."""

    label: int
    corners: tuple[float, float, float, float]
    clipped: bool


@dataclass
class _Checked:
    """What the check learned of one picture: a size of 0 means that it cannot be decoded."""

    file: Path
    width: int = 0
    height: int = 0
    boxes: list[Box] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class YoloFolder:
    """One split of a YOLO folder. Pictures are decoded when asked for, boxes are kept.

    A label file is found by putting "labels" for the last "images" in a picture's path; where there is
    none it lies beside the picture. A picture whose label file is empty or missing has no boxes. Paths
    in data.yaml start at its `path`, which itself starts at the folder of data.yaml.

    Args:
        path: the folder that holds data.yaml, or the file itself.
        split: the key of data.yaml that names the pictures: a folder, a .txt list, or several of them.
        skip_bad: leave out each bad box and each bad picture, and keep the list in `problems`, where
            otherwise a `DataError` lists them.

    Attributes:
        names: the classes' names.
        box_counts: the number of boxes of each picture.
        problems: what was skipped, `file:line: what is wrong: the value`.
        clipped: how many boxes stuck out of their picture, by up to 1 % of it, and were clipped.
        backgrounds: how many pictures have an empty or a missing label file.

    Raises:
        DataError: if anything is wrong; with `skip_bad`, if data.yaml is, or if no picture is left.
    """

    def __init__(self, path: str | Path, split: str, *, skip_bad: bool = False) -> None:
        layout = read_layout(Path(path))
        pictures, problems = _find_pictures(layout, split)
        with ThreadPoolExecutor(_DECODERS) as pool:
            checked = list(pool.map(lambda file: _check_picture(file, len(layout.names)), pictures))
        problems += [problem for result in checked for problem in result.problems]
        if problems and not skip_bad:
            raise DataError(*problems)

        good = [result for result in checked if result.width]
        if not good:
            raise DataError(*problems, f"{layout.file}: no picture is left: {split!r}")
        boxes = [box for result in good for box in result.boxes]
        self.names = layout.names
        self.problems = problems
        self.box_counts = [len(result.boxes) for result in good]
        self.clipped = sum(box.clipped for box in boxes)
        self.backgrounds = sum(not result.boxes and not result.problems for result in good)
        self._files = [result.file for result in good]
        self._sizes = [(result.width, result.height) for result in good]
        self._starts = [0, *accumulate(self.box_counts)]
        self._corners = torch.tensor([box.corners for box in boxes], dtype=torch.float64).view(-1, 4)
        self._labels = torch.tensor([box.label for box in boxes], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Picture:
        file, (width, height) = self._files[index], self._sizes[index]
        image = decode_picture(file)
        if image.shape[1:] != (height, width):
            raise DataError(f"{file}: changed since it was checked: it was {width} x {height} pixels")
        boxes, labels = self.boxes(index)
        return Picture(image, boxes, labels, str(file))

    def boxes(self, index: int) -> tuple[Tensor, Tensor]:
        """The boxes, float32 (K, 4) xyxy in pixels, and the labels (K,) of a picture, not decoding it."""
        index = range(len(self))[index]
        rows = slice(self._starts[index], self._starts[index + 1])
        width, height = self._sizes[index]
        scale = torch.tensor([width, height, width, height], dtype=torch.float64)
        return (self._corners[rows] * scale).float(), self._labels[rows].clone()


def open_yolo_splits(
    path: str | Path, splits: Sequence[str] = ("train", "val"), *, skip_bad: bool = False
) -> dict[str, YoloFolder]:
    """Open several splits of a YOLO folder; the problems of all of them come in one error.

    Raises:
        DataError: as `YoloFolder`.
    """
    opened: dict[str, YoloFolder] = {}
    problems: dict[str, None] = {}
    for split in splits:
        try:
            opened[split] = YoloFolder(path, split, skip_bad=skip_bad)
        except DataError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise DataError(*problems)
    return opened


def read_layout(path: Path) -> Layout:
    """Read and check a data.yaml.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        DataError: if it is missing, not YAML, or its `path`, `names` or `nc` is wrong.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    file = path / "data.yaml" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file; a YOLO folder holds one")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(f"{file}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected keys such as train, val and names: {content!r}")

    root = file.parent / Path(str(content.get("path") or ".")).expanduser()
    problems = [] if root.is_dir() else [f"{file}: path: no such folder: {root}"]
    names = _read_names(content, file, problems)
    if problems:
        raise DataError(*problems)
    return Layout(file, root, content, names)


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


def _find_pictures(layout: Layout, split: str) -> tuple[list[Path], list[str]]:
    """The picture files of a split, in a fixed order, and what is wrong with the places named."""
    value = layout.content.get(split)
    places = value if isinstance(value, list) else [value]
    if not places or not all(isinstance(place, str) and place for place in places):
        raise DataError(f"{layout.file}: {split}: expected a folder, a .txt list or several: {value!r}")
    pictures: list[Path] = []
    missing: list[str] = []
    problems: list[str] = []
    for place in map(str, places):
        source = layout.root / Path(place).expanduser()
        if not source.exists() and place.startswith("../"):
            # Roboflow's exports write ../train/images for the folder train/images.
            source = layout.root / place.removeprefix("../")
        if source.is_dir():
            found = _files_below(source, EXTENSIONS)
            problems += _labels_without_picture(source, found)
        elif source.is_file() and source.suffix == ".txt":
            found = _pictures_listed(source, problems)
        else:
            missing.append(f"{layout.file}: {split}: no such folder or .txt list: {source}")
            continue
        if not found:
            problems.append(f"{layout.file}: {split}: no pictures ({', '.join(EXTENSIONS)}): {source}")
        pictures += found
    if missing:
        raise DataError(*missing, *problems)
    return list(dict.fromkeys(pictures)), problems


def _files_below(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """Files at any depth, sorted; hidden ones, such as the shadows that macOS leaves, are passed over."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in extensions)
    return sorted(file for file in files if not file.name.startswith(".") and file.is_file())


def _pictures_listed(listing: Path, problems: list[str]) -> list[Path]:
    pictures = []
    for number, line in enumerate(_read_lines(listing, problems), start=1):
        if not line.strip():
            continue
        picture = listing.parent / line.strip()
        if picture.is_file():
            pictures.append(picture)
        else:
            problems.append(f"{listing}:{number}: no such picture: {line.strip()}")
    return pictures


def _read_lines(file: Path, problems: list[str]) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{file}: cannot be read as text: {error}")
        return []


def label_file(picture: Path) -> Path:
    """Where the boxes of a picture are looked for."""
    return _swap_images(picture.parent) / f"{picture.stem}.txt"


def _swap_images(folder: Path) -> Path:
    parts = list(folder.parts)
    if "images" not in parts:
        return folder
    last = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def _labels_without_picture(folder: Path, pictures: Iterable[Path]) -> list[str]:
    labels = _swap_images(folder)
    # Beside the pictures there may be text files of any kind.
    if labels == folder or not labels.is_dir():
        return []
    expected = {label_file(picture) for picture in pictures}
    # Labelling tools leave a classes.txt among the labels.
    extra = [file for file in _files_below(labels, [".txt"]) if file.name != "classes.txt"]
    return [f"{file}: label file without a picture" for file in extra if file not in expected]


def _check_picture(picture: Path, classes: int) -> _Checked:
    """Decode one picture and read its labels."""
    checked = _Checked(picture)
    try:
        _, checked.height, checked.width = decode_picture(picture).shape
    except DataError as error:
        checked.problems += error.problems
    labels = label_file(picture)
    lines = _read_lines(labels, checked.problems) if labels.exists() else []
    first_seen: dict[Box, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            box = parse_label(line, classes)
            if box in first_seen:
                raise ValueError(f"repeats line {first_seen[box]}: {line.strip()}")
        except ValueError as error:
            checked.problems.append(f"{labels}:{number}: {error}")
        else:
            first_seen[box] = number
    checked.boxes = list(first_seen)
    return checked


def parse_label(line: str, classes: int) -> Box:
    """Check one label line, `class x-centre y-centre width height`, sizes as fractions of the picture.

    Raises:
        ValueError: what is wrong, and the value.
    """
    columns = line.split()
    if len(columns) != 5:
        hint = ", a polygon or key points?" if len(columns) > 5 else ""
        raise ValueError(
            f"expected 5 columns (class x y width height), got {len(columns)}{hint}: {line.strip()}"
        )
    numbers = []
    for column in columns:
        try:
            numbers.append(float(column))
        except ValueError:
            raise ValueError(f"not a number: {column}") from None
        if not math.isfinite(numbers[-1]):
            raise ValueError(f"not finite: {column}")
    label, x, y, width, height = numbers
    if not (label.is_integer() and 0 <= label < classes):
        raise ValueError(f"class is not one of 0 to {classes - 1}: {columns[0]}")
    if width <= 0 or height <= 0:
        raise ValueError(f"width and height must be above 0: {columns[3]} {columns[4]}")
    x1, y1, x2, y2 = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    outside = max(-x1, -y1, x2 - 1, y2 - 1)
    if outside > MARGIN:
        raise ValueError(f"sticks out of the picture by {outside:.1%}: {' '.join(columns[1:])}")
    x1, y1, x2, y2 = (min(max(corner, 0.0), 1.0) for corner in (x1, y1, x2, y2))
    # In float32, as they are handed out, the corners must still be apart.
    if x2 - x1 <= _ROUNDING or y2 - y1 <= _ROUNDING:
        raise ValueError(f"no area inside the picture: {' '.join(columns[1:])}")
    return Box(int(label), (x1, y1, x2, y2), outside > _ROUNDING)


def write_yolo_folder(sources: Mapping[str, PictureSource], path: str | Path) -> None:
    """Write pictures as a YOLO folder: images/<split>/*.png, labels/<split>/*.txt and data.yaml.

    Everything is written to a hidden folder beside `path` that takes its name at the end: an
    interruption leaves no half-written data set.

    Args:
        sources: the pictures of each split, such as "train" and "val".
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


def _write_split(source: PictureSource, root: Path, split: str) -> None:
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(len(source)):
        picture = source[index]
        height, width = picture.image.shape[-2:]
        Image.fromarray(picture.image.permute(1, 2, 0).numpy()).save(images / f"{index:06d}.png")
        lines = []
        for label, (x1, y1, x2, y2) in zip(picture.labels.tolist(), picture.boxes.tolist(), strict=True):
            numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            # 17 digits: what is read back is the same to the last bit but for rounding in float64.
            lines.append(" ".join([str(label), *(format(number, ".17g") for number in numbers)]))
        (labels / f"{index:06d}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
