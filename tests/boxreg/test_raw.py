"""Losses of raw outputs: in every backend the same as to decode first, the gradient at the raw outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from boxreg import BoxHead, CIoULoss
from boxreg._raw import inverse_softplus, sigmoid, sigmoid_grad, softplus
from boxreg.boxes import Planes, convert
from boxreg.decoders import AxisDecoder, Decoder, GridCellDecoder, LTRBDecoder, UnitSquareDecoder
from boxreg.iou.autograd import _as_arguments as as_arguments
from boxreg.reduction import REDUCTIONS
from tests.cases import (
    BACKENDS,
    DECODERS,
    DTYPES,
    FORMATS,
    KINDS,
    aligned_loss,
    assert_all_finite,
    eps,
    in_unit,
    named,
    seeded,
    spec_of,
    uniform,
)

ONE_PASS = [name for name in BACKENDS if name != "eager"]
SHAPE = (2, 3, 5)


@dataclass(frozen=True)
class AreaDecoder(Decoder):
    """A scheme of five numbers that does not read the axes apart."""

    channels: ClassVar[int] = 5  # type: ignore[assignment]

    def _decode(self, raw: tuple[Tensor, ...]) -> Planes:
        x, y, shift, area, aspect = raw
        side = softplus(area)
        return x + shift, y + shift, side * aspect.exp(), side * (-aspect).exp()

    def _encode(self, boxes: Planes, dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, y, w, h = boxes
        return x, y, torch.zeros_like(x), inverse_softplus((w * h).sqrt(), dtype), (w / h).log() / 2


ALL = {**DECODERS, "ltrb": LTRBDecoder(stride=8.0)}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_pass = pytest.mark.parametrize("backend", ONE_PASS)
every_decoder = pytest.mark.parametrize("decoder", ALL.values(), ids=ALL.keys())
every_dtype = pytest.mark.parametrize("dtype", named(DTYPES))


def raw_and_target(
    decoder: Decoder, dtype: torch.dtype = torch.float64, fmt: str = "cxcywh", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Raw outputs (B, channels, H, W), and for each box a target that mostly overlaps it."""
    batch, rows, columns = SHAPE
    raw = torch.randn(batch, decoder.channels, rows, columns, generator=seeded(seed), dtype=torch.float64)
    x1, y1, x2, y2 = convert(decoder.decode(raw, 1), "cxcywh", "xyxy", 1).unbind(1)
    moves = uniform(seeded(seed + 1), 4, *SHAPE, low=-0.3, high=0.3)
    sides = (x2 - x1, y2 - y1) * 2
    corners = [at + move * side for at, move, side in zip((x1, y1, x2, y2), moves, sides, strict=True)]
    return raw.to(dtype), convert(torch.stack(corners, 1), "xyxy", fmt, 1).to(dtype)


def upstream_of(loss: Tensor) -> Tensor:
    return torch.randn(loss.shape, generator=seeded(9), dtype=loss.dtype)


def of_raw(
    kind: str, decoder: Decoder, raw: Tensor, target: Tensor, dim: int = 1, **options: Any
) -> tuple[Tensor, ...]:
    """The loss, and the gradients of both sides under a random upstream gradient."""
    raw, target = raw.clone().requires_grad_(), target.clone().requires_grad_()
    loss = aligned_loss(kind, raw, target, decoder=decoder, dim=dim, **{"fmt": "cxcywh", **options})
    return loss.detach(), *torch.autograd.grad(loss, (raw, target), upstream_of(loss))


