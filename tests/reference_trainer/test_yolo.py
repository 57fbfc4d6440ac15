from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reference_trainer.data.files import ImageFiles
from reference_trainer.data.opening import open_data
from reference_trainer.data.sample import AnnotatedImage, DataError, ImageSource, one_box_only
from reference_trainer.data.toy import ToyImages, toy_splits
from reference_trainer.data.writing import write_yolo_folder
from reference_trainer.data.yolo import YoloFolder, label_file
from tests.reference_trainer.datasets import content_of
from tests.reference_trainer.images import RACCOONS, ramp, save

GOOD = "0 0.5 0.5 0.2 0.4"


def folder_of(root: Path, labels: dict[str, str | None], yaml: str | None = None) -> Path:
    """A YOLO folder whose split train holds one image for each text of labels (None: no file)."""
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for name, text in labels.items():
        save(ramp(), root / "images/train" / f"{name}.png")
        if text is not None:
            (root / "labels/train" / f"{name}.txt").write_text(text)
    (root / "data.yaml").write_text(yaml or "path: .\ntrain: images/train\nnames: [cat, dog]\n")
    return root


def opened(path: Path, split: str = "train", *, skip_bad: bool = False) -> ImageFiles:
    """One split of a folder, whole."""
    return ImageFiles(YoloFolder(path).read([split])[split], skip_bad=skip_bad)


def problems_of(root: Path, split: str = "train") -> list[str]:
    """The problems found, the paths below `root` made relative."""
    with pytest.raises(DataError) as caught:
        opened(root, split)
    return [problem.replace(f"{root}/", "") for problem in caught.value.problems]


class Images:
    """A source made of given images."""

    def __init__(self, *images: AnnotatedImage) -> None:
        self.images = images
        self.names = ["cat", "dog"]
        self.box_counts = np.array([len(annotated.boxes) for annotated in images])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        return self.images[index]


def assert_same(found: ImageSource, expected: ImageSource) -> None:
    assert found.names == expected.names
    assert list(found.box_counts) == list(expected.box_counts)
    assert len(found) == len(expected)
    for index in range(len(expected)):
        for name in ("image", "boxes", "labels"):
            one, other = getattr(found[index], name), getattr(expected[index], name)
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_toy_images_come_back_from_a_folder_bit_for_bit(tmp_path: Path) -> None:
    splits = toy_splits(20, side=50, seed=1)
    write_yolo_folder(splits, tmp_path / "toy")
    found = open_data(tmp_path / "toy").splits
    for split, images in splits.items():
        assert_same(found[split], images)
        assert found[split].clipped == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy"]


def test_a_written_folder_keeps_fractions_several_boxes_and_none(tmp_path: Path) -> None:
    several = torch.tensor([[0.0, 0.0, 30.0, 20.0], [1 / 3, 0.7, 29.99, 3.1], [5.5, 6.25, 7.125, 19.9]])
    source = Images(
        AnnotatedImage(ramp(), several, torch.tensor([1, 0, 1]), "several"),
        AnnotatedImage(ramp(31, 17), torch.empty(0, 4), torch.empty(0, dtype=torch.int64), "none"),
    )
    write_yolo_folder({"train": source}, tmp_path / "made")
    assert_same(opened(tmp_path / "made"), source)


def test_an_occupied_folder_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    before = content_of(tmp_path)
    for occupied in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="not an empty folder"):
            write_yolo_folder(toy_splits(5, side=32), occupied)
    assert content_of(tmp_path) == before


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    class Interrupted(ToyImages):
        def __getitem__(self, index: int) -> AnnotatedImage:
            if index == 3:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        write_yolo_folder({"train": Interrupted(5, side=32)}, tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_splits_with_other_names_are_refused(tmp_path: Path) -> None:
    source = Images(AnnotatedImage(ramp(), torch.empty(0, 4), torch.empty(0, dtype=torch.int64), ""))
    with pytest.raises(ValueError, match="same class names"):
        write_yolo_folder({"train": source, "val": ToyImages(1, side=32)}, tmp_path / "made")


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "broken image: 0 bytes"),
    "text": (lambda data: b"this is no image", "broken image: not JPEG, PNG, WEBP, BMP"),
    "half": (lambda data: data[: len(data) // 2], "broken image: "),
    "last bytes missing": (lambda data: data[:-20], "broken image: "),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp"])
def test_a_broken_image_is_found(tmp_path: Path, extension: str, damage: str) -> None:
    root = folder_of(tmp_path, {"good": GOOD})
    bad = root / "images/train" / f"bad.{extension}"
    save(ramp(), bad)
    assert len(opened(root)) == 2
    spoil, message = DAMAGE[damage]
    bad.write_bytes(spoil(bad.read_bytes()))
    (found,) = problems_of(root)
    assert found.startswith(f"images/train/bad.{extension}: {message}")


def test_a_format_that_is_not_read_is_named_whatever_the_file_is_called(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {})
    save(ramp(), root / "images/train/a.jpg", format="GIF")
    assert problems_of(root) == ["images/train/a.jpg: broken image: not JPEG, PNG, WEBP, BMP"]


def test_labels_without_images_and_images_without_boxes(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"boxes": GOOD, "empty": "", "blank": "\n \n", "missing": None})
    (root / "labels/train/classes.txt").write_text("cat\ndog\n")
    assert opened(root).backgrounds == 3
    (root / "labels/train/lonely.txt").write_text(GOOD)
    assert problems_of(root) == ["labels/train/lonely.txt: label file without an image"]


def test_a_label_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"a": GOOD})
    (root / "labels/train/a.txt").write_bytes(b"\xff\xfe0")
    (found,) = problems_of(root)
    assert found.startswith("labels/train/a.txt: cannot be read as text: ")
    save(ramp(), root / "images/train/b.png")
    assert [file.name for file in opened(root, skip_bad=True).files] == ["b.png"]


