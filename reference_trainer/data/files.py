"""Images in files with labels of any kind: the checks that all of them pass, and the arrays that hold them.

A reader of a format fills `Labels`; `ImageFiles` checks them against the images and is the source of
samples. Nothing here grows by a Python object for each box or image: worker processes share arrays, but
would copy objects as they count references.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from boxreg import convert

from .sample import AnnotatedImage, Counts, DataError, decode_image, measure_image
from .shares import shared_out

MARGIN = 0.01
"""A box may stick out of its image by this share of the side, and is clipped."""

# Below this, sticking out of the image is the rounding of a label written with few digits.
_ROUNDING = 1e-6

NO_FILE = ""
"""Instead of an image's path: there is no such file, and the reader has said so."""

Doubles = npt.NDArray[np.float64]


class Paths(Sequence[Path]):
    """Paths of files, in one piece of memory."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("q", [0])

    def append(self, path: str | Path) -> None:
        """Add a path at the end."""
        self._text += os.fsencode(path)
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: int | slice) -> Path | Paths:
        if isinstance(index, int):
            return Path(self.name(index))
        chosen = Paths()
        for number in range(*index.indices(len(self))):
            chosen.append(self.name(number))
        return chosen

    def name(self, index: int) -> str:
        """A path as text, which costs less to make."""
        return os.fsdecode(bytes(self._text[self._ends[index] : self._ends[index + 1]]))

    def extend(self, paths: Paths) -> None:
        """Add all paths of another list."""
        before = len(self._text)
        self._text += paths._text
        self._ends.extend(before + end for end in paths._ends[1:])


class BoxFormat(NamedTuple):
    """What the four numbers of a box mean: boxreg's format, the unit, and what the first pixel is called."""

    fmt: str
    in_pixels: bool
    first_pixel: int = 0


class Problem(NamedTuple):
    """Something wrong; problems sort by image (-1: the dataset's), then by place in its label file."""

    image: int
    place: int
    text: str


class Labels:
    """What label files say of the images of a split, before anybody has looked at the images.

    Args:
        box_format: the format of the boxes.
        locate: where something was said, as `file:line`, for an image's number and a place: a line, or
            whatever the reader gave when it added the box.

    Attributes:
        names: the classes' names; the reader sets them.
        files: the files of the images.
        problems: found so far.
        fatal: whether one of them is of a kind that leaving something out does not mend.
        dropped: numbers of images that cannot be used.
        left_out: how many boxes are not meant to be learned: VOC's difficult objects, COCO's crowds.
    """

    def __init__(self, box_format: BoxFormat, locate: Callable[[int, int], str]) -> None:
        self.box_format, self.locate = box_format, locate
        self.names: list[str] = []
        self.files = Paths()
        self.problems: list[Problem] = []
        self.fatal = False
        self.dropped: set[int] = set()
        self.left_out = 0
        self._said = array("q")
        self._owner, self._label, self._place = array("q"), array("q"), array("q")
        self._numbers = array("d")

    def add_image(self, file: str | Path, width: int = 0, height: int = 0, place: int = 0) -> int:
        """Add an image, with the size that is said of it (0: nothing) and where; returns its number."""
        self.files.append(file)
        self._said.extend((width, height, place))
        return len(self.files) - 1

    def add_box(self, image: int, label: int, numbers: Sequence[float], place: int) -> None:
        """Add an object of an image: four numbers in the labels' format."""
        self._owner.append(image)
        self._label.append(label)
        self._place.append(place)
        self._numbers.extend(numbers)

    def add_problem(self, image: int, place: int, what: str, *, drop: bool = False) -> None:
        """Add what is wrong at a place; with `drop` the image cannot be used."""
        self.problems.append(Problem(image, place, f"{self.locate(image, place)}: {what}"))
        if drop:
            self.dropped.add(image)

    def add_fatal(self, text: str) -> None:
        """Add what is wrong with the dataset as a whole."""
        self.problems.append(Problem(-1, 0, text))
        self.fatal = True

    def take(self, other: Labels) -> None:
        """Add what another one holds, its images behind those that are here."""
        shift = len(self.files)
        self.files.extend(other.files)
        self.problems += [
            problem._replace(image=problem.image + shift) if problem.image >= 0 else problem
            for problem in other.problems
        ]
        self.dropped |= {image + shift for image in other.dropped}
        self.fatal |= other.fatal
        self.left_out += other.left_out
        self._said += other._said
        self._owner.extend(owner + shift for owner in other._owner)
        self._label += other._label
        self._place += other._place
        self._numbers += other._numbers

    def __getstate__(self) -> dict[str, Any]:
        # Only the reader can locate something; each problem already says where it is.
        return self.__dict__ | {"locate": None}

    def renumber(self, numbers: Sequence[int], names: list[str]) -> None:
        """Give the classes other numbers: `numbers[label]` for each `label`, and the names in that order."""
        old = np.array(self._label, dtype=np.int64)
        self._label = array("q", np.asarray(numbers, dtype=np.int64)[old].tobytes())
        self.names = names

    def said(self) -> npt.NDArray[np.int64]:
        """Width, height and place of the sizes said (N, 3)."""
        return np.array(self._said, dtype=np.int64).reshape(-1, 3)

    def rows(self) -> Rows:
        """All boxes, those of an image together and in the order of their places."""
        owner, place = np.array(self._owner, dtype=np.int64), np.array(self._place, dtype=np.int64)
        order = np.lexsort((place, owner))
        numbers = np.array(self._numbers, dtype=np.float64).reshape(-1, 4)
        return Rows(owner[order], np.array(self._label, dtype=np.int64)[order], place[order], numbers[order])


