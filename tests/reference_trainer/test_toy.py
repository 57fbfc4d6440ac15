from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from boxreg import pairwise_box_iou
from reference_trainer.data.shapes import SHAPES
from reference_trainer.data.toy import (
    CONTRAST,
    LEAST_SHOWN,
    MOST_OVERLAP,
    NOISE,
    Scene,
    ToyImages,
    ToyObject,
    draw_scene,
    toy_splits,
)

ROOT = Path(__file__).parents[2]


def digest(images: ToyImages, order: list[int]) -> dict[int, str]:
    found = {}
    for index in order:
        annotated = images[index]
        content = (annotated.image.numpy().tobytes(), annotated.boxes.tolist(), annotated.labels.tolist())
        found[index] = hashlib.sha256(repr(content).encode()).hexdigest()
    return found


def test_an_image_depends_on_nothing_but_its_seed_and_index() -> None:
    expected = digest(ToyImages(20, side=64, seed=3), list(range(20)))
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert digest(ToyImages(5000, side=64, seed=3), list(reversed(range(20)))) == expected
    assert digest(ToyImages([7], side=64, seed=3), [0])[0] == expected[7]
    several = ToyImages(20, side=64, seed=3, most=6)
    assert digest(several, [7])[7] == digest(ToyImages([7], side=64, seed=3, most=6), [0])[0]
    assert not set(digest(several, list(range(20))).values()) & set(expected.values())


