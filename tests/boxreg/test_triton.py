"""What is Triton's own: its kernels, interpreted on the CPU, against the eager backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from boxreg import GridCellDecoder, UnitSquareDecoder, pairwise_box_iou
from boxreg.boxes import FORMATS, convert
from boxreg.decoders import AxisDecoder
from boxreg.decoders.axis import Settings
from boxreg.iou import aligned_loss
from boxreg.iou.spec import FAMILY

pytest.importorskip("triton")

from benchmarks.gpu.boxes import some_pairs, wild_pairs
from benchmarks.gpu.device import StandIn
from benchmarks.gpu.right_cases import CASES, PARAMETERS, check
from boxreg.iou.backends import triton, triton_pairwise
from boxreg.iou.backends._triton_maths import INTERPRETED

pytestmark = [
    pytest.mark.skipif(not INTERPRETED, reason="Triton compiles here, for a GPU"),
    pytest.mark.every_kernel,
]

NAN = float("nan")
COUNT = 60


def step(kind: str, sides: Sequence[Tensor], backend: str, **options: Any) -> list[Tensor]:
    """The loss and the gradients of both sides, under an upstream gradient that is not 1."""
    leaves = [side.detach().clone().requires_grad_() for side in sides]
    loss = aligned_loss(kind, *leaves, backend=backend, **PARAMETERS.get(kind, {}), **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, torch.full_like(loss, 1.5))]


def assert_same(
    found: Sequence[Tensor], expected: Sequence[Tensor], dim: int = -1, context: str = ""
) -> None:
    """Losses within 1e-6, and gradients within 1e-5 of the largest number of each box's gradient."""
    for place, (part, reference) in enumerate(zip(found, expected, strict=True)):
        least = torch.finfo(torch.float32).smallest_normal if place else 1.0
        size = (reference.abs().amax(dim, keepdim=True) if place else reference.abs()).clamp(min=least)
        unit = torch.where(size.isfinite(), size, 1.0)
        torch.testing.assert_close(
            part / unit,
            reference / unit,
            rtol=0,
            atol=1e-5 if place else 1e-6,
            equal_nan=True,
            msg=lambda why: f"{context}: {why}",
        )


def ordinary(count: int = COUNT, fmt: str = "xyxy") -> list[Tensor]:
    """Boxes that differ and overlap, float32."""
    target = some_pairs(count + 39)[1][39:]
    return [convert(side, "xyxy", fmt).float() for side in (target.flip(0), target)]


@pytest.mark.parametrize("start", range(3))
def test_every_loss_mode_format_layout_and_decoder(start: int) -> None:
    """A sixth of what `benchmarks.gpu` checks, against float64."""
    for case in CASES[2 * start :: 18]:
        check(case, StandIn())


def test_edge_cases_and_any_floats() -> None:
    for kind in FAMILY:
        edges = [side.float() for side in some_pairs(39)]
        assert_same(step(kind, edges, "triton"), step(kind, edges, "eager"), context=kind)
        wild = wild_pairs(400, torch.device("cpu"))
        found, expected = (step(kind, wild, backend) for backend in ("triton", "eager"))
        assert all(part.isfinite().all() for part in found), kind
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)


def test_a_broken_pair_stays_alone() -> None:
    pred, target = ordinary()
    broken = pred.clone()
    broken[3, 2], broken[20, 0], target[40, 1] = NAN, math.inf, -math.inf
    alone = torch.isin(torch.arange(COUNT), torch.tensor([3, 20, 40]))
    for kind in FAMILY:
        expected = step(kind, (pred, target), "triton")
        found = step(kind, (broken, target), "triton")
        assert found[0][alone].isnan().all()
        assert all(
            torch.equal(part[~alone], kept[~alone]) for part, kept in zip(found, expected, strict=True)
        )


