"""Backends of the scores: aligned and pairwise, values and gradients as the eager maths has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from boxreg.boxes import convert
from boxreg.iou import autograd
from boxreg.iou.spec import SCORE
from tests.cases import (
    BACKENDS,
    DTYPES,
    FORMATS,
    KINDS,
    REGIMES,
    box_iou,
    eps,
    named,
    pairs,
    pairwise_box_iou,
    seeded,
    upright,
    wild_pairs,
)

FAST = [name for name in BACKENDS if name != "eager"]
SCORES: dict[str, Callable[..., Tensor]] = {"aligned": box_iou, "pairwise": pairwise_box_iou}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_backend = pytest.mark.parametrize("backend", FAST)
both_scores = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN: what is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def few(regime: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    a, b = pairs(regime, dtype)
    return a[:9], b[:9]


def value_and_gradients(
    score: Callable[..., Tensor], a: Tensor, b: Tensor, **options: object
) -> tuple[Tensor, ...]:
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    value = score(a, b, **options)
    upstream = torch.randn(value.shape, generator=seeded(9), dtype=value.dtype)
    return value.detach(), *torch.autograd.grad(value, (a, b), upstream)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Values to a few roundings; gradients too, of the largest (a sum rounds by its largest term)."""
    assert [part.dtype for part in found] == [part.dtype for part in expected]
    step = eps(working(dtype))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=8 * step)
    for part, reference in zip(found[1:], expected[1:], strict=True):
        size = max(reference.abs().max().item(), torch.finfo(reference.dtype).tiny)
        tolerance = 64 * step + 2 * eps(dtype)
        torch.testing.assert_close(part.double() / size, reference.double() / size, rtol=0, atol=tolerance)


@every_backend
@every_kind
class TestSameAsEager:
    @both_scores
    @pytest.mark.parametrize("regime", REGIMES)
    def test_value_and_both_gradients(
        self, kind: str, backend: str, regime: str, score: Callable[..., Tensor]
    ) -> None:
        a, b = few(regime)
        found = value_and_gradients(score, a, b, kind=kind, backend=backend)
        assert_same(found, value_and_gradients(score, a, b, kind=kind, backend="eager"), torch.float32)

    @both_scores
    @pytest.mark.parametrize("dtype", named(DTYPES))
    def test_dtypes(self, kind: str, backend: str, dtype: torch.dtype, score: Callable[..., Tensor]) -> None:
        a, b = few("random", dtype)
        found = value_and_gradients(score, a, b, kind=kind, backend=backend)
        assert_same(found, value_and_gradients(score, a, b, kind=kind, backend="eager"), dtype)

    @pytest.mark.parametrize("fmt", FORMATS)
    def test_formats_batches_and_strides(self, kind: str, backend: str, fmt: str) -> None:
        a, b = (convert(upright(seeded(seed), 18), "xyxy", fmt).float() for seed in (1, 2))
        # Images of three boxes and of two, every other one of a wider tensor.
        a, b = a.view(2, 3, 3, 4)[:, ::2], torch.stack([b, b], -1).flatten(-2)[:12, ::2].view(2, 2, 3, 4)
        found = value_and_gradients(pairwise_box_iou, a, b, kind=kind, fmt=fmt, backend=backend)
        expected = value_and_gradients(pairwise_box_iou, a, b, kind=kind, fmt=fmt, backend="eager")
        assert found[0].shape == (2, 2, 3, 3)
        assert_same(found, expected, torch.float32)

    def test_any_floats(self, kind: str, backend: str) -> None:
        a, b = wild_pairs(60, torch.float32, seed=11)
        found = value_and_gradients(pairwise_box_iou, a, b, kind=kind, backend=backend)
        expected = pairwise_box_iou(a, b, kind=kind, backend="eager")
        torch.testing.assert_close(found[0], expected, rtol=0, atol=8 * eps(torch.float32))
        for grads in found[1:]:
            assert grads.isfinite().all()

    def test_broken_boxes_taint_their_own_pairs(self, kind: str, backend: str) -> None:
        a, b = few("random")
        expected = pairwise_box_iou(a, b, kind=kind, backend=backend)
        a[2, 1], b[4, 0] = float("nan"), float("nan")
        scores = pairwise_box_iou(a, b, kind=kind, backend=backend)
        tainted = torch.zeros_like(scores, dtype=torch.bool)
        tainted[2], tainted[:, 4] = True, True
        assert torch.equal(scores.isnan(), tainted)
        torch.testing.assert_close(scores[~tainted], expected[~tainted], rtol=0, atol=8 * eps(torch.float32))

    def test_one_side_alone(self, kind: str, backend: str) -> None:
        a, b = few("random")
        _, *both = value_and_gradients(pairwise_box_iou, a, b, kind=kind, backend=backend)
        for number, expected in enumerate(both):
            sides = [a.clone(), b.clone()]
            sides[number].requires_grad_()
            scores = pairwise_box_iou(*sides, kind=kind, backend=backend)
            upstream = torch.randn(scores.shape, generator=seeded(9))
            (found,) = torch.autograd.grad(scores, sides[number], upstream)
            assert torch.equal(found, expected)

    @both_scores
    def test_fake_tensors(self, kind: str, backend: str, score: Callable[..., Tensor]) -> None:
        with FakeTensorMode():
            a = torch.rand(5, 4, dtype=torch.float16, requires_grad=True)
            scores = score(a, torch.rand(5, 4), kind=kind, backend=backend)
            scores.sum().backward()
        assert isinstance(a.grad, FakeTensor)
        assert scores.dtype == torch.float32
        assert scores.shape == ((5, 5) if score is pairwise_box_iou else (5,))
        assert (a.grad.dtype, a.grad.shape) == (torch.float16, a.shape)


