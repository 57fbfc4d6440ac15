"""Entry points of the losses: arguments, layouts, reductions, modules, and how they trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import boxreg
from boxreg import functional
from boxreg.boxes import convert
from boxreg.iou.spec import FAMILY, IOU
from boxreg.losses import LOSSES, IoUFamilyLoss
from tests.cases import (
    FORMATS,
    KINDS,
    MOST_PENALTY,
    PARAMETERS,
    REGIMES,
    SMOOTH,
    WAITING,
    Recorder,
    aligned_loss,
    eps,
    gradient,
    joined,
    pairs,
    seeded,
    to_planes,
    value_and_gradients,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_fmt = pytest.mark.parametrize("fmt", FORMATS)


def module_of(kind: str) -> Callable[..., IoUFamilyLoss]:
    """The module of a loss, with the parameters of the tests."""
    return partial(LOSSES[kind], **PARAMETERS.get(kind, {}))


def function_of(kind: str) -> Callable[..., Tensor]:
    """The function of a loss, with the parameters of the tests."""
    return partial(getattr(functional, f"{kind}_loss"), **PARAMETERS.get(kind, {}))


class TestArguments:
    good = torch.rand(3, 4)

    @pytest.mark.parametrize("shape", [(1, 4), (3, 1, 4), (4,), (2, 4), (1, 3, 4)], ids=str)
    @every_kind
    def test_nothing_is_broadcast(self, kind: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"pred and target .*\(3, 4\) and ") as error:
            aligned_loss(kind, self.good, torch.zeros(shape))
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
            aligned_loss("iou", self.good, self.good, **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", ["CIoU", "ciuo", "cioy"])
    def test_unknown_kind_is_answered_with_the_nearest(self, kind: str) -> None:
        with pytest.raises(ValueError, match=f"kind: got '{kind}', .*; did you mean 'ciou'?"):
            aligned_loss(kind, self.good, self.good)

    def test_lists_are_not_tensors(self) -> None:
        with pytest.raises(TypeError, match=r"target: got list, expected a torch\.Tensor"):
            aligned_loss("iou", self.good, self.good.tolist())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"weight: got list, expected a torch\.Tensor"):
            aligned_loss("iou", self.good, self.good, weight=[1, 1, 1])  # type: ignore[arg-type]

    def test_devices_must_agree(self) -> None:
        with pytest.raises(ValueError, match="one device: got cpu and meta"):
            aligned_loss("iou", self.good, self.good.to("meta"))

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


def step(kind: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A training step's loss: planes or rows, weight and a tensor as normaliser."""

    def loss(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return aligned_loss(kind, pred, target, reduction="mean", weight=weight, normalizer=weight.sum())

    return loss


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    pred, target = pairs("random", torch.float32)
    return pred.requires_grad_(), target, (torch.arange(len(pred)) % 3).float()


@every_kind
class TestGraphs:
    def test_vmap(self, kind: str) -> None:
        pred, target, weight = (side.detach().reshape(4, 8, *side.shape[1:]) for side in inputs())
        found = torch.func.vmap(step(kind))(pred, target, weight)
        grad = torch.func.vmap(torch.func.grad(step(kind)))(pred, target, weight)
        for number in range(4):
            one = pred[number], target[number], weight[number]
            torch.testing.assert_close(found[number], step(kind)(*one))
            torch.testing.assert_close(grad[number], torch.func.grad(step(kind))(*one))

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
        pred, target, weight = inputs()
        with Recorder() as recorder:
            step(kind)(pred, target, weight).backward()
        assert not recorder.names & WAITING

    def test_inputs_are_not_written_to(self, kind: str) -> None:
        pred, target, weight = inputs()
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
        expected, grad, _ = value_and_gradients(kind, pred, target)
        leaf = pred.clone().requires_grad_()
        loss = aligned_loss(kind, convert(leaf, "xyxy", fmt), convert(target, "xyxy", fmt), fmt=fmt)
        torch.testing.assert_close(loss, expected, rtol=0, atol=32 * eps(torch.float64))
        upstream = torch.randn(loss.shape, generator=seeded(9), dtype=loss.dtype)
        (found,) = torch.autograd.grad(loss, leaf, upstream)
        torch.testing.assert_close(found, grad, rtol=0, atol=1e-12)

    @every_fmt
    @pytest.mark.parametrize("regime", ["random", "identical", "inverted-x", "huge-3e38"])
    def test_planes_are_rows(self, kind: str, fmt: str, regime: str) -> None:
        pred, target = pairs(regime, torch.float32)
        rows, planes = pred.clone().requires_grad_(), to_planes(pred).requires_grad_()
        by_row = aligned_loss(kind, rows, target, fmt=fmt)
        by_plane = aligned_loss(kind, planes, to_planes(target), fmt=fmt, dim=1)
        assert torch.equal(by_plane, to_planes(by_row))
        upstream = torch.randn(by_row.shape, generator=seeded(9))
        (row_grad,) = torch.autograd.grad(by_row, rows, upstream)
        (plane_grad,) = torch.autograd.grad(by_plane, planes, to_planes(upstream))
        assert torch.equal(plane_grad, to_planes(row_grad))

    def test_any_shape(self, kind: str) -> None:
        pred, target = pairs("random", torch.float32)
        expected = aligned_loss(kind, pred, target)
        for shape in ((4, 8), (2, 2, 8), (1, 32)):
            found = aligned_loss(kind, pred.reshape(*shape, 4), target.reshape(*shape, 4))
            assert torch.equal(found, expected.reshape(shape))
        assert torch.equal(aligned_loss(kind, pred[0], target[0]), expected[0])


@every_kind
class TestReductions:
    def test_weight_multiplies_each_loss_and_gradient(self, kind: str) -> None:
        pred, target = pairs("random")
        weight = torch.rand(len(pred), generator=seeded(2), dtype=torch.float64)
        loss, grad, _ = value_and_gradients(kind, pred, target, weight=weight)
        bare, bare_grad, _ = value_and_gradients(kind, pred, target)
        torch.testing.assert_close(loss, weight * bare)
        torch.testing.assert_close(grad, weight[:, None] * bare_grad)

    def test_mean_and_sum(self, kind: str) -> None:
        pred, target = pairs("random")
        weight = torch.rand(len(pred), generator=seeded(2), dtype=torch.float64)
        total = (weight * aligned_loss(kind, pred, target)).sum()
        options = {"weight": weight}
        found = aligned_loss(kind, pred, target, reduction="sum", **options)  # type: ignore[arg-type]
        torch.testing.assert_close(found, total, rtol=1e-14, atol=0)
        mean = aligned_loss(kind, pred, target, reduction="mean", **options)  # type: ignore[arg-type]
        torch.testing.assert_close(mean, total / len(pred))
        for normalizer in (7, 7.0, torch.tensor(7), torch.tensor([7.0])):
            found = aligned_loss(kind, pred, target, reduction="mean", normalizer=normalizer, weight=weight)
            torch.testing.assert_close(found, total / 7)

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @every_fmt
    def test_modules_are_their_functions(self, kind: str, reduction: str, fmt: str) -> None:
        pred, target = (to_planes(side) for side in pairs("random", torch.float32))
        weight = torch.rand(pred[:, 0].shape, generator=seeded(2))
        normalizer = 5.0 if reduction == "mean" else None
        module = module_of(kind)(fmt=fmt, reduction=reduction, loss_weight=4.0, dim=1)
        function = function_of(kind)
        options = {"fmt": fmt, "reduction": reduction, "weight": weight, "normalizer": normalizer, "dim": 1}
        assert torch.equal(module(pred, target, weight, normalizer), 4 * function(pred, target, **options))

    def test_functions_default_to_none_and_modules_to_mean(self, kind: str) -> None:
        pred, target = pairs("random", torch.float32)
        loss = function_of(kind)(pred, target)
        assert torch.equal(loss, aligned_loss(kind, pred, target))
        torch.testing.assert_close(module_of(kind)()(pred, target), loss.mean())

    def test_modules_can_be_copied_printed_and_subclassed(self, kind: str) -> None:
        pred, target = pairs("random", torch.float32)
        module = module_of(kind)(loss_weight=2.0)
        mine = type("MyOwnLoss", (LOSSES[kind],), {})(loss_weight=2.0, **PARAMETERS.get(kind, {}))
        for other in (copy.deepcopy(module), mine):
            assert torch.equal(other(pred, target), module(pred, target))
        assert "loss_weight=2.0" in repr(module)


class TestParameters:
    boxes = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.5, 0, 1, 1]])

    @pytest.mark.parametrize(
        ("kind", "options", "message"),
        [
            ("nwd", {"constant": 0.0}, r"constant: got 0\.0, expected .* at least .* and at most"),
            ("shapeiou", {"scale": -1}, "scale: got -1, expected a finite number of at least 0"),
            ("ciou", {"alpha": 2}, "alpha: got 2, but it is the exponent of mode 'alpha', not of 'linear'"),
            ("ciou", {"mode": "alpha", "alpha": 0.5}, r"alpha: got 0\.5, expected .* at least 1"),
            ("ciou", {"mode": "loga"}, "mode: got 'loga', expected one of .*; did you mean 'log'?"),
            ("ciou", {"inner_ratio": 0}, "inner_ratio: got 0, expected"),
            ("nwd", {"constant": 1, "inner_ratio": 0.7}, "inner_ratio: got 0.7, but 'nwd' has no IoU"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else None,
    )
    def test_bad_ones_are_refused(self, kind: str, options: dict[str, object], message: str) -> None:
        for refusing in (partial(getattr(functional, f"{kind}_loss"), *self.boxes), LOSSES[kind]):
            with pytest.raises(ValueError, match=message):
                refusing(**options)

    def test_those_that_are_missing_or_unknown(self) -> None:
        for refusing in (partial(functional.mpdiou_loss, *self.boxes), boxreg.MPDIoULoss):
            with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'image_height'"):
                refusing(image_width=4)
            with pytest.raises(TypeError, match="unexpected keyword argument 'width'"):
                refusing(image_width=1, image_height=1, width=1)
        with pytest.raises(TypeError, match="unexpected keyword argument 'scale'"):
            boxreg.CIoULoss(scale=1)  # type: ignore[call-arg]

    def test_the_wrong_type(self) -> None:
        with pytest.raises(TypeError, match="constant: got str, expected a number"):
            boxreg.NWDLoss(constant="12.8")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="weighting: got float, expected a weighting such as"):
            boxreg.CIoULoss(weighting=0.5)  # type: ignore[arg-type]

    def test_scores_take_them_and_refuse_them(self) -> None:
        for score in (boxreg.box_iou, boxreg.pairwise_box_iou):
            loss = functional.nwd_loss(*self.boxes, constant=2.0)
            torch.testing.assert_close(score(*self.boxes, "nwd", constant=2.0).flatten(), 1 - loss)
            with pytest.raises(ValueError, match="constant: missing"):
                score(*self.boxes, "nwd")
            with pytest.raises(ValueError, match=r"alpha: got 2\.0, but it is the exponent of mode 'alpha'"):
                score(*self.boxes, alpha=2.0)
            with pytest.raises(TypeError, match="scale: unknown; 'iou' takes no parameters"):
                score(*self.boxes, scale=2.0)

    def test_modules_hand_them_on(self) -> None:
        options = {"mode": "alpha", "alpha": 2.0, "inner_ratio": 0.7}
        module = boxreg.CIoULoss(**options)  # type: ignore[arg-type]
        expected = functional.ciou_loss(*self.boxes, reduction="mean", **options)  # type: ignore[arg-type]
        assert torch.equal(module(*self.boxes), expected)
        for setting in ("mode='alpha'", "alpha=2.0", "inner_ratio=0.7"):
            assert setting in repr(module)

    def test_box_loss_hands_them_on(self) -> None:
        terms = boxreg.BoxLoss("nwd", constant=2.0)(*self.boxes)
        expected = functional.nwd_loss(*self.boxes, reduction="mean", constant=2.0)
        assert torch.equal(terms.unweighted["iou"], expected)
        with pytest.raises(TypeError, match="missing 2 required keyword-only arguments: 'image_width'"):
            boxreg.BoxLoss("mpdiou")


@every_kind
class TestBounds:
    def test_upright_losses_stay_in_their_range(self, kind: str) -> None:
        pred, target = joined(regime for regime in REGIMES if "inverted" not in regime)
        loss = aligned_loss(kind, pred, target)
        of_overlap = aligned_loss("iou", pred, target) if FAMILY[kind].overlap is IOU else loss
        for bounded, most in ((of_overlap, 1.0), (loss - of_overlap, MOST_PENALTY[kind])):
            assert (bounded >= -4 * eps(torch.float64)).all()
            assert (bounded <= most + 4 * eps(torch.float64)).all()

    @pytest.mark.parametrize("regime", SMOOTH)
    def test_a_small_step_down_the_gradient_lowers_the_loss(self, kind: str, regime: str) -> None:
        pred, target = pairs(regime)
        grad = gradient(kind, pred, target)
        stepped = aligned_loss(kind, pred - 1e-7 * grad, target)
        before = aligned_loss(kind, pred, target)
        moving = grad.abs().amax(-1) > 1e-3
        assert (stepped < before)[moving].all()

    def test_losses_rise_as_boxes_move_apart(self, kind: str) -> None:
        shifts = torch.arange(8).double()[:, None] * torch.tensor([0.5, 0, 0.5, 0]).double()
        target = torch.tensor([[0.0, 0, 1, 1]]).double().expand(8, 4)
        steps = aligned_loss(kind, target + shifts, target).diff()
        assert (steps[:2] > 0).all()
        assert (steps >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_compiles_without_a_graph_break(dtype: torch.dtype) -> None:
    pred = torch.tensor([[0.0, 0.0, 2.0, 1.0], [1.0, 1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[0.5, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 3.0]], dtype=dtype)
    compiled = torch.compile(lambda p: boxreg.CIoULoss()(p, target), fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(boxreg.CIoULoss()(pred, target), pred)
    (gradient,) = torch.autograd.grad(compiled(pred), pred)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected)