def test_skipping_leaves_out_the_bad_and_keeps_the_list(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"a": f"{GOOD}\n{GOOD}\n1 .5 .5 .1 .1\n7 .5 .5 .1 .1", "b": GOOD, "c": "x"})
    (root / "images/train/b.png").write_bytes(b"")
    source = opened(root, skip_bad=True)
    assert list(source.box_counts) == [2, 0]
    assert source[0].labels.tolist() == [0, 1]
    assert source.backgrounds == 0
    assert source.problems == [
        f"{root}/labels/train/a.txt:2: repeats the box and class of {root}/labels/train/a.txt:1",
        f"{root}/labels/train/a.txt:4: class is not one of 0 to 1: 7",
        f"{root}/images/train/b.png: broken image: 0 bytes",
        f"{root}/labels/train/c.txt:1: expected 5 columns (class x y width height), got 1: x",
    ]
    for file in (root / "images/train").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no image is left"):
        opened(root, skip_bad=True)


def test_boxes_that_stick_out_a_little_are_clipped_and_counted(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"a": "0 .095 .5 .2 1\n1 .9000001 .5 .2 1"})
    source = opened(root)
    assert source.clipped == 1
    torch.testing.assert_close(
        source[0].boxes, torch.tensor([[0.0, 0.0, 5.85, 20.0], [24.0, 0.0, 30.0, 20.0]])
    )
    torch.testing.assert_close(source.boxes(-1)[0], source[0].boxes, rtol=0, atol=0)


BAD_YAML = {
    "names: [cat\ntrain: x": "data.yaml:2: not valid YAML",
    "- train": "data.yaml: expected keys such as train, val and names: ['train']",
    "train: images/train": "data.yaml: names: expected a list or a mapping of class names: None",
    "train: images/train\nnames: []": "data.yaml: names: expected a list or a mapping of class names: []",
    "train: x\nnames: {0: a, 2: b}": "data.yaml: names: the keys must be 0, 1, 2 and so on: [0, 2]",
    "train: images/train\nnames: [cat, no]": "data.yaml: names: not text, put it in quotes: False",
    "train: images/train\nnc: 3\nnames: [a]": "data.yaml: nc: there are 1 names: 3",
    "path: gone\ntrain: x\nnames: [a]": "data.yaml: path: no such folder: gone",
    "names: [a]": "data.yaml: train: expected a folder, a .txt list or several: None",
    "train: [images/train, 3]\nnames: [a]": (
        "data.yaml: train: expected a folder, a .txt list or several: ['images/train', 3]"
    ),
    "train: gone\nnames: [a]": "data.yaml: train: no such folder or .txt list: gone",
    "train: labels\nnames: [a]": "data.yaml: train: no images (.jpg, .jpeg, .png, .webp, .bmp): labels",
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_what_is_wrong_with_a_data_yaml_is_named(tmp_path: Path, text: str) -> None:
    found = problems_of(folder_of(tmp_path, {"a": GOOD}, yaml=text))
    assert len(found) == 1
    assert found[0].startswith(BAD_YAML[text])


def test_the_problems_of_all_splits_come_in_one_error(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"a": "9 .5 .5 .1 .1"}, "train: images/train\nval: gone\nnames: {0: cat}\n")
    with pytest.raises(DataError) as caught:
        open_data(root)
    assert caught.value.problems == [
        f"{root}/labels/train/a.txt:1: class is not one of 0 to 0: 9",
        f"{root}/data.yaml: val: no such folder or .txt list: {root}/gone",
    ]


@pytest.mark.parametrize(
    "train", ["images/train", "../images/train", "[images/train/x, images/train/y]", "list.txt", "[list.txt]"]
)
def test_images_may_be_named_by_folders_or_lists(tmp_path: Path, train: str) -> None:
    root = folder_of(tmp_path, {}, f"train: {train}\nnames: {{1: dog, 0: cat}}\n")
    for name, text in (("x/a.PNG", GOOD), ("y/b.png", "1 .5 .5 .1 .1")):
        for kind in ("images", "labels"):
            (root / kind / "train" / name).parent.mkdir()
        save(ramp(), root / "images/train" / name)
        (root / "labels/train" / name).with_suffix(".txt").write_text(text)
    (root / "images/train/x/._a.png").write_bytes(b"left by macOS")
    (root / "list.txt").write_text("./images/train/x/a.PNG\n\nimages/train/y/b.png\n")
    for path in (root, root / "data.yaml"):
        source = opened(path)
        assert source.names == ["cat", "dog"]
        images = [source[index] for index in range(len(source))]
        assert [Path(annotated.source).name for annotated in images] == ["a.PNG", "b.png"]
        assert [annotated.labels.tolist() for annotated in images] == [[0], [1]]


