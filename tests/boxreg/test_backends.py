"""Backends: all compute the same, from the same maths; what each serves, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from boxreg import (
    BoxHead,
    BoxLoss,
    CIoULoss,
    DFLoss,
    GWDLoss,
    KLDLoss,
    NWDLoss,
    ProbIoULoss,
    UnitSquareDecoder,
)
from boxreg.boxes import convert
from boxreg.iou import autograd, dispatch
from boxreg.iou.autograd import _as_arguments as as_arguments
from boxreg.iou.spec import FAMILY, IOU
from tests.cases import (
    BACKENDS,
    DTYPES,
    FORMATS,
    KINDS,
    ORDINARY,
    PER_REGIME,
    REGIMES,
    aligned_loss,
    eps,
    joined,
    named,
    pairs,
    seeded,
    spec_of,
    to_planes,
    upright,
    value_and_gradients,
    wild_pairs,
)

ONE_PASS = [name for name in BACKENDS if name != "eager"]

SUBNORMAL = ("tiny-1e-38",)
"""Apart, for of these, and of a small upstream gradient, autograd in float32 keeps few digits."""

GROUPS = {
    "ordinary": ORDINARY,
    "any": tuple(regime for regime in REGIMES if regime not in SUBNORMAL),
    "subnormal": SUBNORMAL,
}
"""Regimes that are computed in one call."""

every_kind = pytest.mark.parametrize("kind", KINDS)
every_pass = pytest.mark.parametrize("backend", ONE_PASS)


def assert_near(
    found: Tensor,
    expected: Tensor,
    tolerance: float,
    dtype: torch.dtype,
    least: float = 0.0,
    context: str = "",
) -> None:
    """Close, in units of the largest coordinate of each box's gradient (or of the loss, if above 1)."""
    expected = expected.double()
    size = (
        expected.abs().amax(-1, keepdim=True).clamp(min=max(least, torch.finfo(dtype).smallest_normal))
        if expected.ndim > 1
        else expected.abs().clamp(min=1)
    )
    unit = torch.where((size == 0) | ~size.isfinite(), 1.0, size)
    largest = torch.finfo(dtype).max
    expected = expected.clamp(-largest, largest)
    torch.testing.assert_close(
        found.double() / unit,
        expected / unit,
        rtol=0,
        atol=tolerance,
        equal_nan=True,
        msg=lambda why: f"{context} {why}",
    )


