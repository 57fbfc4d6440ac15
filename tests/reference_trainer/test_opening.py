"""Datasets of every kind and layout, through one function."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reference_trainer.__main__ import main
from reference_trainer.data import opening
from reference_trainer.data.opening import open_data
from reference_trainer.data.sample import DataError, ImageSource, decode_image, measure_image
from reference_trainer.data.toy import ToyImages
from reference_trainer.data.writing import write_yolo_folder
from tests.reference_trainer.datasets import Coco, add_image, add_voc, content_of, voc_object, voc_xml
from tests.reference_trainer.images import ramp, save
from tests.reference_trainer.runs import call_here, refused

SIDE = 32


def write_coco(splits: dict[str, ToyImages], root: Path) -> None:
    """Toy images as COCO, ids in disorder, the lists in another order than usual."""
    for split, source in splits.items():
        folder = root / f"{split}2017"
        folder.mkdir(parents=True)
        images, annotations = [], []
        for index in range(len(source)):
            annotated = source[index]
            save(annotated.image, folder / f"{index:04d}.png")
            images.append({"id": 7 + index, "file_name": f"{index:04d}.png", "height": SIDE, "width": SIDE})
            for (x1, y1, x2, y2), label in zip(
                annotated.boxes.tolist(), annotated.labels.tolist(), strict=True
            ):
                box = [x1, y1, x2 - x1, y2 - y1]
                annotations.append({"image_id": 7 + index, "category_id": 90 + label, "bbox": box})
        categories = [{"id": 90 + number, "name": name} for number, name in enumerate(source.names)]
        content = {"info": {"year": 1}, "annotations": annotations, "licenses": [1], "images": images[::-1]}
        (root / "annotations").mkdir(exist_ok=True)
        text = json.dumps(content | {"categories": categories[::-1]}, indent=1)
        (root / "annotations" / f"instances_{split}2017.json").write_text(text)


def write_voc(splits: dict[str, ToyImages], root: Path) -> None:
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, source in splits.items():
        names = []
        for index in range(len(source)):
            annotated, name = source[index], f"{split}_{index:04d}"
            boxes = (annotated.boxes.int() + torch.tensor([1, 1, 0, 0])).tolist()
            labels = [source.names[label] for label in annotated.labels]
            objects = [voc_object(box, label) for box, label in zip(boxes, labels, strict=True)]
            add_voc(root, name, *objects, size=(SIDE, SIDE))
            save(annotated.image, root / f"JPEGImages/{name}.png")
            names.append(name)
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))


WRITERS: dict[str, Callable[[dict[str, ToyImages], Path], None]] = {
    "YOLO": write_yolo_folder,
    "COCO": write_coco,
    "VOC": write_voc,
}


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_gives_the_same_images_boxes_and_classes(kind: str, decode: bool, tmp_path: Path) -> None:
    splits = {"train": ToyImages(12, SIDE, 1, 6), "val": ToyImages(range(20, 25), SIDE, 1, 6)}
    WRITERS[kind](splits, tmp_path / "set")
    before = content_of(tmp_path)
    found = open_data(tmp_path / "set", decode=decode)
    assert found.kind == kind
    for split, expected in splits.items():
        source = found.splits[split]
        # VOC has no list of classes: their names are in alphabetical order.
        numbers = torch.tensor([source.names.index(name) for name in expected.names])
        assert sorted(source.names) == sorted(expected.names)
        assert source.box_counts.tolist() == expected.box_counts.tolist()
        for index in range(len(expected)):
            annotated, other = source[index], expected[index]
            torch.testing.assert_close(annotated.image, other.image, rtol=0, atol=0)
            torch.testing.assert_close(annotated.boxes, other.boxes, rtol=0, atol=0)
            assert annotated.labels.tolist() == numbers[other.labels].tolist()
        labels = torch.cat([source[index].labels for index in range(len(source))])
        assert found.files[split].class_counts == torch.bincount(labels, minlength=3).tolist()
    assert content_of(tmp_path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["set"]
    # One split alone has the same classes.
    assert open_data(tmp_path / "set", ["val"]).splits["val"].names == found.splits["val"].names


def images_of(source: ImageSource) -> list[str]:
    return [source[index].source for index in range(len(source))]


@pytest.mark.parametrize("kind", WRITERS)
def test_one_image_in_five_is_set_aside_where_nothing_is_said_of_validation(
    kind: str, tmp_path: Path
) -> None:
    WRITERS[kind]({"train": ToyImages(23, SIDE)}, tmp_path / "set")
    first = open_data(tmp_path / "set").splits
    parts = {split: images_of(source) for split, source in first.items()}
    assert [len(part) for part in parts.values()] == [19, 4]
    assert len({*parts["train"], *parts["val"]}) == 23
    assert parts["val"] != images_of(open_data(tmp_path / "set").files["train"])[-4:]
    for split in parts:
        assert images_of(open_data(tmp_path / "set", [split]).splits[split]) == parts[split]


def test_a_single_image_cannot_be_split(tmp_path: Path) -> None:
    write_yolo_folder({"train": ToyImages(1, SIDE)}, tmp_path / "set")
    with pytest.raises(DataError, match="one image cannot be both"):
        open_data(tmp_path / "set")


def voc_beside(root: Path) -> None:
    for split in ("train", "valid", "test"):
        (root / split).mkdir()
        for name in ("a", "b"):
            save(ramp(), root / split / f"{name}.jpg")
            (root / split / f"{name}.xml").write_text(voc_xml(voc_object(), name=name))


def voc_in_split_folders(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            add_image(root / split / "images" / f"{name}.png")
            file = root / split / "annotations" / f"{name}.xml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(voc_xml(voc_object(), name="called otherwise", size=(0, 0)))


def voc_in_an_archive(root: Path) -> None:
    year = root / "VOCdevkit/VOC2012"
    for name in ("a", "b", "c", "d", "not listed"):
        add_voc(year, name, voc_object())
        add_image(year / f"SegmentationClass/{name}.png")
    (year / "ImageSets/Main").mkdir(parents=True)
    (year / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\nd\n")
    (year / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (year / "ImageSets/Main/val.txt").write_text("c\nd\n")


def voc_in_nested_folders(root: Path) -> None:
    """Images of the same names, told apart by their folders alone."""
    for folder in ("one/day", "two/day"):
        for name in ("a", "b"):
            add_image(root / f"JPEGImages/{folder}/{name}.png")
            file = root / f"Annotations/{folder}/{name}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(voc_xml(voc_object(), name=name))
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("one/day/a\none/day/b\n")
    (root / "ImageSets/Main/val.txt").write_text("two/day/a.png\r\ntwo/day/b.png\r\n")


def coco_of(root: Path, file: str, folder: str) -> None:
    coco = Coco(root)
    coco.add("a", [1, 2, 3, 4], folder=folder)
    coco.add("b", [1, 2, 3, 4], folder=folder)
    coco.write(file)


def coco_one_folder_a_split(root: Path) -> None:
    for split in ("train", "valid", "test"):
        coco_of(root, f"{split}/_annotations.coco.json", split)


def coco_images_by_split(root: Path) -> None:
    for split in ("train2017", "val2017"):
        coco_of(root, f"annotations/instances_{split}.json", f"images/{split}")
        (root / f"annotations/captions_{split}.json").write_text("{}")


def coco_at_the_top(root: Path) -> None:
    for split in ("train", "val"):
        coco_of(root, f"{split}.json", f"{split}/images" if split == "train" else split)
    shutil.move(root / "train/images", root / "moved")
    shutil.rmtree(root / "train")
    shutil.move(root / "moved", root / "train")


def yolo_of_another_name(root: Path) -> None:
    write_yolo_folder({"train": ToyImages(2, SIDE), "val": ToyImages([5, 6], SIDE)}, root / "set")
    (root / "set/data.yaml").rename(root / "set/birds.yaml")
    (root / "set/hyp.yaml").write_text("lr: 3\n")


LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "VOC beside the images": (voc_beside, "VOC"),
    "VOC in folders of splits": (voc_in_split_folders, "VOC"),
    "VOC as it is unpacked": (voc_in_an_archive, "VOC"),
    "VOC, nested": (voc_in_nested_folders, "VOC"),
    "COCO, a folder a split": (coco_one_folder_a_split, "COCO"),
    "COCO, as published": (coco_images_by_split, "COCO"),
    "COCO at the top": (coco_at_the_top, "COCO"),
    "YOLO under another name": (yolo_of_another_name, "YOLO"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_people_have_are_understood(layout: str, tmp_path: Path) -> None:
    make, kind = LAYOUTS[layout]
    make(tmp_path)
    found = open_data(tmp_path)
    assert found.kind == kind
    assert {split: len(source) for split, source in found.splits.items()} == {"train": 2, "val": 2}
    train, val = (images_of(found.splits[split]) for split in ("train", "val"))
    assert not set(train) & set(val)
    if layout == "VOC, nested":
        assert all("/one/" in each for each in train)
        assert all("/two/" in each for each in val)
    assert not any("Segmentation" in each or "/test/" in each for each in train + val)


def test_a_coco_file_may_be_named_itself(tmp_path: Path) -> None:
    coco_images_by_split(tmp_path)
    found = open_data(tmp_path / "annotations/instances_val2017.json")
    assert {split: len(source) for split, source in found.splits.items()} == {"train": 1, "val": 1}
    assert "/images/val2017/" in found.splits["val"][0].source


def both_yolo_and_voc(root: Path) -> None:
    write_yolo_folder({"train": ToyImages(2, SIDE)}, root / "set")
    for file in (root / "set").iterdir():
        shutil.move(file, root)
    (root / "set").rmdir()
    add_voc(root, "a")


def two_years(root: Path) -> None:
    for year in ("2014", "2017"):
        coco_of(root, f"annotations/instances_train{year}.json", f"train{year}")


def only_val(root: Path) -> None:
    coco_of(root, "annotations/instances_val.json", "val")


def two_datasets(root: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        add_voc(root / year, "a")
        (root / year / "ImageSets/Main").mkdir(parents=True)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda root: None, "no dataset is recognised here; looked for YOLO: a data.yaml"),
    "images alone": (lambda root: add_image(root / "a.png"), "VOC: Annotations/"),
    "two kinds": (both_yolo_and_voc, "several datasets; give the path of one of them (YOLO: "),
    "two files a split": (two_years, "two files for the split train; give one of them: "),
    "two datasets": (two_datasets, "several datasets; give the path of one of them ("),
    "no training": (only_val, "no images for train, only for val"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_clear_is_refused_and_says_what_was_looked_for(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        open_data(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataError, match="no such file or folder"):
        open_data(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match="expected a folder, a data"):
        open_data(tmp_path / "notes.txt")


def test_voc_coordinates_count_from_1_and_include_both_ends(tmp_path: Path) -> None:
    add_voc(tmp_path, "a", voc_object((1, 1, 30, 20)), voc_object((5, 6, 5, 6)), voc_object((0, 0, 7, 8)))
    add_voc(tmp_path, "b", size=(0, 0))
    source = open_data(tmp_path).files["train"]
    expected = torch.tensor([[0.0, 0, 30, 20], [4, 5, 5, 6], [0, 0, 7, 8]])
    torch.testing.assert_close(source[0].boxes, expected, rtol=0, atol=0)
    assert (source.clipped, source.backgrounds) == (1, 1)


def test_difficult_objects_and_crowds_are_left_out_and_counted(tmp_path: Path) -> None:
    hard = voc_object((3, 3, 9, 9), "bird", "<difficult>1</difficult>")
    for name in ("a", "b"):
        add_voc(tmp_path / "voc", name, voc_object(extra="<difficult>0</difficult>"), hard)
    coco = Coco(tmp_path / "coco")
    for name in ("a", "b"):
        coco.add(name, [1, 2, 3, 4], [2, 3, 4, 5])["iscrowd"] = 1
    coco.write()
    for kind in ("voc", "coco"):
        source = open_data(tmp_path / kind).files["train"]
        assert source.left_out == 2
        assert source.box_counts.tolist() == [1, 1]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    for split, names in (("train", ("cat", "dog", "bird")), ("val", ("dog", "cat"))):
        coco = Coco(tmp_path, names)
        for name in ("a", "b"):
            coco.add(name, [1, 2, 3, 4], folder=split)
        coco.write(f"annotations/{split}.json")
    splits = open_data(tmp_path).splits
    assert [splits[split].names for split in ("train", "val")] == [["cat", "dog", "bird"]] * 2
    assert [splits[split][0].labels.tolist() for split in ("train", "val")] == [[0], [1]]
    coco.categories[0]["name"] = "fish"
    coco.write("annotations/val.json")
    with pytest.raises(DataError, match="categories: not in the file to train on: 'fish'"):
        open_data(tmp_path)


def test_of_many_images_the_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo_folder({"train": ToyImages(8, SIDE)}, tmp_path / "set")
    file = tmp_path / "set/images/train/000003.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    with pytest.raises(DataError, match="broken image"):
        open_data(tmp_path / "set")
    monkeypatch.setattr(opening, "DECODED_AT_START", 7)
    found = open_data(tmp_path / "set").files["train"]
    with pytest.raises(DataError, match=r"000003\.png: broken image"):
        found[3]
    file.write_bytes(whole[:-20])
    with pytest.raises(DataError, match="broken image"):
        open_data(tmp_path / "set")


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp"])
def test_a_header_says_the_size_and_whether_the_file_is_cut_off(extension: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{extension}"
    save(ramp(), file)
    whole = file.read_bytes()
    assert measure_image(file) == (30, 20)
    # What some cameras leave behind the image does no harm.
    file.write_bytes(whole + b"\0" * 1000)
    assert measure_image(file) == tuple(decode_image(file).shape[:0:-1]) == (30, 20)
    for length in (0, 30, len(whole) // 2, len(whole) - 20):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match="broken image"):
            measure_image(file)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        measure_image(tmp_path / "absent.jpg")


@pytest.mark.parametrize("kind", WRITERS)
def test_check_says_what_is_there(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    WRITERS[kind]({"train": ToyImages(10, SIDE, 0, 6), "val": ToyImages(5, SIDE, 9, 6)}, tmp_path / "set")
    assert main(["data", "check", str(tmp_path / "set")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    counts = ToyImages(10, SIDE, 0, 6).box_counts
    assert (result["kind"], result["problems"]) == (kind, 0)
    train = result["splits"]["train"]
    assert (train["images"], train["boxes"]) == (10, counts.sum())
    assert train["backgrounds"] == (counts == 0).sum()
    assert sum(train["classes"].values()) == counts.sum()
    assert set(train["classes"]) == {"rectangle", "ellipse", "triangle"}
    assert lines[0] == f"{kind}: {tmp_path / 'set'}: nothing is wrong"
    assert f"train: 10 images of {SIDE} x {SIDE} to {SIDE} x {SIDE}, median {SIDE} x {SIDE}" in lines


def test_check_lists_all_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    write_yolo_folder({"train": ToyImages(30, SIDE)}, root)
    for file in (root / "labels/train").iterdir():
        file.write_text("0 .5 .5 .2 .2\n5 .5 .5 .2 .2\n")
    before = content_of(tmp_path)
    assert main(["data", "check", str(root)]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 30
    assert lines[7] == f"{root}/labels/train/000007.txt:2: class is not one of 0 to 2: 5"
    assert json.loads(last)["problems"] == 30
    assert content_of(tmp_path) == before
    assert main(["data", "check", str(tmp_path / "gone")]) == 2


def test_commands_of_data_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'data chek'; did you mean 'check'?" in refused(capsys, "data", "chek", "x")
    assert "unknown command 'data toys'; expected one of check, write" in refused(capsys, "data", "toys")


def test_a_run_that_skips_keeps_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    write_yolo_folder({"train": ToyImages(12, SIDE), "val": ToyImages([20, 21], SIDE)}, root)
    label = root / "labels/train/000004.txt"
    label.write_text(label.read_text() + "7 .5 .5 .2 .2\n")
    (root / "images/train/000005.png").write_bytes(b"")
    arguments = ["train", "--data", root, "--data.size", str(SIDE), "--epochs", "1", "--model.width", "8"]
    arguments += ["--schedule.warmup-steps", "0", "--device", "cpu", "--out", tmp_path / "runs"]
    said = refused(capsys, *arguments)
    assert "2 problems in the data" in said
    assert said.splitlines()[-1] == opening.ADVICE
    done = call_here(capsys, *arguments, "--data.on-error", "skip")
    assert (done.folder / "data_problems.txt").read_text().splitlines() == [
        f"{label}:2: class is not one of 0 to 2: 7",
        f"{root}/images/train/000005.png: broken image: 0 bytes",
    ]
    assert done.summary["data_problems"] == 2
    assert done.summary["images"] == {"train": 11, "val": 2}
    assert "skipped 2 bad boxes or images" in done.messages
