"""The numerics contract line by line, what users of other libraries were bitten by, and `BoxLoss`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import boxreg
from boxreg import BoxLoss, functional
from boxreg.boxes import convert
from boxreg.iou.functional import BACKENDS, overlap_loss
from boxreg.losses import DISTANCES, SIZES, OverlapLoss
from tests.cases import (
    DTYPES,
    FORMATS,
    HALF_DTYPES,
    KINDS,
    REGIMES,
    SMOOTH,
    WORKING_DTYPES,
    named,
    pairs,
    seeded,
    sorted_corners,
    to_planes,
    upright,
    wild_pairs,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_fmt = pytest.mark.parametrize("fmt", FORMATS)
every_backend = pytest.mark.parametrize("backend", ["auto", *BACKENDS])
every_regime = pytest.mark.parametrize("regime", REGIMES)
working_dtypes = pytest.mark.parametrize("dtype", named(WORKING_DTYPES))
half_dtypes = pytest.mark.parametrize("dtype", named(HALF_DTYPES))
every_dtype = pytest.mark.parametrize("dtype", named(DTYPES))

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FOUR = st.tuples(FINITE, FINITE, FINITE, FINITE)
quick = settings(max_examples=25, deadline=None)


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def value_and_gradients(kind: str, pred: Tensor, target: Tensor, **options: object) -> tuple[Tensor, ...]:
    """The loss a box, and the gradients of both sides under a random upstream gradient."""
    pred, target = pred.clone().requires_grad_(), target.clone().requires_grad_()
    loss = overlap_loss(kind, pred, target, **options)  # type: ignore[arg-type]
    upstream = torch.randn(loss.shape, generator=seeded(9), dtype=loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, (pred, target), upstream)


def gradient(kind: str, pred: Tensor, target: Tensor, **options: object) -> Tensor:
    leaf = pred.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(overlap_loss(kind, leaf, target, **options).sum(), leaf)  # type: ignore[arg-type]
    return slopes


def module_of(kind: str) -> type[OverlapLoss]:
    (name,) = [name for name in dir(boxreg) if name.lower() == f"{kind}loss"]
    return getattr(boxreg, name)  # type: ignore[no-any-return]


def assert_all_finite(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert tensor.isfinite().all(), tensor[~tensor.isfinite()]


@every_backend
@every_fmt
@every_kind
class TestFinite:
    @every_dtype
    def test_wild_exponents(self, kind: str, fmt: str, backend: str, dtype: torch.dtype) -> None:
        pred, target = wild_pairs(1500, dtype, seed=11)
        pred, target = pred.requires_grad_(), target.requires_grad_()
        loss = overlap_loss(kind, pred, target, fmt=fmt, backend=backend)
        loss.sum().backward()
        assert_all_finite(loss, pred.grad, target.grad)  # type: ignore[arg-type]
        assert (loss >= -4 * eps(loss.dtype)).all()

    @quick
    @given(pred=FOUR, target=FOUR)
    def test_any_eight_numbers(
        self, kind: str, fmt: str, backend: str, pred: tuple[float, ...], target: tuple[float, ...]
    ) -> None:
        boxes = torch.tensor([pred, target, pred])
        assert_all_finite(*value_and_gradients(kind, boxes[:2], boxes[1:], fmt=fmt, backend=backend))

    @every_regime
    @working_dtypes
    def test_regimes(self, kind: str, fmt: str, backend: str, dtype: torch.dtype, regime: str) -> None:
        pred, target = pairs(regime, dtype)
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
        loss, *slopes = value_and_gradients(kind, boxes, boxes, fmt=fmt)
        torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=4 * eps(dtype))
        for slope in slopes:
            assert torch.equal(slope, torch.zeros_like(slope))

    def test_ten_thousand_at_pixel_scale(self, kind: str) -> None:
        boxes = (upright(seeded(), 10_000) * 640).float()
        loss, slopes, _ = value_and_gradients(kind, boxes, boxes)
        torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=4 * eps(torch.float32))
        assert torch.equal(slopes, torch.zeros_like(slopes))

    def test_small_normalised_boxes_lose_nothing_to_an_eps(self, kind: str) -> None:
        box = torch.tensor([[0.5, 0.5, 1e-4, 1e-4]])
        assert boxreg.box_iou(box, box, kind=kind, fmt="cxcywh").item() == 1


@every_kind
class TestScale:
    @every_fmt
    @pytest.mark.parametrize("exponent", [-90, -40, -1, 1, 40, 66, 118, 119, 120, 121, 122, 123])
    def test_power_of_two_changes_no_bit(self, kind: str, fmt: str, exponent: int) -> None:
        generator = seeded(4)
        pred, target = (torch.randn(500, 4, generator=generator) for _ in range(2))
        scale = 2.0**exponent
        expected = overlap_loss(kind, pred, target, fmt=fmt)
        assert torch.equal(overlap_loss(kind, pred * scale, target * scale, fmt=fmt), expected)

    @pytest.mark.parametrize("exponent", [-60, -20, 20, 66])
    def test_gradient_is_divided_by_the_scale(self, kind: str, exponent: int) -> None:
        pred, target = pairs("random", torch.float32)
        scale = 2.0**exponent
        expected = gradient(kind, pred, target)
        assert torch.equal(gradient(kind, pred * scale, target * scale) * scale, expected)

    @working_dtypes
    def test_coordinates_of_1e20_are_ordinary(self, kind: str, dtype: torch.dtype) -> None:
        pred, target = pairs("random", dtype)
        found = overlap_loss(kind, (pred * 1e20), (target * 1e20))
        torch.testing.assert_close(found, overlap_loss(kind, pred, target), rtol=0, atol=64 * eps(dtype))

    def test_translation(self, kind: str) -> None:
        # On a grid of 1/256 a shift of 1000 rounds nothing, so the loss moves by its own roundings only.
        pred, target = ((side * 256).round() / 256 for side in pairs("random", torch.float32))
        found = overlap_loss(kind, pred + 1000, target + 1000)
        torch.testing.assert_close(
            found, overlap_loss(kind, pred, target), rtol=0, atol=8 * eps(torch.float32)
        )

    @every_regime
    def test_symmetric(self, kind: str, regime: str) -> None:
        pred, target = pairs(regime)
        ahead, back = overlap_loss(kind, pred, target), overlap_loss(kind, target, pred)
        torch.testing.assert_close(ahead, back, rtol=0, atol=4 * eps(torch.float64))


@every_kind
class TestInverted:
    @working_dtypes
    @pytest.mark.parametrize("regime", ["inverted-x", "inverted-y", "inverted-xy"])
    def test_costs_more_than_sorted(self, kind: str, dtype: torch.dtype, regime: str) -> None:
        pred, target = pairs(regime, dtype)
        assert (overlap_loss(kind, pred, target) > overlap_loss(kind, sorted_corners(pred), target)).all()

    def test_never_costs_less_than_sorted(self, kind: str) -> None:
        pred, target = wild_pairs(5000, torch.float32, seed=13)
        target = sorted_corners(target)
        upright_loss = overlap_loss(kind, sorted_corners(pred), target)
        missing = (upright_loss - overlap_loss(kind, pred, target)).clamp(min=0)
        # A surcharge below one rounding of the loss may be rounded away.
        torch.testing.assert_close(missing, torch.zeros_like(missing), rtol=0, atol=eps(torch.float32) * 2)

    @every_fmt
    @pytest.mark.parametrize("regime", ["inverted-x", "inverted-y", "inverted-xy"])
    def test_gradient_widens_an_inverted_side(self, kind: str, fmt: str, regime: str) -> None:
        pred, target = pairs(regime)
        boxes = convert(pred, "xyxy", "cxcywh").requires_grad_()
        overlap_loss(
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
        assert boxreg.box_iou(pred, target).item() > 0

    def test_larger_and_inverted_is_not_free(self, kind: str) -> None:
        target = torch.tensor([[10.0, 10, 20, 20]])
        for pred in ([20.0, 20, 10, 10], [40.0, 40, 0, 0]):
            assert overlap_loss(kind, torch.tensor([pred]), target).item() >= 1


@every_kind
class TestNonFinite:
    @every_fmt
    @every_dtype
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_taints_its_pair_alone(self, kind: str, fmt: str, dtype: torch.dtype, value: float) -> None:
        pred, target = (convert(side, "xyxy", fmt)[:10].to(dtype) for side in pairs("overlapping"))
        expected, expected_slopes, _ = value_and_gradients(kind, pred, target, fmt=fmt)
        tainted = torch.tensor([2, 3, 4, 5, 6, 7, 8, 9])
        for number, box in enumerate(tainted.tolist()):
            (pred if number < 4 else target)[box, number % 4] = value
        loss, slopes, _ = value_and_gradients(kind, pred, target, fmt=fmt)
        assert loss[tainted].isnan().all()
        assert torch.equal(loss[:2], expected[:2])
        assert torch.equal(slopes[:2], expected_slopes[:2])

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
        loss = overlap_loss(kind, pred, target, weight=weight)
        assert torch.equal(loss, overlap_loss(kind, pred, target) * weight.float())


@every_kind
class TestDtypes:
    @half_dtypes
    @pytest.mark.parametrize("regime", REGIMES)
    def test_half_is_computed_in_float32(self, kind: str, dtype: torch.dtype, regime: str) -> None:
        pred, target = pairs(regime, dtype)
        loss, slopes, _ = value_and_gradients(kind, pred, target)
        wide_loss, wide_slopes, _ = value_and_gradients(kind, pred.float(), target.float())
        assert loss.dtype == torch.float32
        assert torch.equal(loss, wide_loss)
        assert slopes.dtype == dtype
        assert_all_finite(slopes)
        most = torch.finfo(dtype).max
        assert torch.equal(slopes, wide_slopes.clamp(-most, most).to(dtype))

    def test_half_of_200_by_300_pixels(self, kind: str) -> None:
        box = torch.tensor([[0, 0, 200, 300]], dtype=torch.float16)
        assert overlap_loss(kind, box, box).item() == 0

    def test_double_is_computed_in_double(self, kind: str) -> None:
        pred, target = pairs("random")
        loss = overlap_loss(kind, pred, target)
        assert loss.dtype == torch.float64
        assert (loss != overlap_loss(kind, pred.float(), target.float()).double()).any()

    @pytest.mark.parametrize(
        ("left", "right"),
        [(a, b) for a in DTYPES for b in DTYPES if a != b],
        ids=lambda dtype: str(dtype).removeprefix("torch."),
    )
    def test_mixed_floats_promote(self, kind: str, left: torch.dtype, right: torch.dtype) -> None:
        wide = torch.float64 if torch.float64 in (left, right) else torch.float32
        pred, target = pairs("random")[0].to(left), pairs("random")[1].to(right)
        loss, slopes, target_slopes = value_and_gradients(kind, pred, target)
        assert torch.equal(loss, overlap_loss(kind, pred.to(wide), target.to(wide)))
        assert (loss.dtype, slopes.dtype, target_slopes.dtype) == (wide, left, right)

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
        expected = overlap_loss(kind, pred, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = overlap_loss(kind, pred, target)
        assert torch.equal(found, expected)

    def test_integers_are_not_a_loss(self, kind: str) -> None:
        boxes = torch.tensor([[0, 0, 2, 2]])
        with pytest.raises(TypeError, match=r"pred: got a tensor of torch\.int64, expected a floating dtype"):
            overlap_loss(kind, boxes, boxes)


@every_kind
class TestEmpty:
    @every_fmt
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 3, 4)], ids=str)
    def test_no_boxes_give_an_attached_zero(
        self, kind: str, fmt: str, reduction: str, shape: tuple[int, ...]
    ) -> None:
        pred = torch.zeros(shape, requires_grad=True)
        loss = overlap_loss(kind, pred, torch.zeros(shape), fmt=fmt, reduction=reduction)
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
        loss = overlap_loss(kind, pred, target, reduction="mean", normalizer=normalizer)
        assert loss.item() == 0
        loss.backward()
        assert torch.equal(pred.grad, torch.zeros_like(pred))  # type: ignore[arg-type]


class TestArguments:
    good = torch.rand(3, 4)

    @pytest.mark.parametrize("shape", [(1, 4), (3, 1, 4), (4,), (2, 4), (1, 3, 4)], ids=str)
    @every_kind
    def test_nothing_is_broadcast(self, kind: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"pred and target .*\(3, 4\) and ") as error:
            overlap_loss(kind, self.good, torch.zeros(shape))
        assert str(shape) in str(error.value)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"fmt": "cxcyhw"}, "fmt: got 'cxcyhw', expected one of .*; did you mean 'cxcywh'?"),
            ({"reduction": "Mean"}, "reduction: got 'Mean', expected one of .*; did you mean 'mean'?"),
            ({"reduction": "average"}, "reduction: got 'average', expected one of 'none', 'mean', 'sum'"),
            ({"backend": "eagre"}, "backend: got 'eagre', expected one of .*; did you mean 'eager'?"),
            ({"dim": 2}, r"dim: got 2, but pred has shape \(3, 4\)"),
            ({"dim": 0}, r"pred: got shape \(3, 4\), expected 4 coordinates along dim 0"),
            ({"weight": torch.ones(3, 1)}, r"weight .*\(3, 1\) and \(3,\)"),
            ({"normalizer": 3}, "normalizer: .* reduction is 'none'"),
            ({"reduction": "mean", "normalizer": -1}, "normalizer: got -1, expected .* at least 0"),
            ({"reduction": "mean", "normalizer": torch.ones(2)}, r"normalizer: .*\(2,\)"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_bad_values_say_what_was_expected(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            overlap_loss("iou", self.good, self.good, **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", ["CIoU", "ciuo", "cioy"])
    def test_unknown_kind_is_answered_with_the_nearest(self, kind: str) -> None:
        with pytest.raises(ValueError, match=f"kind: got '{kind}', .*; did you mean 'ciou'?"):
            overlap_loss(kind, self.good, self.good)

    def test_lists_are_not_tensors(self) -> None:
        with pytest.raises(TypeError, match=r"target: got list, expected a torch\.Tensor"):
            overlap_loss("iou", self.good, self.good.tolist())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"weight: got list, expected a torch\.Tensor"):
            overlap_loss("iou", self.good, self.good, weight=[1, 1, 1])  # type: ignore[arg-type]

    def test_devices_must_agree(self) -> None:
        with pytest.raises(ValueError, match="one device: got cpu and meta"):
            overlap_loss("iou", self.good, self.good.to("meta"))

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"fmt": "yxyx"}, ValueError),
            ({"reduction": "avg"}, ValueError),
            ({"backend": "cuda"}, ValueError),
            ({"loss_weight": -1.0}, ValueError),
            ({"loss_weight": float("nan")}, ValueError),
            ({"loss_weight": "5"}, TypeError),
        ],
        ids=repr,
    )
    @every_kind
    def test_modules_refuse_at_construction(
        self, kind: str, options: dict[str, object], error: type[Exception]
    ) -> None:
        with pytest.raises(error, match=f"^{next(iter(options))}: got"):
            module_of(kind)(**options)  # type: ignore[arg-type]


class Recorder(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "index",
    "index_put",
    "index_put_",
    "equal",
    "unique",
}
"""Operators that make the host wait for the device, or whose output's shape depends on the data."""