def of_each(
    regimes: Collection[str], found: Sequence[Tensor], expected: Sequence[Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What was found for `joined` boxes and what was expected, regime by regime."""
    for both in zip(found, expected, strict=True):
        yield from zip(regimes, *(part.split(PER_REGIME) for part in both), strict=True)


@every_pass
@every_kind
class TestSameAsEager:
    @pytest.mark.parametrize("regimes", GROUPS.values(), ids=GROUPS.keys())
    @pytest.mark.parametrize("dtype", named(DTYPES))
    def test_value_and_both_gradients(
        self, kind: str, backend: str, regimes: Collection[str], dtype: torch.dtype
    ) -> None:
        pred, target = joined(regimes, dtype)
        found = value_and_gradients(kind, pred, target, backend=backend)
        expected = value_and_gradients(kind, pred, target, backend="eager")
        assert [part.dtype for part in found] == [part.dtype for part in expected]
        # One rounding more or less: autograd adds the same terms in another order.
        tolerance = 64 * eps(found[0].dtype) + 2 * eps(dtype)
        for regime, part, reference in of_each(regimes, found, expected):
            assert_near(part, reference, tolerance, part.dtype, context=regime)

    @pytest.mark.parametrize("mode", ["log", "square", "alpha"])
    @pytest.mark.parametrize("dtype", named((torch.float32, torch.float64)))
    def test_modes_and_inner_boxes(self, kind: str, backend: str, mode: str, dtype: torch.dtype) -> None:
        inner = 0.7 if FAMILY[kind].overlap is IOU else None
        regimes = ("random", "identical", "nested", "touching", "point", "inverted-x", "tiny-1e-15")
        pred, target = joined(regimes, dtype)
        for ratio in {None, inner}:
            options = {"mode": mode, "inner_ratio": ratio}
            found = value_and_gradients(kind, pred, target, backend=backend, **options)
            expected = value_and_gradients(kind, pred, target, backend="eager", **options)
            for regime, part, reference in of_each(regimes, found, expected):
                # In some modes roundings are left of what cancels for identical boxes, of about one unit.
                assert_near(part, reference, 128 * eps(dtype), part.dtype, least=1.0, context=regime)

    @pytest.mark.parametrize("fmt", FORMATS)
    def test_layouts(self, kind: str, backend: str, fmt: str) -> None:
        pred, target = (convert(side, "xyxy", fmt) for side in pairs("random", torch.float32))
        expected = value_and_gradients(kind, pred, target, fmt=fmt, backend=backend)
        wide = torch.full((len(pred), 9), float("nan"))
        wide[:, 1:8:2] = pred
        transposed = pred.t().contiguous().t()
        for strided in (wide[:, 1:8:2], transposed):
            found = value_and_gradients(kind, strided, target, fmt=fmt, backend=backend)
            for part, reference in zip(found, expected, strict=True):
                assert torch.equal(part, reference)
        planes = value_and_gradients(
            kind, to_planes(pred), to_planes(target), fmt=fmt, dim=1, backend=backend
        )
        for part, reference in zip(planes, expected, strict=True):
            assert torch.equal(part, to_planes(reference))

    def test_a_broken_pair_stays_alone(self, kind: str, backend: str) -> None:
        pred, target = pairs("random", torch.float32)
        expected = value_and_gradients(kind, pred, target, backend=backend)
        for bad in (float("nan"), float("inf"), -float("inf")):
            broken = pred.clone()
            broken[3, 2] = bad
            found = value_and_gradients(kind, broken, target, backend=backend)
            others = torch.arange(len(pred)) != 3
            assert found[0][3].isnan()
            for part, reference in zip(found, expected, strict=True):
                torch.testing.assert_close(part[others], reference[others], rtol=1e-5, atol=1e-5)

    def test_only_the_target_needs_a_gradient(self, kind: str, backend: str) -> None:
        pred, target = (side.requires_grad_() for side in pairs("random", torch.float32))
        _, expected = torch.autograd.grad(
            aligned_loss(kind, pred, target, backend=backend).sum(), (pred, target)
        )
        pred = pred.detach()
        (found,) = torch.autograd.grad(aligned_loss(kind, pred, target, backend=backend).sum(), target)
        assert torch.equal(found, expected)
        assert not aligned_loss(kind, pred, target.detach(), backend=backend).requires_grad

    def test_fake_tensors(self, kind: str, backend: str) -> None:
        with FakeTensorMode():
            pred = torch.rand(5, 4, dtype=torch.float16, requires_grad=True)
            loss = aligned_loss(kind, pred, torch.rand(5, 4), reduction="mean", backend=backend)
            loss.backward()
        assert isinstance(pred.grad, FakeTensor)
        assert (loss.dtype, pred.grad.dtype, pred.grad.shape) == (torch.float32, torch.float16, pred.shape)


class TestCompiled:
    """Under torch.compile `"auto"` is eager, with the gradient in closed form."""

    @pytest.mark.parametrize("kind", ["ciou", "mpdiou"])
    def test_gradients(self, kind: str) -> None:
        torch._dynamo.reset()

        def step(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            return aligned_loss(kind, pred, target, weight=weight, reduction="sum")

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        sides = zip(pairs("random", torch.float64), wild_pairs(500, torch.float64), strict=True)
        pred, target = (torch.cat(side).requires_grad_() for side in sides)
        weight = torch.arange(len(pred), dtype=torch.float64) % 3
        loss, expected = compiled(pred, target, weight), step(pred, target, weight)
        torch.testing.assert_close(loss, expected)
        grads = torch.autograd.grad(loss, (pred, target))
        torch.testing.assert_close(grads, torch.autograd.grad(expected, (pred, target)), rtol=1e-9, atol=0)

    def test_torch_func_goes_through_autograd(self) -> None:
        torch._dynamo.reset()
        pred, target = pairs("random", torch.float64)

        def hessian(pred: Tensor) -> Tensor:
            return torch.func.hessian(lambda box: aligned_loss("ciou", box, target[:1]).sum())(pred[:1])

        found = torch.compile(hessian, fullgraph=True, backend="aot_eager")(pred)
        torch.testing.assert_close(found, hessian(pred))

    def test_second_derivatives_where_the_graph_is_run_as_it_is(self) -> None:
        torch._dynamo.reset()
        pred, target = pairs("random", torch.float64)
        pred.requires_grad_()

        def step(pred: Tensor) -> Tensor:
            return aligned_loss("ciou", pred, target).sum()

        found = []
        for function in (step, torch.compile(step, fullgraph=True, backend="eager")):
            loss = function(pred)
            (grad,) = torch.autograd.grad(loss, pred, create_graph=True)
            found += torch.autograd.grad(loss + grad.square().sum(), pred)
        torch.testing.assert_close(found[1], found[0])

    @pytest.mark.parametrize("strict", [False, True])
    def test_an_exported_loss_keeps_its_gradient(self, strict: bool) -> None:
        torch._dynamo.reset()
        model, boxes = nn.Sequential(nn.Linear(4, 4)), upright(seeded(1), 6).float()
        criterion = CIoULoss()

        class Step(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model, self.criterion = model, criterion

            def forward(self, boxes: Tensor) -> Tensor:
                return self.criterion(self.model(boxes), boxes)

        exported = torch.export.export(Step(), (boxes,), strict=strict).module()
        exported(boxes).backward()
        (found,) = (p.grad for name, p in exported.named_parameters() if name.endswith("weight"))
        criterion(model(boxes), boxes).backward()
        torch.testing.assert_close(found, model[0].weight.grad)


@every_pass
class TestLimits:
    def test_compiles_without_a_graph_break(self, backend: str) -> None:
        pred, target = pairs("random", torch.float32)
        pred.requires_grad_()
        torch._dynamo.reset()

        def step(pred: Tensor) -> Tensor:
            return aligned_loss("ciou", pred, target, reduction="mean", backend=backend)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(pred)
        assert torch.equal(compiled, step(pred))
        (found,), (expected,) = torch.autograd.grad(compiled, pred), torch.autograd.grad(step(pred), pred)
        assert torch.equal(found, expected)

    def test_torch_func_is_refused(self, backend: str) -> None:
        pred, target = (side.float() for side in pairs("random"))
        with pytest.raises(
            ValueError, match=f"backend: got '{backend}', but a torch.func transform is active"
        ):
            torch.func.vmap(lambda a, b: aligned_loss("iou", a, b, backend=backend))(pred, target)

    def test_an_operator_with_a_fake_that_tells_the_truth(self, backend: str) -> None:
        pred, target = (side.float() for side in pairs("random"))
        for spec in (
            spec_of("nwd", "alpha")._replace(pred_grad=True, target_grad=True),
            spec_of("giou", fmt="cxcywh")._replace(reduction="mean", pred_grad=True, factor=2.5),
        ):
            for weight in (None, torch.rand(len(pred))):
                arguments = (pred, target, weight, -1, backend, *as_arguments(spec))
                torch.library.opcheck(
                    torch.ops.boxreg.aligned.default, arguments, test_utils=["test_schema", "test_faketensor"]
                )

    def test_autocast(self, backend: str) -> None:
        pred, target = (side.bfloat16() for side in pairs("random"))
        expected = value_and_gradients("ciou", pred, target, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            found = value_and_gradients("ciou", pred, target, backend=backend)
        for part, reference in zip(found, expected, strict=True):
            assert torch.equal(part, reference)


@every_pass
class TestReducedInThePass:
    @every_kind
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("count", [1, 512, 1300])
    def test_same_as_reduced_afterwards(self, kind: str, backend: str, reduction: str, count: int) -> None:
        pred, target = (upright(seeded(seed), count).float() for seed in (1, 2))
        found = value_and_gradients(kind, pred, target, reduction=reduction, backend=backend)
        for part, again in zip(
            found, value_and_gradients(kind, pred, target, reduction=reduction, backend=backend), strict=True
        ):
            assert torch.equal(part, again)
        expected = value_and_gradients(
            kind, pred.double(), target.double(), reduction=reduction, backend="eager"
        )
        upstream = torch.randn((), generator=seeded(9)), torch.randn((), generator=seeded(9)).double()
        torch.testing.assert_close(found[0].double(), expected[0], rtol=4e-7, atol=4e-7)
        for part, reference in zip(found[1:], expected[1:], strict=True):
            part = part.double() / upstream[0].double() * upstream[1]
            assert_near(part, reference, 64 * eps(torch.float32), part.dtype)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)], ids=str)
    def test_no_boxes_are_an_attached_zero(
        self, backend: str, reduction: str, shape: tuple[int, ...]
    ) -> None:
        pred = torch.zeros(shape, requires_grad=True)
        loss = aligned_loss("ciou", pred, torch.zeros(shape), reduction=reduction, backend=backend)
        loss.backward()
        assert (loss.item(), loss.shape, loss.requires_grad) == (0, (), True)
        assert pred.grad is not None

    def test_a_broken_pair_is_seen_and_taints_no_gradient(self, backend: str) -> None:
        pred, target = (upright(seeded(seed), 600).float() for seed in (1, 2))
        pred[7, 1] = float("nan")
        loss, gradient, _ = value_and_gradients("ciou", pred, target, reduction="mean", backend=backend)
        assert loss.isnan()
        assert gradient.isnan().any(-1).nonzero().tolist() == [[7]]


class TestAuto:
    @every_kind
    def test_a_second_derivative_is_eagers(self, kind: str) -> None:
        found, expected = (self.second_derivative(kind, backend) for backend in ("auto", "eager"))
        torch.testing.assert_close(found, expected)

    def second_derivative(self, kind: str, backend: str) -> Tensor:
        pred, target = pairs("random")
        pred.requires_grad_()
        loss = aligned_loss(kind, pred, target, backend=backend).square().sum()
        (grad,) = torch.autograd.grad(loss, pred, create_graph=True)
        (found,) = torch.autograd.grad(grad.square().sum(), pred)
        return found

    def test_plain_boxes_on_the_cpu_are_numbas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("numba")
        taken = []
        own = autograd.BACKENDS["numba"]
        monkeypatch.setitem(autograd.BACKENDS, "numba", lambda: (taken.append("numba"), own())[1])
        pred, target = (side.float() for side in pairs("random"))
        aligned_loss("ciou", nn.Parameter(pred), target)
        assert taken == ["numba"]
        torch.func.grad(lambda boxes: aligned_loss("ciou", boxes, target).sum())(pred)
        torch.func.jvp(lambda boxes: aligned_loss("ciou", boxes, target), (pred,), (pred,))
        assert taken == ["numba"]

    def test_forward_mode(self) -> None:
        pred, target = pairs("random")
        tangent = torch.randn(pred.shape, generator=seeded(), dtype=pred.dtype)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(pred, tangent)
            found = torch.autograd.forward_ad.unpack_dual(aligned_loss("giou", dual, target)).tangent
        (grad,) = torch.autograd.grad(aligned_loss("giou", pred.requires_grad_(), target).sum(), pred)
        torch.testing.assert_close(found, (grad * tangent).sum(-1))


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.rand(3, 4)
    monkeypatch.setattr(dispatch, "HAS_NUMBA", False)
    with pytest.raises(ValueError, match=r"got 'numba', but numba is not installed \(pip install"):
        aligned_loss("iou", boxes, boxes, backend="numba")
    aligned_loss("iou", boxes, boxes)  # auto is eager then
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="backend: got 'triton', but triton is not installed"):
        CIoULoss(backend="triton")(boxes, boxes)
    with pytest.raises(ValueError, match="did you mean 'triton'"):
        CIoULoss(backend="tritn")


def test_a_numba_that_cannot_be_imported_warns_once_and_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")

    def broken() -> None:
        raise ImportError("Numba needs NumPy 2.4 or less")

    boxes = torch.rand(3, 4)
    for function in (dispatch._numba_error, dispatch._numba_or_warning):
        function.cache_clear()
    monkeypatch.setattr(dispatch, "_numba", broken)
    try:
        with pytest.warns(UserWarning, match="Numba needs NumPy 2.4 or less; .* slower eager backend"):
            loss = aligned_loss("ciou", boxes, boxes)
        assert torch.equal(loss, aligned_loss("ciou", boxes, boxes, backend="eager"))
        with pytest.raises(ValueError, match="got 'numba', but numba cannot be imported: Numba needs NumPy"):
            aligned_loss("ciou", boxes, boxes, backend="numba")
    finally:
        for function in (dispatch._numba_error, dispatch._numba_or_warning):
            function.cache_clear()


class TestUpstream:
    """What comes from above is applied before the gradient is rounded to the dtype of the boxes."""

    @pytest.mark.parametrize("backend", ["auto", *BACKENDS])
    @pytest.mark.parametrize("value", [float("inf"), float("nan")])
    def test_not_finite_gives_not_finite(self, backend: str, value: float) -> None:
        for dtype in DTYPES:
            pred, target = pairs("random", dtype)
            for reduction in ("none", "mean"):
                leaf = pred.clone().requires_grad_()
                loss = aligned_loss("ciou", leaf, target, reduction=reduction, backend=backend)
                (grad,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, value))
                assert not grad.isfinite().any(), (dtype, reduction)

    @pytest.mark.parametrize("backend", ["auto", *BACKENDS])
    @pytest.mark.parametrize("kind", KINDS)
    def test_float16_overflows_as_in_torch(self, kind: str, backend: str) -> None:
        pred, target = pairs("random", torch.float16)
        expected = value_and_gradients(kind, pred.float(), target.float(), backend=backend)[1]
        leaf = pred.clone().requires_grad_()
        loss = aligned_loss(kind, leaf, target, backend=backend)
        upstream = torch.randn(loss.shape, generator=seeded(9))
        for scale in (1.0, 2.0**16):
            (grad,) = torch.autograd.grad(loss, leaf, scale * upstream, retain_graph=True)
            torch.testing.assert_close(grad, (expected * scale).half(), rtol=2e-3, atol=0.25 * scale * 2**-14)
        assert grad.isinf().any() or kind == "nwd"

    @pytest.mark.parametrize(
        ("loss", "sides"),
        [
            (BoxLoss("ciou", lambda_coord=1e4), (4, 4)),
            (0.5 * CIoULoss(loss_weight=1e4) + 0.5 * NWDLoss(constant=0.1), (4, 4)),
            (DFLoss(loss_weight=1e6), (4, None)),
            (ProbIoULoss(loss_weight=1e4), (5, 5)),
            (KLDLoss(loss_weight=1e4), (5, 5)),
            (GWDLoss(loss_weight=1e4), (5, 5)),
            (CIoULoss(loss_weight=1e4).from_raw(UnitSquareDecoder()), (4, 4)),
        ],
        ids=["BoxLoss", "sum", "DFLoss", "ProbIoU", "KLD", "GWD", "from_raw"],
    )
    def test_float16_overflows_in_every_loss(self, loss: nn.Module, sides: tuple[int, int | None]) -> None:
        generator = seeded(3)
        pred = torch.rand(50, sides[0], generator=generator).half()
        target = torch.rand(50, *([sides[1]] if sides[1] else []), generator=generator).half()
        grads = []
        for leaf, goal in ((pred.clone(), target), (pred.float(), target.float())):
            leaf.requires_grad_()
            found = loss(leaf, goal)
            (found if isinstance(found, Tensor) else found.total).mul(2.0**16).backward()
            grads.append(leaf.grad)
        assert grads[0].dtype == torch.float16
        assert grads[0].isinf().any()
        torch.testing.assert_close(grads[0], grads[1].half(), rtol=4e-3, atol=1.0)

    def test_a_head_in_half_gets_infinite_gradients(self) -> None:
        torch.manual_seed(0)
        head = BoxHead(16, prior=(0.5, 0.5, 0.2, 0.3)).half()
        target = torch.rand(8, 4) * 1e-3
        loss = CIoULoss(fmt="cxcywh", loss_weight=1e3)(head(torch.randn(8, 16).half()), target)
        (loss * 2.0**16).backward()
        assert not all(parameter.grad.isfinite().all() for parameter in head.parameters())

    def test_a_grad_scaler_backs_off_again_and_again(self) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(16, 4)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        features, target = torch.randn(8, 16), upright(seeded(1), 8).float() * 1e-3
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        for _ in range(40):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = CIoULoss()(layer(features) * 1e-3, target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() < 2.0**15
        found = layer.bias.grad / scaler.get_scale()
        layer.zero_grad()
        CIoULoss()(layer(features) * 1e-3, target).backward()
        torch.testing.assert_close(found, layer.bias.grad, rtol=2e-2, atol=1.0)

    def test_a_grad_scaler_backs_off(self) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(16, 4)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        features, target = torch.randn(8, 16), upright(seeded(1), 8).float()
        target = target * 1e-3  # gradients in the thousands
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-9)
        with torch.autocast("cpu", torch.float16):
            loss = CIoULoss()(layer(features) * 1e-3, target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 2.0**15


class TestJitTrace:
    """Recorded operators, never the values of the example."""

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_a_loss(self, reduction: str) -> None:
        pred, target = (upright(seeded(seed), 9).float() for seed in (1, 2))
        criterion = CIoULoss(reduction=reduction)
        traced = torch.jit.trace(criterion, (pred, target), check_trace=False)
        pred, target = (upright(seeded(seed), 5).float() for seed in (3, 4))
        torch.testing.assert_close(traced(pred, target), criterion(pred, target))

    def test_scores(self) -> None:
        from boxreg import box_iou, pairwise_box_iou

        a, b = (upright(seeded(seed), 9).float() for seed in (1, 2))
        for score in (box_iou, pairwise_box_iou):
            traced = torch.jit.trace(score, (a, b), check_trace=False)
            torch.testing.assert_close(traced(b[:4], a[:4]), score(b[:4], a[:4]))

    def test_a_named_backend_says_why_not(self) -> None:
        boxes = torch.rand(3, 4)
        with pytest.raises(ValueError, match=r"got 'numba', but torch.jit.trace is recording"):
            torch.jit.trace(CIoULoss(backend="numba"), (boxes, boxes))


class TestWeights:
    @every_pass
    @every_kind
    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_same_as_eager(self, kind: str, backend: str, reduction: str) -> None:
        pred, target = (upright(seeded(seed), 300).float() for seed in (1, 2))
        weight = torch.rand(300, generator=seeded(3)) * (torch.rand(300, generator=seeded(4)) < 0.6)
        pred[weight == 0] = float("nan")
        options = {"reduction": reduction, "weight": weight}
        if reduction == "mean":
            options["normalizer"] = 7.0
        found = value_and_gradients(kind, pred, target, backend=backend, **options)
        expected = value_and_gradients(kind, pred, target, backend="eager", **options)
        for part, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(part, reference, rtol=1e-4, atol=1e-5)
        assert torch.equal(found[1][weight == 0], torch.zeros_like(pred[weight == 0]))

    def test_a_weight_that_learns(self) -> None:
        pred, target = (upright(seeded(seed), 9).float() for seed in (1, 2))
        weight = torch.ones(9, requires_grad=True)
        aligned_loss("ciou", pred, target, reduction="sum", weight=weight).backward()
        torch.testing.assert_close(weight.grad, aligned_loss("ciou", pred, target))


@every_kind
def test_parameters_and_modes_make_no_new_code(kind: str) -> None:
    pytest.importorskip("numba")
    from boxreg.iou.backends import _numba_cores

    pred, target = pairs("random", torch.float32)
    value_and_gradients(kind, pred, target, mode="alpha")
    before = len(_numba_cores._KEPT)
    names = {"image_width": 3.0, "image_height": 3.0, "scale": 0.5, "constant": 2.0}
    own = [p.name for term in FAMILY[kind] for p in term.parameters]
    inner = FAMILY[kind].overlap is IOU
    for number in range(40):
        options = {name: names[name] + number / 64 for name in own}
        found = value_and_gradients(kind, pred, target, mode="alpha", alpha=2.0 + number / 64, **options)
        if number == 39:
            expected = value_and_gradients(
                kind, pred, target, mode="alpha", alpha=2.0 + number / 64, backend="eager", **options
            )
            torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    assert len(_numba_cores._KEPT) == before
    assert (
        not inner
        or aligned_loss(kind, pred, target, inner_ratio=0.5, **{n: names[n] for n in own}).isfinite().all()
    )