def decoded_first(
    kind: str,
    decoder: Decoder,
    raw: Tensor,
    target: Tensor,
    dim: int = 1,
    fmt: str = "cxcywh",
    **options: Any,
) -> tuple[Tensor, ...]:
    """The same by autograd through the decoder and the loss, in the dtype that both compute in."""
    working = torch.float64 if raw.dtype == torch.float64 else torch.float32
    leaf, other = (side.to(working).clone().requires_grad_() for side in (raw, target))
    boxes = convert(decoder.decode(leaf, dim), "cxcywh", fmt, dim)
    loss = aligned_loss(kind, boxes, other, dim=dim, fmt=fmt, backend="eager", **options)
    gradients = torch.autograd.grad(loss, (leaf, other), upstream_of(loss))
    return loss.detach(), *gradients


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float, dim: int) -> None:
    """Close, in units of the largest number of each box's gradient (or of the loss, if above 1)."""
    for place, (part, reference) in enumerate(zip(found, expected, strict=True)):
        size = reference.abs().amax(dim, keepdim=True) if place else reference.abs().clamp(min=1)
        unit = torch.where(size > 0, size, 1.0)
        torch.testing.assert_close(part.to(unit) / unit, reference / unit, rtol=0, atol=tolerance)


@every_backend
@every_decoder
class TestSameAsToDecodeFirst:
    @every_kind
    @every_dtype
    def test_value_and_both_gradients(
        self, kind: str, decoder: Decoder, backend: str, dtype: torch.dtype
    ) -> None:
        raw, target = raw_and_target(decoder, dtype)
        options = in_unit(kind, target.abs().max().item())
        found = of_raw(kind, decoder, raw, target, backend=backend, **options)
        assert [part.dtype for part in found[1:]] == [dtype, dtype]
        tolerance = 1e-12 if dtype == torch.float64 else 128 * eps(torch.float32) + 2 * eps(dtype)
        assert_same(found, decoded_first(kind, decoder, raw, target, **options), tolerance, dim=1)

    @pytest.mark.parametrize("fmt", FORMATS)
    @pytest.mark.parametrize("dim", [0, 1, -3, -1])
    def test_layouts_and_formats_of_the_target(
        self, decoder: Decoder, backend: str, fmt: str, dim: int
    ) -> None:
        planes = raw_and_target(decoder, torch.float32, fmt)
        raw, target = (side.movedim(1, dim) for side in planes)
        loss, *gradients = of_raw("ciou", decoder, raw, target, dim, backend=backend, fmt=fmt)
        found = (loss, *(gradient.movedim(dim, 1) for gradient in gradients))
        assert_same(found, decoded_first("ciou", decoder, *planes, fmt=fmt), 256 * eps(torch.float32), dim=1)

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("normalizer", [None, 7.0, torch.tensor(7.0)], ids=["count", "number", "tensor"])
    def test_weights_and_reductions(
        self, decoder: Decoder, backend: str, reduction: str, weighted: bool, normalizer: Any
    ) -> None:
        if normalizer is not None and reduction != "mean":
            return
        raw, target = raw_and_target(decoder, torch.float32)
        weight = uniform(seeded(3), *SHAPE).float() if weighted else None
        options: dict[str, Any] = {"reduction": reduction, "weight": weight, "normalizer": normalizer}
        found = of_raw("giou", decoder, raw, target, backend=backend, **options)
        expected = decoded_first("giou", decoder, raw, target, **options)
        assert_same(found, expected, 128 * eps(torch.float32), dim=1)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_a_broken_box_stays_alone_and_can_be_masked(
        self, decoder: Decoder, backend: str, bad: float
    ) -> None:
        raw, target = raw_and_target(decoder, torch.float32)
        expected = of_raw("ciou", decoder, raw, target, backend=backend)
        others = torch.ones(SHAPE, dtype=torch.bool)
        others[1, 2, 0] = False
        for place in range(4):
            broken = raw.clone()
            broken[1, place, 2, 0] = bad
            found = of_raw("ciou", decoder, broken, target, backend=backend)
            assert found[0][1, 2, 0].isnan() or decoder.decode(broken, 1)[1, :, 2, 0].isfinite().all()
            for part, reference in zip(found, expected, strict=True):
                kept = others if part.ndim == 3 else others[:, None].expand_as(part)
                torch.testing.assert_close(part[kept], reference[kept], rtol=1e-5, atol=1e-5)
            loss, *gradients = of_raw("ciou", decoder, broken, target, backend=backend, weight=others)
            assert loss[1, 2, 0] == 0
            for gradient in gradients:
                assert torch.equal(gradient[1, :, 2, 0], torch.zeros(4))

    def test_saturated_numbers(self, decoder: Decoder, backend: str) -> None:
        steps = [-1e4, -200.0, -100.0, -89.0, -86.0, -30.0, 0.0, 30.0, 86.0, 89.0, 1e4]
        raw = torch.cartesian_prod(*[torch.tensor(steps)] * 2)
        raw = torch.cat([raw, raw.flip(-1)], -1).T.reshape(4, 11, 11)
        for kind in KINDS:
            for target in ([0.5, 0.5, 0.2, 0.3], [0.5, 0.5, 1e-30, 0.0]):
                boxes = torch.tensor(target).view(4, 1, 1).expand(4, 11, 11)
                assert_all_finite(*of_raw(kind, decoder, raw, boxes, 0, backend=backend))

    def test_gradient_is_alive_as_far_out_as_the_decoders(self, decoder: Decoder, backend: str) -> None:
        # The box is far smaller or larger than the target, or off its centre: its own gradient is not 0.
        far = torch.tensor([-86.0, -60.0, 60.0, 86.0])
        raw = torch.zeros(4, 4, 4)
        raw[0], raw[1] = far, far.flip(0)
        target = torch.tensor([0.1, 0.9, 0.5, 0.7]).view(4, 1, 1).expand(4, 4, 4)
        grads = of_raw("diou", decoder, raw, target, 0, backend=backend, reduction="sum")[1]
        expected = decoded_first("diou", decoder, raw.double(), target.double(), 0, reduction="sum")[1]
        upstream = upstream_of(torch.zeros(())) / upstream_of(torch.zeros((), dtype=torch.float64))
        torch.testing.assert_close(grads.double(), expected * upstream, rtol=1e-4, atol=1e-44)
        assert (grads[:2] != 0).all()


