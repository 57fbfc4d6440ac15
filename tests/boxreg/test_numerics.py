"""The numerics contract line by line, and what users of other libraries were bitten by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from boxreg.boxes import convert
from tests.cases import (
    BACKENDS,
    DTYPES,
    FORMATS,
    HALF_DTYPES,
    KINDS,
    ORDINARY,
    REGIMES,
    WORKING_DTYPES,
    aligned_loss,
    assert_all_finite,
    box_iou,
    eps,
    gradient,
    in_unit,
    joined,
    named,
    pairs,
    seeded,
    sorted_corners,
    upright,
    value_and_gradients,
    wild_pairs,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_fmt = pytest.mark.parametrize("fmt", FORMATS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
working_dtypes = pytest.mark.parametrize("dtype", named(WORKING_DTYPES))
half_dtypes = pytest.mark.parametrize("dtype", named(HALF_DTYPES))
every_dtype = pytest.mark.parametrize("dtype", named(DTYPES))

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FOUR = st.tuples(FINITE, FINITE, FINITE, FINITE)
quick = settings(max_examples=25, deadline=None)


def loss_and_gradients(kind: str, pred: Tensor, target: Tensor, **options: object) -> tuple[Tensor, ...]:
    """The loss a box, and the gradients of its sum at both sides."""
    pred, target = pred.clone().requires_grad_(), target.clone().requires_grad_()
    loss = aligned_loss(kind, pred, target, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (pred, target))


@every_fmt
@every_kind
class TestFinite:
    @every_backend
    @every_dtype
    def test_wild_exponents(self, kind: str, fmt: str, backend: str, dtype: torch.dtype) -> None:
        sides = wild_pairs(1500, dtype, seed=11)
        loss, *grads = loss_and_gradients(kind, *sides, fmt=fmt, backend=backend)
        assert_all_finite(loss)
        assert (loss >= -4 * eps(loss.dtype)).all()
        if dtype == torch.float16:  # whose range the gradient of a tiny box leaves
            wide = [side.float() for side in sides]
            _, *expected = loss_and_gradients(kind, *wide, fmt=fmt, backend=backend)
            assert_all_finite(*expected)
            for grad, reference in zip(grads, expected, strict=True):
                assert torch.equal(grad, reference.half())
        else:
            assert_all_finite(*grads)

    @every_backend
    @quick
    @given(pred=FOUR, target=FOUR)
    def test_any_eight_numbers(
        self, kind: str, fmt: str, backend: str, pred: tuple[float, ...], target: tuple[float, ...]
    ) -> None:
        boxes = torch.tensor([pred, target, pred])
        assert_all_finite(*value_and_gradients(kind, boxes[:2], boxes[1:], fmt=fmt, backend=backend))

    @every_backend
    def test_every_choice_of_signs(self, kind: str, fmt: str, backend: str) -> None:
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
        pred, target = signs.repeat_interleave(16, 0), signs.repeat(16, 1)
        sizes = torch.tensor([2.0**119, 2.0**121, 1.6e38, 3.4e38]).view(-1, 1, 1)
        pred, target = ((sizes * side).flatten(0, 1) for side in (pred, target))
        assert_all_finite(*value_and_gradients(kind, pred, target, fmt=fmt, backend=backend))

    @every_backend
    def test_regimes(self, kind: str, fmt: str, backend: str) -> None:
        for regimes in (ORDINARY, REGIMES):
            pred, target = joined(regimes, torch.float32)
            assert_all_finite(*value_and_gradients(kind, pred, target, fmt=fmt, backend=backend))


@every_kind
class TestIdenticalBoxes:
    @every_fmt
    @working_dtypes
    @pytest.mark.parametrize("exponent", [-100, -60, -20, 0, 20, 60, 100])
    def test_no_loss_at_any_scale_and_aspect(
        self, kind: str, fmt: str, dtype: torch.dtype, exponent: int
    ) -> None:
        generator = seeded(exponent)
        boxes = convert(upright(generator, 256), "xyxy", fmt)
        aspect = torch.exp2(20 * torch.randn(256, 1, generator=generator)).double()
        stretch = torch.cat([aspect, 1 / aspect], -1).clamp(2.0**-20, 2.0**20).repeat(1, 2)
        boxes = (boxes * stretch * 2.0**exponent).to(dtype)
        loss, *grads = value_and_gradients(kind, boxes, boxes, fmt=fmt)
        torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=4 * eps(dtype))
        for grad in grads:
            assert torch.equal(grad, torch.zeros_like(grad))

    def test_ten_thousand_at_pixel_scale(self, kind: str) -> None:
        boxes = (upright(seeded(), 10_000) * 640).float()
        loss, grad, _ = value_and_gradients(kind, boxes, boxes)
        torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=4 * eps(torch.float32))
        assert torch.equal(grad, torch.zeros_like(grad))

    def test_small_normalised_boxes_lose_nothing_to_an_eps(self, kind: str) -> None:
        box = torch.tensor([[0.5, 0.5, 1e-4, 1e-4]])
        assert box_iou(box, box, kind=kind, fmt="cxcywh").item() == 1


@every_kind
class TestScale:
    @every_fmt
    @pytest.mark.parametrize("exponent", [-90, -40, -1, 1, 40, 66, 118, 119, 120, 121, 122, 123])
    def test_power_of_two_changes_no_bit(self, kind: str, fmt: str, exponent: int) -> None:
        generator = seeded(4)
        pred, target = (torch.randn(500, 4, generator=generator) for _ in range(2))
        scale = 2.0**exponent
        expected = aligned_loss(kind, pred, target, fmt=fmt)
        found = aligned_loss(kind, pred * scale, target * scale, fmt=fmt, **in_unit(kind, scale))
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("exponent", [-60, -20, 20, 66])
    def test_gradient_is_divided_by_the_scale(self, kind: str, exponent: int) -> None:
        pred, target = pairs("random", torch.float32)
        scale = 2.0**exponent
        expected = gradient(kind, pred, target)
        found = gradient(kind, pred * scale, target * scale, **in_unit(kind, scale))
        assert torch.equal(found * scale, expected)

    @working_dtypes
    def test_coordinates_of_1e20_are_ordinary(self, kind: str, dtype: torch.dtype) -> None:
        pred, target = pairs("random", dtype)
        found = aligned_loss(kind, (pred * 1e20), (target * 1e20), **in_unit(kind, 1e20))
        torch.testing.assert_close(found, aligned_loss(kind, pred, target), rtol=0, atol=64 * eps(dtype))

    def test_translation(self, kind: str) -> None:
        # On a grid of 1/256 a shift of 1000 rounds nothing, so the loss moves by its own roundings only.
        pred, target = ((side * 256).round() / 256 for side in pairs("random", torch.float32))
        found = aligned_loss(kind, pred + 1000, target + 1000)
        torch.testing.assert_close(
            found, aligned_loss(kind, pred, target), rtol=0, atol=8 * eps(torch.float32)
        )

    def test_symmetric(self, kind: str) -> None:
        pred, target = joined(REGIMES)
        # Shape-IoU's weights, those of the target, are 1 by default.
        options = {"scale": 0.0} if kind == "shapeiou" else {}
        ahead, back = aligned_loss(kind, pred, target, **options), aligned_loss(kind, target, pred, **options)
        torch.testing.assert_close(ahead, back, rtol=4 * eps(torch.float64), atol=4 * eps(torch.float64))


@every_kind
class TestInverted:
    @working_dtypes
    @pytest.mark.parametrize("regime", ["inverted-x", "inverted-y", "inverted-xy"])
    def test_costs_more_than_sorted(self, kind: str, dtype: torch.dtype, regime: str) -> None:
        pred, target = pairs(regime, dtype)
        assert (aligned_loss(kind, pred, target) > aligned_loss(kind, sorted_corners(pred), target)).all()

    def test_never_costs_less_than_sorted(self, kind: str) -> None:
        pred, target = wild_pairs(5000, torch.float32, seed=13)
        target = sorted_corners(target)
        upright_loss = aligned_loss(kind, sorted_corners(pred), target)
        missing = (upright_loss - aligned_loss(kind, pred, target)).clamp(min=0)
        # A surcharge below one rounding of the loss may be rounded away.
        torch.testing.assert_close(missing, torch.zeros_like(missing), rtol=0, atol=eps(torch.float32) * 2)

    @every_fmt
    @pytest.mark.parametrize("regime", ["inverted-x", "inverted-y", "inverted-xy"])
    def test_gradient_widens_an_inverted_side(self, kind: str, fmt: str, regime: str) -> None:
        pred, target = pairs(regime)
        boxes = convert(pred, "xyxy", "cxcywh").requires_grad_()
        aligned_loss(
            kind, convert(boxes, "cxcywh", fmt), convert(target, "xyxy", fmt), fmt=fmt
        ).sum().backward()
        assert boxes.grad is not None
        widening = boxes.grad[:, 2:][boxes[:, 2:] < 0]
        assert len(widening) > 0
        assert (widening < 0).all()

    def test_descent_un_inverts(self, kind: str) -> None:
        pred, target = torch.tensor([[0.7, 0.3, 0.3, 0.6]]), torch.tensor([[0.2, 0.2, 0.8, 0.8]])
        for _ in range(200):
            pred = pred - 0.01 * gradient(kind, pred, target)
        assert (pred[0, 2] > pred[0, 0]).item()
        assert box_iou(pred, target).item() > 0

    def test_larger_and_inverted_is_not_free(self, kind: str) -> None:
        target = torch.tensor([[10.0, 10, 20, 20]])
        for pred in ([20.0, 20, 10, 10], [40.0, 40, 0, 0]):
            assert aligned_loss(kind, torch.tensor([pred]), target).item() >= 1


@every_kind
class TestNonFinite:
    @every_fmt
    @every_dtype
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_taints_its_pair_alone(self, kind: str, fmt: str, dtype: torch.dtype, value: float) -> None:
        pred, target = (convert(side, "xyxy", fmt)[:10].to(dtype) for side in pairs("overlapping"))
        expected, expected_grad, _ = value_and_gradients(kind, pred, target, fmt=fmt)
        tainted = torch.tensor([2, 3, 4, 5, 6, 7, 8, 9])
        for number, box in enumerate(tainted.tolist()):
            (pred if number < 4 else target)[box, number % 4] = value
        loss, grad, _ = value_and_gradients(kind, pred, target, fmt=fmt)
        assert loss[tainted].isnan().all()
        assert torch.equal(loss[:2], expected[:2])
        assert torch.equal(grad[:2], expected_grad[:2])

    @every_fmt
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_weight_zero_masks_exactly(self, kind: str, fmt: str, value: float) -> None:
        pred, target = (convert(side, "xyxy", fmt) for side in pairs("overlapping", torch.float32))
        weight = (torch.arange(len(pred)) % 2).float()
        expected = value_and_gradients(kind, pred, target, fmt=fmt, weight=weight)
        pred[::4, 0], pred[::4, 3], target[2::4] = value, value, value
        found = value_and_gradients(kind, pred, target, fmt=fmt, weight=weight)
        for tensor, reference in zip(found, expected, strict=True):
            assert torch.equal(tensor, reference)
            assert (tensor[::2] == 0).all()

    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
    def test_any_real_weight_masks(self, kind: str, dtype: torch.dtype) -> None:
        pred, target = pairs("random", torch.float32)
        weight = (torch.arange(len(pred)) % 2).to(dtype)
        loss = aligned_loss(kind, pred, target, weight=weight)
        assert torch.equal(loss, aligned_loss(kind, pred, target) * weight.float())


@every_kind
class TestDtypes:
    @half_dtypes
    def test_half_is_computed_in_float32(self, kind: str, dtype: torch.dtype) -> None:
        pred, target = joined(REGIMES, dtype)
        loss, grad, _ = value_and_gradients(kind, pred, target)
        wide_loss, wide_grad, _ = value_and_gradients(kind, pred.float(), target.float())
        assert loss.dtype == torch.float32
        assert torch.equal(loss, wide_loss)
        assert grad.dtype == dtype
        assert_all_finite(wide_grad)
        assert torch.equal(grad, wide_grad.to(dtype))

    def test_half_of_200_by_300_pixels(self, kind: str) -> None:
        box = torch.tensor([[0, 0, 200, 300]], dtype=torch.float16)
        assert aligned_loss(kind, box, box).item() == 0

    def test_double_is_computed_in_double(self, kind: str) -> None:
        pred, target = pairs("random")
        loss = aligned_loss(kind, pred, target)
        assert loss.dtype == torch.float64
        assert (loss != aligned_loss(kind, pred.float(), target.float()).double()).any()

    @pytest.mark.parametrize(
        ("left", "right"),
        [(a, b) for a in DTYPES for b in DTYPES if a != b],
        ids=lambda dtype: str(dtype).removeprefix("torch."),
    )
    def test_mixed_floats_promote(self, kind: str, left: torch.dtype, right: torch.dtype) -> None:
        wide = torch.float64 if torch.float64 in (left, right) else torch.float32
        pred, target = pairs("random")[0].to(left), pairs("random")[1].to(right)
        loss, grad, target_grad = value_and_gradients(kind, pred, target)
        assert torch.equal(loss, aligned_loss(kind, pred.to(wide), target.to(wide)))
        assert (loss.dtype, grad.dtype, target_grad.dtype) == (wide, left, right)

    def test_default_dtype_changes_nothing(self, kind: str) -> None:
        pred, target = pairs("random", torch.float32)
        expected = value_and_gradients(kind, pred, target)
        torch.set_default_dtype(torch.float64)
        try:
            found = value_and_gradients(kind, pred, target)
        finally:
            torch.set_default_dtype(torch.float32)
        for tensor, reference in zip(found, expected, strict=True):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, reference)

    def test_autocast_changes_nothing(self, kind: str) -> None:
        pred, target = pairs("random", torch.float32)
        expected = aligned_loss(kind, pred, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = aligned_loss(kind, pred, target)
        assert torch.equal(found, expected)

    def test_integers_are_not_a_loss(self, kind: str) -> None:
        boxes = torch.tensor([[0, 0, 2, 2]])
        with pytest.raises(TypeError, match=r"pred: got a tensor of torch\.int64, expected a floating dtype"):
            aligned_loss(kind, boxes, boxes)


@every_kind
class TestEmpty:
    @every_fmt
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 3, 4)], ids=str)
    def test_no_boxes_give_an_attached_zero(
        self, kind: str, fmt: str, reduction: str, shape: tuple[int, ...]
    ) -> None:
        pred = torch.zeros(shape, requires_grad=True)
        loss = aligned_loss(kind, pred, torch.zeros(shape), fmt=fmt, reduction=reduction)
        assert loss.item() == 0
        loss.backward()
        assert pred.grad is not None
        assert pred.grad.shape == shape

    @pytest.mark.parametrize(
        "normalizer", [0, 0.0, torch.tensor(0), torch.tensor(0.0), torch.tensor([0.0])], ids=repr
    )
    def test_no_positives_give_an_attached_zero(self, kind: str, normalizer: float | Tensor) -> None:
        pred, target = pairs("random", torch.float32)
        pred.requires_grad_()
        loss = aligned_loss(kind, pred, target, reduction="mean", normalizer=normalizer)
        assert loss.item() == 0
        loss.backward()
        assert torch.equal(pred.grad, torch.zeros_like(pred))  # type: ignore[arg-type]