class TestWeight:
    def test_same_as_eager_in_every_reduction(self) -> None:
        sides = ordinary()
        weight = torch.linspace(-1.0, 2.0, COUNT).where(torch.arange(COUNT) % 3 > 0, 0.0)
        for reduction in ("none", "mean", "sum"):
            for given in (weight, weight > 0.5, weight.double(), torch.stack([weight, weight], 1)[:, 0]):
                options: dict[str, Any] = {"weight": given, "reduction": reduction, "loss_weight": 2.5}
                found, expected = (step("giou", sides, backend, **options) for backend in ("triton", "eager"))
                assert_same(found, expected, context=reduction)

    def test_exactly_0_where_it_is_0(self) -> None:
        for reduction in ("none", "mean", "sum"):
            for decoder in (None, UnitSquareDecoder()):
                pred, target = ordinary(fmt="cxcywh")
                weight = torch.ones(COUNT)
                weight[1::2] = 0
                pred[1::4], target[3::4] = NAN, math.inf
                options: dict[str, Any] = {"weight": weight, "reduction": reduction, "decoder": decoder}
                loss, *gradients = step("ciou", (pred, target), "triton", fmt="cxcywh", **options)
                assert loss.isfinite().all()
                assert not (loss[1::2].any() if reduction == "none" else loss == 0)
                for gradient in gradients:
                    assert not gradient[1::2].any()
                    assert gradient.isfinite().all()
                    assert gradient[::2].any()

    def test_an_infinite_or_nan_weight_shows(self) -> None:
        for bad in (NAN, math.inf):
            weight = torch.ones(COUNT)
            weight[5] = bad
            loss, *gradients = step("ciou", ordinary(), "triton", weight=weight)
            assert not any(part[5].isfinite().all() for part in (loss, *gradients))
            assert all(part[:5].isfinite().all() for part in (loss, *gradients))

    def test_a_weight_that_needs_a_gradient_gets_one(self) -> None:
        weight = torch.rand(COUNT, requires_grad=True)
        loss = aligned_loss("iou", *ordinary(), weight=weight, reduction="sum", backend="triton")
        torch.testing.assert_close(
            torch.autograd.grad(loss, weight)[0], aligned_loss("iou", *ordinary(), backend="eager")
        )


class TestReduction:
    def test_sums_of_many_programs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triton, "CHUNK", 2)  # so that the sums are added in several rounds
        for reduction in ("mean", "sum"):
            for count in (1, 512, 1300):
                sides = ordinary(count)
                found, again = (step("ciou", sides, "triton", reduction=reduction) for _ in range(2))
                assert all(map(torch.equal, found, again))
                exact = step("ciou", [side.double() for side in sides], "eager", reduction=reduction)
                torch.testing.assert_close(found[0].double(), exact[0], rtol=4e-7, atol=4e-7)
                assert_same(found[1:2], step("ciou", sides, "eager", reduction=reduction)[1:2])
        assert [count.item() for count in triton._ARRIVALS.values()] == [0]

    def test_no_boxes(self) -> None:
        for reduction, shape in (("mean", (0, 4)), ("sum", (2, 0, 4)), ("none", (0, 4))):
            loss, gradient, _ = step("ciou", [torch.zeros(shape)] * 2, "triton", reduction=reduction)
            assert (loss.sum().item(), gradient.shape) == (0, shape)
            assert loss.shape == (shape[:-1] if reduction == "none" else ())


def test_gradients_beyond_float16_are_infinite() -> None:
    """Out of range under the upstream gradient, not before."""
    target = 2.0**-10 * torch.tensor([[0.0, 0.0, 1.0, 2.0]])
    pred = (target + 2.0**-12).half()
    for above, infinite in ((1.0, False), (2.0**10, True), (2.0**-20, False)):
        leaf = pred.clone().requires_grad_()
        loss = aligned_loss("giou", leaf, target.half(), reduction="mean", backend="triton")
        (gradient,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, above))
        assert gradient.isinf().any() == infinite
        assert not gradient.isnan().any()
    # A factor of the loss leaves float16's range before the upstream gradient brings it back.
    options: dict[str, Any] = {"reduction": "sum", "loss_weight": 2.0**20, "backend": "triton"}
    leaf = pred.clone().requires_grad_()
    loss = aligned_loss("giou", leaf, target.half(), **options)
    (gradient,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, 2.0**-20))
    assert gradient.isfinite().all()


class TestPairwise:
    def test_scores_and_gradients(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triton_pairwise, "TILES", 1)  # so that sums are made in two chunks
        for kind, fmt in zip(("ciou", "mpdiou", "nwd"), FORMATS, strict=True):
            a, b = (side.view(2, 20, 4) for side in ordinary(40, fmt))
            results = []
            for backend in ("triton", "eager"):
                leaves = [a[:, :7].clone().requires_grad_(), b.clone().requires_grad_()]
                scores = pairwise_box_iou(*leaves, kind, fmt, backend=backend, **PARAMETERS.get(kind, {}))
                upstream = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
                results.append([scores.detach(), *torch.autograd.grad(scores, leaves, upstream)])
            assert_same(results[0][:1], results[1][:1], context=kind)
            for part, reference in zip(results[0][1:], results[1][1:], strict=True):
                scale = reference.abs().max()
                torch.testing.assert_close(part / scale, reference / scale, rtol=0, atol=1e-5)

    def test_one_side_only_and_no_boxes(self) -> None:
        a, b = (side.requires_grad_() for side in ordinary(20))
        both = torch.autograd.grad(pairwise_box_iou(a, b, "diou", backend="triton").sum(), (a, b))
        for place, (first, second) in enumerate(((a, b.detach()), (a.detach(), b))):
            scores = pairwise_box_iou(first, second, "diou", backend="triton")
            assert torch.equal(torch.autograd.grad(scores.sum(), (a, b)[place])[0], both[place])
        empty = pairwise_box_iou(a, torch.zeros(0, 4), backend="triton")
        assert empty.shape == (20, 0)
        assert not torch.autograd.grad(empty.sum(), a)[0].any()


