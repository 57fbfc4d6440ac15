"""Rotated boxes: the numerics contract line by line, and where descent leads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import DTYPES, assert_all_finite, eps, named, seeded, uniform
from tests.rotated_cases import (
    COUNT,
    FAMILY,
    boxes,
    every_regime,
    every_variant,
    exchanged,
    half_dtypes,
    least,
    loss_of,
    pairs,
    scaled,
    smooth,
    turned,
    value_and_gradients,
    wild,
    with_column,
    working_dtypes,
)


@every_variant
class TestScale:
    @pytest.mark.parametrize("exponent", [-90, -40, -1, 1, 40, 90, 120])
    def test_power_of_two_changes_no_bit(self, variant: str, exponent: int) -> None:
        pred, target = (torch.randn(500, 5, generator=seeded(seed)) for seed in (4, 5))
        found = loss_of(variant, scaled(pred, 2.0**exponent), scaled(target, 2.0**exponent))
        assert torch.equal(found, loss_of(variant, pred, target))

    @pytest.mark.parametrize("exponent", [-40, -20, 20, 90])
    def test_gradient_is_divided_by_the_scale(self, variant: str, exponent: int) -> None:
        pred, target = pairs("random", torch.float32)
        scale = 2.0**exponent
        _, *expected = value_and_gradients(variant, pred, target)
        _, *found = value_and_gradients(variant, scaled(pred, scale), scaled(target, scale))
        for grads, ordinary in zip(found, expected, strict=True):
            assert torch.equal(scaled(grads, scale), ordinary)

    @working_dtypes
    @pytest.mark.parametrize("exponent", [-100, -40, 0, 40, 100])
    def test_identical_boxes_rest(self, variant: str, dtype: torch.dtype, exponent: int) -> None:
        rows = boxes(seeded(exponent), 256)
        aspect = torch.exp2(uniform(seeded(1), 256, low=-20.0, high=20.0))
        rows = rows * torch.stack([*[torch.ones(256)] * 2, aspect, 1 / aspect, torch.ones(256)], -1)
        rows = scaled(rows, 2.0**exponent).to(dtype)
        loss, *grads = value_and_gradients(variant, rows, rows)
        torch.testing.assert_close(loss, torch.full_like(loss, least(variant)), rtol=0, atol=4 * eps(dtype))
        for grad in grads:
            assert torch.equal(grad, torch.zeros_like(grad))

    def test_small_normalised_boxes_lose_nothing_to_an_eps(self, variant: str) -> None:
        box = torch.tensor([[0.5, 0.5, 1e-4, 1e-4, 0.3]])
        shifted = box + torch.tensor([5e-5, 0, 0, 0, 0])
        large = torch.tensor([[0.5, 0.5, 1.0, 1.0, 0.3]])
        assert loss_of(variant, box, box).item() == pytest.approx(least(variant), abs=1e-7)
        half_apart = loss_of(variant, large + torch.tensor([0.5, 0, 0, 0, 0]), large)
        torch.testing.assert_close(loss_of(variant, shifted, box), half_apart, rtol=1e-2, atol=0)


@every_variant
class TestFinite:
    @pytest.mark.parametrize("dtype", named(DTYPES))
    def test_wild_exponents(self, variant: str, dtype: torch.dtype) -> None:
        sides = wild(3000, dtype, seed=11)
        loss, *grads = value_and_gradients(variant, *sides)
        if dtype == torch.float16:  # whose range the gradient of a tiny box leaves
            in_half = grads
            _, *grads = value_and_gradients(variant, *(side.float() for side in sides))
            for found, expected in zip(in_half, grads, strict=True):
                assert torch.equal(found, expected.half())
        assert_all_finite(loss, *grads)
        assert (loss >= least(variant) - 4 * eps(loss.dtype)).all()

    @settings(max_examples=100, deadline=None)
    @given(
        numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=10, max_size=10)
    )
    def test_any_ten_numbers(self, variant: str, numbers: list[float]) -> None:
        pred, target = torch.tensor(numbers).view(2, 1, 5)
        assert_all_finite(*value_and_gradients(variant, pred, target))
        assert_all_finite(*value_and_gradients(variant, pred, pred))

    @pytest.mark.parametrize("size", [2.0**126, 3.4e38], ids="{:.1e}".format)
    def test_every_choice_of_signs(self, variant: str, size: float) -> None:
        signs = torch.cartesian_prod(*[torch.tensor([-size, size])] * 5)
        assert_all_finite(*value_and_gradients(variant, signs.repeat_interleave(32, 0), signs.repeat(32, 1)))

    @every_regime
    @working_dtypes
    def test_regimes(self, variant: str, regime: str, dtype: torch.dtype) -> None:
        assert_all_finite(*value_and_gradients(variant, *pairs(regime, dtype)))

    @every_regime
    def test_bounds(self, variant: str, regime: str) -> None:
        pred, target = pairs(regime)
        loss = loss_of(variant, pred, target)
        assert (loss >= least(variant) - 4 * eps(torch.float64)).all()
        negative = (pred[:, 2:4] < 0).sum() + (target[:, 2:4] < 0).sum()
        if variant != "probiou-l2" and not negative:
            assert (loss <= 1).all()

    @settings(max_examples=50, deadline=None)
    @given(
        numbers=st.lists(st.floats(-4, 4), min_size=4, max_size=4),
        sides=st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
        angles=st.lists(st.floats(-7, 7), min_size=2, max_size=2),
        turn=st.floats(-4, 4),
    )
    def test_motions_change_nothing(
        self, variant: str, numbers: list[float], sides: list[float], angles: list[float], turn: float
    ) -> None:
        pred = torch.tensor([[*numbers[:2], *sides[:2], angles[0]]], dtype=torch.float64)
        target = torch.tensor([[*numbers[2:], *sides[2:], angles[1]]], dtype=torch.float64)
        expected = loss_of(variant, pred, target)
        for change in (lambda rows: turned(rows, turn), lambda rows: scaled(rows, 3.7), exchanged):
            found = loss_of(variant, change(pred), change(target))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@every_variant
class TestDescent:
    def test_losses_rise_as_boxes_move_apart(self, variant: str) -> None:
        target = torch.tensor([[0.0, 0, 2, 1, 0.5]]).double().expand(8, 5)
        pred = target + torch.arange(8).double()[:, None] * target.new_tensor([0.3, 0.2, 0, 0, 0])
        assert (loss_of(variant, pred, target).diff() > 0).all()

    @smooth
    def test_a_small_step_down_the_gradient_lowers_the_loss(self, variant: str, regime: str) -> None:
        pred, target = pairs(regime)
        leaf = pred.clone().requires_grad_()
        before = loss_of(variant, leaf, target)
        (grads,) = torch.autograd.grad(before.sum(), leaf)
        moving = (grads.abs().amax(-1) > 1e-3) & (grads.abs().amax(-1) < 1e3)
        stepped = loss_of(variant, pred - 1e-8 * grads, target)
        assert moving.any() or (variant, regime) == ("probiou-l1", "disjoint")
        assert (stepped < before)[moving].all()

    @pytest.mark.parametrize("column", [2, 3])
    def test_a_flat_box_grows(self, variant: str, column: int) -> None:
        target = boxes(seeded())
        pred = with_column(column, 0.0)(target)
        leaf = pred.clone().requires_grad_()
        (grads,) = torch.autograd.grad(loss_of(variant, leaf, target).sum(), leaf)
        assert (grads[:, column] < 0).all()

    @pytest.mark.parametrize("start", [1e-2, 1e-5])
    def test_near_identical_boxes_have_the_gradient_of_their_cone(self, variant: str, start: float) -> None:
        target = boxes(seeded())
        pred = target + start * target.new_tensor([1, 0, 0, 0, 0])
        leaf = pred.clone().requires_grad_()
        (grads,) = torch.autograd.grad(loss_of(variant, leaf, target).sum(), leaf)
        cone = variant in ("probiou-l1", "kld-sqrt", "kld-sqrt-2", "gwd-sqrt")
        most, fewest = (50.0, 0.05) if cone else (1e3 * start, 0.05 * start)
        assert (grads[:, 0] < most).all()
        assert (grads[:, 0] > fewest).all()


# The gradient of L1 fades out as e^-B: for far boxes there is mode l2.
@pytest.mark.parametrize("variant", [variant for variant in FAMILY if variant != "probiou-l1"])
def test_a_far_box_comes_near(variant: str) -> None:
    target = torch.tensor([[0.0, 0, 2, 1, 0.5]])
    for distance in (1e3, 1e9, 1e30):
        pred = (target + torch.tensor([distance, 0, 0, 0, 0])).requires_grad_()
        (grads,) = torch.autograd.grad(loss_of(variant, pred, target).sum(), pred)
        assert grads[0, 0].item() > 0


@every_variant
class TestNegativeSides:
    signs = torch.tensor([[1, 1, -1, 1, 1], [1, 1, 1, -1, 1], [1, 1, -1, -1, 1]])

    @working_dtypes
    def test_cost_more_than_positive_ones(self, variant: str, dtype: torch.dtype) -> None:
        pred, target = pairs("random", dtype)
        for signs in self.signs:
            assert (loss_of(variant, pred * signs, target) > loss_of(variant, pred, target)).all()
            assert (loss_of(variant, pred, target * signs) > loss_of(variant, pred, target)).all()

    def test_never_cost_less_than_positive_ones(self, variant: str) -> None:
        pred, target = wild(3000, torch.float32, seed=13)
        positive = torch.cat([pred[:, :2], pred[:, 2:4].abs(), pred[:, 4:]], -1)
        assert (loss_of(variant, pred, target) >= loss_of(variant, positive, target)).all()

    def test_gradient_makes_them_positive(self, variant: str) -> None:
        pred, target = pairs("random")
        for signs in self.signs:
            leaf = (pred * signs).requires_grad_()
            (grads,) = torch.autograd.grad(loss_of(variant, leaf, target).sum(), leaf)
            assert (grads[:, 2:4][leaf[:, 2:4] < 0] < 0).all()

    def test_descent_makes_them_positive(self, variant: str) -> None:
        target = torch.tensor([[0.5, 0.5, 0.6, 0.4, 0.2]])
        pred = torch.tensor([[0.5, 0.5, -0.3, 0.3, 0.4]])
        for _ in range(60):
            leaf = pred.requires_grad_()
            (grads,) = torch.autograd.grad(loss_of(variant, leaf, target).sum(), leaf)
            pred = (pred - 0.02 * grads.clamp(-1, 1)).detach()
        assert (pred[0, 2] > 0).item()


@every_variant
class TestNonFinite:
    @pytest.mark.parametrize("dtype", named(DTYPES))
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_taints_its_pair_alone(self, variant: str, dtype: torch.dtype, value: float) -> None:
        pred, target = (side[:12] for side in pairs("random", dtype))
        expected = value_and_gradients(variant, pred, target)
        for number in range(10):
            (pred if number < 5 else target)[2 + number, number % 5] = value
        found = value_and_gradients(variant, pred, target)
        assert found[0][2:].isnan().all()
        for tensor, reference in zip(found, expected, strict=True):
            assert torch.equal(tensor[:2], reference[:2])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
    def test_weight_zero_masks_exactly(self, variant: str, value: float, dtype: torch.dtype) -> None:
        pred, target = pairs("random", torch.float32)
        weight = (torch.arange(COUNT) % 2).to(dtype)
        expected = value_and_gradients(variant, pred, target, weight=weight)
        pred[::4, 0], pred[::4, 4], target[2::4] = value, value, value
        found = value_and_gradients(variant, pred, target, weight=weight)
        for tensor, reference in zip(found, expected, strict=True):
            assert torch.equal(tensor, reference)
            assert (tensor[::2] == 0).all()


@every_variant
class TestDtypes:
    @half_dtypes
    @every_regime
    def test_half_is_computed_in_float32(self, variant: str, dtype: torch.dtype, regime: str) -> None:
        pred, target = pairs(regime, dtype)
        loss, grads, _ = value_and_gradients(variant, pred, target)
        wide_loss, wide_grads, _ = value_and_gradients(variant, pred.float(), target.float())
        assert loss.dtype == torch.float32
        assert torch.equal(loss, wide_loss)
        assert torch.equal(grads, wide_grads.to(dtype))

    def test_mixed_floats_promote(self, variant: str) -> None:
        pred, target = pairs("random")
        found = loss_of(variant, pred.half(), target)
        assert torch.equal(found, loss_of(variant, pred.half().double(), target))

    def test_autocast_changes_nothing(self, variant: str) -> None:
        pred, target = pairs("random", torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss_of(variant, pred, target)
        assert torch.equal(found, loss_of(variant, pred, target))

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)], ids=str)
    def test_no_boxes_give_an_attached_zero(
        self, variant: str, reduction: str, shape: tuple[int, ...]
    ) -> None:
        pred = torch.zeros(shape, requires_grad=True)
        loss = loss_of(variant, pred, torch.zeros(shape), reduction=reduction)
        assert loss.item() == 0
        loss.backward()
        assert pred.grad is not None

    def test_no_positives_give_an_attached_zero(self, variant: str) -> None:
        pred, target = pairs("random", torch.float32)
        pred.requires_grad_()
        loss = loss_of(variant, pred, target, reduction="mean", normalizer=0)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(pred.grad, torch.zeros_like(pred))  # type: ignore[arg-type]
