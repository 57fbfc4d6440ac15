"""The grid task: any number of boxes of several classes."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import faster_coco_eval
import pytest
import torch
from PIL import Image

from benchmarks.breaking import counted, fingerprint, run_folder
from boxreg import DFLDecoder, LTRBDecoder
from reference_trainer.__main__ import main
from reference_trainer.checkpoint import load_run, saved_scores
from reference_trainer.config import PRESETS, ModelConfig, TrainConfig
from reference_trainer.data.loading import ObjectBatch, Squares, to_object_batch
from reference_trainer.data.opening import task_for
from reference_trainer.data.sample import DataError, Renumbered, decode_image
from reference_trainer.data.toy import ToyImages
from reference_trainer.data.writing import write_yolo_folder
from reference_trainer.grid import Grid
from reference_trainer.grid_model import expressible, typical_sizes
from reference_trainer.learner import Learner
from reference_trainer.model import prepare_images
from reference_trainer.tasks import build_task
from tests.reference_trainer.datasets import voc_object, voc_xml
from tests.reference_trainer.images import ramp, save
from tests.reference_trainer.runs import call_here, refused

SIZE = 64
TINY = ["--data.size", str(SIZE), "--data.workers", "0", "--model.width", "8", "--device", "cpu"]
TINY += ["--epochs", "2", "--validate-every", "1", "--batch-size", "8"]
GENERATED = ["--task", "grid", *TINY, "--data.images", "40"]
DECODERS = ["cell", "yolov3", "yolov5", "ltrb", "dfl"]


def tiny(decoder: str, levels: int = 2) -> TrainConfig:
    model = ModelConfig.model_validate({"decoder": decoder, "levels": levels, "width": 8})
    data = PRESETS["grid"].data.model_copy(update={"size": SIZE})
    return PRESETS["grid"].model_copy(update={"model": model, "data": data})


class TestTheNetwork:
    def test_typical_sizes_by_hand(self) -> None:
        sides = [(2, 4), (4, 2), (3, 3), (20, 40), (40, 20), (30, 30)]
        boxes = torch.tensor([[5.0, 5.0, 5.0 + w, 5.0 + h] for w, h in sides])
        assert typical_sizes(boxes, 2, 3) == (((2, 4), (3, 3), (4, 2)), ((20, 40), (30, 30), (40, 20)))
        assert typical_sizes(boxes, 2, 1) == (((3, 3),), ((30, 30),))
        assert typical_sizes(boxes[:1], 2, 3) == (((2, 4),) * 3,) * 2

    def test_distributions_start_within_their_reach(self) -> None:
        sizes = (((10.0, 500.0),),)
        assert expressible(sizes, [DFLDecoder(8)]) == (((10.0, 120.0),),)
        assert expressible(sizes, [LTRBDecoder(8)]) == sizes

    @pytest.mark.parametrize("decoder", DECODERS)
    @pytest.mark.parametrize("levels", [1, 3])
    def test_untrained_it_says_what_is_typical(self, decoder: str, levels: int) -> None:
        torch.manual_seed(0)
        config, squares = tiny(decoder, levels), Squares(ToyImages(12, SIZE, most=6), SIZE)
        task = Grid(config)
        with torch.no_grad():
            prediction = task.build_model(squares.source.names, squares)(torch.rand(2, 3, SIZE, SIZE))
        anchors = 3 if decoder in ("yolov3", "yolov5") else 1
        first = 0
        for level, sizes in zip(
            prediction.levels, typical_sizes(squares.first_boxes(), levels, anchors), strict=True
        ):
            assert level.stride * level.rows == SIZE
            for size in sizes:
                boxes = prediction.boxes[:, 2:, first : first + level.rows * level.cols]
                first += level.rows * level.cols
                expected = torch.tensor(size)[:, None].expand_as(boxes)
                torch.testing.assert_close(boxes, expected, rtol=0.1, atol=0.5)
        assert first == prediction.boxes.shape[2]

    @pytest.mark.parametrize("decoder", DECODERS)
    def test_every_decoder_learns(self, decoder: str) -> None:
        torch.manual_seed(0)
        squares = Squares(ToyImages(8, SIZE, most=6), SIZE)
        task = build_task(tiny(decoder))
        task = build_task(tiny(decoder).model_copy(update={"model": task.model_config(squares)}))
        model = task.build_model(squares.source.names, squares)
        batch = to_object_batch([squares[index] for index in range(8)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(25):
            objective = task.objective(model(prepare_images(batch.images)), batch)
            optimizer.zero_grad()
            objective.total.backward()
            assert all(parameter.grad is not None for parameter in model.parameters())
            optimizer.step()
            losses.append(objective.total.item())
        assert losses[-1] < 0.7 * losses[0]

    def test_a_batch_without_objects_is_learned(self) -> None:
        task = Grid(tiny("ltrb"))
        model = task.build_model(["a", "b"])
        images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
        empty = ObjectBatch(images, [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
        objective = task.objective(model(prepare_images(images)), empty)
        objective.total.backward()
        assert objective.total.item() > 0
        assert objective.weighted["iou"].item() == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the grid task, on its toy images."""
    out = tmp_path_factory.mktemp("grid")
    assert main(["train", *GENERATED, "--model.decoder", "yolov5", "--out", str(out)]) == 0
    return run_folder(out)