class Rows(NamedTuple):
    """Boxes as arrays: the image's number, the label, the place (K,), and the numbers (K, 4)."""

    owner: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    numbers: Doubles


class Checked(NamedTuple):
    """Corners (K, 4) as fractions of the image and inside it, which boxes are good, which were clipped."""

    corners: Doubles
    good: npt.NDArray[np.bool_]
    clipped: npt.NDArray[np.bool_]


class ImageFiles:
    """Images in files, with any number of boxes. Images are decoded when asked for, boxes are kept.

    Args:
        labels: what was read of them.
        skip_bad: leave out each bad box and each bad image, and keep the list in `problems`, where
            otherwise a `DataError` lists them.
        decode: look at all of every image; otherwise at its header and at its end.

    Attributes:
        names: the classes' names.
        box_counts: the number of boxes of each image.
        problems: what was skipped, `file:line: what is wrong: the value`.
        clipped: how many boxes stuck out of their image, by up to 1 % of it, and were clipped.
        left_out: how many boxes are not meant to be learned, and were left out.
        backgrounds: how many images have no object.
        files: the files of the images.
        sizes: width and height of the images (N, 2).

    Raises:
        DataError: if anything is wrong; with `skip_bad`, if the dataset as a whole is, or if no image is
            left.
    """

    def __init__(self, labels: Labels, *, skip_bad: bool = False, decode: bool = True) -> None:
        problems = list(labels.problems)
        sizes = _look_at_images(labels, problems, decode=decode)
        rows = labels.rows()
        checked = _check_boxes(labels, rows, sizes, problems)
        problems.sort()
        self.problems = [problem.text for problem in problems]
        usable = sizes[:, 0] > 0
        usable[list(labels.dropped)] = False
        if problems and (labels.fatal or not skip_bad):
            raise DataError(*self.problems)
        if not usable.any():
            raise DataError(*self.problems, "no image is left")

        kept = checked.good & usable[rows.owner]
        counts = np.bincount(rows.owner[kept], minlength=len(usable))
        faulty = np.zeros(len(usable), dtype=np.bool_)
        faulty[[problem.image for problem in problems if problem.image >= 0]] = True
        pixels = (checked.corners * sizes[rows.owner].repeat(2, axis=0).reshape(-1, 4))[kept]
        self.names = labels.names
        self.box_counts: Counts = counts[usable]
        self.clipped = int((checked.clipped & kept).sum())
        self.left_out = labels.left_out
        self.backgrounds = int((usable & ~faulty & (counts == 0)).sum())
        self.files = Paths()
        for number in np.flatnonzero(usable):
            self.files.append(labels.files.name(int(number)))
        self.sizes = sizes[usable].astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(self.box_counts)])
        self._boxes = torch.from_numpy(pixels.astype(np.float32))
        self._labels = torch.from_numpy(rows.label[kept])

    @property
    def class_counts(self) -> list[int]:
        """The number of boxes of each class."""
        counts: list[int] = torch.bincount(self._labels, minlength=len(self.names)).tolist()
        return counts

    @property
    def box_shares(self) -> Doubles:
        """The geometric mean of width and height of each box (K,), as shares of its image's."""
        sides = (self._boxes[:, 2:] - self._boxes[:, :2]).double().numpy()
        shares: Doubles = np.sqrt((sides / self.sizes.repeat(self.box_counts, axis=0)).prod(axis=1))
        return shares

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> AnnotatedImage:
        file, (width, height) = self.files[index], self.sizes[index].tolist()
        image = decode_image(file)
        if image.shape[1:] != (height, width):
            raise DataError(
                f"{file}: changed since it was checked: it was {width} x {height} pixels, "
                f"now it is {image.shape[2]} x {image.shape[1]}"
            )
        boxes, labels = self.boxes(index)
        return AnnotatedImage(image, boxes, labels, str(file))

    def boxes(self, index: int) -> tuple[Tensor, Tensor]:
        """The boxes, float32 (K, 4) xyxy in pixels, and the labels (K,) of an image, not decoding it."""
        index = range(len(self))[index]
        rows = slice(int(self._starts[index]), int(self._starts[index + 1]))
        return self._boxes[rows].clone(), self._labels[rows].clone()


