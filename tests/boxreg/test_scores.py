"""The IoU scores: `box_iou` aligned, `pairwise_box_iou` in blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from boxreg.boxes import convert
from boxreg.iou.backends import eager
from tests.cases import (
    BACKENDS,
    DTYPES,
    FORMATS,
    KINDS,
    REGIMES,
    WORKING_DTYPES,
    aligned_loss,
    box_iou,
    named,
    pairs,
    pairwise_box_iou,
    seeded,
    sorted_corners,
    to_planes,
    upright,
    wild_pairs,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_fmt = pytest.mark.parametrize("fmt", FORMATS)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FOUR = st.tuples(FINITE, FINITE, FINITE, FINITE)
ROUNDINGS = 4 * torch.finfo(torch.float32).eps
"""By how much scores in float32 may differ that were computed in other blocks, or by another backend."""
MODEST = st.floats(-100, 100, width=32)


class TestAligned:
    @pytest.mark.parametrize("dtype", named(DTYPES))
    @every_fmt
    def test_iou_lies_between_0_and_1_exactly(self, fmt: str, dtype: torch.dtype) -> None:
        score = box_iou(*wild_pairs(3000, dtype, seed=3), fmt=fmt)
        assert ((score >= 0) & (score <= 1)).all()

    @settings(max_examples=200, deadline=None)
    @given(a=FOUR, b=FOUR)
    def test_iou_of_any_boxes_is_bounded_and_symmetric(
        self, a: tuple[float, ...], b: tuple[float, ...]
    ) -> None:
        first, second = torch.tensor([a, b]), torch.tensor([b, a])
        ahead, back = box_iou(first, second)
        assert 0 <= ahead.item() <= 1
        assert ahead.item() == back.item()

    @settings(max_examples=30, deadline=None)
    @given(box=st.tuples(MODEST, MODEST, MODEST, MODEST), exponent=st.integers(-60, 60))
    @every_kind
    def test_a_box_with_area_is_itself(self, kind: str, box: tuple[float, ...], exponent: int) -> None:
        boxes = sorted_corners(torch.tensor([box])) * 2.0**exponent
        sides = boxes[:, 2:] - boxes[:, :2]
        assume(bool((sides > 0).all()))
        score = box_iou(boxes, boxes, kind=kind)
        torch.testing.assert_close(score, torch.ones(1), rtol=0, atol=4 * torch.finfo(torch.float32).eps)

    @every_kind
    @pytest.mark.parametrize("regime", REGIMES)
    def test_score_is_iou_minus_penalty(self, kind: str, regime: str) -> None:
        pred, target = pairs(regime)
        score = box_iou(pred, target, kind=kind)
        iou_loss = aligned_loss("iou", pred, target)
        penalty = aligned_loss(kind, pred, target) - iou_loss
        expected = box_iou(pred, target) - penalty
        rounding = 8 * torch.finfo(torch.float64).eps
        torch.testing.assert_close(score, expected, rtol=rounding, atol=rounding)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
    @every_kind
    def test_integers_become_float32(self, kind: str, dtype: torch.dtype) -> None:
        a, b = torch.tensor([[0, 0, 2, 2]], dtype=dtype), torch.tensor([[1, 1, 3, 3]], dtype=dtype)
        score = box_iou(a, b, kind=kind)
        assert score.dtype == torch.float32
        assert torch.equal(score, box_iou(a.float(), b.float(), kind=kind))
        torch.testing.assert_close(pairwise_box_iou(a, b, kind=kind), score[:, None], rtol=0, atol=ROUNDINGS)

    def test_integers_by_hand(self) -> None:
        score = box_iou(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[1, 1, 3, 3]]))
        torch.testing.assert_close(score, torch.tensor([1 / 7]))

    def test_no_area_scores_nothing(self) -> None:
        points, _ = pairs("points", torch.float32)
        assert torch.equal(box_iou(points, points), torch.zeros(len(points)))

    @every_kind
    def test_planes(self, kind: str) -> None:
        a, b = pairs("random", torch.float32)
        planes = box_iou(to_planes(a), to_planes(b), kind=kind, dim=1)
        assert torch.equal(planes, to_planes(box_iou(a, b, kind=kind)))

    def test_errors(self) -> None:
        boxes = torch.rand(3, 4)
        with pytest.raises(ValueError, match=r"a and b .*\(3, 4\) and \(1, 4\)"):
            box_iou(boxes, boxes[:1])
        with pytest.raises(ValueError, match=r"kind: got 'cious', .*did you mean 'ciou'"):
            box_iou(boxes, boxes, kind="cious")
        with pytest.raises(TypeError, match=r"b: got a tensor of torch\.bool"):
            box_iou(boxes, boxes > 0)


def expanded(a: Tensor, b: Tensor, kind: str, fmt: str) -> Tensor:
    shape = (*a.shape[:-1], b.shape[-2], 4)
    return box_iou(a.unsqueeze(-2).expand(shape), b.unsqueeze(-3).expand(shape), kind=kind, fmt=fmt)


@pytest.fixture(params=[2**18, 64, 1], ids=["one-block", "blocks", "a-row-a-block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(eager, "PAIRS_PER_BLOCK", request.param)
    return int(request.param)


class Allocations(TorchDispatchMode):
    """The shapes of the tensors that operators return, if they hold more than `limit` numbers."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.numel() > self.limit:
                self.shapes.add(tuple(tensor.shape))
        return result