class TestRuns:
    def test_the_result_and_what_the_folder_holds(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        done = call_here(capsys, "train", *GENERATED, "--epochs", "1", "--out", tmp_path)
        assert {"run", "task", "ap50", "ap", "mean_iou", "seconds"} == set(done.result)
        assert "AP50" in done.messages
        assert "3 classes" in done.messages
        scores = done.summary["scores"]
        assert {"precision", "recall", "f1", "confidence", "ap50/ellipse", "ap/triangle"} < set(scores)
        assert {"curves.png", "train_batch.png", "val_predictions.png"} < {
            file.name for file in done.folder.iterdir()
        }
        rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["val_ap50"] == scores["ap50"]

    def test_the_configuration_records_what_was_found(self, run: Path) -> None:
        config, model, names = load_run(run)
        assert (config.task, config.model.assigner, len(names)) == ("grid", "anchor_ratio", 3)
        assert config.model.anchors is not None
        assert [len(level) for level in config.model.anchors] == [3, 3]
        # The decoder has them: an untouched cell of the last level is about an anchor of it.
        assert model.head.levels[1].decoder.anchors == config.model.anchors[1]  # type: ignore[union-attr, index]

    def test_evaluate_gives_the_scores_of_the_run(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scored = call_here(capsys, "evaluate", run, "--device", "cpu").result
        summary = json.loads((run / "summary.json").read_text())["scores"]
        assert {name: scored[name] for name in summary} == pytest.approx(summary, abs=1e-6)
        assert saved_scores(run) == summary

    def test_evaluate_maps_classes_by_their_names(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        images = {"train": ToyImages(4, SIZE, 1, 6), "val": ToyImages(range(4, 24), SIZE, 1, 6)}
        write_yolo_folder(images, tmp_path / "a")
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        file = tmp_path / "b" / "data.yaml"
        file.write_text(
            file.read_text().split("names:")[0] + "names: [triangle, big dog, ellipse, rectangle]\n"
        )
        number = {"0": "3", "1": "2", "2": "0"}
        assert list(images["val"].names) == ["rectangle", "ellipse", "triangle"]
        for labels in (tmp_path / "b" / "labels").rglob("*.txt"):
            lines = [line.split(maxsplit=1) for line in labels.read_text().splitlines()]
            labels.write_text("".join(f"{number[label]} {rest}\n" for label, rest in lines))
        one, other = (
            call_here(capsys, "evaluate", run, "--data", tmp_path / name).result for name in ("a", "b")
        )
        names = [name for name in one if name not in ("task", "seconds")]
        assert {name: one[name] for name in names} == {name: other[name] for name in names}
        # At the confidence that the run was validated with, not at the best for these images.
        assert one["confidence"] == saved_scores(run)["confidence"]

    def test_classes_of_a_run_and_of_data_must_meet(self) -> None:
        toys = ToyImages(5, SIZE, most=6)
        known = Renumbered(toys, ["triangle", "square"])
        assert known.names == ["triangle", "square", "rectangle", "ellipse"]
        for index in range(5):
            there = [toys.names[label] for label in toys[index].labels]
            assert [known.names[label] for label in known[index].labels] == there
        with pytest.raises(DataError, match=r"no class in common.*rectangle, ellipse, triangle.*cat"):
            Renumbered(toys, ["cat"])

    def test_what_was_stopped_goes_on_exactly(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
    ) -> None:
        settings = [*GENERATED, "--model.decoder", "dfl"]
        assert main(["train", *settings, "--out", str(tmp_path / "whole")]) == 0
        assert main(["train", *settings, "--out", str(tmp_path / "twice")]) == 0
        whole = run_folder(tmp_path / "whole")
        assert fingerprint(run_folder(tmp_path / "twice")) == fingerprint(whole)
        with monkeypatch.context() as patch:
            stop = counted(Learner.gradients, 6, lambda: signal.raise_signal(signal.SIGTERM))
            patch.setattr(Learner, "gradients", stop)
            assert main(["train", *settings, "--out", str(tmp_path / "stopped")]) == 143
        stopped = run_folder(tmp_path / "stopped")
        assert fingerprint(stopped) != fingerprint(whole)
        assert main(["resume", str(stopped)]) == 0
        assert fingerprint(stopped) == fingerprint(whole)


class TestPredict:
    def test_it_writes_coco_results(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        inside = tmp_path / "images" / "below"
        inside.mkdir(parents=True)
        save(ToyImages([3], 96, most=6)[0].image[:, 20:], inside / "one.png")
        save(ToyImages([4], 160, most=6)[0].image[:, :, 30:120], inside.parent / "two.jpg")
        save(ramp(40, 200), tmp_path / "three.png")
        arguments = ["predict", run, inside.parent, tmp_path / "three.png", "--out", tmp_path / "out"]
        done = call_here(capsys, *arguments, "--confidence", "0.01")
        results = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert (done.result["images"], done.result["boxes"]) == (3, len(results))
        assert results
        files = [inside / "one.png", inside.parent / "two.jpg", tmp_path / "three.png"]
        names = load_run(run)[2]
        for row in results:
            assert row["file_name"] == str(files[row["image_id"]])
            height, width = decode_image(files[row["image_id"]]).shape[1:]
            assert (row["width"], row["height"]) == (width, height)
            x, y, w, h = row["bbox"]
            assert min(x, y) >= 0
            assert min(w, h) >= 0
            assert x + w <= width + 0.011
            assert y + h <= height + 0.011
            assert 0.01 <= row["score"] <= 1
            assert names[row["category_id"]] == row["category_name"]
        objects = faster_coco_eval.COCO(
            {
                "images": [{"id": number} for number in range(3)],
                "annotations": [],
                "categories": [{"id": number} for number in range(3)],
            }
        )
        assert len(objects.loadRes(results).anns) == len(results)
        drawings = {"000-one.png", "001-two.png", "002-three.png"}
        assert {file.name for file in (tmp_path / "out").iterdir()} == {*drawings, "predictions.json"}
        for drawing in drawings:
            Image.open(tmp_path / "out" / drawing).verify()

    def test_the_confidence_is_that_of_validation(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save(ramp(30, 30), tmp_path / "a.png")
        done = call_here(capsys, "predict", run, tmp_path / "a.png", "--out", tmp_path / "out")
        assert done.result["confidence"] == saved_scores(run)["confidence"]
        rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert all(row["score"] >= round(done.result["confidence"], 4) for row in rows)

    def test_a_folder_without_images_is_refused(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty").mkdir()
        assert "no image in this folder" in refused(capsys, "predict", run, tmp_path / "empty")


def test_without_the_evaluator_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    said = refused(capsys, "train", *GENERATED, "--out", tmp_path / "runs")
    assert said.count("\n") == 1
    assert "pip install 'boxreg[coco]'" in said
    assert not (tmp_path / "runs").exists()


def add_voc(root: Path, name: str, size: tuple[int, int], *objects: str) -> None:
    width, height = size
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    save(ramp(height, width), root / "JPEGImages" / f"{name}.png")
    (root / "Annotations" / f"{name}.xml").write_text(voc_xml(*objects, name=name, size=size))


class TestForeignData:
    @pytest.mark.parametrize("classes", [1, 20])
    def test_a_dataset_as_people_have_them(
        self, classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No splits, sizes of all kinds, names with spaces, images without objects, flags."""
        names = [f"dog & cat {number}" for number in range(classes)]
        for index in range(25):
            size = (60 + 13 * index, 400 - 11 * index)
            objects = [
                voc_object((5 + 9 * k, 7, 40 + 9 * k, 50 + k), name.replace("&", "&amp;"), extra)
                for k, name in enumerate(names[index % classes :][: index % 3])
                for extra in ["<pose>Left</pose><truncated>1</truncated><difficult>0</difficult>"]
            ]
            if index == 7:
                objects.append(voc_object((1, 1, 20, 20), "unclear", "<difficult>1</difficult>"))
            add_voc(tmp_path / "data", f"image {index}", size, *objects)
        done = call_here(capsys, "train", "--data", tmp_path / "data", *TINY, "--out", tmp_path / "runs")
        assert "task grid: of 25 images" in done.messages
        assert 0 <= done.result["ap"] <= 1
        assert done.summary["images"] == {"train": 20, "val": 5}
        _, _, known = load_run(done.folder)
        assert set(names) <= set(known)

    def test_one_box_an_image_is_task_single(self, tmp_path: Path) -> None:
        box = voc_object((3, 4, 30, 30), "a cat")
        for index in range(4):
            add_voc(tmp_path, str(index), (60, 60), box)
        assert task_for(tmp_path) == ("single", "every image has one box")
        add_voc(tmp_path, "4", (60, 60), box, voc_object((9, 9, 50, 50), "dog"))
        add_voc(tmp_path, "5", (60, 60))
        assert task_for(tmp_path) == ("grid", "of 6 images 1 have several boxes, 1 have none")

    def test_data_without_a_box_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for index in range(6):
            add_voc(tmp_path / "data", str(index), (60, 60))
        said = refused(capsys, "train", "--data", tmp_path / "data", *TINY, "--out", tmp_path / "runs")
        assert "no image has a box" in said
