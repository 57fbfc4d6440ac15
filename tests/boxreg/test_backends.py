"""Backends: all compute the same, from the same maths; what each serves, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from boxreg import CIoULoss
from boxreg.boxes import convert
from boxreg.iou import _fused, backends
from boxreg.iou._libraries import TORCH
from boxreg.iou._one_pass import as_arguments
from boxreg.iou._pass import Pass
from boxreg.iou.spec import IOU, FAMILY
from tests.cases import (
    BACKENDS,
    DTYPES,
    FORMATS,
    KINDS,
    ORDINARY,
    PER_REGIME,
    REGIMES,
    eps,
    form,
    joined,
    named,
    overlap_loss,
    pairs,
    seeded,
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


def computes(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the kernel computes in float32")


def assert_near(
    found: Tensor,
    expected: Tensor,
    tolerance: float,
    dtype: torch.dtype,
    least: float = 0.0,
    told: str = "",
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
        msg=lambda why: f"{told} {why}",
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
    @pytest.mark.every_kernel
    @pytest.mark.parametrize("regimes", GROUPS.values(), ids=GROUPS.keys())
    @pytest.mark.parametrize("dtype", named(DTYPES))
    def test_value_and_both_gradients(
        self, kind: str, backend: str, regimes: Collection[str], dtype: torch.dtype
    ) -> None:
        computes(backend, dtype)
        if (backend, regimes) == ("triton", ORDINARY):
            pytest.skip("they get no shorter kernel")
        if (backend, dtype, regimes) == ("triton", torch.bfloat16, SUBNORMAL):
            pytest.skip("Triton's interpreter widens subnormal bfloat16 wrongly")
        pred, target = joined(regimes, dtype)
        found = value_and_gradients(kind, pred, target, backend=backend)
        expected = value_and_gradients(kind, pred, target, backend="eager")
        assert [part.dtype for part in found] == [part.dtype for part in expected]
        # One rounding more or less: autograd adds the same terms in another order.
        tolerance = 64 * eps(found[0].dtype) + 2 * eps(dtype)
        for regime, part, reference in of_each(regimes, found, expected):
            assert_near(part, reference, tolerance, part.dtype, told=regime)

    @pytest.mark.parametrize("mode", ["log", "square", "alpha"])
    @pytest.mark.parametrize("dtype", named((torch.float32, torch.float64)))
    def test_modes_and_inner_boxes(self, kind: str, backend: str, mode: str, dtype: torch.dtype) -> None:
        computes(backend, dtype)
        inner = 0.7 if FAMILY[kind].overlap is IOU else None
        regimes = ("random", "identical", "nested", "touching", "point", "inverted-x", "tiny-1e-15")
        pred, target = joined(regimes, dtype)
        for ratio in {None, inner}:
            options = {"mode": mode, "inner_ratio": ratio}
            found = value_and_gradients(kind, pred, target, backend=backend, **options)
            expected = value_and_gradients(kind, pred, target, backend="eager", **options)
            for regime, part, reference in of_each(regimes, found, expected):
                # In some modes roundings are left of what cancels for identical boxes, of about one unit.
                assert_near(part, reference, 128 * eps(dtype), part.dtype, least=1.0, told=regime)

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
            overlap_loss(kind, pred, target, backend=backend).sum(), (pred, target)
        )
        pred = pred.detach()
        (found,) = torch.autograd.grad(overlap_loss(kind, pred, target, backend=backend).sum(), target)
        assert torch.equal(found, expected)
        assert not overlap_loss(kind, pred, target.detach(), backend=backend).requires_grad

    def test_fake_tensors(self, kind: str, backend: str) -> None:
        with FakeTensorMode():
            pred = torch.rand(5, 4, dtype=torch.float16, requires_grad=True)
            loss = overlap_loss(kind, pred, torch.rand(5, 4), reduction="mean", backend=backend)
            loss.backward()
        assert isinstance(pred.grad, FakeTensor)
        assert (loss.dtype, pred.grad.dtype, pred.grad.shape) == (torch.float32, torch.float16, pred.shape)


@every_pass
class TestLimits:
    def test_compiles_without_a_graph_break(self, backend: str) -> None:
        pred, target = pairs("random", torch.float32)
        pred.requires_grad_()
        torch._dynamo.reset()

        def step(pred: Tensor) -> Tensor:
            return overlap_loss("ciou", pred, target, reduction="mean", backend=backend)

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(pred)
        assert torch.equal(compiled, step(pred))
        (found,), (expected,) = torch.autograd.grad(compiled, pred), torch.autograd.grad(step(pred), pred)
        assert torch.equal(found, expected)

    def test_a_second_derivative_is_refused_when_it_is_taken(self, backend: str) -> None:
        pred, target = (side.float() for side in pairs("random"))
        pred.requires_grad_()
        loss = overlap_loss("ciou", pred, target, backend=backend).sum()
        (slopes,) = torch.autograd.grad(loss, pred, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative: use backend='auto' or backend='eager'"):
            slopes.square().sum().backward()

    def test_torch_func_is_refused(self, backend: str) -> None:
        pred, target = (side.float() for side in pairs("random"))
        with pytest.raises(
            ValueError, match=f"backend: got '{backend}', but a torch.func transform is active"
        ):
            torch.func.vmap(lambda a, b: overlap_loss("iou", a, b, backend=backend))(pred, target)

    def test_an_operator_with_a_fake_that_tells_the_truth(self, backend: str) -> None:
        pred, target = (side.float() for side in pairs("random"))
        for wanted in (
            Pass(form("nwd", "alpha"), "xyxy", "xyxy", of_pred=True, of_target=True),
            Pass(form("giou"), "cxcywh", "cxcywh", reduction="mean", of_pred=True),
        ):
            arguments = (pred, target, backend, -1, *as_arguments(wanted))
            torch.library.opcheck(
                torch.ops.boxreg.one_pass.default, arguments, test_utils=["test_schema", "test_faketensor"]
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
    def test_same_as_reduced_afterwards(
        self, kind: str, backend: str, reduction: str, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if backend == "triton":
            monkeypatch.setattr(_triton(), "CHUNK", 2)  # so that the sums are added in several rounds
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
        loss = overlap_loss("ciou", pred, torch.zeros(shape), reduction=reduction, backend=backend)
        loss.backward()
        assert (loss.item(), loss.shape, loss.requires_grad) == (0, (), True)
        assert pred.grad is not None

    def test_a_broken_pair_is_seen_and_taints_no_gradient(self, backend: str) -> None:
        pred, target = (upright(seeded(seed), 600).float() for seed in (1, 2))
        pred[7, 1] = float("nan")
        loss, gradient, _ = value_and_gradients("ciou", pred, target, reduction="mean", backend=backend)
        assert loss.isnan()
        assert gradient.isnan().any(-1).nonzero().tolist() == [[7]]


def _triton() -> ModuleType:
    from boxreg.iou import _triton

    return _triton


def test_programs_leave_their_count_as_they_found_it() -> None:
    pytest.importorskip("triton")
    pred, target = (upright(seeded(seed), 1300).float() for seed in (1, 2))
    overlap_loss("ciou", pred, target, reduction="sum", backend="triton")
    assert [count.item() for count in _triton()._ARRIVALS.values()] == [0]


class TestAuto:
    @every_kind
    def test_a_second_derivative_is_eagers(self, kind: str) -> None:
        found, expected = (self.second_derivative(kind, backend) for backend in ("auto", "eager"))
        torch.testing.assert_close(found, expected)

    def second_derivative(self, kind: str, backend: str) -> Tensor:
        pred, target = pairs("random")
        pred.requires_grad_()
        loss = overlap_loss(kind, pred, target, backend=backend).square().sum()
        (slopes,) = torch.autograd.grad(loss, pred, create_graph=True)
        (found,) = torch.autograd.grad(slopes.square().sum(), pred)
        return found

    def test_plain_boxes_on_the_cpu_are_fused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = []
        run = backends.RUNS["fused"]
        monkeypatch.setitem(
            backends.RUNS, "fused", lambda *arguments: (taken.append("fused"), run(*arguments))[1]
        )
        pred, target = (side.float() for side in pairs("random"))
        overlap_loss("ciou", nn.Parameter(pred), target)
        assert taken == ["fused"]
        torch.func.grad(lambda boxes: overlap_loss("ciou", boxes, target).sum())(pred)
        torch.func.jvp(lambda boxes: overlap_loss("ciou", boxes, target), (pred,), (pred,))
        assert taken == ["fused"]

    def test_forward_mode(self) -> None:
        pred, target = pairs("random")
        tangent = torch.randn(pred.shape, generator=seeded(), dtype=pred.dtype)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(pred, tangent)
            found = torch.autograd.forward_ad.unpack_dual(overlap_loss("giou", dual, target)).tangent
        (slopes,) = torch.autograd.grad(overlap_loss("giou", pred.requires_grad_(), target).sum(), pred)
        torch.testing.assert_close(found, (slopes * tangent).sum(-1))


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.rand(3, 4)
    with pytest.raises(ValueError, match="got 'triton', but it computes in float32 and a tensor is float64"):
        overlap_loss("iou", boxes.double(), boxes, backend="triton")
    monkeypatch.setattr(backends, "_interpreted", lambda: False)
    with pytest.raises(ValueError, match="backend: got 'triton', but the boxes are on cpu"):
        overlap_loss("iou", boxes, boxes, backend="triton")
    monkeypatch.setattr(backends, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="backend: got 'triton', but triton is not installed"):
        CIoULoss(backend="triton")(boxes, boxes)
    with pytest.raises(ValueError, match="did you mean 'triton'"):
        CIoULoss(backend="tritn")


class TestFused:
    @every_kind
    @pytest.mark.parametrize("fmt", FORMATS)
    @pytest.mark.parametrize("dtype", named((torch.float32, torch.float64)))
    def test_the_short_program_agrees_with_the_long_one(
        self, kind: str, fmt: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generator = seeded(7)
        pred, target = (convert(upright(generator, 500).to(dtype), "xyxy", fmt) for _ in range(2))
        target[::5] = pred[::5]  # ties
        wanted = Pass(form(kind), fmt, fmt, of_pred=True, of_target=True)
        assert _fused.are_ordinary(pred.t(), fmt)
        short = _fused.one_pass(wanted, pred, target, -1)
        monkeypatch.setattr(_fused, "are_ordinary", lambda boxes, fmt: False)
        for found, expected in zip(short, _fused.one_pass(wanted, pred, target, -1), strict=True):
            assert found is not None
            assert expected is not None
            torch.testing.assert_close(found, expected, rtol=8 * eps(dtype), atol=8 * eps(dtype))

    @pytest.mark.parametrize(
        "box",
        [(0, 0, 0, 1), (1, 0, 0, 1), (0, 0, 2**-25, 1), (0, 0, 2**25, 1), (float("nan"), 0, 1, 1)],
        ids=["empty", "inverted", "tiny", "huge", "nan"],
    )
    def test_what_is_not_ordinary(self, box: tuple[float, ...]) -> None:
        boxes = torch.tensor([[0.0, 0, 1, 1], box]).t()
        assert not _fused.are_ordinary(boxes, "xyxy")
        assert _fused.are_ordinary(boxes[:, :1], "xyxy")

    @pytest.mark.parametrize("dtype", named(DTYPES))
    def test_what_is_ordinary(self, dtype: torch.dtype) -> None:
        assert all(_fused.are_ordinary(side.t(), "xyxy") for side in joined(ORDINARY, dtype))

    @pytest.mark.parametrize("block", [1, 7, 64])
    @pytest.mark.parametrize("dim", [0, 1, 2])
    def test_the_size_of_blocks_changes_nothing(
        self, block: int, dim: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pred, target = (side.reshape(5, 20, 4).movedim(-1, dim) for side in wild_pairs(100, torch.float64))
        wanted = Pass(form("ciou"), "xywh", "xywh", of_pred=True, of_target=True)
        expected = _fused.one_pass(wanted, pred, target, dim)
        monkeypatch.setattr(_fused, "SMALL", 0)
        monkeypatch.setattr(_fused, "BLOCK", block)
        found = _fused.one_pass(wanted, pred, target, dim)
        for part, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(part, reference, rtol=1e-12, atol=1e-12, equal_nan=True)

    @every_kind
    def test_few_boxes_come_to_what_they_are_among_many(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = Pass(form(kind), "cxcywh", "cxcywh", of_pred=True, of_target=True)
        for pred, target in (
            wild_pairs(400, torch.float32),
            (upright(seeded(3), 99), upright(seeded(4), 99)),
        ):
            by_numpy = _fused.one_pass(wanted, pred, target, -1)
            with monkeypatch.context() as patch:
                patch.setattr(_fused, "SMALL", 0)
                by_torch = _fused.one_pass(wanted, pred, target, -1)
            for found, expected in zip(by_numpy, by_torch, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, equal_nan=True)

    def test_without_numpy_torch_computes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_fused, "numpy_library", lambda: None)
        pred = torch.tensor([[0.0, 0.0, 2.0, 1.0]])
        wanted = Pass(form("ciou"), "xyxy", "xyxy", of_pred=True, of_target=True)
        loss, *_ = _fused.one_pass(wanted, pred, torch.tensor([[0.0, 0.0, 1.0, 2.0]]), -1)
        torch.testing.assert_close(loss, torch.tensor([0.7629]), rtol=0, atol=1e-4)

    def test_a_program_is_much_shorter_than_the_maths_it_was_traced_from(self) -> None:
        wanted = Pass(form("ciou"), "xyxy", "xyxy", of_pred=True)
        lines = _fused.program(wanted, True, TORCH).text.splitlines()[1:]
        assert len(lines) < 120  # called as it stands, the maths makes 600 tensors
