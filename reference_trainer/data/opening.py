"""One way to open a dataset of any kind, which is recognised by its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from ..files import not_there
from .coco import CocoFiles
from .files import ImageFiles, Labels, Problem
from .sample import Counts, DataError, ImageSource, Subset
from .shares import apart
from .voc import VocFolder
from .yolo import YoloFolder

DECODED_AT_START = 2000
"""Up to this many images are decoded to check them before a training starts; where there are more, only
the headers are read."""

VAL_SHARE = 5
"""A dataset without a validation split gives it one image in this many."""

ADVICE = "data.on_error 'skip' leaves out what is bad and trains on the rest."

_SEED = 0


class DataSet(Protocol):
    """A dataset of some kind, before its images have been looked at.

    Attributes:
        kind: its name.
        splits: which of train and val it has.
    """

    kind: str
    splits: list[str]

    def read(self, splits: Sequence[str]) -> dict[str, Labels]:
        """The labels of some of its splits."""
        ...


KINDS: tuple[type[YoloFolder] | type[CocoFiles] | type[VocFolder], ...] = (YoloFolder, CocoFiles, VocFolder)


class FaultyDataError(DataError):
    """Problems of a dataset that can be used without the boxes and images that have them."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{ADVICE}"


class OpenedData(NamedTuple):
    """A dataset that has been checked.

    Attributes:
        kind: YOLO, COCO or VOC.
        splits: the images of train, val or both.
        files: the same before one image in five was set aside, each with its counts and problems.
    """

    kind: str
    splits: dict[str, ImageSource]
    files: dict[str, ImageFiles]

    @property
    def problems(self) -> list[str]:
        """What was skipped."""
        return [problem for files in self.files.values() for problem in files.problems]


def open_data(
    path: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    skip_bad: bool = False,
    decode: bool | None = None,
) -> OpenedData:
    """Open a dataset of any kind and check it; the problems of all splits come in one error.

    A dataset without images to validate on keeps one in five of its training images for that, drawn by lot.
    The lot does not depend on a run: whichever run's weights are scored, they have not seen these images.

    Args:
        path: a folder, a data.yaml or a COCO JSON file.
        splits: which to open.
        skip_bad: leave out what is bad, where otherwise a `DataError` lists it.
        decode: check all of every image, or headers alone; by default all of a dataset of up to 2,000.

    Raises:
        DataError: if it is not clear what is there, or anything is wrong with it.
    """
    found = recognise(Path(path))
    needed = splits if "val" in found.splits else ["train"]
    absent = sorted(set(needed) - set(found.splits))
    if absent and not isinstance(found, YoloFolder):
        has = ", ".join(found.splits)
        raise DataError(*(f"{path}: no images for {split}, only for {has}" for split in absent))
    files = apart(lambda: _read(found, needed, skip_bad=skip_bad, decode=decode))
    opened: dict[str, ImageSource] = dict(files)
    if "val" not in found.splits:
        opened = split_off(files["train"], str(path))
    return OpenedData(found.kind, {split: opened[split] for split in splits}, files)


def _read(
    found: DataSet, splits: Sequence[str], *, skip_bad: bool, decode: bool | None
) -> dict[str, ImageFiles]:
    """The checked images of some splits; see `open_data`."""
    labels = found.read(splits)
    if len(labels) > 1:
        _find_shared(labels)
    if decode is None:
        decode = sum(len(each.files) for each in labels.values()) <= DECODED_AT_START
    files: dict[str, ImageFiles] = {}
    problems: dict[str, None] = {}
    for split, each in labels.items():
        try:
            files[split] = ImageFiles(each, skip_bad=skip_bad, decode=decode)
        except DataError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        mendable = not skip_bad and not any(each.fatal for each in labels.values())
        raise (FaultyDataError if mendable else DataError)(*problems)
    return files


def task_for(path: Path) -> tuple[Literal["single", "grid"], str]:
    """The task that a dataset is for, and why: single only if every image has exactly one box.

    Labels alone are read; what is wrong with them is left to `open_data`.

    Raises:
        DataError: if it is not clear what is there.
    """
    found = recognise(path)

    def read() -> tuple[Counts, list[str]]:
        labels = found.read(found.splits)
        counts = [np.bincount(each.rows().owner, minlength=len(each.files)) for each in labels.values()]
        return np.concatenate(counts), next(iter(labels.values())).names

    counts, names = apart(read)
    several, none = int((counts > 1).sum()), int((counts == 0).sum())
    if several or none:
        return "grid", f"of {len(counts)} images {several} have several boxes, {none} have none"
    hint = f"; --task grid tells its {len(names)} classes apart" if len(names) > 1 else ""
    return "single", f"every image has one box{hint}"


def recognise(path: Path) -> DataSet:
    """See what kind of dataset lies at a path.

    Raises:
        DataError: if it is none, or if it could be several.
    """
    if not path.exists():
        raise DataError(not_there(path))
    if path.is_file():
        if path.suffix in (".yaml", ".yml"):
            return YoloFolder(path)
        if path.suffix == ".json":
            return CocoFiles(path)
        raise DataError(f"{path}: expected a folder, a data.yaml (YOLO) or a .json (COCO)")
    found = {kind: files for kind in KINDS if (files := kind.files_at(path))}
    if not found:
        inside = [each for each in sorted(path.iterdir()) if each.is_dir() and not each.name.startswith(".")]
        if len(inside) == 1:  # what an archive unpacks to
            return recognise(inside[0])
        looked = "; ".join(f"{kind.kind}: {kind.looked_for}" for kind in KINDS)
        raise DataError(f"{path}: no dataset is recognised here; looked for {looked}")
    if len(found) > 1 or len(found.get(YoloFolder, [])) > 1:
        several = ", ".join(f"{kind.kind}: {file}" for kind, files in found.items() for file in files)
        raise DataError(f"{path}: several datasets; give the path of one of them ({several})")
    (kind,) = found
    return kind(path)


def split_off(source: ImageSource, name: str) -> dict[str, ImageSource]:
    """Set one image in five aside to validate on, by lot.

    Raises:
        DataError: if there is only one image.
    """
    if len(source) < 2:
        raise DataError(f"{name}: one image cannot be both trained and validated on; it has no val split")
    order = np.random.default_rng(_SEED).permutation(len(source))
    count = max(len(source) // VAL_SHARE, 1)
    parts: dict[str, Counts] = {"train": np.sort(order[count:]), "val": np.sort(order[:count])}
    return {split: Subset(source, indices) for split, indices in parts.items()}


def _find_shared(labels: dict[str, Labels]) -> None:
    """Images that are trained on and validated on as well are a problem of the training split."""
    train, val = labels["train"], labels["val"]
    validated = {str(file) for file in val.files}
    for number, file in enumerate(train.files):
        if str(file) in validated and str(file) != ".":
            text = f"{file}: in train and in val: a score on it would mean nothing"
            train.problems.append(Problem(number, -2, text))
            train.dropped.add(number)
