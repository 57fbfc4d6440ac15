"""Pascal VOC: an XML file of objects for each image."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from .files import NO_FILE, BoxFormat, Labels, Problem
from .folders import EXTENSIONS, SPLITS, files_below, read_lines
from .sample import DataError
from .shares import shared_out
from .xml_nodes import XmlError, XmlNode, parse_xml

INCLUSIVE = BoxFormat("xyxy", in_pixels=True, first_pixel=1)
"""xmin to xmax and ymin to ymax, both included, counted from 1: the left edge lies at xmin - 1."""

_TRIED = 20


class VocFolder:
    """A folder in the format of Pascal VOC: `Annotations/*.xml`, `JPEGImages`, `ImageSets/Main/train.txt`.

    Folders of other names are understood, too. An XML file is about the image of the same name, or else
    about the one that its `filename` says, wherever below the folder it lies; if there are several, the
    one in the same folder is taken, then the one that lies in the most folders of the same names, then one in
    `JPEGImages`, then one in `images`. `ImageSets/Main` says which images are to train on and which to
    validate, with or without their extension; where there is none, folders called train and valid do.
    Difficult objects, which VOC's own scoring leaves out, are left out and counted. The classes are the names
    that occur, in alphabetical order. Coordinates are whole pixels from 1 on, both ends included; a
    coordinate of 0, which some tools write, is clipped.

    Args:
        path: the folder, or its `Annotations`.

    Raises:
        DataError: if no XML file is to train on or to validate, or if there are several datasets.
    """

    kind = "VOC"
    looked_for = "Annotations/*.xml (or other folders with .xml files of annotations)"

    def __init__(self, path: Path) -> None:
        self.root = _with_lists(path.parent if path.name.lower() == "annotations" else path)
        self._problems: list[Problem] = []
        self._xmls = self._listed() or self._by_folder()
        self.splits = sorted(self._xmls)
        if not self.splits:
            raise DataError(f"{self.root}: none of its .xml files is to train on or to validate")

    @staticmethod
    def files_at(folder: Path) -> list[Path]:
        """The first XML file of annotations below a folder."""
        root = folder.parent if folder.name.lower() == "annotations" else folder
        first = map(Path, islice(files_below(root, [".xml"]), _TRIED))
        return list(islice((file for file in first if b"<annotation" in file.read_bytes()[:4096]), 1))

    def read(self, splits: Sequence[str]) -> dict[str, Labels]:
        """The labels of some splits."""
        images = self._images()
        # All files are read even so: a class has the same number whichever split is asked for.
        classes: dict[str, int] = {}
        read = {split: _read_split(xmls, images, classes) for split, xmls in self._xmls.items()}
        names = sorted(classes)
        for labels in read.values():
            labels.renumber([names.index(name) for name in classes], names)
        next(iter(read.values())).problems.extend(self._problems)
        return {split: read[split] for split in splits}

    def _listed(self) -> dict[str, list[str]]:
        """The XML files that ImageSets/Main names, for each split."""
        lists = self.root / "ImageSets" / "Main"
        found = {}
        for split, name in (("train", "train"), ("val", "val"), ("train", "trainval")):
            listing = lists / f"{name}.txt"
            if split not in found and listing.is_file():
                found[split] = list(self._listed_in(listing))
        return found

    def _listed_in(self, listing: Path) -> Iterator[str]:
        try:
            lines = read_lines(listing)
        except ValueError as error:
            self._problems.append(Problem(-1, 0, f"{listing}: {error}"))
            return
        seen: dict[str, int] = {}
        for number, line in enumerate(map(str.strip, lines), start=1):
            stem, extension = os.path.splitext(line)
            name = stem if extension.lower() in (*EXTENSIONS, ".xml") else line
            file = self.root / "Annotations" / f"{name}.xml"
            what = ""
            if name in seen:
                what = f"repeats line {seen[name]}"
            elif name and not file.is_file():
                what = "no such file in Annotations"
            if what:
                self._problems.append(Problem(-1, number, f"{listing}:{number}: {what}: {line}"))
            elif name:
                seen[name] = number
                yield str(file)

    def _by_folder(self) -> dict[str, list[str]]:
        """All XML files, by the split that a folder on their way is called after."""
        found = defaultdict(list)
        for file in sorted(files_below(self.root, [".xml"])):
            folders = Path(file).relative_to(self.root).parent.parts
            names = [SPLITS[folder.lower()] for folder in folders if folder.lower() in SPLITS]
            found[names[-1] if names else "train"].append(file)
        found.pop("test", None)
        return dict(found)

    def _images(self) -> dict[str, list[str]]:
        """Image files by their name without extension, the likelier ones first."""
        found = defaultdict(list)
        for file in files_below(self.root, EXTENSIONS):
            found[os.path.splitext(os.path.basename(file))[0]].append(file)
        for files in found.values():
            files.sort(key=_unlikeliness)
        return dict(found)


def _with_lists(folder: Path) -> Path:
    """The folder that holds ImageSets, which may be VOCdevkit/VOC2012 in what an archive unpacks to."""
    patterns = [f"{below}ImageSets/Main" for below in ("", "*/", "VOCdevkit/*/")]
    found = {lists.parents[1] for pattern in patterns for lists in folder.glob(pattern)}
    if len(found) > 1:
        several = ", ".join(map(str, sorted(found)))
        raise DataError(f"{folder}: several datasets; give the path of one of them ({several})")
    return found.pop() if found else folder


def _unlikeliness(file: str) -> tuple[bool, bool, str]:
    folders = os.path.dirname(file).lower()
    return "jpegimages" not in folders, "images" not in folders, file


def _read_split(xmls: Sequence[str], images: dict[str, list[str]], classes: dict[str, int]) -> Labels:
    labels = Labels(INCLUSIVE, lambda image, line: f"{xmls[image]}:{line}")
    for found in shared_out(lambda part: _read_part(xmls[part.start : part.stop], images), len(xmls)):
        found.renumber([classes.setdefault(name, len(classes)) for name in found.names], [])
        labels.take(found)
    taken: dict[str, str] = {}
    for number, xml in enumerate(xmls):
        image = labels.files.name(number)
        if image in taken:
            line = parse_xml(Path(xml).read_bytes()).line
            what = f"is about the same image as {taken[image]}: {image}"
            labels.add_problem(number, line, what, drop=True)
        elif image != NO_FILE:
            taken[image] = xml
    return labels


def _read_part(xmls: Sequence[str], images: dict[str, list[str]]) -> Labels:
    """What some XML files say; the classes are numbered as they come."""
    labels = Labels(INCLUSIVE, lambda image, line: f"{xmls[image]}:{line}")
    classes: dict[str, int] = {}
    for number, xml in enumerate(xmls):
        annotation = XmlNode("", 1)
        try:
            annotation = parse_xml(Path(xml).read_bytes())
            if annotation.tag != "annotation":
                raise XmlError(annotation.line, f"expected an annotation: {annotation.tag}")
        except OSError as error:
            labels.add_problem(number, 1, f"cannot be read: {error.strerror}", drop=True)
        except XmlError as error:
            labels.add_problem(number, error.line, str(error), drop=True)
        image = _image_of(xml, annotation, images)
        if image is None:
            labels.add_problem(number, annotation.line, "no image of this name", drop=True)
        _add_image(image or NO_FILE, annotation, labels)
        for each in annotation.all("object"):
            try:
                _add_object(each, number, labels, classes)
            except XmlError as error:
                labels.add_problem(number, error.line, str(error))
    labels.names = list(classes)
    return labels


def _image_of(xml: str, annotation: XmlNode, images: dict[str, list[str]]) -> str | None:
    """The image that an XML file is about; None where there is none."""
    folder, name = os.path.split(xml)
    around = set(Path(folder).parts)
    said = annotation.all("filename")
    stems = [name] + [os.path.basename(node.text.strip().replace("\\", "/")) for node in said]
    for stem in (os.path.splitext(each)[0] for each in stems):
        found = images.get(stem, [])
        if folder in map(os.path.dirname, found):
            return next(image for image in found if os.path.dirname(image) == folder)
        if found:  # for train/Annotations the image in train/images, not in val/images
            return max(found, key=lambda image: len(around.intersection(Path(image).parts)))
    return None


def _add_image(image: str, annotation: XmlNode, labels: Labels) -> None:
    number = len(labels.files)
    width = height = 0
    line = annotation.line
    for node in annotation.all("size")[:1]:
        line = node.line
        try:
            width, height = (int(_number(node.only(side))) for side in ("width", "height"))
        except (OverflowError, ValueError) as error:
            labels.add_problem(number, line, str(error), drop=True)
    # 0 x 0 is what tools write that did not open the image.
    labels.add_image(image, width, height, line)


def _add_object(node: XmlNode, image: int, labels: Labels, classes: dict[str, int]) -> None:
    """Add an object, or count it as left out.

    Raises:
        XmlError: what is wrong with it.
    """
    name = node.only("name").text.strip()
    if not name:
        raise XmlError(node.only("name").line, "name: expected text: ''")
    difficult = next((each.text.strip() for each in node.all("difficult")), "") or "0"
    if difficult not in ("0", "1"):
        raise XmlError(node.only("difficult").line, f"difficult: expected 0 or 1: {difficult}")
    box = node.only("bndbox")
    numbers = [_number(box.only(edge)) for edge in ("xmin", "ymin", "xmax", "ymax")]
    label = classes.setdefault(name, len(classes))
    if difficult == "1":
        labels.left_out += 1
    else:
        labels.add_box(image, label, numbers, box.line)


def _number(node: XmlNode) -> float:
    try:
        return float(node.text)
    except ValueError:
        raise XmlError(node.line, f"{node.tag}: not a number: {node.text.strip()!r}") from None
