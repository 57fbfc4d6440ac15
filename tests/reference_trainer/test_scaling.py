from __future__ import annotations

import pytest
import torch

from reference_trainer.config import DataConfig
from reference_trainer.data.loading import Batch, ObjectBatch
from reference_trainer.scaling import micro_batches, resized, size_at


@pytest.mark.parametrize(
    ("size", "scales", "sizes"),
    [
        (416, (384, 416, 448), (384, 416, 448)),
        (416, (384 / 416, 1, 448 / 416), (384, 416, 448)),
        (128, (384 / 416, 1, 448 / 416), (112, 128, 144)),
        (128, (1, 1.01, 128), (128,)),
        (128, (), ()),
    ],
)
def test_scales_are_pixels_or_factors(size: int, scales: tuple[float, ...], sizes: tuple[int, ...]) -> None:
    config = DataConfig(size=size, scales=scales)
    assert config.sizes == sizes
    assert config.model_copy(update={"scales": sizes}).sizes == sizes


def test_each_step_draws_a_size_of_its_own_and_always_the_same() -> None:
    sizes = (112, 128, 144)
    drawn = [size_at(sizes, 7, step) for step in range(3000)]
    assert drawn == [size_at(sizes, 7, step) for step in range(3000)]
    assert all(abs(drawn.count(size) - 1000) < 150 for size in sizes)
    assert drawn != [size_at(sizes, 8, step) for step in range(3000)]
    # The other generators are seeded with less than a step.
    torch.manual_seed(0)
    before = torch.get_rng_state()
    size_at(sizes, 7, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("side", [96, 160])
def test_a_box_still_bounds_its_object_at_another_size(side: int) -> None:
    images = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    images[..., 32:96, 48:112] = 255
    boxes = torch.tensor([[48.0, 32.0, 112.0, 96.0]])
    found = resized(ObjectBatch(images, [boxes], [torch.tensor([0])]), side)
    assert found.images.shape == (1, 3, side, side)
    ys, xs = torch.where(found.images[0, 0] > 127)
    edges = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
    torch.testing.assert_close(found.boxes[0][0], edges, rtol=0, atol=0.51)
    single = resized(Batch(images, torch.tensor([[0.625, 0.5, 0.5, 0.5]])), side)
    assert torch.equal(single.images, found.images)
    assert single.targets.tolist() == [[0.625, 0.5, 0.5, 0.5]], "fractions stay"


@pytest.mark.parametrize(
    ("count", "parts", "sizes"), [(10, 4, [2, 3, 3, 2]), (8, 2, [4, 4]), (3, 5, [1, 1, 1]), (5, 1, [5])]
)
def test_parts_hold_every_image_once_and_in_order(count: int, parts: int, sizes: list[int]) -> None:
    images = torch.arange(count).reshape(-1, 1, 1, 1)
    batch = ObjectBatch(images, list(images), [torch.tensor(number) for number in range(count)])
    found = micro_batches(batch, parts)
    assert [len(part.images) for part in found] == sizes
    assert torch.cat([part.images for part in found]).flatten().tolist() == list(range(count))
    assert [int(label) for part in found for label in part.labels] == list(range(count))
