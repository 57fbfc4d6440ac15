"""Kinds of bad data, of each format: all found in one pass, with file and line; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reference_trainer.data.opening import FaultyDataError, open_data
from reference_trainer.data.sample import DataError
from tests.reference_trainer.datasets import Coco, add_image, add_voc, content_of, voc_object, voc_xml

Fault = Callable[[Path, str], str]
"""Puts one fault into a folder, about images of a name; returns the problem, paths relative."""

# --- YOLO: a line of a label file and what is wrong with it.
YOLO_LINES = {
    "2 .5 .5 .2 .2": "class is not one of 0 to 1: 2",
    "-1 .5 .5 .2 .2": "class is not one of 0 to 1: -1",
    "0.5 .5 .5 .2 .2": "class is not one of 0 to 1: 0.5",
    "nan .5 .5 .2 .2": "class is not one of 0 to 1: nan",
    "0 .5 .5 .2": "expected 5 columns (class x y width height), got 4: 0 .5 .5 .2",
    "0 .1 .1 .2 .2 .3 .1": (
        "expected 5 columns (class x y width height), got 7, a polygon or key points?: 0 .1 .1 .2 .2 .3 .1"
    ),
    "0 .5 half .2 .2": "not a number: half",
    "0,.5,.5,.2,.2": "expected 5 columns (class x y width height), got 1: 0,.5,.5,.2,.2",
    "0 nan .5 .2 .2": "not finite: nan 0.5 0.2 0.2",
    "0 .5 .5 inf .2": "not finite: 0.5 0.5 inf 0.2",
    "0 .5 .5 0 .2": "width and height must be above 0: 0.5 0.5 0 0.2",
    "0 .5 .5 .2 -.1": "width and height must be above 0: 0.5 0.5 0.2 -0.1",
    "0 .05 .5 .2 .2": "sticks out of the image by 5.0%: 0.05 0.5 0.2 0.2",
    "0 .5 1.2 .2 .2": "sticks out of the image by 30.0%: 0.5 1.2 0.2 0.2",
    "0 15 10 6 8": "sticks out of the image by 1700.0%: 15 10 6 8",
    "0 -.005 .5 .01 .2": "no area inside the image: -0.005 0.5 0.01 0.2",
    "0 .5 .5 1e-9 .2": "no area inside the image: 0.5 0.5 1e-09 0.2",
}


def yolo_line(line: str) -> Fault:
    def put(root: Path, name: str) -> str:
        add_image(root / f"images/train/{name}.png")
        (root / f"labels/train/{name}.txt").write_text(f"0 .5 .5 .2 .4\n\n{line}\n")
        return f"labels/train/{name}.txt:3: {YOLO_LINES[line]}"

    return put


def yolo_repeat(root: Path, name: str) -> str:
    add_image(root / f"images/train/{name}.png")
    (root / f"labels/train/{name}.txt").write_text("0 .5 .5 .2 .4\n1 .5 .5 .2 .4\n0 .50 .5 .2 .4\n")
    label = f"labels/train/{name}.txt"
    return f"{label}:3: repeats the box and class of {label}:1"


def yolo_lonely(root: Path, name: str) -> str:
    (root / f"labels/train/{name}.txt").write_text("")
    return f"labels/train/{name}.txt: label file without an image"


def yolo_not_text(root: Path, name: str) -> str:
    add_image(root / f"images/train/{name}.png")
    (root / f"labels/train/{name}.txt").write_bytes(b"\xff\xfe0")
    return f"labels/train/{name}.txt: cannot be read as text: 'utf-8' codec"


def yolo_shared(root: Path, name: str) -> str:
    add_image(root / f"images/train/{name}.png")
    (root / "val.txt").write_text((root / "val.txt").read_text() + f"images/train/{name}.png\n")
    return f"images/train/{name}.png: in train and in val"


def yolo_unlisted(root: Path, name: str) -> str:
    text = (root / "val.txt").read_text() + f"images/val/{name}.png\n"
    (root / "val.txt").write_text(text)
    return f"val.txt:{len(text.splitlines())}: no such image: images/val/{name}.png"


def broken_image(content: bytes | None, what: str, folder: str, label: Callable[[Path, str], Any]) -> Fault:
    """An image with other content, or cut in the middle for None; its label is good."""

    def put(root: Path, name: str) -> str:
        file = root / folder / f"{name}.png"
        add_image(file)
        label(root, name)
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if content is None else content)
        return f"{folder}/{name}.png: {what}"

    return put


def images_broken(folder: str, label: Callable[[Path, str], Any]) -> dict[str, Fault]:
    return {
        "image cut off": broken_image(None, "broken image: ", folder, label),
        "image of 0 bytes": broken_image(b"", "broken image: 0 bytes", folder, label),
        "image of text": broken_image(b"x" * 99, "broken image: not JPEG", folder, label),
    }


YOLO: dict[str, Fault] = {
    **{line: yolo_line(line) for line in YOLO_LINES},
    "repeat": yolo_repeat,
    "lonely label": yolo_lonely,
    "label is not text": yolo_not_text,
    "in both splits": yolo_shared,
    "listed image is missing": yolo_unlisted,
    **images_broken("images/train", lambda root, name: None),
}


def yolo_folder(root: Path, faults: dict[str, Fault]) -> list[str]:
    """A good YOLO folder with some faults put in; returns the problems to be found."""
    for split in ("train", "val"):
        for name in ("good", "better"):
            add_image(root / f"images/{split}/{name}.png")
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/good.txt").write_text("1 .5 .5 .3 .3\n")
    (root / "val.txt").write_text("images/val/good.png\nimages/val/better.png\n")
    (root / "data.yaml").write_text("train: images/train\nval: val.txt\nnames: [cat, dog]\n")
    return [fault(root, f"p{number}") for number, fault in enumerate(faults.values())]


# --- COCO: what is done to the file's content.
CocoFault = Callable[[Coco, str], str]

NOT_4 = "bbox: expected 4 numbers (x, y, width, height): "
HERE = "annotations/instances_default.json"
BOX = [3, 4, 10, 12]


def at(coco: Coco, key: str, index: int) -> tuple[str, int]:
    """How the last element is named; its line is known when all are there."""
    elements = getattr(coco, key)
    index %= len(elements)
    identity = elements[index].get("id") if isinstance(elements[index], dict) else None
    return f"{key}[{index}]" + ("" if identity is None else f" (id {identity!r})"), index


def on_box(box: Any, what: str) -> CocoFault:
    def put(coco: Coco, name: str) -> str:
        coco.add(name, box)
        return f"{at(coco, 'annotations', -1)[0]}: {what}"

    return put


def on(key: str, what: str, **changed: Any) -> CocoFault:
    """An element with other values, ... for none; `what` is filled in with its values."""

    def put(coco: Coco, name: str) -> str:
        coco.add(name, BOX)
        if key == "categories":
            coco.categories.append({"id": 1000 + len(coco.categories), "name": name})
        element = getattr(coco, key)[-1]
        element.update(changed)
        for gone in [field for field, value in changed.items() if value is ...]:
            del element[gone]
        if key == "images" and "id" in changed:  # it has no image now
            coco.annotations.pop()
        return f"{at(coco, key, -1)[0]}: {what}"

    return put


def no_object(key: str) -> CocoFault:
    def put(coco: Coco, name: str) -> str:
        getattr(coco, key).append([1, 2])
        return f"{at(coco, key, -1)[0]}: expected an object: [1, 2]"

    return put


def coco_repeat(coco: Coco, name: str) -> str:
    coco.add(name, BOX, BOX)
    first, _ = at(coco, "annotations", -2)
    return f"{at(coco, 'annotations', -1)[0]}: repeats the box and class of {HERE}:LINE: {first}"


def coco_image_missing(coco: Coco, name: str) -> str:
    coco.add(name, BOX)
    (coco.root / f"images/{name}.png").unlink()
    return f"images/{name}.png: cannot be read: No such file"


def coco_broken(content: bytes, what: str) -> CocoFault:
    def put(coco: Coco, name: str) -> str:
        coco.add(name, BOX)
        (coco.root / f"images/{name}.png").write_bytes(content)
        return f"images/{name}.png: {what}"

    return put


COCO: dict[str, CocoFault] = {
    "box of 3": on_box([1, 2, 3], NOT_4 + "[1, 2, 3]"),
    "box of text": on_box([1, 2, 3, "4"], NOT_4 + "[1, 2, 3, '4']"),
    "box of truth": on_box([1, 2, 3, True], NOT_4 + "[1, 2, 3, True]"),
    "box of an object": on_box({"x": 1}, NOT_4 + "{'x': 1}"),
    "no box": on("annotations", NOT_4 + "None", bbox=...),
    "nan": on_box([float("nan"), 2, 3, 4], "not finite: nan 2 3 4"),
    "infinity": on_box([1, 2, float("inf"), 4], "not finite: 1 2 inf 4"),
    "width 0": on_box([1, 2, 0, 4], "width and height must be above 0: 1 2 0 4"),
    "height below 0": on_box([1, 2, 3, -4], "width and height must be above 0: 1 2 3 -4"),
    "sticks out": on_box([20, 2, 13, 4], "sticks out of the image by 10.0%: 20 2 13 4"),
    "outside": on_box([1, 40, 3, 4], "sticks out of the image by 120.0%: 1 40 3 4"),
    "no area": on_box([30, 2, 0.1, 4], "no area inside the image: 30 2 0.1 4"),
    "repeat": coco_repeat,
    "unknown image": on("annotations", "image_id: no image has it: 77", image_id=77),
    "unknown class": on("annotations", "category_id: none has it: 2", category_id=2),
    "no image": on("annotations", "image_id: expected a whole number: None", image_id=...),
    "class by name": on("annotations", "category_id: expected a whole number: 'cat'", category_id="cat"),
    "annotation id twice": on("annotations", "id: comes twice: 100", id=100),
    "crowd": on("annotations", "iscrowd: expected 0 or 1: 'no'", iscrowd="no"),
    "image id twice": on("images", "id: comes twice: 1", id=1),
    "image id nan": on("images", "id: expected a whole number: nan", id=float("nan")),
    "no file name": on("images", "file_name: expected text: None", file_name=...),
    "file name twice": on("images", "file_name: comes twice: 'good.png'", file_name="good.png"),
    "other size": on("images", "size says 31 x 20, the image is 30 x 20: ", width=31),
    "turned size": on(
        "images", "size says 20 x 30, the image is 30 x 20, turned as its EXIF", width=20, height=30
    ),
    "size of text": on("images", "width: expected a whole number: 'wide'", width="wide"),
    "class id twice": on("categories", "id: comes twice: 0", id=0),
    "class name twice": on("categories", "name: comes twice: 'dog'", name="dog"),
    "no class name": on("categories", "name: expected text: None", name=...),
    "no object": no_object("annotations"),
    "image is missing": coco_image_missing,
    "image of 0 bytes": coco_broken(b"", "broken image: 0 bytes"),
    "image of text": coco_broken(b"x" * 99, "broken image: not JPEG"),
}


def coco_folder(root: Path, faults: dict[str, CocoFault]) -> list[str]:
    coco = Coco(root)
    coco.add("good", BOX)
    coco.add("better", BOX)
    problems = [fault(coco, f"p{number}") for number, fault in enumerate(faults.values())]
    coco.write()

    def located(problem: str) -> str:
        key, _, rest = problem.partition("[")
        if key not in ("images", "annotations", "categories"):
            return problem
        line = coco.line(key, int(rest.partition("]")[0]))
        return f"{HERE}:{line}: {problem.replace('LINE', str(line - 1))}"

    return [located(problem) for problem in problems]


# --- VOC: an object of an XML file, on line 3.
def voc(line: str, what: str, at_line: int = 3, **options: Any) -> Fault:
    def put(root: Path, name: str) -> str:
        add_voc(root, name, line, **options)
        return f"Annotations/{name}.xml:{at_line}: {what}"

    return put


def voc_text(text: str, what: str) -> Fault:
    def put(root: Path, name: str) -> str:
        add_voc(root, name).write_text(text)
        return f"Annotations/{name}.xml:{what}"

    return put


def voc_repeat(root: Path, name: str) -> str:
    file = add_voc(root, name, voc_object(), voc_object(name="dog"), voc_object()).relative_to(root)
    return f"{file}:5: repeats the box and class of {file}:3"


def voc_no_image(root: Path, name: str) -> str:
    add_voc(root, name)
    (root / f"JPEGImages/{name}.png").unlink()
    return f"Annotations/{name}.xml:1: no image of this name"


def voc_same_image(root: Path, name: str) -> str:
    add_voc(root, name)
    (root / f"Annotations/{name}x.xml").write_text(voc_xml(name=name))
    return f"Annotations/{name}x.xml:1: is about the same image as "


BOMB = '<!DOCTYPE a [<!ENTITY a "ha">\n<!ENTITY b "&a;&a;">]>\n<annotation>&b;</annotation>'
BNDBOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
NOT_XML = "not valid XML: "

VOC: dict[str, Fault] = {
    "not closed": voc_text("<annotation>\n<object>\n", f"3: {NOT_XML}no element found"),
    "closed crosswise": voc_text("<annotation>\n<a><b></a></b></annotation>", f"2: {NOT_XML}mismatched tag"),
    "0 bytes": voc_text("", f"1: {NOT_XML}no element found"),
    "entities": voc_text(BOMB, "1: declares an entity, which no label needs: a"),
    "other root": voc_text("<html></html>", "1: expected an annotation: html"),
    "deep": voc_text("<annotation>\n" + "<a>" * 99, "2: nested deeper than 31: a"),
    "no name": voc(f"<object>{BNDBOX}</object>", "object: expected one name: got 0"),
    "empty name": voc(voc_object(name=" "), "name: expected text: ''"),
    "no box": voc("<object><name>cat</name></object>", "object: expected one bndbox: got 0"),
    "two boxes": voc(
        f"<object><name>cat</name>{BNDBOX}{BNDBOX}</object>", "object: expected one bndbox: got 2"
    ),
    "no xmax": voc(voc_object().replace("xmax", "max"), "bndbox: expected one xmax: got 0"),
    "not a number": voc(voc_object((1, "two", 3, 4)), "ymin: not a number: 'two'"),
    "empty number": voc(voc_object((1, 2, 3, "")), "ymax: not a number: ''"),
    "nan": voc(voc_object((1, "nan", 3, 4)), "not finite: 1 nan 3 4"),
    "infinity": voc(voc_object((1, 2, "1e999", 4)), "not finite: 1 2 inf 4"),
    "inverted": voc(voc_object((9, 2, 3, 4)), "width and height must be above 0: 9 2 3 4"),
    "no height": voc(voc_object((1, 5, 3, 4)), "width and height must be above 0: 1 5 3 4"),
    "sticks out": voc(voc_object((20, 2, 33, 4)), "sticks out of the image by 10.0%: 20 2 33 4"),
    "outside": voc(voc_object((1, 40, 3, 44)), "sticks out of the image by 120.0%: 1 40 3 44"),
    "below 0": voc(voc_object((-5, 2, 3, 4)), "sticks out of the image by 20.0%: -5 2 3 4"),
    "repeat": voc_repeat,
    "difficult": voc(voc_object(extra="<difficult>yes</difficult>"), "difficult: expected 0 or 1: yes"),
    "other size": voc("", "size says 31 x 20, the image is 30 x 20: ", 2, size=(31, 20)),
    "turned size": voc("", "size says 20 x 30, the image is 30 x 20, turned as", 2, size=(20, 30)),
    "size of text": voc("", "width: not a number: 'wide'", 2, size=("wide", 20)),
    "no image": voc_no_image,
    "same image twice": voc_same_image,
    **images_broken("JPEGImages", add_voc),
}


def voc_folder(root: Path, faults: dict[str, Fault]) -> list[str]:
    for name in ("good", "better"):
        add_voc(root, name, voc_object())
    return [fault(root, f"p{number}") for number, fault in enumerate(faults.values())]


FORMATS: dict[str, tuple[Callable[[Path, Any], list[str]], dict[str, Any]]] = {
    "YOLO": (yolo_folder, YOLO),
    "COCO": (coco_folder, COCO),
    "VOC": (voc_folder, VOC),
}
ONE_BY_ONE = [(form, kind) for form, (_, faults) in FORMATS.items() for kind in faults]


def found_in(root: Path) -> list[str]:
    with pytest.raises(FaultyDataError) as caught:
        open_data(root)
    return [problem.replace(f"{root}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize("form", FORMATS)
def test_all_kinds_of_bad_data_are_found_in_one_pass(form: str, tmp_path: Path) -> None:
    make, faults = FORMATS[form]
    assert len(faults) >= 20
    expected = make(tmp_path, faults)
    before = content_of(tmp_path)
    found = found_in(tmp_path)
    for kind, problem in zip(faults, expected, strict=True):
        assert sum(each.startswith(problem) for each in found) == 1, f"{kind}: {problem}"
    assert len(found) == len(expected)

    opened = open_data(tmp_path, skip_bad=True)
    assert [problem.replace(f"{tmp_path}/", "") for problem in opened.problems] == found
    sources = opened.files.values()
    for source in sources:
        for index in range(len(source)):
            annotated = source[index]
            height, width = annotated.image.shape[1:]
            inside = annotated.boxes.clamp(min=0).minimum(annotated.boxes.new_tensor([width, height] * 2))
            assert annotated.boxes.equal(inside)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize(("form", "kind"), ONE_BY_ONE)
def test_a_kind_of_bad_data_alone_is_one_problem(form: str, kind: str, tmp_path: Path) -> None:
    make, faults = FORMATS[form]
    (expected,) = make(tmp_path, {kind: faults[kind]})
    (found,) = found_in(tmp_path)
    assert found.startswith(expected)


@pytest.mark.parametrize("form", FORMATS)
def test_a_good_set_has_no_problem(form: str, tmp_path: Path) -> None:
    FORMATS[form][0](tmp_path, {})
    opened = open_data(tmp_path)
    assert opened.problems == []
    assert opened.kind == form


NO_COCO = {
    "": "not valid JSON: Expecting value",
    '{"images": [],\n"annotations": [1,]': "2: not valid JSON: A comma before the end",
    '{"images": [],\n"annotations" [1]': "2: not valid JSON: Expecting ':'",
    '{"images": [1\n2]': "2: not valid JSON: Expecting ','",
    '{"images": []} x': "1: not valid JSON: Extra data",
    "{1: []}": "1: not valid JSON: Expecting a key",
    '{"images": [1': "1: not valid JSON: Expecting ','",
    "[1, 2]": "expected an object at the top: [1, 2]",
    '{"images": [],\n"images": []}': "2: the key comes twice: 'images'",
    '{"images": [], "categories": []}': "annotations: expected a list: None",
    '{"images": [], "categories": [], "annotations": {}}': "annotations: expected a list: {}",
    '{"images": ' + "[" * 100_000: "not valid JSON: nested too deep",
    "\udcff": "cannot be read as text",
}


@pytest.mark.parametrize("text", NO_COCO, ids=[text[:30] or "empty" for text in NO_COCO])
def test_a_file_that_is_no_coco_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        open_data(file)
    assert not isinstance(caught.value, FaultyDataError)
    where = "a.json:" if NO_COCO[text][0].isdigit() else "a.json"
    assert any(f"{where}" in each and NO_COCO[text] in each for each in caught.value.problems)
