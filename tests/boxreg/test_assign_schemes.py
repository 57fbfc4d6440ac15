"""Assigners against a slow reference, and what all schemes promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from boxreg import (
    Assignment,
    CIoULoss,
    ResponsibleCellAssigner,
    Targets,
    TaskAlignedAssigner,
    convert,
    pad_targets,
)
from tests.assign_cases import (
    CLASSES,
    LEVELS,
    NAN,
    SCHEMES,
    SIZE,
    assign,
    batch,
    objects,
    one,
    predictions,
    same,
)
from tests.assign_reference import reference
from tests.cases import FORMATS, HALF_DTYPES, WAITING, Recorder, assert_all_finite, eps, named, seeded

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def assert_sound(found: Assignment, targets: Targets) -> None:
    """Every positive has what its object says, every negative what a negative has; nothing else."""
    positive = found.positive
    image = torch.arange(len(positive)).unsqueeze(-1).expand_as(positive)
    at = (image[positive], found.target_index[positive])
    assert targets.mask[at].all()
    assert torch.equal(found.boxes.mT[positive], targets.boxes[at].to(found.boxes.dtype))
    assert torch.equal(found.labels[positive], targets.labels[at])
    assert_all_finite(found.boxes, found.score)
    assert ((found.score >= 0) & (found.score <= 1)).all()
    negative = ~positive
    for values in (found.target_index, found.labels, found.score):
        assert not values[negative].any()
    ordinary = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=found.boxes.dtype)
    assert torch.equal(found.boxes.mT[negative], ordinary.expand(int(negative.sum()), 4))


@every_scheme
class TestEveryScheme:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("counts", [(1, 3, 0), (8, 2, 5), (40, 12, 25)], ids=str)
    def test_reference(self, scheme: str, counts: tuple[int, ...], seed: int) -> None:
        targets = batch(counts, seed)
        boxes, scores = predictions(scheme, len(counts), seed)
        found = SCHEMES[scheme][0](boxes, targets, LEVELS, scores)
        number, score = reference(SCHEMES[scheme][0], boxes, targets, LEVELS, scores)
        assert torch.equal(torch.where(found.positive, found.target_index, -1), number)
        torch.testing.assert_close(found.score, score, rtol=1e-10, atol=1e-12)
        most = SCHEMES[scheme][0].most_positives(max(counts), boxes.shape[2])
        assert 0 < found.positive.sum(1).max() <= most <= boxes.shape[2]
        assert_sound(found, targets)

    @pytest.mark.parametrize("padding", [0, 1, 4])
    def test_no_objects(self, scheme: str, padding: int) -> None:
        found = assign(scheme, pad_targets([torch.zeros(0, 4)] * 2, max_objects=padding))
        assert not found.positive.any()
        assert_sound(found, pad_targets([torch.zeros(0, 4)] * 2, max_objects=1))

    @pytest.mark.parametrize("filler", [NAN, math.inf, -math.inf, 1e38])
    def test_padding_never_leaks(self, scheme: str, filler: float) -> None:
        targets = batch((3, 0, 6))
        dirty = Targets(
            torch.where(targets.mask.unsqueeze(-1), targets.boxes, filler),
            torch.where(targets.mask, targets.labels, -7),
            targets.mask,
        )
        same(assign(scheme, targets), assign(scheme, dirty))

    def test_padding_may_be_anywhere(self, scheme: str) -> None:
        targets = batch((3, 5))
        spread = torch.tensor([6, 2, 4, 0, 3])  # where each object goes, of 8 places
        wide = pad_targets([torch.full((8, 4), NAN)] * 2)
        moved = Targets(
            *(old.to(new.dtype).index_copy(1, spread, new) for old, new in zip(wide, targets, strict=True))
        )
        moved = moved._replace(mask=torch.zeros(2, 8, dtype=torch.bool).index_copy(1, spread, targets.mask))
        found, plain = assign(scheme, moved), assign(scheme, targets)
        same(found, plain, but_indices=True)
        assert torch.equal(found.target_index[plain.positive], spread[plain.target_index[plain.positive]])

    @pytest.mark.parametrize("seed", range(4))
    def test_a_permutation_changes_indices_alone(self, scheme: str, seed: int) -> None:
        targets = batch((8, 8), seed)
        # Alike but for the label, and alike altogether.
        targets.boxes[:, 3:6] = targets.boxes[:, :1]
        targets.labels[:, 3] = targets.labels[:, 4]
        order = torch.randperm(8, generator=seeded(seed))
        found, plain = assign(scheme, Targets(*(part[:, order] for part in targets))), assign(scheme, targets)
        same(found, plain, but_indices=True)
        assert_sound(found, Targets(*(part[:, order] for part in targets)))

    def test_a_batch_is_its_images(self, scheme: str) -> None:
        counts = (4, 0, 9, 1)
        boxes, scores = predictions(scheme, len(counts))
        together = SCHEMES[scheme][0](boxes, batch(counts), LEVELS, scores)
        for number, count in enumerate(counts):
            single = pad_targets(*([part] for part in objects(count, number)))
            at = slice(number, number + 1)
            alone = SCHEMES[scheme][0](boxes[at], single, LEVELS, scores[at])
            same(alone, Assignment(*(part[at] for part in together)))

    @pytest.mark.parametrize(
        "box",
        [
            [5.0, 5, 5, 9],
            [5, 5, 5, 5],
            [9, 5, 5, 9],
            [5, 5, NAN, 9],
            [5, 5, math.inf, 9],
            [5, -math.inf, 9, 9],
        ],
        ids=["flat", "point", "inverted", "nan", "inf", "-inf"],
    )
    def test_what_is_no_box_takes_no_part(self, scheme: str, box: list[float]) -> None:
        boxes, labels = objects(4)
        broken = torch.cat([boxes, torch.tensor([box], dtype=torch.float64)])
        found = assign(scheme, pad_targets([broken], [torch.cat([labels, labels[:1]])]))
        same(found, assign(scheme, pad_targets([boxes], [labels])))

    def test_an_object_outside_gets_none(self, scheme: str) -> None:
        found = assign(scheme, one([[70, 70, 90, 90], [-30, 5, -5, 20], [1e30, 1e30, 2e30, 2e30]]))
        assert not found.positive.any()

    @pytest.mark.parametrize("number", [2, 30])
    def test_identical_objects(self, scheme: str, number: int) -> None:
        targets = one([[10, 12, 30, 28]] * number, [1] * number)
        found = assign(scheme, targets)
        assert_sound(found, targets)
        assert found.positive.sum() >= assign(scheme, one([[10, 12, 30, 28]], [1])).positive.sum()

    @pytest.mark.parametrize("fmt", FORMATS)
    def test_formats(self, scheme: str, fmt: str) -> None:
        assigner, _ = SCHEMES[scheme]
        # Whole numbers convert exactly.
        targets = batch((4, 7))
        targets = targets._replace(boxes=targets.boxes.round())
        boxes, scores = predictions(scheme, 2)
        plain = assigner(boxes.round(), targets, LEVELS, scores)
        own = targets._replace(boxes=convert(targets.boxes, "xyxy", fmt))
        other = type(assigner)(**{**vars(assigner), "fmt": fmt})
        found = other(convert(boxes.round(), "xyxy", fmt, dim=1), own, LEVELS, scores)
        same(found._replace(boxes=plain.boxes), plain)
        assert_sound(found, own)

    @pytest.mark.parametrize("dtype", named((*HALF_DTYPES, torch.float32)))
    def test_dtypes(self, scheme: str, dtype: torch.dtype) -> None:
        targets = batch((4, 7))
        boxes, scores = (part.to(dtype) for part in predictions(scheme, 2))
        found = SCHEMES[scheme][0](boxes, targets._replace(boxes=targets.boxes.to(dtype)), LEVELS, scores)
        assert found.boxes.dtype == found.score.dtype == torch.float32
        wide = targets._replace(boxes=targets.boxes.to(dtype).float())
        same(found, SCHEMES[scheme][0](boxes.float(), wide, LEVELS, scores.float()))
        assert_sound(found, wide)

    @pytest.mark.parametrize("broken", [NAN, math.inf, -math.inf])
    def test_broken_predictions_break_no_others(self, scheme: str, broken: float) -> None:
        targets = batch((5, 5))
        boxes, scores = predictions(scheme, 2)
        plain = SCHEMES[scheme][0](boxes, targets, LEVELS, scores)
        boxes[0, 2, ::7], scores[0, :, ::5] = broken, broken
        found = SCHEMES[scheme][0](boxes, targets, LEVELS, scores)
        assert_sound(found, targets)
        same(Assignment(*(part[1:] for part in found)), Assignment(*(part[1:] for part in plain)))
        boxes[0], scores[0] = broken, broken
        assert_sound(SCHEMES[scheme][0](boxes, targets, LEVELS, scores), targets)

    def test_nothing_is_differentiated(self, scheme: str) -> None:
        boxes, scores = predictions(scheme, 2)
        found = SCHEMES[scheme][0](boxes.requires_grad_(), batch((2, 3)), LEVELS, scores.requires_grad_())
        assert not any(part.requires_grad for part in found)

    def test_arguments_are_left_as_they_are(self, scheme: str) -> None:
        targets, (boxes, scores) = batch((2, 3)), predictions(scheme, 2)
        before = [part.clone() for part in (*targets, boxes, scores)]
        SCHEMES[scheme][0](boxes, targets, LEVELS, scores)
        assert all(map(torch.equal, before, (*targets, boxes, scores)))

    def test_nothing_waits_for_the_device(self, scheme: str) -> None:
        targets, (boxes, scores) = batch((2, 3)), predictions(scheme, 2)
        with Recorder() as seen:
            SCHEMES[scheme][0](boxes, targets, LEVELS, scores)
        assert "gather" in seen.names
        assert seen.names & WAITING == set()

    @pytest.mark.parametrize("counts", [(2, 3), (0, 0)], ids=str)
    def test_fake_tensors(self, scheme: str, counts: tuple[int, ...]) -> None:
        plain = assign(scheme, batch(counts))
        with FakeTensorMode(allow_non_fake_inputs=False) as mode:
            targets = Targets(*(mode.from_tensor(part) for part in batch(counts)))
            boxes, scores = (mode.from_tensor(part) for part in predictions(scheme, len(counts)))
            found = SCHEMES[scheme][0](boxes, targets, LEVELS, scores)
        for fake, real in zip(found, plain, strict=True):
            assert isinstance(fake, FakeTensor)
            assert (fake.shape, fake.dtype) == (real.shape, real.dtype)

    def test_settings_make_the_assigner(self, scheme: str) -> None:
        assigner, _ = SCHEMES[scheme]
        again = type(assigner)(**vars(assigner))
        assert (again, hash(again), repr(again)) == (assigner, hash(assigner), repr(assigner))

    def test_a_loss_takes_the_maps_as_they_are(self, scheme: str) -> None:
        targets = batch((3, 0, 6))
        targets.boxes[~targets.mask] = NAN
        boxes, scores = predictions(scheme, 3)
        boxes.requires_grad_()
        found = SCHEMES[scheme][0](boxes, targets, LEVELS, scores)
        loss = CIoULoss(dim=1)(boxes, found.boxes, weight=found.positive, normalizer=found.positive.sum())
        (grads,) = torch.autograd.grad(loss, boxes)
        assert torch.equal(grads.any(1), found.positive)
        assert_all_finite(loss, grads)

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_any_objects(self, scheme: str, data: st.DataObject) -> None:
        number = st.one_of(
            st.floats(-20, 84, width=32), st.sampled_from([0.0, 8.0, 32.0, SIZE, NAN, math.inf, 3e38])
        )
        box = st.tuples(number, number, number, number)
        images = data.draw(
            st.lists(
                st.lists(st.tuples(box, st.integers(0, CLASSES - 1)), max_size=6), min_size=1, max_size=3
            )
        )
        targets = pad_targets(
            [torch.tensor([box for box, _ in things]).view(-1, 4) for things in images],
            [torch.tensor([label for _, label in things], dtype=torch.int64) for things in images],
        )
        boxes, scores = (
            part.float() for part in predictions(scheme, len(images), data.draw(st.integers(0, 9)))
        )
        found = SCHEMES[scheme][0](boxes, targets, LEVELS, scores)
        assert_sound(found, targets)
        backwards = Targets(*(part.flip(1) for part in targets))
        same(SCHEMES[scheme][0](boxes, backwards, LEVELS, scores), found, but_indices=True)
        each = torch.where(found.positive, found.target_index, -1)
        x1, y1, x2, y2 = targets.boxes.unbind(-1)
        cx, cy = 0.5 * x1 + 0.5 * x2, 0.5 * y1 + 0.5 * y2
        real = targets.mask & targets.boxes.isfinite().all(-1) & (x2 > x1) & (y2 > y1)
        inside = (cx >= 0) & (cx <= SIZE) & (cy >= 0) & (cy <= SIZE)
        for image, row in enumerate(each):
            got = [int((row == n).sum()) for n in range(targets.mask.shape[1])]
            assert all(count == 0 for count, there in zip(got, real[image], strict=True) if not there)
            if isinstance(SCHEMES[scheme][0], ResponsibleCellAssigner):
                expected = (real & inside)[image]
                assert max(got, default=0) <= 1
                # Each has the boxes of a cell of every level; no fewer than these are free for the last one.
                if expected.sum() <= len(LEVELS) * SCHEMES[scheme][1]:
                    assert got == expected.int().tolist()
            if isinstance(assigner := SCHEMES[scheme][0], TaskAlignedAssigner):
                assert max(got, default=0) <= assigner.topk
                if real[image].sum() == 1 and (real & inside)[image].any():
                    assert sum(got) > 0


@pytest.mark.parametrize("scheme", ["responsible", "anchor-ratio", "task-aligned"])
def test_compiles_whole(scheme: str) -> None:
    torch._dynamo.reset()  # all assigners share one function, whose compilations are counted
    assigner, _ = SCHEMES[scheme]
    targets = batch((4, 0, 7))
    boxes, scores = predictions(scheme, 3)
    compiled = torch.compile(assigner.__call__, fullgraph=True, backend="aot_eager")
    found, plain = compiled(boxes, targets, LEVELS, scores), assigner(boxes, targets, LEVELS, scores)
    # The compiler may round a product and a sum once instead of twice; logarithms of t are up to 100.
    torch.testing.assert_close(found.score, plain.score, rtol=1e3 * eps(torch.float64), atol=0)
    same(found._replace(score=plain.score), plain)