def _look_at_images(labels: Labels, problems: list[Problem], *, decode: bool) -> npt.NDArray[np.int64]:
    """Sizes (N, 2), width and height, of the images; 0 for those that cannot be used."""
    sizes = np.zeros((len(labels.files), 2), dtype=np.int64)
    said = labels.said()

    def look(numbers: range) -> tuple[npt.NDArray[np.int64], list[Problem]]:
        found = []
        for number in numbers:
            file = labels.files.name(number)
            if file == NO_FILE:
                continue
            try:
                size = decode_image(file).shape[:0:-1] if decode else measure_image(file)
            except DataError as error:
                found += [Problem(number, -1, text) for text in error.problems]
                continue
            width, height, place = said[number].tolist()
            if (width or height) and (width, height) != tuple(size):
                where = labels.locate(number, place)
                turned = ", turned as its EXIF orientation says" if (height, width) == tuple(size) else ""
                actual = f"{size[0]} x {size[1]}{turned}: {file}"
                text = f"{where}: size says {width} x {height}, the image is {actual}"
                found.append(Problem(number, place, text))
                continue
            sizes[number] = size
        return sizes[numbers.start : numbers.stop], found

    looked = list(shared_out(look, len(sizes)))
    for _, found in looked:
        problems += found
    return np.concatenate([part for part, _ in looked])


def _check_boxes(
    labels: Labels, rows: Rows, sizes: npt.NDArray[np.int64], problems: list[Problem]
) -> Checked:
    """Find the boxes that are not finite, have no area, stick out or come twice; clip the others."""
    box_format, numbers = labels.box_format, rows.numbers
    corners = convert(torch.from_numpy(numbers), box_format.fmt, "xyxy").numpy().copy()
    corners[:, :2] -= box_format.first_pixel
    with np.errstate(invalid="ignore", divide="ignore"):
        flat = (corners[:, 2:] - corners[:, :2] <= 0).any(axis=1)
        # For an image that cannot be read, take the size that its labels say; a size of 0 is not known.
        said = labels.said()[:, :2]
        size = np.where(sizes > 0, sizes, np.where(said > 0, said, np.nan))[rows.owner]
        scale = np.concatenate([size, size], axis=1)
        fractions = corners / scale if box_format.in_pixels else corners
        outside = np.maximum(-fractions, fractions - 1.0)
        # Where the first pixel is called 1, many tools call it 0 all the same.
        far = (outside > np.maximum(MARGIN, box_format.first_pixel / scale)).any(axis=1)
        inside = fractions.clip(0.0, 1.0)
        # In float32, as they are handed out, the corners must still be apart.
        thin = (inside[:, 2:] - inside[:, :2] <= _ROUNDING).any(axis=1)
    wrong = {
        "not finite": ~np.isfinite(numbers).all(axis=1),
        "width and height must be above 0": flat,
        "sticks out of the image by": far,
        "no area inside the image": thin,
    }
    bad = np.zeros(len(numbers), dtype=np.bool_)
    for what, rule in wrong.items():
        for row in np.flatnonzero(rule & ~bad).tolist():
            share = f" {np.nanmax(outside[row]):.1%}" if rule is far else ""
            value = " ".join(f"{number:.10g}" for number in numbers[row])
            problems.append(_at(labels, rows, row, f"{what}{share}: {value}"))
        bad |= rule
    for row, first in _repeats(rows, ~bad):
        earlier = labels.locate(int(rows.owner[row]), int(rows.place[first]))
        problems.append(_at(labels, rows, row, f"repeats the box and class of {earlier}"))
        bad[row] = True
    return Checked(inside, ~bad, (outside > _ROUNDING).any(axis=1))


def _at(labels: Labels, rows: Rows, row: int, what: str) -> Problem:
    image, place = int(rows.owner[row]), int(rows.place[row])
    return Problem(image, place, f"{labels.locate(image, place)}: {what}")


def _repeats(rows: Rows, good: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Good rows that say the same of the same image as an earlier one, with the first that says it."""
    considered = np.flatnonzero(good)
    # Sorted so that equal rows are neighbours; among equals the sort keeps their order.
    columns = np.column_stack([rows.numbers, rows.label, rows.owner])[considered]
    order = np.lexsort(columns.T)
    same = (columns[order[1:]] == columns[order[:-1]]).all(axis=1)
    found, first = [], 0
    for position in np.flatnonzero(same).tolist():
        first = first if position and same[position - 1] else int(order[position])
        found.append((int(considered[order[position + 1]]), int(considered[first])))
    return found