@every_backend
class TestLimits:
    @both_scores
    @pytest.mark.parametrize("kind", ["ciou", "mpdiou"])  # without parameters, and with
    def test_compiles_without_a_graph_break(
        self, kind: str, backend: str, score: Callable[..., Tensor]
    ) -> None:
        a, b = few("random")
        a.requires_grad_()
        torch._dynamo.reset()

        def step(a: Tensor) -> Tensor:
            return score(a, b, kind=kind, backend=backend).square().sum()

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(a)
        torch.testing.assert_close(compiled, step(a))
        (found,), (expected,) = torch.autograd.grad(compiled, a), torch.autograd.grad(step(a), a)
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0)])
    def test_no_boxes(self, backend: str, n: int, m: int) -> None:
        a, b = torch.rand(2, n, 4), torch.rand(2, m, 4)
        scores, *grads = value_and_gradients(pairwise_box_iou, a, b, backend=backend)
        assert scores.shape == (2, n, m)
        assert torch.equal(grads[0], torch.zeros_like(a))
        assert torch.equal(grads[1], torch.zeros_like(b))

    @both_scores
    def test_torch_func_is_refused(self, backend: str, score: Callable[..., Tensor]) -> None:
        a, b = (side.view(3, 3, 4) for side in few("random"))
        with pytest.raises(ValueError, match=f"got '{backend}', but a torch.func transform is active"):
            torch.func.vmap(lambda a, b: score(a, b, backend=backend))(a, b)

    def test_a_second_derivative_of_pairs_is_eagers(self, backend: str) -> None:
        found = second_derivative(backend)
        torch.testing.assert_close(found, second_derivative("eager"), rtol=1e-4, atol=1e-4)

    def test_operators_with_fakes_that_tell_the_truth(self, backend: str) -> None:
        a, b = (side.view(1, 9, 4) for side in few("random"))
        tests = ["test_schema", "test_faketensor"]
        torch.library.opcheck(
            torch.ops.boxreg.pairwise.default,
            (a, b, backend, "ciou", SCORE, False, "xyxy", "xyxy", "none", "", False, False, [], [], [], 1.0),
            test_utils=tests,
        )
        for needed in ((True, True), (True, False), (False, True)):
            spec = ("shapeiou", SCORE, False, "cxcywh", "cxcywh", "none", "", *needed, [1.0], [], [], 1.0)
            torch.library.opcheck(
                torch.ops.boxreg.pairwise_backward.default,
                (a, b, torch.rand(1, 9, 9), backend, *spec),
                test_utils=tests,
            )


def second_derivative(backend: str) -> Tensor:
    a, b = few("random")
    a.requires_grad_()
    scores = pairwise_box_iou(a, b, kind="giou", backend=backend)
    (grads,) = torch.autograd.grad(scores.square().sum(), a, create_graph=True)
    (found,) = torch.autograd.grad(grads.square().sum(), a)
    return found


def test_a_backend_that_cannot_run_says_why() -> None:
    boxes = torch.rand(3, 4)
    for score in SCORES.values():
        with pytest.raises(ValueError, match="got 'triton', but "):
            score(boxes.double(), boxes, backend="triton")
        with pytest.raises(ValueError, match=r"backend: got 'tritn', .*did you mean 'triton'"):
            score(boxes, boxes, backend="tritn")


class TestNumba:
    @pytest.mark.parametrize("shape", [(1, 40, 7), (5, 3, 20), (9, 2, 2), (2, 1, 500), (3, 33, 256)], ids=str)
    @pytest.mark.parametrize("tile", [8, 96, 256])
    def test_where_tiles_end_changes_nothing(self, tile: int, shape: tuple[int, int, int]) -> None:
        pytest.importorskip("numba")
        images, n, m = shape
        a, b = (
            upright(seeded(seed), images * count).view(images, count, 4) for seed, count in ((1, n), (2, m))
        )
        expected = value_and_gradients(pairwise_box_iou, a, b, kind="ciou", backend="numba")
        rows = max(tile // m, 1)
        for start in range(0, n, rows):
            part = pairwise_box_iou(a[:, start : start + rows], b, kind="ciou", backend="numba")
            assert torch.equal(part, expected[0][:, start : start + rows])
        eager = value_and_gradients(pairwise_box_iou, a, b, kind="ciou", backend="eager")
        assert_same(expected, eager, torch.float64)

    def test_inverted_boxes_take_the_same_code(self) -> None:
        a, b = (upright(seeded(seed), 300).float() for seed in (1, 2))
        b[7] = b[7][[2, 3, 0, 1]]
        scores = pairwise_box_iou(a, b, backend="numba")
        torch.testing.assert_close(scores, pairwise_box_iou(a, b, backend="eager"), rtol=0, atol=1e-6)
        assert (scores[:, 7] == 0).all()

    def test_auto_takes_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("numba")
        taken = []
        own = autograd.BACKENDS["numba"]
        monkeypatch.setitem(autograd.BACKENDS, "numba", lambda: (taken.append("numba"), own())[1])
        a, b = few("random")
        pairwise_box_iou(a, b)
        assert taken == ["numba"]
        torch.func.grad(lambda a: pairwise_box_iou(a, b).sum())(a)
        assert taken == ["numba"]