CELLS_BEYOND, STEEPNESS = 2, 0.5


def _shift(t: Any, most: float) -> Any:
    return most * torch.tanh(STEEPNESS * t)


def _stretched(t: Any, side: float) -> Any:
    from_zero: Any = t * t
    return side * (from_zero + 1.0) ** 0.5 / CELLS_BEYOND


def sigmoid_like(t: Any) -> Any:
    return 1.0 / (1.0 + torch.exp(-t))


@dataclass(frozen=True)
class OwnDecoder(AxisDecoder):
    """A user's scheme: helpers, annotations, constants and powers of its own module."""

    needs_grid: ClassVar[bool] = True
    side: float = 2.0

    @property
    def settings(self) -> Settings:
        return (self.side,), (2 * self.side,)

    @staticmethod
    def decode_axis(
        first: Tensor | None, second: Any, cell: torch.Tensor, cells: float, side: float
    ) -> tuple[Any, Any]:
        """See `AxisDecoder`."""
        return (cell + CELLS_BEYOND * sigmoid_like(first)) / cells * side, _stretched(second, side)

    @staticmethod
    def decode_axis_grad(
        first: Any, second: Any, cell: Sequence[float], cells: float, side: float
    ) -> tuple[Any, Any, Any, Any]:
        """See `AxisDecoder`."""
        share = sigmoid_like(first)
        steep = side * second * (second * second + 1.0) ** -0.5 / CELLS_BEYOND
        return CELLS_BEYOND * share * (1.0 - share) / cells * side, 0.0, 0.0, steep

    @staticmethod
    def encode_axis(centre: Any, size: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Not needed here."""
        return centre, size


def test_a_users_decoder_with_helpers_of_its_own() -> None:
    raw = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    target = OwnDecoder().decode(raw + 0.1, 1)
    for decoder in (OwnDecoder(), OwnDecoder(side=3.0)):
        options: dict[str, Any] = {"dim": 1, "decoder": decoder, "fmt": "cxcywh"}
        found, expected = (step("ciou", (raw, target), backend, **options) for backend in ("triton", "eager"))
        assert_same(found, expected, dim=1)


class TestSeenByTorch:
    def test_fake_tensors(self) -> None:
        with FakeTensorMode():
            pred = torch.rand(5, 4, dtype=torch.float16, requires_grad=True)
            weight = torch.rand(5)
            loss = aligned_loss(
                "ciou", pred, torch.rand(5, 4), reduction="mean", weight=weight, backend="triton"
            )
            loss.backward()
        assert isinstance(pred.grad, FakeTensor)
        assert (loss.dtype, pred.grad.dtype, pred.grad.shape) == (torch.float32, torch.float16, pred.shape)

    def test_compiles_without_a_graph_break(self) -> None:
        raw = torch.rand(2, 4, 3, 5, requires_grad=True)
        weight, target = torch.rand(2, 3, 5), torch.rand(2, 4, 3, 5)
        torch._dynamo.reset()

        def loss(raw: Tensor, weight: Tensor) -> Tensor:
            options: dict[str, Any] = {"fmt": "cxcywh", "dim": 1, "decoder": GridCellDecoder()}
            return aligned_loss(
                "ciou", raw, target, weight=weight, reduction="mean", backend="triton", **options
            )

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(raw, weight)
        assert torch.equal(compiled, loss(raw, weight))
        (found,) = torch.autograd.grad(compiled, raw)
        (expected,) = torch.autograd.grad(loss(raw, weight), raw)
        assert torch.equal(found, expected)

    def test_a_second_derivative_is_eagers(self) -> None:
        second = []
        for backend in ("triton", "eager"):
            pred, target = ordinary()
            weight = torch.linspace(0, 1, COUNT)
            loss = aligned_loss("ciou", pred.requires_grad_(), target, weight=weight, backend=backend)
            (gradient,) = torch.autograd.grad(loss.square().sum(), pred, create_graph=True)
            second.append(torch.autograd.grad(gradient.square().sum(), pred)[0])
        torch.testing.assert_close(*second, rtol=1e-4, atol=1e-4)

    def test_it_says_why_it_cannot(self) -> None:
        boxes = torch.rand(3, 4)
        with pytest.raises(
            ValueError, match="got 'triton', but it computes in float32 and a tensor is float64"
        ):
            aligned_loss("iou", boxes.double(), boxes, backend="triton")
