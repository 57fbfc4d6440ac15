from __future__ import annotations

import multiprocessing
import pickle
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from reference_trainer.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from reference_trainer.data import loading
from reference_trainer.data.augment import Augmentation
from reference_trainer.data.loading import (
    Batch,
    EpochBatches,
    Sample,
    Squares,
    TrainingSamples,
    open_sources,
    task_name,
    to_batch,
    to_object_batch,
    train_loader,
    val_loader,
)
from reference_trainer.data.sample import AnnotatedImage, DataError
from reference_trainer.data.toy import ToyImages
from reference_trainer.data.writing import write_yolo_folder
from tests.reference_trainer.images import RACCOONS

SIDE = 32


def squares_of(count: int = 12) -> Squares:
    return Squares(ToyImages(count, SIDE, seed=3), SIDE)


def samples_of(squares: Squares, seed: int = 0) -> TrainingSamples:
    return TrainingSamples(squares, Augmentation(AugmentConfig()), seed)


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def epoch_of(workers: int, epoch: int, seed: int = 0) -> list[Batch]:
    """The batches of an epoch, as a run of `workers` gets them."""
    config = TrainConfig(seed=seed, batch_size=5, data=DataConfig(size=SIDE, workers=workers))
    loader, sampler = train_loader(squares_of(), config)
    sampler.epoch = epoch
    return list(loader)


def test_a_sample_does_not_depend_on_what_came_before() -> None:
    samples = samples_of(squares_of())
    keys = [(epoch, index) for epoch in (1, 2) for index in range(12)]
    forward = {key: samples[key] for key in keys}
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    backward = {key: samples_of(squares_of())[key] for key in reversed(keys)}
    assert all(same(forward[key], backward[key]) for key in keys)


def test_seed_epoch_and_index_each_make_another_sample() -> None:
    squares = squares_of(1)
    first = samples_of(squares)[1, 0]
    assert not same(samples_of(squares)[2, 0], first)
    assert not same(samples_of(squares, seed=1)[1, 0], first)
    # The same image twice, under two indices.
    doubled = Squares(ToyImages([0, 0], SIDE, seed=3), SIDE)
    assert same(doubled[0], doubled[1])
    assert not same(samples_of(doubled)[1, 0], samples_of(doubled)[1, 1])


def test_augmentation_leaves_the_images_and_the_global_generators_alone() -> None:
    squares = squares_of()
    before = [[part.clone() for part in squares[index]] for index in range(12)]

    def after_seeding(*, draw: bool) -> tuple[float, float, float]:
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        if draw:
            for index in range(12):
                samples_of(squares)[1, index]
        return torch.rand(()).item(), float(np.random.random()), random.random()

    assert after_seeding(draw=True) == after_seeding(draw=False)
    assert all(same(squares[index], before[index]) for index in range(12))