def test_a_listed_image_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"a": GOOD}, "train: list.txt\nnames: [cat]\n")
    (root / "list.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    assert problems_of(root) == ["list.txt:2: no such image: images/train/b.png"]


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("set/images/train/a.jpg", "set/labels/train/a.txt"),
        ("images/set/images/a.b.jpg", "images/set/labels/a.b.txt"),
        ("images/x/images.jpg", "labels/x/images.txt"),
        ("my_images/a.png", "my_images/a.txt"),
    ],
)
def test_where_the_label_file_is(image: str, labels: str) -> None:
    assert label_file(image) == labels


def test_labels_may_lie_beside_the_images(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    save(ramp(), tmp_path / "flat/a.jpg")
    (tmp_path / "flat/a.txt").write_text(GOOD)
    (tmp_path / "flat/README.txt").write_text("not a label file")
    (tmp_path / "data.yaml").write_text("train: flat\nnames: [cat]")
    torch.testing.assert_close(opened(tmp_path)[0].boxes, torch.tensor([[12.0, 6.0, 18.0, 14.0]]))


# What turns a stored image upright, for each EXIF orientation.
UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {
    1: lambda image: image,
    2: lambda image: image.flip(2),
    3: lambda image: image.flip(1, 2),
    6: lambda image: image.rot90(-1, (1, 2)),
    8: lambda image: image.rot90(1, (1, 2)),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_turns_the_image_that_the_boxes_refer_to(tmp_path: Path, orientation: int) -> None:
    root = folder_of(tmp_path, {})
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = root / "images/train/a.jpg"
    save(ramp(), stored, exif=exif, quality=95)
    (root / "labels/train/a.txt").write_text(GOOD)
    annotated = opened(root)[0]
    expected = UPRIGHT[orientation](ramp())
    assert annotated.image.shape == expected.shape
    assert (annotated.image.int() - expected.int()).abs().max() < 30
    _, height, width = expected.shape
    torch.testing.assert_close(
        annotated.boxes, torch.tensor([[0.4 * width, 0.3 * height, 0.6 * width, 0.7 * height]])
    )


def test_an_image_that_changed_after_the_check_is_not_handed_out(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"a": GOOD})
    source = opened(root)
    save(ramp(20, 31), root / "images/train/a.png")
    with pytest.raises(DataError, match="it was 30 x 20 pixels"):
        source[0]


def test_the_one_box_task_takes_images_with_one_box_without_decoding(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"a": GOOD, "b": f"{GOOD}\n1 .5 .5 .1 .1", "c": "", "d": "1 .5 .5 .1 .1"})
    source = opened(root)
    for file in (root / "images/train").glob("[abc].png"):
        file.write_bytes(b"")
    subset, left_out = one_box_only(source)
    assert left_out == (1, 1)
    assert subset.indices.tolist() == [0, 3]
    assert subset.names == source.names
    assert list(subset.box_counts) == [1, 1]
    assert subset[1].labels.tolist() == [1]


@pytest.mark.skipif(not RACCOONS.is_dir(), reason="the raccoon photographs are not there")
def test_raccoon_photographs() -> None:
    splits = open_data(RACCOONS).splits
    assert [len(splits[split]) for split in ("train", "val")] == [160, 40]
    assert sum(sum(source.box_counts) for source in splits.values()) == 217
    kept, left_out = one_box_only(splits["train"])
    assert (len(kept), left_out) == (146, (0, 14))
    annotated = kept[0]
    _, height, width = annotated.image.shape
    assert (annotated.boxes >= 0).all()
    assert (annotated.boxes <= torch.tensor([width, height, width, height])).all()


def test_a_split_may_lie_on_several_disks(tmp_path: Path) -> None:
    for disk in ("one", "two"):
        for kind in ("images", "labels"):
            (tmp_path / disk / kind / "train").mkdir(parents=True)
        save(ramp(), tmp_path / disk / "images/train/a.png")
        (tmp_path / disk / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.5\n" * (disk == "two"))
    folders = [str(tmp_path / disk / "images/train") for disk in ("one", "two")]
    (tmp_path / "set").mkdir()
    (tmp_path / "set/data.yaml").write_text(f"train: {json.dumps(folders)}\nnames: [cat]\n")
    train = open_data(tmp_path / "set", ["train"]).files["train"]
    assert [str(file.parent) for file in train.files] == folders
    assert train.box_counts.tolist() == [0, 1]