def test_drawing_leaves_the_global_generators_alone() -> None:
    def after_seeding(*, draw: bool) -> tuple[float, float, float]:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        if draw:
            ToyImages(3)[0]
        return torch.rand(()).item(), float(np.random.random()), random.random()

    assert after_seeding(draw=True) == after_seeding(draw=False)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_another_process_draws_the_same(threads: str) -> None:
    program = """if True:
        import hashlib
        from reference_trainer.data.toy import ToyImages
        images = ToyImages(8, 96, 5)
        content = b"".join(images[index].image.numpy().tobytes() for index in range(8))
        print(hashlib.sha256(content).hexdigest())
    """
    images = ToyImages(8, 96, 5)
    content = b"".join(images[index].image.numpy().tobytes() for index in range(8))
    environment = {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(content).hexdigest()


def test_every_seed_and_index_gives_another_image() -> None:
    found = [digest(ToyImages(20, side=32, seed=seed), list(range(20))) for seed in range(5)]
    assert len({value for one in found for value in one.values()}) == 100


def changed_by(scene: Scene, number: int) -> np.ndarray:
    """The pixels (side, side) that would be others without one of the objects."""
    without = scene.render(without=[number], with_noise=False)
    return (scene.render(with_noise=False) != without).any(axis=0)


def place(each: ToyObject) -> tuple[slice, slice]:
    height, width = each.coverage.shape
    return slice(each.top, each.top + height), slice(each.left, each.left + width)


@pytest.mark.parametrize("side", [32, 37, 128])
@pytest.mark.parametrize("most", [1, 6])
def test_the_box_is_the_tight_box_of_the_pixels_that_the_object_changes(side: int, most: int) -> None:
    for index in range(150 // most):
        scene = draw_scene(1, index, side, most)
        for number, each in enumerate(scene.objects):
            rows, columns = np.nonzero(changed_by(scene, number))
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert tight == each.box, f"image {index}, object {number}: changed {tight}, box {each.box}"


@pytest.mark.parametrize("most", [1, 6])
def test_exactly_the_pixels_change_in_which_an_object_is_seen(most: int) -> None:
    for index in range(50):
        scene = draw_scene(2, index, 64, most)
        for number, each in enumerate(scene.objects):
            seen = np.zeros((64, 64), dtype=bool)
            seen[place(each)] = each.shown > 0
            np.testing.assert_array_equal(changed_by(scene, number), seen)


def test_with_several_objects_all_numbers_come_as_often_and_some_images_have_none() -> None:
    images = ToyImages(4000, side=32, seed=1, most=6)
    share = np.bincount(images.box_counts, minlength=7) / 4000
    # Four standard deviations of a share of 4,000.
    assert abs(share[0] - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)
    assert np.abs(share[1:] - 0.95 / 6).max() < 4 * np.sqrt(0.16 * 0.84 / 4000)
    for index in range(60):
        assert len(images[index].boxes) == len(images[index].labels) == images.box_counts[index]
    empty = images[int(np.flatnonzero(images.box_counts == 0)[0])]
    assert (empty.boxes.shape, empty.labels.shape) == ((0, 4), (0,))


def test_several_objects_overlap_a_little_and_at_least_half_of_each_is_seen() -> None:
    overlaps, shown, sides, labels = [], [], [], []
    for index in range(400):
        scene = draw_scene(5, index, 64, 6)
        boxes = torch.tensor([each.box for each in scene.objects], dtype=torch.float64).view(-1, 4)
        overlaps += pairwise_box_iou(boxes, boxes).triu(1).flatten().tolist()
        shown += [float(each.shown.sum() / each.coverage.sum()) for each in scene.objects]
        sides += (boxes[:, 2:] - boxes[:, :2]).flatten().tolist()
        labels += [each.label for each in scene.objects]
    assert 0.25 < max(overlaps) <= MOST_OVERLAP + 1e-12
    assert LEAST_SHOWN <= min(shown) < 0.6
    assert max(shown) == 1
    assert np.ceil(6.4) == min(sides)
    assert max(sides) == 38
    assert np.bincount(labels).min() > 0.3 * len(labels)


def test_objects_of_an_image_stand_out_from_what_they_are_drawn_over() -> None:
    for index in range(100):
        scene = draw_scene(6, index, 64, 6)
        for number, (each, colour) in enumerate(zip(scene.objects, scene.colours, strict=True)):
            later = range(number, len(scene.objects))
            below = scene.render(without=later, with_noise=False) / 255.0
            top, left = max(each.top - 1, 0), max(each.left - 1, 0)
            rows, columns = place(each)
            around = below[:, top : rows.stop + 1, left : columns.stop + 1]
            difference = np.abs(around - colour[:, None, None]).max(axis=0)
            assert difference.min() >= CONTRAST - 0.5 / 255


@pytest.fixture(scope="module")
def boxes() -> torch.Tensor:
    return torch.tensor([draw_scene(4, index, 50).objects[0].box for index in range(1500)])


def test_boxes_lie_wholly_inside(boxes: torch.Tensor) -> None:
    assert boxes.min() == 0
    assert boxes.max() == 50


def test_sizes_fill_10_to_60_percent_independently(boxes: torch.Tensor) -> None:
    sizes = (boxes[:, 2:] - boxes[:, :2]).double() / 50
    torch.testing.assert_close(sizes.amin(0), torch.tensor([0.10, 0.10], dtype=torch.float64))
    torch.testing.assert_close(sizes.amax(0), torch.tensor([0.60, 0.60], dtype=torch.float64))
    # A uniform distribution from 0.1 to 0.6 has mean 0.35 and standard deviation 0.144.
    torch.testing.assert_close(sizes.mean(0), torch.full((2,), 0.35, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(sizes.std(0), torch.full((2,), 0.144, dtype=torch.float64), atol=0.01, rtol=0)
    # The standard error of a correlation of nothing over 1,500 pairs is 0.026.
    assert abs(torch.corrcoef(sizes.T)[0, 1].item()) < 0.1


def test_the_object_stands_out_from_every_pixel_under_and_around_it() -> None:
    for index in range(100):
        scene = draw_scene(6, index, 64)
        x1, y1, x2, y2 = scene.objects[0].box
        around = scene.background[:, max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1]
        difference = np.abs(around - scene.colours[0][:, None, None]).max(axis=0)
        assert difference.min() >= CONTRAST


def test_the_noise_is_gaussian_and_on_everything() -> None:
    scene = draw_scene(0, 0, 128)
    np.testing.assert_allclose(scene.noise.std(axis=(1, 2)), NOISE, rtol=0.02)
    np.testing.assert_allclose(scene.noise.mean(axis=(1, 2)), 0.0, atol=0.003)
    changed = scene.render() != scene.render(with_noise=False)
    assert changed.mean() > 0.8


def test_shapes_are_what_their_labels_say() -> None:
    filled: dict[str, list[float]] = {name: [] for name in SHAPES}
    for index in range(200):
        (each,) = draw_scene(8, index, 128).objects
        filled[SHAPES[each.label]].append(float(each.coverage.mean()))
    assert min(map(len, filled.values())) > 40
    # Cropping to whole pixels moves the filled part of a box, 1 and pi / 4 for ideal shapes, by little.
    assert min(filled["rectangle"]) > 0.9
    assert max(abs(part - np.pi / 4) for part in filled["ellipse"]) < 0.1
    assert 0.2 < min(filled["triangle"]) < max(filled["triangle"]) < 0.6


def test_an_image_is_in_the_interface_s_form() -> None:
    annotated = ToyImages([41], side=48, seed=2)[0]
    assert (annotated.image.shape, annotated.image.dtype) == ((3, 48, 48), torch.uint8)
    assert (annotated.boxes.shape, annotated.boxes.dtype) == ((1, 4), torch.float32)
    assert (annotated.labels.shape, annotated.labels.dtype) == ((1,), torch.int64)
    assert annotated.source == "toy image 41 of seed 2"


def test_the_splits_share_no_image_and_count_to_the_whole() -> None:
    splits = toy_splits()
    assert {name: len(images) for name, images in splits.items()} == {"train": 960, "val": 240}
    assert not set(splits["train"].indices) & set(splits["val"].indices)
    assert sum(splits["val"].box_counts) == 240
    assert [toy_splits(10, side=32)["val"][index].source[:11] for index in (0, -1)] == [
        "toy image 8",
        "toy image 9",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": 1, "side": 31}, "side: got 31"),
        ({"indices": 1, "seed": -1}, "seed: got -1"),
        ({"indices": [3, -2]}, "indices: got -2"),
        ({"indices": 1, "most": 0}, "most: got 0"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToyImages(**arguments)
