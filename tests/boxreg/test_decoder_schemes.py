"""Schemes of a pyramid's level: the published formulas, anchors, priors, and losses of their raw outputs."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from boxreg import CIoULoss, Level, convert, dfl_integral, points_of
from boxreg._raw import EXP_BOUND, KNEE
from boxreg.decoders import (
    AxisDecoder,
    Decoder,
    DeltaDecoder,
    DFLDecoder,
    GridCellDecoder,
    LTRBDecoder,
    UnitSquareDecoder,
    YOLOv3Decoder,
    YOLOv5Decoder,
)
from boxreg.decoders.anchors import AnchorDecoder
from boxreg.functional import ciou_loss
from tests.cases import BACKENDS, LEVEL_DECODERS, aligned_loss, eps, seeded, uniform

ANCHORS = ((10.0, 13.0), (33.0, 23.0), (16.0, 30.0))
ROWS, COLS = 3, 5
PLANE = (2, 3, ROWS, COLS)
SCHEMES = {
    **LEVEL_DECODERS,
    "yolov3": YOLOv3Decoder(stride=8.0, anchors=ANCHORS),
    "yolov5": YOLOv5Decoder(stride=8.0, anchors=ANCHORS),
}
"""As in `LEVEL_DECODERS`, but of three boxes a cell."""

every_scheme = pytest.mark.parametrize("decoder", SCHEMES.values(), ids=SCHEMES.keys())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_distance = pytest.mark.parametrize("distance", ["softplus", "relu", "exp"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def corners_of(boxes: Tensor) -> Tensor:
    return convert(boxes, "cxcywh", "xyxy", dim=1)


# The formulas, on numbers in a cell of one's choice: box 1 of row 2, column 4


def in_cell(decoder: Decoder, *numbers: float) -> list[float]:
    raw = torch.zeros(1, decoder.channels, 3, ROWS, COLS, dtype=torch.float64)
    raw[0, :, 1, 2, 4] = torch.tensor(numbers)
    boxes: list[float] = decoder.decode(raw, dim=1)[0, :, 1, 2, 4].tolist()
    return boxes


def test_yolov3_by_hand() -> None:
    # sigmoid(ln 3) = 3/4, sigmoid(-ln 4) = 1/5; the anchor 33 by 23 doubled and halved.
    found = in_cell(YOLOv3Decoder(8, ANCHORS), math.log(3), -math.log(4), math.log(2), -math.log(2))
    assert found == pytest.approx([(4 + 0.75) * 8, (2 + 0.2) * 8, 66, 11.5])


def test_yolov3_goes_on_as_a_tangent() -> None:
    bound = math.log(1000 / 16)
    found = in_cell(YOLOv3Decoder(8, ANCHORS), 0, 0, bound, bound + 2)
    assert found[2:] == pytest.approx([33 * 62.5, 23 * 62.5 * 3])


def test_yolov5_by_hand() -> None:
    # 2 * 3/4 - 0.5 = 1, 2 * 1/5 - 0.5 = -0.1; (2 * 3/4)^2 = 2.25, (2 * 1/5)^2 = 0.16
    log3, log4 = math.log(3), math.log(4)
    found = in_cell(YOLOv5Decoder(8, ANCHORS), log3, -log4, log3, -log4)
    assert found == pytest.approx([(4 + 1) * 8, (2 - 0.1) * 8, 33 * 2.25, 23 * 0.16])


@pytest.mark.parametrize(
    ("distance", "raw"),
    [
        ("softplus", [math.log(math.expm1(d)) for d in (1, 2, 3, 0.5)]),
        ("relu", [1, 2, 3, 0.5]),
        ("exp", [math.log(d) for d in (1, 2, 3, 0.5)]),
    ],
)
def test_ltrb_by_hand(distance: str, raw: list[float]) -> None:
    # The point of row 2, column 4 is (36, 20); 1, 2, 3 and 1/2 strides of 8 from it.
    cx, cy, w, h = in_cell(LTRBDecoder(8, distance), *raw)
    assert [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] == pytest.approx([28, 4, 60, 24])


def test_points_are_those_of_the_pyramid() -> None:
    points = points_of([(ROWS, COLS, 8)], per_cell=3, dtype=torch.float64)
    raw = torch.full((1, 4, 3, ROWS, COLS), 1.5, dtype=torch.float64)
    x1, y1, x2, y2 = corners_of(LTRBDecoder(8, "relu").decode(raw, dim=1)).flatten(2)[0]
    assert_close(torch.stack((x1, y1)), torch.stack((points.x, points.y)) - 12)
    assert_close(torch.stack((x2, y2)), torch.stack((points.x, points.y)) + 12)


def test_rectified_distances_are_relu_but_near_0() -> None:
    t = torch.linspace(-4, 4, 801, dtype=torch.float64)
    raw = torch.stack((t, t, t, t)).unsqueeze(1)  # (4, 1, 801)
    width = LTRBDecoder(1.0, "relu").decode(raw, dim=0)[2, 0] / 2
    assert_close(width[t > KNEE], t[t > KNEE])
    assert ((width - t.relu()).abs() <= KNEE / 2 + 1e-12).all()
    assert (width > 0).all()
    assert (width.diff() > 0).all()


def test_dfl_by_hand() -> None:
    # All on one bin; half and half on two; 3/4 and 1/4; even on all of 0 to 3.
    low = -1e3
    sides = [[low, low, 0, low], [0, 0, low, low], [math.log(3), 0, low, low], [5, 5, 5, 5]]
    cx, cy, w, h = in_cell(DFLDecoder(8, bins=4), *(logit for side in sides for logit in side))
    corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    assert corners == pytest.approx([36 - 2 * 8, 20 - 0.5 * 8, 36 + 0.25 * 8, 20 + 1.5 * 8])


def test_dfl_is_the_integral_side_by_side() -> None:
    decoder = DFLDecoder(8)
    raw = normal(2, 64, 3, ROWS, COLS)
    left, top, right, bottom = dfl_integral(decoder.logits(raw, 1), dim=2).unbind(1)
    points = points_of([(ROWS, COLS, 8)], dtype=raw.dtype)
    x, y = points.x.view(ROWS, COLS), points.y.view(ROWS, COLS)
    expected = torch.stack((x - 8 * left, y - 8 * top, x + 8 * right, y + 8 * bottom), 1)
    assert_close(corners_of(decoder.decode(raw, dim=1)), expected)


def test_deltas_by_hand() -> None:
    decoder = DeltaDecoder(means=(0.0, 0.1, 0.0, 0.0), stds=(0.1, 0.1, 0.2, 0.2))
    reference = torch.tensor([[50.0, 60.0, 20.0, 40.0]], dtype=torch.float64)
    raw = torch.tensor([[1.0, -2.0, 5 * math.log(3), -5 * math.log(2)]], dtype=torch.float64)
    expected = torch.tensor([[50 + 0.1 * 20, 60 - 0.1 * 40, 60, 20]], dtype=torch.float64)
    assert_close(decoder.about(reference).decode(raw), expected)
    assert_close(decoder.about(reference).encode(expected), raw)


def test_deltas_about_cells_are_yoloxs_boxes() -> None:
    x, y, stride = points_of([(ROWS, COLS, 8), (2, 2, 16)], dtype=torch.float64)
    cells = torch.stack((x - stride / 2, y - stride / 2, stride, stride))
    raw = normal(2, 4, len(x))
    grid = torch.stack((x / stride - 0.5, y / stride - 0.5))
    expected = torch.cat(((raw[:, :2] + grid) * stride, raw[:, 2:].exp() * stride), 1)
    assert_close(DeltaDecoder().about(cells, dim=0).decode(raw, dim=1), expected)


# Inverses


def reachable(decoder: Decoder, seed: int, dtype: torch.dtype) -> Tensor:
    """Boxes that each of three boxes a cell can express, (2, 4, 3, ROWS, COLS)."""
    assert decoder.needs_grid
    stride, _ = decoder.extent
    col, row = torch.arange(COLS), torch.arange(ROWS).unsqueeze(-1)
    shares = uniform(seeded(seed), 4, *PLANE, low=0.001, high=0.999)
    if isinstance(decoder, AnchorDecoder):
        factor = 10 ** (12 * shares[2:] - 10) if isinstance(decoder, YOLOv3Decoder) else 4 * shares[2:]
        anchors = torch.tensor(decoder.anchor_sides).view(2, 1, -1, 1, 1)
        w, h = factor * anchors
        return torch.stack(((col + shares[0]) * stride, (row + shares[1]) * stride, w, h), 1).to(dtype)
    if isinstance(decoder, DFLDecoder):
        left, top, right, bottom = (decoder.bins - 1) * shares
    else:
        left, top, right, bottom = 10 ** (6 * shares - 3)
    x, y = col + 0.5, row + 0.5
    sides = torch.stack((x - left, y - top, x + right, y + bottom), 1) * stride
    return convert(sides, "xyxy", "cxcywh", dim=1).to(dtype)


@every_scheme
@every_dtype
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_decode_undoes_encode(decoder: Decoder, dtype: torch.dtype, seed: int) -> None:
    boxes = reachable(decoder, seed, dtype)
    found = decoder.decode(decoder.encode(boxes, dim=1), dim=1)
    # A centre is off by a rounding of the map's extent, a side by one of where it is as well.
    largest = boxes.abs().amax(1, keepdim=True) + COLS * decoder.extent[0]
    allowed = 16 * eps(dtype) * largest.expand_as(boxes).clone()
    if isinstance(decoder, AnchorDecoder):
        allowed[:, 2:] = 60 * eps(dtype) * boxes[:, 2:]
    assert ((found - boxes).abs() <= allowed).all()


@every_scheme
@every_dtype
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 3.0]))
def test_encode_undoes_decode(decoder: Decoder, dtype: torch.dtype, seed: int, scale: float) -> None:
    if isinstance(decoder, DFLDecoder):
        return  # many distributions have one expectation
    raw = (scale * normal(2, 4, *PLANE[1:], seed=seed, dtype=dtype)).clamp(-5, 8)
    boxes = decoder.decode(raw, dim=1).double()
    again = decoder.encode(boxes.to(dtype), dim=1)
    # dt = db / derivative: boxes are rounded in units of where they are, the derivative falls as exp(-|t|)
    # or 1 / t^2.
    place = (boxes.abs().amax() / decoder.extent[0] + COLS) * (2 + raw.abs().amax().exp() + 256 * 64)
    assert ((again - raw).abs() <= 8 * eps(dtype) * place).all()
    assert_close(decoder.decode(again, dim=1), boxes.to(dtype), rtol=1e3 * eps(dtype), atol=1e3 * eps(dtype))


@every_distance
def test_a_side_beyond_the_point_is_moved_to_it(distance: str) -> None:
    decoder = LTRBDecoder(8, distance)
    # The point is (4, 4); the box lies to the right of it.
    box = convert(torch.tensor([6.0, 0.0, 10.0, 8.0]), "xyxy", "cxcywh").view(4, 1, 1)
    found = decoder.decode(decoder.encode(box, dim=0), dim=0).flatten()
    assert_close(convert(found, "cxcywh", "xyxy"), torch.tensor([4.0, 0.0, 10.0, 8.0]))


def test_a_distribution_has_its_ends() -> None:
    box = torch.tensor([4.0, 4.0, 800.0, 16.0]).view(4, 1, 1)
    found = DFLDecoder(8, bins=5).decode(DFLDecoder(8, bins=5).encode(box, dim=0), dim=0)
    assert_close(found.flatten(), torch.tensor([4.0, 4.0, 64.0, 16.0]))


# Gradients


@pytest.mark.parametrize("decoder", [SCHEMES["yolov3"], SCHEMES["yolov5"]], ids=["yolov3", "yolov5"])
@pytest.mark.parametrize(("dtype", "reach", "low"), [(torch.float32, 86, 43), (torch.float64, 700, 350)])
def test_anchors_gradient_is_alive_far_out(
    decoder: Decoder, dtype: torch.dtype, reach: float, low: float
) -> None:
    raw = torch.linspace(-reach, reach, 101, dtype=dtype).expand(4, 3, 1, 101).clone()
    raw[2:] = raw[2:].clamp(min=-low if isinstance(decoder, YOLOv5Decoder) else -reach)
    raw.requires_grad_()
    (grad,) = torch.autograd.grad(decoder.decode(raw, dim=0).sum(), raw)
    assert (grad > 0).all()
    assert grad.isfinite().all()


@every_distance
@every_dtype
def test_distances_gradient_is_alive_far_out(distance: str, dtype: torch.dtype) -> None:
    reach = 86 if dtype == torch.float32 else 700
    raw = torch.linspace(-reach, reach, 101, dtype=dtype)
    if distance == "relu":
        raw = torch.cat((raw, torch.tensor([-1e4, -1e16, 1e16], dtype=dtype)))
    raw = raw.expand(4, 1, -1).clone().requires_grad_()
    (grad,) = torch.autograd.grad(LTRBDecoder(8, distance).decode(raw, dim=0).sum(), raw)
    assert (grad > 0).all()
    assert grad.isfinite().all()


def test_a_delta_above_the_clip_keeps_its_gradient() -> None:
    raw = torch.tensor([0.0, 0.0, 9.0, 1e30], requires_grad=True)
    decoder = DeltaDecoder().about(torch.tensor([0.0, 0.0, 2.0, 2.0]))
    boxes = decoder.decode(raw)
    (grad,) = torch.autograd.grad(boxes.sum(), raw)
    assert_close(grad, torch.tensor([2.0, 2.0, 125.0, 125.0]))
    assert_close(boxes[2].item(), 125 * (1 + 9 - EXP_BOUND))
    assert boxes.isfinite().all()


# Anchors


@pytest.mark.parametrize("cls", [YOLOv3Decoder, YOLOv5Decoder])
class TestAnchors:
    def test_each_box_of_a_cell_has_its_own(self, cls: type[AnchorDecoder]) -> None:
        decoder = cls(8, ANCHORS)
        boxes = decoder.decode(torch.zeros(2, 4, 3, ROWS, COLS), dim=1)
        expected = torch.tensor(ANCHORS).T.view(2, 3, 1, 1).expand(2, 2, 3, ROWS, COLS)
        assert_close(boxes[:, 2:], expected)
        by_one = [cls(8, [anchor]).decode(torch.zeros(2, 4, ROWS, COLS), dim=1) for anchor in ANCHORS]
        assert torch.equal(boxes, torch.stack(by_one, 2))

    def test_layouts(self, cls: type[AnchorDecoder]) -> None:
        decoder, raw = cls(8, ANCHORS), normal(2, 4, 3, ROWS, COLS)
        planes = decoder.decode(raw, dim=1)
        for dim in (0, -1, -4):
            assert torch.equal(decoder.decode(raw.movedim(1, dim), dim), planes.movedim(1, dim))
        # As it comes from a convolution.
        flat = raw.flatten(1, 2)
        assert torch.equal(decoder.decode(flat.view(2, 4, 3, ROWS, COLS), dim=1), planes)

    def test_a_map_of_other_boxes_is_refused(self, cls: type[AnchorDecoder]) -> None:
        for shape in [(2, 4, ROWS, COLS), (2, 4, 2, ROWS, COLS), (4, ROWS, COLS)]:
            with pytest.raises(ValueError, match=r"raw: got shape .*3 anchors: expected \(B, 4, 3, H, W\)"):
                cls(8, ANCHORS).decode(torch.zeros(shape), dim=-3 if len(shape) == 3 else 1)
        with pytest.raises(ValueError, match=r"boxes: got shape .*3 anchors"):
            cls(8, ANCHORS).encode(torch.ones(2, 4, 1, ROWS, COLS), dim=1)

    def test_biases(self, cls: type[AnchorDecoder]) -> None:
        decoder = cls(8, ANCHORS)
        at_anchors = decoder.bias([(4.0, 4.0, *anchor) for anchor in decoder.own_sizes])
        assert_close(at_anchors, torch.zeros(4, 3), rtol=0, atol=1e-6)
        priors = [(2.0, 4.0, 12.0, 9.0), (4.0, 6.0, 40.0, 20.0), (4.0, 4.0, 16.0, 31.0)]
        bias = decoder.bias(priors)
        assert bias.shape == (4, 3)
        boxes = decoder.decode(bias.view(4, 3, 1, 1), dim=0)
        assert_close(boxes.flatten(1).T, torch.tensor(priors))
        with pytest.raises(ValueError, match="prior: got 1 boxes, expected one for each of the 3 anchors"):
            decoder.bias(priors[0])
        with pytest.raises(ValueError, match="prior: got 2 boxes, expected one for each of the 3 anchors"):
            decoder.bias(priors[:2])


# Priors


@every_scheme
@every_dtype
def test_bias_decodes_to_the_prior(decoder: Decoder, dtype: torch.dtype) -> None:
    side, _ = decoder.extent
    sizes = decoder.own_sizes
    assert sizes is not None
    per_cell = len(sizes)
    priors = [(0.4 * side, 0.7 * side, 0.9 * w, 0.8 * h) for w, h in sizes]
    bias = decoder.bias(priors, dtype)
    assert bias.shape == (decoder.channels, per_cell)
    raw = bias.view(-1, per_cell, 1, 1).expand(-1, -1, ROWS, COLS)
    cx, cy, w, h = decoder.decode(raw, dim=0)
    for number, prior in enumerate(priors):
        at = [(torch.arange(n, dtype=dtype) * side + c) for n, c in ((COLS, prior[0]), (ROWS, prior[1]))]
        assert_close(cx[number], at[0].expand(ROWS, COLS))
        assert_close(cy[number], at[1].unsqueeze(-1).expand(ROWS, COLS))
        assert_close(w[number], torch.full_like(w[number], prior[2]))
        assert_close(h[number], torch.full_like(h[number], prior[3]))
    if per_cell == 1:
        assert torch.equal(decoder.bias(priors[0], dtype), bias.flatten())


@pytest.mark.parametrize(
    ("decoder", "prior"),
    [
        (DFLDecoder(8, bins=5), (4.0, 4.0, 65.0, 8.0)),
        (LTRBDecoder(8), (1.0, 4.0, 5.0, 8.0)),  # ends left of the point
        (YOLOv5Decoder(8, [(10.0, 10.0)]), (4.0, 4.0, 41.0, 10.0)),
    ],
)
def test_a_prior_that_cannot_be_expressed_is_refused(decoder: Decoder, prior: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"prior: got .*, expected what .* can express; the nearest is"):
        decoder.bias(prior)


def test_deltas_prior_is_a_fraction_of_the_reference() -> None:
    decoder = DeltaDecoder(means=(0.0, 0.0, 0.1, 0.1), stds=(0.1, 0.1, 0.2, 0.2))
    reference = torch.tensor([[50.0, 60.0, 20.0, 40.0]])
    bias = decoder.bias((0.75, 0.5, 1.0, 2.0))
    expected = torch.tensor([[55.0, 60.0, 20.0, 80.0]])
    assert_close(decoder.about(reference).decode(bias.unsqueeze(0)), expected)


# Losses of raw outputs


def raw_and_target(
    decoder: Decoder, dtype: torch.dtype, plane: tuple[int, ...] = PLANE
) -> tuple[Tensor, Tensor]:
    raw = normal(2, decoder.channels, *plane[1:], seed=3)
    boxes = decoder.decode(raw, dim=1)
    x1, y1, x2, y2 = corners_of(boxes).unbind(1)
    moves = uniform(seeded(4), 4, *plane, low=-0.3, high=0.3)
    w, h = x2 - x1, y2 - y1
    corners = (x1 + moves[0] * w, y1 + moves[1] * h, x2 + moves[2] * w, y2 + moves[3] * h)
    return raw.to(dtype), convert(torch.stack(corners, 1), "xyxy", "cxcywh", dim=1).to(dtype)


def value_and_gradient(
    decoder: Decoder, raw: Tensor, target: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    raw = raw.clone().requires_grad_()
    loss = aligned_loss("ciou", raw, target, decoder=decoder, fmt="cxcywh", **{"dim": 1, **options})
    upstream = torch.randn(loss.shape, generator=seeded(9), dtype=torch.float64).to(loss.dtype)
    return loss.detach(), torch.autograd.grad(loss, raw, upstream)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@every_scheme
@every_dtype
def test_from_raw_is_to_decode_first(decoder: Decoder, backend: str, dtype: torch.dtype) -> None:
    raw, target = raw_and_target(decoder, dtype)
    leaf = raw.double().requires_grad_()
    expected = aligned_loss(
        "ciou", decoder.decode(leaf, dim=1), target.double(), fmt="cxcywh", dim=1, backend="eager"
    )
    upstream = torch.randn(expected.shape, generator=seeded(9), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(expected, leaf, upstream)
    # The smallest boxes are a few hundredths of a cell, several cells from the origin.
    tolerance = 512 * eps(dtype)
    unit = gradient.abs().amax(1, keepdim=True)
    for dim in (1, -1):
        moved = (side.movedim(1, dim) for side in (raw, target))
        loss, found = value_and_gradient(decoder, *moved, dim=dim, backend=backend)
        assert_close(loss.double(), expected, rtol=0, atol=tolerance)
        assert_close(found.movedim(dim, 1) / unit, gradient / unit, rtol=0, atol=tolerance, check_dtype=False)


@every_scheme
def test_from_raw_of_many(decoder: Decoder) -> None:
    # In more pieces than one and by several threads, each of which finds its cells by itself.
    raw, target = raw_and_target(decoder, torch.float64, (2, 3, 55, 67))
    expected = value_and_gradient(decoder, raw, target, backend="eager")
    found = value_and_gradient(decoder, raw, target)
    for part, other in zip(found, expected, strict=True):
        assert_close(part, other, rtol=1e-10, atol=1e-12)


def test_anchors_as_an_operator() -> None:
    decoder = YOLOv3Decoder(8, ANCHORS)
    raw, target = raw_and_target(decoder, torch.float32)
    torch._dynamo.reset()
    raw.requires_grad_()
    criterion = CIoULoss(dim=1, backend=BACKENDS[-1]).from_raw(decoder)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")(raw, target)
    (found,) = torch.autograd.grad(compiled, raw)
    assert torch.equal(compiled, criterion(raw, target))
    assert torch.equal(found, torch.autograd.grad(criterion(raw, target), raw)[0])


def test_deltas_fit_a_loss_by_their_reference() -> None:
    reference = torch.tensor([[50.0, 60.0, 20.0, 40.0], [10.0, 10.0, 8.0, 8.0]])
    raw, target = normal(2, 4, dtype=torch.float32).requires_grad_(), reference + 2

    def loss(reference: Tensor) -> Tensor:
        decoder = DeltaDecoder(stds=(0.1, 0.1, 0.2, 0.2)).about(reference)
        return ciou_loss(raw, target, fmt="cxcywh", reduction="mean", decoder=decoder)

    boxes = torch.cat(
        (reference[:, :2] + 0.1 * raw[:, :2] * reference[:, 2:], reference[:, 2:] * (0.2 * raw[:, 2:]).exp()),
        1,
    )
    expected = CIoULoss(fmt="cxcywh")(boxes, target)
    assert_close(loss(reference), expected)
    of_raw = CIoULoss().from_raw(DeltaDecoder(stds=(0.1, 0.1, 0.2, 0.2)).about(reference))
    assert_close(of_raw(raw, target), expected)
    torch._dynamo.reset()
    assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(reference), expected)


# Levels, values and errors


def test_levels() -> None:
    assert LTRBDecoder(8).level(3, 5) == Level(3, 5, 8)
    assert GridCellDecoder(image_size=(640, 480)).level(15, 20) == Level(15, 20, 32)
    assert UnitSquareDecoder().level(4, 4) == Level(4, 4, 0.25)
    with pytest.raises(ValueError, match="level: got 3 rows and 4 columns, expected square cells"):
        GridCellDecoder().level(3, 4)


@every_scheme
def test_decoders_are_values(decoder: Decoder) -> None:
    copied = pickle.loads(pickle.dumps(decoder))
    assert copied == decoder
    assert hash(copied) == hash(decoder)
    assert dataclasses.replace(decoder, stride=64.0) != decoder  # type: ignore[type-var]
    assert str(decoder.extent[0]) in repr(decoder)
    if isinstance(decoder, AxisDecoder):
        assert copied.scheme == decoder.scheme
    raw = normal(2, decoder.channels, *PLANE[1:])
    assert torch.equal(copied.decode(raw, dim=1), decoder.decode(raw, dim=1))


def test_lists_become_tuples_and_references_are_not_compared() -> None:
    decoder = YOLOv3Decoder(8, [[10, 13]])  # type: ignore[list-item]
    assert decoder == YOLOv3Decoder(8, ((10, 13),))
    assert repr(decoder) == "YOLOv3Decoder(stride=8, anchors=((10, 13),))"
    bound = DeltaDecoder(stds=[1, 1, 2, 2]).about(torch.ones(3, 4))  # type: ignore[arg-type]
    assert bound == DeltaDecoder(stds=(1, 1, 2, 2))
    assert hash(bound) == hash(DeltaDecoder(stds=(1, 1, 2, 2)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LTRBDecoder(0), ValueError, "stride: got 0, expected a number above 0"),
        (lambda: LTRBDecoder("8"), TypeError, "stride: got str, expected a number"),  # type: ignore[arg-type]
        (lambda: LTRBDecoder(8, "sofplus"), ValueError, "distance: got 'sofplus'.*mean 'softplus'"),
        (lambda: DFLDecoder(8, 16.0), TypeError, "bins: got float, expected an int"),  # type: ignore[arg-type]
        (lambda: DFLDecoder(8, 1), ValueError, "bins: got 1, expected at least 2"),
        (lambda: YOLOv3Decoder(8, []), ValueError, r"anchors: got \[\], expected at least one"),
        (lambda: YOLOv5Decoder(8, [10, 13]), ValueError, r"anchors: got 10, expected"),  # type: ignore[list-item]
        (lambda: YOLOv5Decoder(8, [(10, 0)]), ValueError, "anchors: got a side of 0, expected sides above 0"),
        (lambda: DeltaDecoder(stds=(1, 1, 0, 1)), ValueError, r"stds: got \(1, 1, 0, 1\), expected numbers"),
        (lambda: DeltaDecoder(means=(1, 1)), ValueError, r"means: got \(1, 1\), expected"),  # type: ignore[arg-type]
        (lambda: DeltaDecoder(clip=-1), ValueError, "clip: got -1, expected a finite number of at least 0"),
        (lambda: DeltaDecoder().about(torch.ones(2, 5)), ValueError, r"reference: got shape \(2, 5\)"),
    ],
)
def test_bad_settings(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_bad_tensors() -> None:
    with pytest.raises(ValueError, match=r"reference: got none, expected .*decoder.about\(reference\)"):
        DeltaDecoder().decode(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"reference: got shape \(5,\) .* that of raw, \(3,\)"):
        DeltaDecoder().about(torch.ones(5, 4)).decode(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"reference: got shape \(5,\) .* that of boxes, \(3, 1\)"):
        DeltaDecoder().about(torch.ones(5, 4)).encode(torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match="LTRBDecoder reads its grid"):
        LTRBDecoder(8).decode(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"raw: got shape .*, expected 64 numbers along dim 1"):
        DFLDecoder(8).decode(torch.zeros(1, 4, 3, 3), dim=1)