@every_pass
class TestOnePass:
    def test_it_is_one(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def decode(self: Decoder, raw: Tensor, dim: int = -1) -> Tensor:
            raise AssertionError("decoded by itself")

        raw, target = raw_and_target(UnitSquareDecoder(), torch.float32)
        monkeypatch.setattr(AxisDecoder, "decode", decode)
        of_raw("ciou", UnitSquareDecoder(), raw, target, backend=backend)

    def test_only_one_side_needs_a_gradient(self, backend: str) -> None:
        decoder = GridCellDecoder()
        raw, target = raw_and_target(decoder, torch.float32)
        loss, *expected = of_raw("ciou", decoder, raw, target, backend=backend)
        for asked, gradient in enumerate(expected):
            sides = [side.clone().requires_grad_(place == asked) for place, side in enumerate((raw, target))]
            found = aligned_loss("ciou", *sides, decoder=decoder, fmt="cxcywh", dim=1, backend=backend)
            assert torch.equal(torch.autograd.grad(found, sides[asked], upstream_of(found))[0], gradient)
        found = aligned_loss("ciou", raw, target, decoder=decoder, fmt="cxcywh", dim=1, backend=backend)
        assert not found.requires_grad
        assert torch.equal(found, loss)

    @every_decoder
    def test_compiles_without_a_graph_break(self, decoder: Decoder, backend: str) -> None:
        raw, target = raw_and_target(decoder, torch.float32)
        raw.requires_grad_()
        torch._dynamo.reset()
        criterion = CIoULoss(dim=1, backend=backend).from_raw(decoder)
        compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")(raw, target)
        (found,) = torch.autograd.grad(compiled, raw)
        (expected,) = torch.autograd.grad(criterion(raw, target), raw)
        assert torch.equal(compiled, criterion(raw, target))
        assert torch.equal(found, expected)

    def test_fake_tensors(self, backend: str) -> None:
        with FakeTensorMode():
            raw = torch.rand(2, 4, 3, 5, dtype=torch.float16, requires_grad=True)
            loss = CIoULoss(dim=1, backend=backend).from_raw(GridCellDecoder())(raw, torch.rand(2, 4, 3, 5))
            loss.backward()
        assert isinstance(raw.grad, FakeTensor)
        assert (loss.shape, raw.grad.dtype, raw.grad.shape) == ((), torch.float16, raw.shape)

    def test_an_operator_with_a_fake_that_tells_the_truth(self, backend: str) -> None:
        decoder = GridCellDecoder(image_size=(640, 480))
        raw, target = raw_and_target(decoder, torch.float32)
        for reduction in REDUCTIONS:
            spec = spec_of("ciou", fmt="cxcywh")._replace(
                reduction=reduction, scheme=decoder.scheme, settings=decoder.settings, pred_grad=True
            )
            torch.library.opcheck(
                torch.ops.boxreg.aligned.default,
                (raw, target, None, 1, backend, *as_arguments(spec)),
                test_utils=["test_schema", "test_faketensor"],
            )


@every_decoder
def test_a_second_derivative_is_eagers(decoder: Decoder) -> None:
    found = []
    for backend in ("auto", "eager"):
        raw, target = raw_and_target(decoder)
        raw.requires_grad_()
        loss = CIoULoss(dim=1, backend=backend).from_raw(decoder)(raw, target)
        (grads,) = torch.autograd.grad(loss, raw, create_graph=True)
        found += torch.autograd.grad(grads.square().sum(), raw)
    torch.testing.assert_close(*found)


def test_torch_func_looks_inside() -> None:
    decoder = GridCellDecoder()
    raw, target = raw_and_target(decoder)
    criterion = CIoULoss(dim=0, reduction="sum").from_raw(decoder)
    found = torch.func.vmap(torch.func.grad(criterion))(raw, target)
    expected = of_raw("ciou", decoder, raw, target, reduction="sum")[1]
    torch.testing.assert_close(found * upstream_of(torch.zeros((), dtype=raw.dtype)), expected)


@every_backend
@pytest.mark.parametrize("fmt", FORMATS)
def test_a_scheme_that_does_not_read_the_axes_apart_goes_through_autograd(backend: str, fmt: str) -> None:
    decoder = AreaDecoder()
    raw, target = raw_and_target(decoder, torch.float32, fmt)
    weight = torch.ones(SHAPE)
    raw[0, :, 1, 1], weight[0, 1, 1] = float("nan"), 0
    options: dict[str, Any] = {"fmt": fmt, "reduction": "mean", "weight": weight}
    found = of_raw("ciou", decoder, raw, target, backend=backend, **options)
    raw[0, :, 1, 1] = 0.5
    expected = decoded_first("ciou", decoder, raw, target, **options)
    assert_same(found, expected, 128 * eps(torch.float32), dim=1)
    assert torch.equal(found[1][0, :, 1, 1], torch.zeros(5))


def test_a_scheme_of_ones_own_starts_a_head_at_its_prior() -> None:
    prior = (0.5, 0.25, 0.2, 0.3)
    boxes = BoxHead(8, prior, decoder=AreaDecoder())(torch.zeros(2, 8))
    torch.testing.assert_close(boxes, torch.tensor([prior, prior]))


def test_a_class_that_is_defined_again_is_another_scheme() -> None:
    def define() -> type[AxisDecoder]:
        class Again(UnitSquareDecoder):
            pass

        return Again

    assert len({UnitSquareDecoder.scheme, define().scheme, define().scheme}) == 3


class LaplaceDecoder(AxisDecoder):
    """A user's scheme that calls helpers of its own module, integers among its constants."""

    @staticmethod
    def decode_axis(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return bent(first) / 2 + 1, OWN_UNIT * sigmoid(second) + 1

    @staticmethod
    def decode_axis_grad(first: Tensor, second: Tensor) -> tuple[Any, Any, Any, Any]:
        return bent_grad(first) / 2, 0.0, 0.0, OWN_UNIT * sigmoid_grad(second)

    @staticmethod
    def encode_axis(centre: Tensor, size: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return centre, size


OWN_UNIT = 3.0


def bent(t: Tensor) -> Tensor:
    """t / (1 + |t|)."""
    return t / (1 + torch.abs(t))


def bent_grad(t: Tensor) -> Tensor:
    """The derivative of `bent`."""
    share = 1 / (1 + torch.abs(t))
    return share * share


class MethodDecoder(LaplaceDecoder):
    """The same by methods of tensors, which no kernel has."""

    @staticmethod
    def decode_axis(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first.div(1 + first.abs()) / 2 + 1, OWN_UNIT * second.sigmoid() + 1


@pytest.mark.parametrize("decoder", [LaplaceDecoder(), MethodDecoder()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("dtype", named((torch.float32, torch.float64)))
def test_a_users_own_axes_with_helpers(decoder: AxisDecoder, dtype: torch.dtype) -> None:
    raw, target = raw_and_target(decoder, dtype)
    expected = decoded_first("ciou", decoder, raw, target)
    for backend in ("auto", "eager"):
        assert_same(of_raw("ciou", decoder, raw, target, backend=backend), expected, 64 * eps(dtype), dim=1)
    if type(decoder) is MethodDecoder:
        with pytest.raises(ValueError, match=r"decoder: got .*, which backend 'numba' cannot compile"):
            of_raw("ciou", decoder, raw, target, backend="numba")


class TestFromRaw:
    def test_of_a_head(self) -> None:
        head = BoxHead(8, (0.5, 0.5, 0.2, 0.3), decoder=GridCellDecoder(), projection="conv")
        features = torch.randn(2, 8, 3, 5, generator=seeded(1))
        target = torch.rand(2, 4, 3, 5, generator=seeded(2))
        criterion = CIoULoss(fmt="cxcywh", dim=head.dim, loss_weight=5.0)
        expected = criterion(head(features), target)
        found = criterion.from_raw(head.decoder)(head.raw(features), target)
        torch.testing.assert_close(found, expected)
        for one, other in zip(
            torch.autograd.grad(found, head.parameters()),
            torch.autograd.grad(expected, head.parameters()),
            strict=True,
        ):
            torch.testing.assert_close(one, other)

    def test_the_loss_it_is_made_from_stays_as_it_is(self) -> None:
        criterion = CIoULoss(reduction="sum")
        of_raw = criterion.from_raw(UnitSquareDecoder())
        assert (criterion.decoder, criterion.fmt) == (None, "xyxy")
        assert (of_raw.decoder, of_raw.fmt, of_raw.reduction) == (UnitSquareDecoder(), "cxcywh", "sum")
        assert "decoder=UnitSquareDecoder()" in repr(of_raw)
        assert "decoder" not in repr(criterion)

    def test_half_precision_is_not_rounded_between(self) -> None:
        decoder = GridCellDecoder(image_size=(640.0, 480.0))
        raw, target = raw_and_target(decoder, torch.bfloat16)
        found = CIoULoss(dim=1, reduction="none").from_raw(decoder)(raw, target)
        expected = CIoULoss(dim=1, reduction="none").from_raw(decoder)(raw.float(), target.float())
        assert torch.equal(found, expected)

    def test_bad_arguments(self) -> None:
        with pytest.raises(TypeError, match="decoder: got 'sigmoid', expected an instance of a Decoder"):
            CIoULoss().from_raw("sigmoid")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="decoder: got 1, expected an instance of a Decoder"):
            aligned_loss("iou", torch.zeros(4), torch.zeros(4), decoder=1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="fmt: got 'xyhw'"):
            CIoULoss().from_raw(UnitSquareDecoder(), fmt="xyhw")
        criterion = CIoULoss().from_raw(UnitSquareDecoder())
        with pytest.raises(ValueError, match=r"pred: got shape \(3, 5\), expected 4 numbers along dim -1"):
            criterion(torch.zeros(3, 5), torch.zeros(3, 4))
        with pytest.raises(ValueError, match=r"target: got shape \(3, 5\), expected 4 coordinates"):
            criterion(torch.zeros(3, 4), torch.zeros(3, 5))
        with pytest.raises(ValueError, match=r"pred without dim -1 and target.*: got \(3,\) and \(2,\)"):
            criterion(torch.zeros(3, 4), torch.zeros(2, 4))
        with pytest.raises(ValueError, match=r"pred: .*GridCellDecoder reads its grid"):
            CIoULoss().from_raw(GridCellDecoder())(torch.zeros(3, 4), torch.zeros(3, 4))
