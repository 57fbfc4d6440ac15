"""`BoxLoss`: its terms by hand, and that every lambda does what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from boxreg import BoxLoss
from boxreg.boxes import convert
from boxreg.losses.box import DISTANCES, FARTHEST, SIZES
from tests.cases import (
    DTYPES,
    FORMATS,
    HALF_DTYPES,
    KINDS,
    PARAMETERS,
    WAITING,
    Recorder,
    aligned_loss,
    assert_all_finite,
    named,
    pairs,
    to_planes,
    wild_pairs,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_fmt = pytest.mark.parametrize("fmt", FORMATS)
every_dtype = pytest.mark.parametrize("dtype", named(DTYPES))
half_dtypes = pytest.mark.parametrize("dtype", named(HALF_DTYPES))
every_distance = pytest.mark.parametrize("distance", DISTANCES)
every_size = pytest.mark.parametrize("size", SIZES)


class TestBoxLoss:
    pred = torch.tensor([[0.5, 0.5, 0.25, 0.25], [0.25, 0.5, 0.5, 1.0]], dtype=torch.float64)
    target = torch.tensor([[0.5, 0.25, 0.25, 1.0], [0.75, 0.5, 0.5, 0.25]], dtype=torch.float64)

    @pytest.mark.parametrize(
        ("distance", "coord", "wh"),
        [
            ("mse", [1 / 16, 1 / 4], [9 / 16, 9 / 16]),
            ("l1", [1 / 4, 1 / 2], [3 / 4, 3 / 4]),
            # Beyond beta = 1/9 it is |d| - beta / 2.
            ("smooth_l1", [1 / 4 - 1 / 18, 1 / 2 - 1 / 18], [3 / 4 - 1 / 18, 3 / 4 - 1 / 18]),
        ],
    )
    def test_distances_by_hand(self, distance: str, coord: list[float], wh: list[float]) -> None:
        terms = BoxLoss(distance=distance, fmt="cxcywh", reduction="none")(self.pred, self.target)
        torch.testing.assert_close(terms.unweighted["coord"], torch.tensor(coord).double())
        torch.testing.assert_close(terms.unweighted["wh"], torch.tensor(wh).double())

    @pytest.mark.parametrize(
        ("distance", "expected"), [("mse", 1 / 4), ("l1", 1 / 2), ("smooth_l1", 1 / 2 - 1 / 18)]
    )
    def test_square_roots_by_hand(self, distance: str, expected: float) -> None:
        # Heights of 1/4 and 1 have roots of 1/2 and 1.
        terms = BoxLoss(distance=distance, size="sqrt_wh", fmt="cxcywh", reduction="none")(
            self.pred, self.target
        )
        torch.testing.assert_close(terms.unweighted["wh"], torch.full((2,), expected).double())

    def test_smooth_l1_is_a_parabola_near_zero(self) -> None:
        step = torch.tensor([[1 / 16, 0, 0, 0]], dtype=torch.float64)
        terms = BoxLoss(distance="smooth_l1", fmt="cxcywh")(self.pred[:1] + step, self.pred[:1])
        torch.testing.assert_close(terms.unweighted["coord"].item(), 9 / 2 / 256)

    def test_every_distance_and_size_has_a_hand_value(self) -> None:
        assert set(DISTANCES) == {"mse", "l1", "smooth_l1"}
        assert set(SIZES) == {"wh", "sqrt_wh"}

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @every_kind
    def test_total_is_the_sum_of_the_weighted_terms(self, kind: str, reduction: str) -> None:
        pred, target = pairs("random", torch.float32)
        lambdas = {"coord": 3.0, "wh": 0.5, "iou": 7.0}
        criterion = BoxLoss(kind, *lambdas.values(), reduction=reduction, **PARAMETERS.get(kind, {}))
        terms = criterion(pred, target)
        for name, factor in lambdas.items():
            assert torch.equal(terms.weighted[name], factor * terms.unweighted[name])
        torch.testing.assert_close(terms.total, sum(terms.weighted.values()))
        # A pass that reduces adds up in another order.
        torch.testing.assert_close(
            terms.unweighted["iou"], aligned_loss(kind, pred, target, reduction=reduction), rtol=1e-6, atol=0
        )

    @every_size
    @every_distance
    @pytest.mark.parametrize("term", ["coord", "wh", "iou"])
    def test_a_lambda_scales_its_own_gradient_and_no_other(self, term: str, distance: str, size: str) -> None:
        pred, target = pairs("random", torch.float32)

        def grads(**lambdas: float) -> Tensor:
            off = {"lambda_coord": 0.0, "lambda_wh": 0.0, "lambda_iou": 0.0}
            criterion = BoxLoss("ciou", **{**off, **lambdas}, distance=distance, size=size)
            leaf = pred.clone().requires_grad_()
            (found,) = torch.autograd.grad(criterion(leaf, target).total, leaf)
            return found

        alone = grads(**{f"lambda_{term}": 1.0})
        assert alone.abs().max().item() > 0
        assert torch.equal(grads(**{f"lambda_{term}": 8.0}), 8 * alone)
        assert torch.equal(grads(**{f"lambda_{term}": 0.25}), 0.25 * alone)
        rest = {f"lambda_{name}": 1.0 for name in ("coord", "wh", "iou") if name != term}
        together = grads(**rest, **{f"lambda_{term}": 4.0})
        torch.testing.assert_close(together - grads(**rest), 4 * alone, rtol=0, atol=1e-6)

    @every_fmt
    def test_fmt_and_planes_change_nothing(self, fmt: str) -> None:
        pred, target = pairs("random")
        expected = BoxLoss(reduction="none")(pred, target)
        planes = [to_planes(convert(side, "xyxy", fmt)) for side in (pred, target)]
        found = BoxLoss(reduction="none", fmt=fmt, dim=1)(*planes)
        for name, value in expected.unweighted.items():
            torch.testing.assert_close(found.unweighted[name], to_planes(value), rtol=0, atol=1e-14)

    @every_size
    @every_distance
    @every_dtype
    def test_sizes_of_zero_and_below_have_a_finite_gradient(
        self, distance: str, size: str, dtype: torch.dtype
    ) -> None:
        sides = [0.0, -0.0, -0.5, 1e-30, -1e-30, 1e-7, 0.5]
        pred = torch.tensor([[0.5, 0.5, side, side] for side in sides], dtype=dtype)
        criterion = BoxLoss(distance=distance, size=size, fmt="cxcywh", reduction="none")

        def total_and_gradient(pred: Tensor) -> tuple[Tensor, Tensor]:
            leaf = pred.clone().requires_grad_()
            total = criterion(leaf, torch.full_like(leaf, 0.5)).total
            return total, torch.autograd.grad(total.sum(), leaf)[0]

        total, grad = total_and_gradient(pred)
        assert (grad[:-1, 2:] < 0).all()
        if dtype == torch.float16:  # whose range the gradient of the smallest leaves
            in_half, (total, grad) = grad, total_and_gradient(pred.float())
            assert torch.equal(in_half, grad.half())
        assert_all_finite(total, grad)

    @every_size
    @every_distance
    @every_fmt
    def test_any_finite_boxes(self, distance: str, size: str, fmt: str) -> None:
        pred, target = (side.requires_grad_() for side in wild_pairs(3000, torch.float32, seed=17))
        terms = BoxLoss(distance=distance, size=size, fmt=fmt, reduction="none")(pred, target)
        assert_all_finite(terms.total, *terms.unweighted.values())
        assert_all_finite(*torch.autograd.grad(terms.total.sum(), (pred, target)))

    def test_a_lambda_of_zero_removes_its_term(self) -> None:
        pred = torch.tensor([[1e20, 0, 2e20, 1e20]], requires_grad=True)
        target = torch.tensor([[0.0, 0.0, 1e20, 1e20]])
        terms = BoxLoss("giou", lambda_coord=0, lambda_wh=0)(pred, target)
        torch.testing.assert_close(terms.total, aligned_loss("giou", pred, target, reduction="mean"))
        (grads,) = torch.autograd.grad(terms.total, pred)
        (expected,) = torch.autograd.grad(aligned_loss("giou", pred, target, reduction="mean"), pred)
        assert torch.equal(grads, expected)

    @every_distance
    def test_far_coordinates_saturate_where_it_says(self, distance: str) -> None:
        far = torch.tensor([[4 * FARTHEST, 0, 1, 1]])
        criterion = BoxLoss(distance=distance, fmt="cxcywh", lambda_iou=0)
        bound = criterion(torch.tensor([[FARTHEST, 0, 1, 1]]), torch.zeros(1, 4)).total
        assert torch.equal(criterion(far, torch.zeros(1, 4)).total, bound)
        assert_all_finite(bound)

    @every_size
    @every_distance
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weight_zero_masks_exactly(self, distance: str, size: str, value: float) -> None:
        pred, target = pairs("random", torch.float32)
        weight = (torch.arange(len(pred)) % 2).float()
        criterion = BoxLoss(distance=distance, size=size)
        expected = criterion(pred, target, weight).total
        pred[0], target[2, 1] = value, value
        pred.requires_grad_()
        total = criterion(pred, target, weight).total
        total.backward()
        assert torch.equal(total, expected)
        assert pred.grad is not None
        assert_all_finite(pred.grad)
        assert torch.equal(pred.grad[::2], torch.zeros_like(pred[::2]))

    @pytest.mark.parametrize("normalizer", [None, 0, torch.tensor(0)], ids=repr)
    def test_empty(self, normalizer: float | Tensor | None) -> None:
        pred = torch.zeros(0, 4, requires_grad=True)
        total = BoxLoss(size="sqrt_wh")(pred, torch.zeros(0, 4), None, normalizer).total
        assert total.item() == 0
        total.backward()
        assert pred.grad is not None

    @half_dtypes
    def test_half_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        pred, target = pairs("random", dtype)
        terms = BoxLoss()(pred.requires_grad_(), target)
        assert terms.total.dtype == torch.float32
        assert torch.equal(terms.total, BoxLoss()(pred.float(), target.float()).total)
        terms.total.backward()
        assert pred.grad is not None
        assert pred.grad.dtype == dtype

    def test_compiles_without_a_graph_break(self) -> None:
        pred, target = pairs("random", torch.float32)
        torch._dynamo.reset()
        criterion = BoxLoss(size="sqrt_wh")
        compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(pred, target).total, criterion(pred, target).total)

    def test_no_operator_waits_for_the_device(self) -> None:
        pred, target = pairs("random", torch.float32)
        weight = torch.ones(len(pred))
        with Recorder() as recorder:
            BoxLoss(size="sqrt_wh")(pred.requires_grad_(), target, weight, weight.sum()).total.backward()
        assert not recorder.names & WAITING

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"overlap": "ciuo"}, ValueError, "overlap: got 'ciuo', .*did you mean 'ciou'?"),
            ({"distance": "l2"}, ValueError, "distance: got 'l2'"),
            ({"size": "sqrt"}, ValueError, "size: got 'sqrt', .*'sqrt_wh'"),
            ({"fmt": "xywh "}, ValueError, "fmt: got 'xywh '"),
            ({"reduction": "avg"}, ValueError, "reduction: got 'avg'"),
            ({"backend": "fast"}, ValueError, "backend: got 'fast'"),
            ({"lambda_wh": -0.5}, ValueError, "lambda_wh: got -0.5"),
            ({"lambda_iou": float("inf")}, ValueError, "lambda_iou: got inf"),
            ({"lambda_coord": "5"}, TypeError, "lambda_coord: got str"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_bad_arguments(self, options: dict[str, object], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            BoxLoss(**options)  # type: ignore[arg-type]

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ValueError, match=r"\(3, 4\) and \(1, 4\)"):
            BoxLoss()(torch.rand(3, 4), torch.rand(1, 4))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_infinity_or_nan_gives_nan_in_that_box_s_terms_alone(bad: float) -> None:
    pred = torch.tensor([[0.0, 0.0, bad, 1.0], [0.0, 0.0, 1.0, 1.0]])
    target = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(2, 1)
    terms = BoxLoss(reduction="none")(pred, target)
    for name, term in terms.unweighted.items():
        assert term[0].isnan(), name
        assert term[1] == 0, name