@pytest.mark.parametrize("epoch", [1, 2])
def test_workers_change_no_sample_and_no_order(epoch: int) -> None:
    alone, helped = epoch_of(0, epoch), epoch_of(1, epoch)
    assert len(alone) == len(helped) == 3
    for one, other in zip(alone, helped, strict=True):
        assert same(one, other)
    assert not same(alone[0], epoch_of(0, epoch, seed=1)[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_passes_over_the_loader_leave_the_generator_of_dropout_alone(workers: int) -> None:
    config = TrainConfig(
        data=DataConfig(size=SIDE, workers=workers), model=ModelConfig(width=8, dropout=0.5), batch_size=6
    )
    loader, sampler = train_loader(squares_of(), config)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for sampler.epoch in (1, 2):
        assert sum(len(batch.targets) for batch in loader) == 12
    assert torch.equal(torch.get_rng_state(), state)


@given(
    length=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_covers_every_index_once(length: int, batch_size: int, seed: int, epoch: int) -> None:
    sampler = EpochBatches(length, batch_size, seed)
    sampler.epoch = epoch
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert 1 <= len(batches[-1]) <= batch_size
    keys = [key for batch in batches for key in batch]
    assert {each for each, _ in keys} == {epoch}
    assert sorted(index for _, index in keys) == list(range(length))
    again = EpochBatches(length, batch_size, seed)
    assert list(again) != batches or epoch == 0
    again.epoch = epoch
    assert list(again) == batches


def test_an_epoch_goes_on_from_any_batch() -> None:
    sampler = EpochBatches(23, 5, seed=1)
    sampler.epoch = 3
    whole = list(sampler)
    for first in range(len(whole) + 1):
        sampler.first = first
        assert list(sampler) == whole[first:]
    for number, batch in enumerate(whole):
        assert sampler.indices(number) == [index for _, index in batch]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = set()
    for seed in range(5):
        sampler = EpochBatches(40, 40, seed)
        for sampler.epoch in range(5):
            (batch,) = sampler
            orders.add(tuple(index for _, index in batch))
    assert len(orders) == 25
    assert tuple(range(40)) not in orders


def test_targets_are_centres_and_sizes_as_fractions() -> None:
    boxes = torch.tensor([[0.0, 8.0, 16.0, 32.0], [4.0, 4.0, 8.0, 12.0]])
    image, label = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    batch = to_batch([Sample(image, box[None], label) for box in boxes])
    assert batch.images.shape == (2, 3, SIDE, SIDE)
    torch.testing.assert_close(
        batch.targets, torch.tensor([[0.25, 0.625, 0.5, 0.75], [0.1875, 0.25, 0.125, 0.25]])
    )


def test_validation_keeps_order_and_images() -> None:
    squares = squares_of(70)
    images, targets = zip(*val_loader(squares), strict=True)
    assert [len(part) for part in targets] == [64, 6]
    for index in range(70):
        torch.testing.assert_close(torch.cat(images)[index], squares[index].image, rtol=0, atol=0)
        (expected,) = to_batch([squares[index]]).targets
        torch.testing.assert_close(torch.cat(targets)[index], expected, rtol=0, atol=0)


class Counted:
    """A source that counts how often it is asked for an image."""

    def __init__(self, source: ToyImages) -> None:
        self.source, self.names, self.box_counts, self.asked = source, source.names, source.box_counts, 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> AnnotatedImage:
        self.asked += 1
        return self.source[index]


@pytest.mark.parametrize(("spare", "asked"), [(0, [0, 4, 4]), (-1, [0, 4, 8])], ids=["fits", "too large"])
def test_a_set_above_the_budget_is_decoded_as_it_is_used(
    spare: int, asked: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = squares_of(4)
    monkeypatch.setattr(loading, "MEMORY_BUDGET", 4 * 3 * SIDE * SIDE + spare)
    source = Counted(ToyImages(4, SIDE, seed=3))
    squares = Squares(source, SIDE)
    counts = [source.asked]
    for _ in range(2):
        assert all(same(squares[index], kept[index]) for index in range(4))
        counts.append(source.asked)
    assert counts == list(asked)
    keys = [(epoch, index) for epoch in (1, 2) for index in range(4)]
    assert all(same(samples_of(squares)[key], samples_of(kept)[key]) for key in keys)
    assert squares.prior() == kept.prior()


def test_a_worker_reads_a_set_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = epoch_of(0, 1)
    monkeypatch.setattr(loading, "MEMORY_BUDGET", 0)
    for workers in (0, 1):
        for one, other in zip(epoch_of(workers, 1), expected, strict=True):
            assert same(one, other)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_with_any_number_of_boxes_make_batches_of_lists(workers: int) -> None:
    squares = Squares(ToyImages(40, SIDE, seed=3, most=6), SIDE)
    config = TrainConfig(batch_size=16, data=DataConfig(size=SIDE, workers=workers))
    loader, sampler = train_loader(squares, config, collate=to_object_batch)
    sampler.epoch = 1
    batches = list(loader)
    keys = [key for batch in sampler for key in batch]
    samples = TrainingSamples(squares, Augmentation(config.augment), config.seed)
    found = [sample for batch in batches for sample in zip(*batch, strict=True)]
    assert [len(batch.images) for batch in batches] == [16, 16, 8]
    assert all(same(sample, samples[key]) for sample, key in zip(found, keys, strict=True))
    assert all(len(boxes) == len(labels) for _, boxes, labels in found)
    assert {len(boxes) for _, boxes, _ in found} >= {0, 1, 2, 3}
    for index, sample in enumerate(zip(*next(iter(val_loader(squares, to_object_batch))), strict=True)):
        assert same(sample, squares[index])


def test_what_a_worker_has_decoded_is_kept_for_all(tmp_path: Path) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("memory is shared by forked processes")
    squares = squares_of(6)
    process = multiprocessing.get_context("fork").Process(target=squares.__getitem__, args=(4,))
    process.start()
    process.join()
    assert squares.kept is not None
    assert squares.kept.filled.tolist() == [False] * 4 + [True, False]
    assert same(squares[4], squares_of(6)[4])
    # Where it cannot be shared, each process decodes what it needs.
    copied = pickle.loads(pickle.dumps(squares))
    assert copied.kept is None
    assert same(copied[4], squares[4])


def test_the_prior_is_the_median_box_of_the_letterboxed_images() -> None:
    squares = squares_of(9)
    (targets,) = [batch.targets for batch in DataLoader(squares, batch_size=9, collate_fn=to_batch)]
    torch.testing.assert_close(torch.tensor(squares.prior()), targets.median(0).values)


def test_toy_sources_are_the_first_four_fifths_and_the_rest() -> None:
    sources, left_out, _ = open_sources(DataConfig(images=10, size=SIDE), seed=4)
    assert {name: len(source) for name, source in sources.items()} == {"train": 8, "val": 2}
    assert [tuple(left) for left in left_out.values()] == [(0, 0), (0, 0)]
    expected = ToyImages(10, SIDE, seed=4)[9]
    torch.testing.assert_close(sources["val"][1].image, expected.image, rtol=0, atol=0)


def test_images_without_one_box_are_left_out_and_counted(tmp_path: Path) -> None:
    write_yolo_folder({"train": ToyImages(4, SIDE), "val": ToyImages(1, SIDE)}, tmp_path / "d")
    labels = tmp_path / "d" / "labels" / "train"
    (labels / "000000.txt").write_text("")
    (labels / "000001.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.3 0.2\n")
    sources, left_out, _ = open_sources(DataConfig(path=tmp_path / "d", size=SIDE), seed=0)
    assert len(sources["train"]) == 2
    assert (left_out["train"].no_box, left_out["train"].several_boxes) == (1, 1)
    assert tuple(left_out["val"]) == (0, 0)


def test_a_split_without_any_one_box_image_is_an_error(tmp_path: Path) -> None:
    write_yolo_folder({"train": ToyImages(1, SIDE), "val": ToyImages(1, SIDE)}, tmp_path / "d")
    (tmp_path / "d" / "labels" / "val" / "000000.txt").write_text("")
    with pytest.raises(DataError, match="val"):
        open_sources(DataConfig(path=tmp_path / "d", size=SIDE), seed=0)


@pytest.mark.parametrize(
    ("path", "name"),
    [(None, "toy"), ("a/birds", "birds"), ("a/birds/data.yaml", "birds"), ("a/birds/", "birds")],
)
def test_the_task_is_named_after_its_folder(path: str | None, name: str) -> None:
    assert task_name(None if path is None else Path(path)) == name


@pytest.mark.skipif(not RACCOONS.is_dir(), reason="the raccoon photographs are not there")
def test_the_raccoons_are_146_and_38_one_box_images() -> None:
    sources, left_out, _ = open_sources(DataConfig(path=RACCOONS), seed=0)
    assert {name: len(source) for name, source in sources.items()} == {"train": 146, "val": 38}
    assert {name: tuple(left) for name, left in left_out.items()} == {"train": (0, 14), "val": (0, 2)}
    squares = Squares(sources["val"], 64)
    for image, boxes, _ in (squares[index] for index in range(len(squares))):
        assert image.shape == (3, 64, 64)
        assert len(boxes) == 1
        assert boxes.min() >= 0
        assert boxes.max() <= 64
        assert (boxes[:, 2:] - boxes[:, :2]).min() > 1