@pytest.mark.usefixtures("block")
class TestPairwise:
    @every_fmt
    @every_kind
    def test_is_box_iou_of_every_pair(self, kind: str, fmt: str) -> None:
        a, b = wild_pairs(41, torch.float32, seed=5)
        b = torch.cat([b[:12], a[:5]])
        found, expected = pairwise_box_iou(a, b, kind=kind, fmt=fmt), expanded(a, b, kind, fmt)
        torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDINGS)

    @pytest.mark.parametrize("dtype", named(WORKING_DTYPES))
    @every_kind
    def test_gradients_of_both_sides(self, kind: str, dtype: torch.dtype) -> None:
        boxes = [upright(seeded(seed), count).to(dtype) for seed, count in ((1, 33), (2, 9))]
        ours = [side.clone().requires_grad_() for side in boxes]
        theirs = [side.clone().requires_grad_() for side in boxes]
        scores, expected = pairwise_box_iou(*ours, kind=kind), expanded(*theirs, kind, "xyxy")
        torch.testing.assert_close(scores, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)
        upstream = torch.randn(expected.shape, generator=seeded(3), dtype=dtype)
        found = torch.autograd.grad(scores, ours, upstream)
        reference = torch.autograd.grad(expected, theirs, upstream)
        for grad, expected_grad in zip(found, reference, strict=True):
            atol = 64 * torch.finfo(dtype).eps * expected_grad.abs().max().item()
            torch.testing.assert_close(grad, expected_grad, rtol=0, atol=atol)

    @pytest.mark.parametrize("side", [0, 1], ids=["a", "b"])
    def test_gradient_of_one_side(self, side: int) -> None:
        boxes = [upright(seeded(1), 20).float(), upright(seeded(2), 6).float()]
        boxes[side].requires_grad_()
        (found,) = torch.autograd.grad(pairwise_box_iou(*boxes).sum(), boxes[side])
        (expected,) = torch.autograd.grad(expanded(*boxes, "iou", "xyxy").sum(), boxes[side])
        torch.testing.assert_close(found, expected, rtol=0, atol=64 * torch.finfo(torch.float32).eps * 20)

    @pytest.mark.parametrize("leading", [(), (0,), (3,), (2, 3)], ids=str)
    @pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0), (1, 1), (9, 4)])
    def test_leading_axes_and_no_boxes(self, n: int, m: int, leading: tuple[int, ...]) -> None:
        a = torch.rand(*leading, n, 4, generator=seeded(1))
        b = torch.rand(*leading, m, 4, generator=seeded(2))
        scores = pairwise_box_iou(a, b, fmt="cxcywh")
        assert scores.shape == (*leading, n, m)
        torch.testing.assert_close(scores, expanded(a, b, "iou", "cxcywh"), rtol=0, atol=ROUNDINGS)

    @pytest.mark.parametrize("empty", [0, 1], ids=["a", "b"])
    def test_no_boxes_stay_attached(self, empty: int) -> None:
        boxes = [torch.rand(0 if side == empty else 3, 4, requires_grad=True) for side in (0, 1)]
        pairwise_box_iou(*boxes).sum().backward()
        for side in boxes:
            assert side.grad is not None
            assert torch.equal(side.grad, torch.zeros_like(side))

    @pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0)], ids=["a", "b", "both"])
    def test_vmap(self, mapped: tuple[int | None, int | None]) -> None:
        a = torch.rand(3, 20, 4, generator=seeded(1))
        b = torch.rand(3, 7, 4, generator=seeded(2))
        arguments = [side if axis == 0 else side[0] for side, axis in zip((a, b), mapped, strict=True)]
        found = torch.func.vmap(pairwise_box_iou, in_dims=mapped)(*arguments)
        for number in range(3):
            one = [side[number] if axis == 0 else side for side, axis in zip(arguments, mapped, strict=True)]
            torch.testing.assert_close(found[number], pairwise_box_iou(*one), rtol=0, atol=ROUNDINGS)

    @pytest.mark.parametrize("dtype", named(DTYPES))
    def test_dtypes(self, dtype: torch.dtype) -> None:
        a, b = (convert(upright(seeded(seed), 20), "xyxy", "xywh").to(dtype) for seed in (1, 2))
        a.requires_grad_()
        scores = pairwise_box_iou(a, b, fmt="xywh")
        assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        (grad,) = torch.autograd.grad(scores.sum(), a)
        assert grad.dtype == dtype
        assert grad.isfinite().all()

    def test_nan_taints_its_row_alone(self) -> None:
        a, b = upright(seeded(1), 20).float(), upright(seeded(2), 6).float()
        expected = pairwise_box_iou(a, b)
        a[3, 1] = float("nan")
        scores = pairwise_box_iou(a, b)
        assert scores[3].isnan().all()
        others = torch.arange(20) != 3
        torch.testing.assert_close(scores[others], expected[others], rtol=0, atol=ROUNDINGS)


