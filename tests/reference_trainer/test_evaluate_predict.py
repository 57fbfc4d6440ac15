from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from boxreg import convert
from reference_trainer.checkpoint import load_run
from reference_trainer.data.sample import Letterbox, decode_image, letterbox
from reference_trainer.data.toy import ToyImages
from reference_trainer.model import answer
from reference_trainer.predict import in_original
from tests.reference_trainer.images import ramp, save
from tests.reference_trainer.runs import (
    SIZE,
    Done,
    call,
    call_here,
)


def test_evaluate_gives_the_score_of_the_run(learned: Done) -> None:
    scored = call("evaluate", learned.folder, "--device", "cpu").result
    assert scored["mean_iou"] == pytest.approx(learned.result["mean_iou"], abs=1e-6)
    assert scored["images"] == 60
    for name, value in learned.summary["scores"].items():
        assert scored[name] == pytest.approx(value, abs=1e-6), name


def test_evaluate_on_another_folder(learned: Done, yolo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored = call_here(capsys, "evaluate", learned.folder, "--data", yolo, "--device", "cpu").result
    assert (scored["task"], scored["images"]) == ("toy-folder", 8)
    # Images that the run was trained on.
    assert scored["mean_iou"] > 0.4


@pytest.fixture(scope="module")
def photos(folder: Path) -> list[Path]:
    """Images of several sizes, of which two share a name."""
    (folder / "photos" / "more").mkdir(parents=True)
    toy = ToyImages([250, 251, 252], 160)
    crops = {
        "wide.png": toy[0].image[:, 30:121],
        "tall.jpg": toy[1].image[:, :, 17:90],
        "more/wide.png": ramp(50, 333),
        "square.bmp": toy[2].image,
    }
    for name, image in crops.items():
        save(image, folder / "photos" / name)
    return [folder / "photos" / name for name in crops]


def box_by_hand(run: Path, path: Path) -> list[float]:
    """Letterbox, predict, and go back to the image's own pixels."""
    image = decode_image(path)
    height, width = image.shape[1:]
    square, _, _ = letterbox(image, torch.zeros(0, 4), SIZE)
    _, model, _ = load_run(run)
    with torch.no_grad():
        boxes, _ = answer(model(square[None].float() / 255))
    cx, cy, w, h = boxes[0].tolist()
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    corners = [(cx - w / 2) * side - left, (cy - h / 2) * side - top]
    corners += [(cx + w / 2) * side - left, (cy + h / 2) * side - top]
    return [min(max(x, 0.0), edge) for x, edge in zip(corners, [width, height] * 2, strict=True)]


def test_predict_draws_and_writes_boxes_in_original_pixels(learned: Done, photos: list[Path]) -> None:
    done = call("predict", learned.folder, *photos, "--device", "cpu")
    out = learned.folder / "predictions"
    assert done.result["images"] == 4
    assert done.result["predictions"] == str(out / "predictions.json")
    found = json.loads((out / "predictions.json").read_text())
    assert [one["file_name"] for one in found] == [str(photo) for photo in photos]
    assert [one["image_id"] for one in found] == [0, 1, 2, 3]
    sizes = [(160, 91), (73, 160), (333, 50), (160, 160)]
    for one, photo, (width, height) in zip(found, photos, sizes, strict=True):
        assert (one["width"], one["height"]) == (width, height)
        x, y, w, h = one["bbox"]
        assert min(x, y, w, h) >= 0
        assert x + w <= width + 0.011
        assert y + h <= height + 0.011
        assert 0 < one["score"] <= 1
        # Written with two decimals; the batch layout changes the last bits of the network's numbers.
        assert [x, y, x + w, y + h] == pytest.approx(box_by_hand(learned.folder, photo), abs=0.03)
    drawings = sorted(file for file in out.iterdir() if file.suffix == ".png")
    assert [file.name for file in drawings] == [
        f"{number:03d}-{photo.stem}.png" for number, photo in enumerate(photos)
    ]
    for drawing, (width, height) in zip(drawings, sizes, strict=True):
        with Image.open(drawing) as image:
            assert image.format == "PNG"
            # As wide and as high as the image, give or take the title.
            assert (image.width > image.height) == (width > height) or width == height


def test_predict_writes_to_the_folder_given(
    learned: Done, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "er"
    call_here(capsys, "predict", learned.folder, photos[0], "--out", out, "--device", "cpu")
    assert {file.name for file in out.iterdir()} == {"predictions.json", "000-wide.png"}


@pytest.mark.parametrize(
    ("fitted", "box", "expected"),
    [
        # 160 x 80 into 80: half as large, 20 pixels of grey above and below.
        (Letterbox(0.5, 0.0, 20.0, 160, 80), (0.5, 0.5, 0.25, 0.25), [60, 20, 100, 60]),
        (Letterbox(0.5, 0.0, 20.0, 160, 80), (0.5, 0.5, 1.0, 1.0), [0, 0, 160, 80]),
        (Letterbox(0.5, 0.0, 20.0, 160, 80), (0.0, 0.25, 0.5, 0.5), [0, 0, 40, 40]),
        # 40 x 80 into 160: twice as large, 40 pixels of grey left and right.
        (Letterbox(2.0, 40.0, 0.0, 40, 80), (0.5, 0.25, 0.25, 0.25), [10, 10, 30, 30]),
        (Letterbox(2.0, 40.0, 0.0, 40, 80), (0.9, 0.9, 0.1, 0.1), [40, 68, 40, 76]),
    ],
    ids=["wide", "all of the square", "half outside", "tall", "in the grey"],
)
def test_a_box_is_brought_back_into_the_image(
    fitted: Letterbox, box: tuple[float, ...], expected: list[float]
) -> None:
    size = {160: 80, 40: 160}[fitted.width]
    square = convert(torch.tensor([box]), "cxcywh", "xyxy") * size
    assert in_original(square, fitted)[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_evaluate_needs_no_training_images(
    learned: Done, yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(yolo, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "images" / "train")
    scored = call_here(capsys, "evaluate", learned.folder, "--data", tmp_path / "copy").result
    assert scored["images"] == 8


def test_odd_shapes_and_names_are_drawn(
    small: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("wide.png", "tall.png", "a$x^{$ [v1].png")]
    for file, (height, width) in zip(files, [(3, 900), (900, 3), (20, 30)], strict=True):
        save(ramp(height, width), file)
    done = call_here(capsys, "predict", small.folder, *files, "--out", tmp_path / "out")
    assert done.result["images"] == 3
    drawings = [file for file in (tmp_path / "out").iterdir() if file.suffix == ".png"]
    assert len(drawings) == 3
    for drawing in drawings:
        with Image.open(drawing) as image:
            assert max(image.size) <= 6000