def step(kind: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A training step's loss: planes or rows, weight and a tensor as normaliser."""

    def loss(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return overlap_loss(kind, pred, target, reduction="mean", weight=weight, normalizer=weight.sum())

    return loss


@every_kind
class TestGraphs:
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        pred, target = pairs("random", torch.float32)
        return pred.requires_grad_(), target, (torch.arange(len(pred)) % 3).float()

    def test_compiles_without_a_graph_break(self, kind: str) -> None:
        pred, target, weight = self.inputs()
        torch._dynamo.reset()
        compiled = torch.compile(step(kind), fullgraph=True, backend="aot_eager")
        loss, expected = compiled(pred, target, weight), step(kind)(pred, target, weight)
        assert torch.equal(loss, expected)
        (found,), (slopes,) = torch.autograd.grad(loss, pred), torch.autograd.grad(expected, pred)
        torch.testing.assert_close(
            found, slopes, rtol=0, atol=8 * eps(torch.float32) * slopes.abs().max().item()
        )

    def test_vmap(self, kind: str) -> None:
        pred, target, weight = (side.detach().reshape(4, 8, *side.shape[1:]) for side in self.inputs())
        found = torch.func.vmap(step(kind))(pred, target, weight)
        slopes = torch.func.vmap(torch.func.grad(step(kind)))(pred, target, weight)
        for number in range(4):
            one = pred[number], target[number], weight[number]
            torch.testing.assert_close(found[number], step(kind)(*one))
            torch.testing.assert_close(slopes[number], torch.func.grad(step(kind))(*one))

    def test_fake_tensors(self, kind: str) -> None:
        with FakeTensorMode():
            pred = torch.rand(5, 4, dtype=torch.float16, requires_grad=True)
            loss = step(kind)(pred, torch.rand(5, 4), torch.rand(5))
            loss.backward()
        assert isinstance(loss, FakeTensor)
        assert pred.grad is not None
        assert (loss.dtype, pred.grad.dtype) == (torch.float32, torch.float16)

    def test_meta_tensors_have_no_values_to_wait_for(self, kind: str) -> None:
        pred = torch.empty(5, 4, device="meta", requires_grad=True)
        step(kind)(pred, torch.empty(5, 4, device="meta"), torch.empty(5, device="meta")).backward()
        assert pred.grad is not None
        assert pred.grad.shape == (5, 4)

    def test_no_operator_waits_for_the_device(self, kind: str) -> None:
        pred, target, weight = self.inputs()
        with Recorder() as recorder:
            step(kind)(pred, target, weight).backward()
        assert not recorder.names & WAITING

    def test_inputs_are_not_written_to(self, kind: str) -> None:
        pred, target, weight = self.inputs()
        versions = [side._version for side in (pred, target, weight)]
        step(kind)(pred, target, weight).backward()
        assert [side._version for side in (pred, target, weight)] == versions


def test_one_compiled_graph_serves_any_number_of_boxes() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step("giou"), fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (5, 9, 2):
        arguments = (*(side[:count] for side in pairs("random", torch.float32)), torch.ones(count))
        with torch.compiler.set_stance("fail_on_recompile" if count != 5 else "default"):
            assert torch.equal(compiled(*arguments), step("giou")(*arguments))


@every_kind
class TestLayouts:
    @every_fmt
    def test_fmt_is_a_conversion(self, kind: str, fmt: str) -> None:
        pred, target = pairs("random")
        expected, slopes, _ = value_and_gradients(kind, pred, target)
        leaf = pred.clone().requires_grad_()
        loss = overlap_loss(kind, convert(leaf, "xyxy", fmt), convert(target, "xyxy", fmt), fmt=fmt)
        torch.testing.assert_close(loss, expected, rtol=0, atol=32 * eps(torch.float64))
        upstream = torch.randn(loss.shape, generator=seeded(9), dtype=loss.dtype)
        (found,) = torch.autograd.grad(loss, leaf, upstream)
        torch.testing.assert_close(found, slopes, rtol=0, atol=1e-12)

    @every_fmt
    @every_regime
    def test_planes_are_rows(self, kind: str, fmt: str, regime: str) -> None:
        pred, target = pairs(regime, torch.float32)
        rows, planes = pred.clone().requires_grad_(), to_planes(pred).requires_grad_()
        by_row = overlap_loss(kind, rows, target, fmt=fmt)
        by_plane = overlap_loss(kind, planes, to_planes(target), fmt=fmt, dim=1)
        assert torch.equal(by_plane, to_planes(by_row))
        upstream = torch.randn(by_row.shape, generator=seeded(9))
        (row_slopes,) = torch.autograd.grad(by_row, rows, upstream)
        (plane_slopes,) = torch.autograd.grad(by_plane, planes, to_planes(upstream))
        assert torch.equal(plane_slopes, to_planes(row_slopes))

    def test_any_shape(self, kind: str) -> None:
        pred, target = pairs("random", torch.float32)
        expected = overlap_loss(kind, pred, target)
        for shape in ((4, 8), (2, 2, 8), (1, 32)):
            found = overlap_loss(kind, pred.reshape(*shape, 4), target.reshape(*shape, 4))
            assert torch.equal(found, expected.reshape(shape))
        assert torch.equal(overlap_loss(kind, pred[0], target[0]), expected[0])


@every_kind
class TestReductions:
    def test_weight_multiplies_each_loss_and_gradient(self, kind: str) -> None:
        pred, target = pairs("random")
        weight = torch.rand(len(pred), generator=seeded(2), dtype=torch.float64)
        loss, slopes, _ = value_and_gradients(kind, pred, target, weight=weight)
        bare, bare_slopes, _ = value_and_gradients(kind, pred, target)
        torch.testing.assert_close(loss, weight * bare)
        torch.testing.assert_close(slopes, weight[:, None] * bare_slopes)

    def test_mean_and_sum(self, kind: str) -> None:
        pred, target = pairs("random")
        weight = torch.rand(len(pred), generator=seeded(2), dtype=torch.float64)
        total = (weight * overlap_loss(kind, pred, target)).sum()
        options = {"weight": weight}
        assert torch.equal(overlap_loss(kind, pred, target, reduction="sum", **options), total)  # type: ignore[arg-type]
        mean = overlap_loss(kind, pred, target, reduction="mean", **options)  # type: ignore[arg-type]
        torch.testing.assert_close(mean, total / len(pred))
        for normalizer in (7, 7.0, torch.tensor(7), torch.tensor([7.0])):
            found = overlap_loss(kind, pred, target, reduction="mean", normalizer=normalizer, weight=weight)
            torch.testing.assert_close(found, total / 7)

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @every_fmt
    def test_modules_are_their_functions(self, kind: str, reduction: str, fmt: str) -> None:
        pred, target = (to_planes(side) for side in pairs("random", torch.float32))
        weight = torch.rand(pred[:, 0].shape, generator=seeded(2))
        normalizer = 5.0 if reduction == "mean" else None
        module = module_of(kind)(fmt=fmt, reduction=reduction, loss_weight=4.0, dim=1)
        function = getattr(functional, f"{kind}_loss")
        options = {"fmt": fmt, "reduction": reduction, "weight": weight, "normalizer": normalizer, "dim": 1}
        assert torch.equal(module(pred, target, weight, normalizer), 4 * function(pred, target, **options))

    def test_functions_default_to_none_and_modules_to_mean(self, kind: str) -> None:
        pred, target = pairs("random", torch.float32)
        loss = getattr(functional, f"{kind}_loss")(pred, target)
        assert torch.equal(loss, overlap_loss(kind, pred, target))
        torch.testing.assert_close(module_of(kind)()(pred, target), loss.mean())

    def test_modules_can_be_copied_printed_and_subclassed(self, kind: str) -> None:
        pred, target = pairs("random", torch.float32)
        module = module_of(kind)(loss_weight=2.0)
        mine = type("MyOwnLoss", (module_of(kind),), {})(loss_weight=2.0)
        for other in (copy.deepcopy(module), mine):
            assert torch.equal(other(pred, target), module(pred, target))
        assert "loss_weight=2.0" in repr(module)


@every_kind
class TestBounds:
    @pytest.mark.parametrize("regime", [name for name in REGIMES if "inverted" not in name])
    def test_upright_losses_stay_in_their_range(self, kind: str, regime: str) -> None:
        pred, target = pairs(regime)
        loss = overlap_loss(kind, pred, target)
        penalty = loss - overlap_loss("iou", pred, target)
        for bounded, most in ((loss - penalty, 1.0), (penalty, 2.0)):
            assert (bounded >= -4 * eps(torch.float64)).all()
            assert (bounded <= most + 4 * eps(torch.float64)).all()

    @pytest.mark.parametrize("regime", SMOOTH)
    def test_a_small_step_down_the_gradient_lowers_the_loss(self, kind: str, regime: str) -> None:
        pred, target = pairs(regime)
        slopes = gradient(kind, pred, target)
        stepped = overlap_loss(kind, pred - 1e-7 * slopes, target)
        before = overlap_loss(kind, pred, target)
        moving = slopes.abs().amax(-1) > 1e-3
        assert (stepped < before)[moving].all()

    def test_losses_rise_as_boxes_move_apart(self, kind: str) -> None:
        shifts = torch.arange(8).double()[:, None] * torch.tensor([0.5, 0, 0.5, 0]).double()
        target = torch.tensor([[0.0, 0, 1, 1]]).double().expand(8, 4)
        steps = overlap_loss(kind, target + shifts, target).diff()
        assert (steps[:2] > 0).all()
        assert (steps >= 0).all()


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
        torch.testing.assert_close(terms.raw["coord"], torch.tensor(coord).double())
        torch.testing.assert_close(terms.raw["wh"], torch.tensor(wh).double())

    @pytest.mark.parametrize(
        ("distance", "expected"), [("mse", 1 / 4), ("l1", 1 / 2), ("smooth_l1", 1 / 2 - 1 / 18)]
    )
    def test_square_roots_by_hand(self, distance: str, expected: float) -> None:
        # Heights of 1/4 and 1 have roots of 1/2 and 1.
        terms = BoxLoss(distance=distance, size="sqrt_wh", fmt="cxcywh", reduction="none")(
            self.pred, self.target
        )
        torch.testing.assert_close(terms.raw["wh"], torch.full((2,), expected).double())

    def test_smooth_l1_is_a_parabola_near_zero(self) -> None:
        step = torch.tensor([[1 / 16, 0, 0, 0]], dtype=torch.float64)
        terms = BoxLoss(distance="smooth_l1", fmt="cxcywh")(self.pred[:1] + step, self.pred[:1])
        torch.testing.assert_close(terms.raw["coord"].item(), 9 / 2 / 256)

    def test_every_distance_and_size_has_a_hand_value(self) -> None:
        assert set(DISTANCES) == {"mse", "l1", "smooth_l1"}
        assert set(SIZES) == {"wh", "sqrt_wh"}

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @every_kind
    def test_total_is_the_sum_of_the_weighted_terms(self, kind: str, reduction: str) -> None:
        pred, target = pairs("random", torch.float32)
        lambdas = {"coord": 3.0, "wh": 0.5, "iou": 7.0}
        criterion = BoxLoss(kind, *lambdas.values(), reduction=reduction)
        terms = criterion(pred, target)
        for name, factor in lambdas.items():
            assert torch.equal(terms.weighted[name], factor * terms.raw[name])
        torch.testing.assert_close(terms.total, sum(terms.weighted.values()))
        assert torch.equal(terms.raw["iou"], overlap_loss(kind, pred, target, reduction=reduction))

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("distance", DISTANCES)
    @pytest.mark.parametrize("term", ["coord", "wh", "iou"])
    def test_a_lambda_scales_its_own_gradient_and_no_other(self, term: str, distance: str, size: str) -> None:
        pred, target = pairs("random", torch.float32)

        def slopes(**lambdas: float) -> Tensor:
            off = {"lambda_coord": 0.0, "lambda_wh": 0.0, "lambda_iou": 0.0}
            criterion = BoxLoss("ciou", **{**off, **lambdas}, distance=distance, size=size)
            leaf = pred.clone().requires_grad_()
            (found,) = torch.autograd.grad(criterion(leaf, target).total, leaf)
            return found

        alone = slopes(**{f"lambda_{term}": 1.0})
        assert alone.abs().max().item() > 0
        assert torch.equal(slopes(**{f"lambda_{term}": 8.0}), 8 * alone)
        assert torch.equal(slopes(**{f"lambda_{term}": 0.25}), 0.25 * alone)
        rest = {f"lambda_{name}": 1.0 for name in ("coord", "wh", "iou") if name != term}
        together = slopes(**rest, **{f"lambda_{term}": 4.0})
        torch.testing.assert_close(together - slopes(**rest), 4 * alone, rtol=0, atol=1e-6)

    @every_fmt
    def test_fmt_and_planes_change_nothing(self, fmt: str) -> None:
        pred, target = pairs("random")
        expected = BoxLoss(reduction="none")(pred, target)
        planes = [to_planes(convert(side, "xyxy", fmt)) for side in (pred, target)]
        found = BoxLoss(reduction="none", fmt=fmt, dim=1)(*planes)
        for name, value in expected.raw.items():
            torch.testing.assert_close(found.raw[name], to_planes(value), rtol=0, atol=1e-14)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("distance", DISTANCES)
    @every_dtype
    def test_sizes_of_zero_and_below_have_a_finite_gradient(
        self, distance: str, size: str, dtype: torch.dtype
    ) -> None:
        sides = [0.0, -0.0, -0.5, 1e-30, -1e-30, 1e-7, 0.5]
        pred = torch.tensor([[0.5, 0.5, side, side] for side in sides], dtype=dtype, requires_grad=True)
        terms = BoxLoss(distance=distance, size=size, fmt="cxcywh", reduction="none")(
            pred, torch.full_like(pred, 0.5)
        )
        terms.total.sum().backward()
        assert pred.grad is not None
        assert_all_finite(terms.total, pred.grad)
        assert (pred.grad[:-1, 2:] < 0).all()

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("distance", DISTANCES)
    @every_fmt
    def test_any_finite_boxes(self, distance: str, size: str, fmt: str) -> None:
        pred, target = (side.requires_grad_() for side in wild_pairs(3000, torch.float32, seed=17))
        terms = BoxLoss(distance=distance, size=size, fmt=fmt, reduction="none")(pred, target)
        assert_all_finite(terms.total, *terms.raw.values())
        assert_all_finite(*torch.autograd.grad(terms.total.sum(), (pred, target)))

    def test_a_lambda_of_zero_removes_its_term(self) -> None:
        pred = torch.tensor([[1e20, 0, 2e20, 1e20]], requires_grad=True)
        target = torch.tensor([[0.0, 0.0, 1e20, 1e20]])
        terms = BoxLoss("giou", lambda_coord=0, lambda_wh=0)(pred, target)
        torch.testing.assert_close(terms.total, overlap_loss("giou", pred, target, reduction="mean"))
        (slopes,) = torch.autograd.grad(terms.total, pred)
        torch.testing.assert_close(slopes, gradient("giou", pred, target))

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("distance", DISTANCES)
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

    @pytest.mark.parametrize("size", SIZES)
    def test_compiles_without_a_graph_break(self, size: str) -> None:
        pred, target = pairs("random", torch.float32)
        torch._dynamo.reset()
        criterion = BoxLoss(size=size)
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