@pytest.mark.parametrize("attached", [False, True], ids=["no-gradient", "gradient"])
@every_kind
def test_eager_temporaries_do_not_grow_with_the_output(
    kind: str, attached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "PAIRS_PER_BLOCK", 64)
    a, b = torch.rand(300, 4, requires_grad=attached), torch.rand(8, 4)
    with Allocations(limit=64 * 4) as seen:
        scores = pairwise_box_iou(a, b, kind=kind, backend="eager")
        if attached:
            scores.sum().backward()
    # One number a pair is the result (and its gradient); four numbers a box the input's gradient.
    assert seen.shapes <= {(300, 8), (300, 4)}


@pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")
@every_kind
def test_numba_keeps_the_output_alone(kind: str) -> None:
    a, b = torch.rand(3000, 4, requires_grad=True), torch.rand(8, 4, requires_grad=True)
    with Allocations(limit=3000 * 2) as seen:
        pairwise_box_iou(a, b, kind=kind, backend="numba").sum().backward()
    shapes = {shape[1:] if len(shape) == 3 and shape[0] == 1 else shape for shape in seen.shapes}
    assert shapes <= {(3000, 8), (3000, 4)}


@pytest.mark.parametrize(
    "shapes", [((3, 4), (4,)), ((4,), (3, 4)), ((2, 3, 4), (3, 4)), ((2, 3, 4), (1, 5, 4))], ids=str
)
def test_leading_axes_must_agree(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="a and b must be") as error:
        pairwise_box_iou(torch.rand(shapes[0]), torch.rand(shapes[1]))
    assert str(shapes[0]) in str(error.value)
    assert str(shapes[1]) in str(error.value)


def test_coordinates_must_be_last() -> None:
    with pytest.raises(ValueError, match=r"b: got shape \(4, 3\), expected 4 coordinates"):
        pairwise_box_iou(torch.rand(3, 4), torch.rand(4, 3))
