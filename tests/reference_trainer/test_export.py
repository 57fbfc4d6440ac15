"""Exported programs: what they answer, when they are refused, and the boxes that `predict` gets from them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reference_trainer import export
from reference_trainer.checkpoint import CONFIG, WEIGHTS, pack_weights
from reference_trainer.config import PRESETS, TrainConfig, save_config
from reference_trainer.data.toy import ToyImages
from reference_trainer.detection import select
from reference_trainer.export import set_difference
from reference_trainer.exported import About, Found, Raw
from reference_trainer.model_card import preset_of
from reference_trainer.tasks import build_task
from tests.cases import seeded
from tests.reference_trainer.images import ramp, save
from tests.reference_trainer.runs import Done, call_here, refused

SIZE = 64
GRID = {"decoder": "ltrb", "levels": 2, "width": 8}
NAMES = ["cat", "dog", "owl"]


def tiny(task: str, **model: Any) -> TrainConfig:
    start = PRESETS["grid" if task == "grid" else "reference"].model_dump()
    start["data"] |= {"size": SIZE, "images": 40}
    return TrainConfig.model_validate(start | {"model": {"width": 8, **model}})


def network(config: TrainConfig) -> nn.Module:
    """A network that was not trained, its answers as far apart as those of one that was."""
    torch.manual_seed(0)
    model = build_task(config).build_model(NAMES).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("classes.weight", "objectness.weight", "box.weight", "projection.weight")):
                parameter.normal_(0, 1.0 if "classes" in name or "objectness" in name else 0.1)
    return model


def write_run(folder: Path, config: TrainConfig, confidence: float) -> Path:
    folder.mkdir()
    save_config(config, folder / CONFIG)
    weights = pack_weights(network(config).state_dict(), NAMES, {"ap50": 0.5, "confidence": confidence})
    (folder / WEIGHTS).write_bytes(weights)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    save(ToyImages([3], 96, most=6)[0].image[:, 20:], folder / "wide.png")
    save(ToyImages([4], 160, most=6)[0].image[:, :, 30:120], folder / "tall.png")
    save(ramp(40, 200), folder / "ramp.png")
    return folder


def predictions(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    done = call_here(capsys, "predict", *arguments)
    rows: list[dict[str, Any]] = json.loads(Path(done.result["predictions"]).read_text())
    return rows


def assert_same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Up to the decimals that are written."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row.pop("bbox") == pytest.approx(other.pop("bbox"), abs=0.011)
        assert row.pop("score") == pytest.approx(other.pop("score"), abs=1.1e-4)
        assert row == other


def exported(run: Path, output: str, capsys: pytest.CaptureFixture[str]) -> Done:
    for package in export.NEEDED:
        pytest.importorskip(package)
    return call_here(capsys, "export", run, "--output", output)


class TestFiles:
    def test_detections_of_the_grid_task(
        self, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = write_run(tmp_path / "run", tiny("grid", **GRID | {"levels": 1}), 0.6)
        done = exported(run, "detections", capsys)
        differences = done.result["differences"]
        assert set(differences) == {"model.onnx", "model.pt2"}
        assert max(differences.values()) < 1e-5
        assert done.result["compared"] == 8
        out = run / "export"
        written = {"model.onnx", "model.pt2", "model.safetensors", "MODELCARD.md"}
        assert {file.name for file in out.iterdir()} == written
        assert (out / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()
        card = (out / "MODELCARD.md").read_text()
        for said in ("0 cat, 1 dog, 2 owl", "`ltrb`", "0.6000", "| ap50 | 0.5000 |", "TO BE FILLED IN"):
            assert said in card

        ours, theirs = predictions(capsys, run, photos), predictions(capsys, out / "model.onnx", photos)
        assert len(ours) > 10
        assert len({row["category_id"] for row in ours}) > 1
        assert_same(theirs, ours)
        surer = [tmp_path / "surer", "--confidence", "0.8"]
        ours = predictions(capsys, run, photos, "--out", *surer)
        assert ours
        assert_same(predictions(capsys, out / "model.onnx", photos, "--out", *surer), ours)
        said = refused(capsys, "predict", out / "model.onnx", photos, "--confidence", "0.3")
        assert "finds nothing below 0.6" in said
        assert "--output boxes" in said

    def test_boxes_of_the_single_task_and_a_file_that_differs(
        self,
        tmp_path: Path,
        photos: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run = write_run(tmp_path / "run", tiny("single", head="pooled"), 0.6)
        done = exported(run, "boxes", capsys)
        assert max(done.result["differences"].values()) < 1e-5
        file = run / "export" / "model.onnx"
        ours, theirs = predictions(capsys, run, photos), predictions(capsys, file, photos)
        assert len(ours) == 3
        assert_same(theirs, ours)
        assert "gives every image its box" in refused(capsys, "predict", file, photos, "--confidence", "0.3")
        assert "runs on the CPU" in refused(capsys, "predict", file, photos, "--device", "cuda")

        import onnx

        broken = onnx.load(file)
        for weight in broken.graph.initializer:
            numbers = onnx.numpy_helper.to_array(weight)
            if numbers.dtype.kind == "f":
                weight.CopyFrom(onnx.numpy_helper.from_array(numbers * numbers.dtype.type(1.01), weight.name))
        program = torch.export.load(file.with_suffix(".pt2"))
        monkeypatch.setattr(export, "traced", lambda *_: program)
        monkeypatch.setattr(export, "as_onnx", lambda *_: broken.SerializeToString())
        said = refused(capsys, "export", run, "--out", tmp_path / "refused")
        assert "nothing is written" in said
        assert "model.onnx by" in said
        assert "model.pt2 by" not in said
        assert not (tmp_path / "refused").exists()

    def test_a_file_that_is_no_export_is_refused(
        self, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("onnxruntime")
        (tmp_path / "model.onnx").write_bytes(b"nothing")
        assert "cannot read it" in refused(capsys, "predict", tmp_path / "model.onnx", photos)
        said = refused(capsys, "predict", tmp_path / "modle.onnx", photos)
        assert "no such file or folder; did you mean 'model.onnx'?" in said

    @pytest.mark.parametrize("confidence", ["2", "-0.1", "nan"])
    def test_a_confidence_that_is_none_is_refused(
        self, confidence: str, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = write_run(tmp_path / "run", tiny("grid", **GRID), 0.6)
        said = refused(capsys, "predict", run, photos, f"--confidence={confidence}")
        assert f"confidence: got {float(confidence)}, expected 0 to 1" in said

    @pytest.mark.parametrize("missing", export.NEEDED)
    def test_the_extra_is_named_where_it_is_missing(
        self,
        missing: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == missing else found(name)
        )
        said = refused(capsys, "export", tmp_path)
        assert missing in said
        assert "pip install 'boxreg[onnx]'" in said


class Said(nn.Module):
    """Boxes that are known."""

    def __init__(self, boxes: torch.Tensor, scores: torch.Tensor) -> None:
        super().__init__()
        self.answers = boxes, scores

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.answers


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_what_is_found_is_what_is_selected(classes: int) -> None:
    """In several images at once, with boxes that overlap, stick out or lie outside."""
    generator = seeded(classes)
    centres = -20 + 160 * torch.rand(3, 2, 400, generator=generator)
    boxes = torch.cat([centres, 5 + 60 * torch.rand(3, 2, 400, generator=generator)], 1)
    scores = torch.rand(3, classes, 400, generator=generator)
    scores[1] *= 0.1  # nothing is found in the middle one
    threshold = 0.5 if classes < 80 else 0.9
    found = Found(Said(boxes, scores), threshold)(torch.zeros(3, 3, 100, 120))  # type: ignore[arg-type]
    expected = select(boxes, scores, (120, 100), confidence=threshold)
    assert [len(each.scores) for each in expected] == [(found[3] == number).sum() for number in range(3)]
    assert len(expected[0].scores) >= 50
    for number, each in enumerate(expected):
        mine = found[3] == number
        for part, other in zip(found[:3], each, strict=True):
            torch.testing.assert_close(part[mine], other, rtol=0, atol=0)


@pytest.mark.parametrize("decoder", ["cell", "yolov5", "dfl"])
def test_raw_numbers_are_those_that_the_decoder_reads(decoder: str) -> None:
    model: Any = network(tiny("grid", **(GRID | {"decoder": decoder})))
    images = torch.rand(2, 3, SIZE, SIZE, generator=seeded(0))
    with torch.no_grad():
        raw, prediction = Raw(model)(images), model(images)
    decoders = [level.decoder for level in model.head.levels]
    boxes = [
        each.decode(level[:, : each.channels], dim=1).flatten(2)
        for each, level in zip(decoders, raw, strict=True)
    ]
    torch.testing.assert_close(torch.cat(boxes, 2), prediction.boxes, rtol=0, atol=0)
    rest = torch.cat([level[:, decoders[0].channels :].flatten(2) for level in raw], 2)
    first = [] if prediction.objectness is None else [prediction.objectness[:, None]]
    torch.testing.assert_close(rest, torch.cat([*first, prediction.classes], 1), rtol=0, atol=0)


@pytest.mark.parametrize("output", ["boxhead", "sigmoid", "clamp", "linear"])
def test_raw_numbers_of_a_pooled_head_are_those_before_its_boxes(output: str) -> None:
    model: Any = network(tiny("single", head="pooled", output=output))
    images = torch.rand(2, 3, SIZE, SIZE, generator=seeded(0))
    with torch.no_grad():
        if output != "boxhead":  # far enough that clamping tells
            linear = model.head if output == "linear" else model.head[0]
            linear.bias.copy_(torch.tensor([-1.0, 0.5, 2.0, 3.0]))
        (raw,), boxes = Raw(model)(images), model(images).boxes
        read = {
            "sigmoid": torch.sigmoid,
            "clamp": lambda numbers: numbers.clamp(0, 1),
            "linear": lambda numbers: numbers,
        }.get(output) or (lambda numbers: model.head.decoder.decode(numbers))
    torch.testing.assert_close(read(raw), boxes, rtol=0, atol=0)


def test_differences_between_sets_by_hand() -> None:
    def answers(*rows: tuple[float, float, int, int]) -> tuple[torch.Tensor, ...]:
        left, scores, labels, image_indices = zip(*rows, strict=True) if rows else ((), (), (), ())
        boxes = torch.tensor([[x, 0.0, x + 10, 10.0] for x in left]).view(-1, 4)
        return boxes, torch.tensor(scores), torch.tensor(labels), torch.tensor(image_indices)

    def difference(*found: tuple[float, float, int, int]) -> float:
        return set_difference(answers(*found), answers((0, 0.9, 0, 0), (50, 0.5, 1, 1)), 100, 0.5)

    assert difference((50, 0.5, 1, 1), (0, 0.9, 0, 0)) == 0  # in whatever order
    assert difference((50, 0.5, 1, 1), (0.01, 0.9, 0, 0)) == pytest.approx(1e-4, rel=1e-3)
    assert difference((50, 0.5, 1, 1), (0, 0.899, 0, 0)) == pytest.approx(1e-3, rel=1e-3)
    assert difference((50, 0.5, 1, 1), (0, 0.9, 1, 0)) >= 1  # another class
    assert difference((50, 0.5, 1, 1), (0, 0.9, 0, 1)) >= 1  # another image
    assert difference((0, 0.9, 0, 0)) == 0  # at the confidence: it may be missing
    assert difference((50, 0.5, 1, 1)) > 0.1  # far above
    assert difference() == float("inf")
    nan = float("nan")
    assert difference((nan, 0.9, 0, 0), (50, 0.5, 1, 1)) == float("inf")
    assert set_difference(answers(), answers(), 100, 0.5) == 0


def test_the_preset_and_what_was_changed_in_it() -> None:
    assert preset_of(PRESETS["baseline"]) == "`baseline`"
    assert preset_of(tiny("single")) == "`reference`, data.images 40, data.size 64, model.width 8"


def test_programs_that_take_one_size_only() -> None:
    assert export.stride_of(tiny("grid", **GRID)) == 16
    assert export.stride_of(tiny("grid", **(GRID | {"decoder": "cell"}))) == 0
    assert export.stride_of(tiny("single", head="pooled")) == 0
    about = About("grid", "boxes", SIZE, 0, NAMES, 0.5)
    assert About(**json.loads(about.as_json())) == about
