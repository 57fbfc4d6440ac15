"""Heads: the untrained head predicts its prior, and learns from the first step."""

from __future__ import annotations

import copy
import doctest
import math
import pickle
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from boxreg import heads
from boxreg.boxes import Planes
from boxreg.decoders import Decoder, GridCellDecoder, UnitSquareDecoder
from boxreg.heads import BoxHead

IN = 64
PRIOR = (0.45, 0.6, 0.2, 0.3)
Projection = Literal["linear", "conv"]

# decoder x projection; a decoder that needs a grid has no linear head
HEADS: dict[str, tuple[Decoder, Projection]] = {
    "unit_square-linear": (UnitSquareDecoder(), "linear"),
    "unit_square-conv": (UnitSquareDecoder(), "conv"),
    "grid_cell-conv": (GridCellDecoder(), "conv"),
    "grid_cell_pixels-conv": (GridCellDecoder(image_size=(640.0, 480.0), stretch=1.2), "conv"),
}
each_head = pytest.mark.parametrize(("decoder", "projection"), HEADS.values(), ids=HEADS.keys())


def make(decoder: Decoder, projection: Projection, prior: Sequence[float] = PRIOR) -> BoxHead:
    torch.manual_seed(0)
    width, height = decoder.extent
    cx, cy, w, h = prior
    scaled = (cx * width, cy * height, w * width, h * height)
    return BoxHead(IN, prior=scaled, decoder=decoder, projection=projection)


def make_features(head: BoxHead, seed: int = 0) -> Tensor:
    shape = (5, IN) if head.dim == -1 else (2, IN, 3, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected_boxes(head: BoxHead, features: Tensor) -> Tensor:
    """The prior in the layout of the head's output: in each cell where the decoder has cells."""
    width, height = head.decoder.extent
    cx, cy, w, h = head.prior
    if head.dim == -1:
        return torch.tensor(head.prior).expand(*features.shape[:-1], 4)
    rows, cols = features.shape[-2:]
    x, y = torch.full((rows, cols), cx), torch.full((rows, cols), cy)
    if head.decoder.needs_grid:
        x = (torch.arange(cols) * width + cx).expand(rows, cols) / cols
        y = (torch.arange(rows) * height + cy).unsqueeze(-1).expand(rows, cols) / rows
    planes = torch.stack((x, y, torch.full_like(x, w), torch.full_like(x, h)))
    return planes.expand(features.shape[0], 4, rows, cols)


def test_doctests() -> None:
    torch.manual_seed(0)
    failed, tried = doctest.testmod(heads)
    assert failed == 0
    assert tried > 0


# The prior


@each_head
@pytest.mark.parametrize("magnitude", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("prior", [PRIOR, (0.02, 0.98, 0.01, 1.0)], ids=["usual", "extreme"])
def test_untrained_head_predicts_the_prior(
    decoder: Decoder, projection: Projection, magnitude: float, prior: tuple[float, ...]
) -> None:
    head = make(decoder, projection, prior)
    features = magnitude * make_features(head)
    boxes = head(features)
    tolerance = 1e-3 * max(decoder.extent)
    assert_close(boxes, expected_boxes(head, features), rtol=0, atol=tolerance)


@each_head
def test_same_sign_features_do_not_add_up(decoder: Decoder, projection: Projection) -> None:
    head = make(decoder, projection)
    features = torch.full_like(make_features(head), 100.0)
    assert_close(head(features), expected_boxes(head, features), rtol=0, atol=1e-3 * max(decoder.extent))


@each_head
def test_every_feature_gets_a_gradient_from_the_first_step(decoder: Decoder, projection: Projection) -> None:
    head = make(decoder, projection)
    features = make_features(head).requires_grad_()
    head(features).square().sum().backward()
    assert features.grad is not None
    assert (features.grad != 0).all()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()


@each_head
def test_a_head_learns_its_target(decoder: Decoder, projection: Projection) -> None:
    head = make(decoder, projection)
    features = make_features(head)
    target = expected_boxes(make(decoder, projection, (0.6, 0.3, 0.5, 0.1)), features)
    scale = max(decoder.extent)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = ((head(features) - target) / scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_reset_parameters_restores_the_prior() -> None:
    head = BoxHead(IN, PRIOR)
    nn.init.ones_(head.projection.weight)
    nn.init.ones_(head.projection.bias)  # type: ignore[arg-type]
    head.reset_parameters()
    assert_close(head.projection.bias, head.decoder.bias(PRIOR), rtol=0, atol=0)
    assert 0 < head.projection.weight.std().item() < 1e-5


def test_meta_head_materialises() -> None:
    with torch.device("meta"):
        head = BoxHead(IN, PRIOR)
    assert head(torch.zeros(3, IN, device="meta")).shape == (3, 4)
    head.to_empty(device="cpu").reset_parameters()
    assert_close(head(torch.zeros(IN)), torch.tensor(PRIOR))


# Layout, and what is in a head


def test_linear_head_takes_any_rank() -> None:
    head = BoxHead(IN, PRIOR)
    assert head.dim == -1
    features = torch.randn(2, 3, IN)
    assert_close(head(features)[1, 2], head(features[1, 2]))
    assert_close(head(features), head.decoder.decode(head.raw(features)))


def test_conv_head_is_a_linear_head_on_every_cell() -> None:
    linear, conv = BoxHead(IN, PRIOR), BoxHead(IN, PRIOR, projection="conv")
    assert conv.dim == 1
    state = {"projection.bias": torch.randn(4), "projection.weight": torch.randn(4, IN)}
    linear.load_state_dict(state)
    conv.load_state_dict({**state, "projection.weight": state["projection.weight"].view(4, IN, 1, 1)})
    features = torch.randn(2, IN, 3, 5)
    assert_close(conv(features).movedim(1, -1), linear(features.movedim(1, -1)), rtol=1e-4, atol=1e-5)


@each_head
def test_copies_and_pickles(decoder: Decoder, projection: Projection) -> None:
    head = make(decoder, projection)
    assert set(head.state_dict()) == {"projection.weight", "projection.bias"}
    features = make_features(head)
    for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert twin.decoder == head.decoder
        assert_close(twin(features), head(features), rtol=0, atol=0)


def test_repr_shows_prior_and_decoder() -> None:
    text = repr(BoxHead(IN, PRIOR, decoder=GridCellDecoder(stretch=1.1), projection="conv"))
    assert "prior=(0.45, 0.6, 0.2, 0.3)" in text
    assert "decoder=GridCellDecoder(image_size=(1.0, 1.0), stretch=1.1)" in text


def test_a_decoder_of_ones_own_needs_no_change_here() -> None:
    class TwoNumbersASize(Decoder):
        """A scheme with six raw outputs a box: each size is a sum of two softplus."""

        @property
        def channels(self) -> int:
            return 6

        def _decode(self, raw: tuple[Tensor, ...]) -> Planes:
            softplus = nn.functional.softplus
            cx, cy, a, b, c, d = raw
            return cx, cy, softplus(a) + softplus(b), softplus(c) + softplus(d)

        def _encode(self, boxes: Planes, dtype: torch.dtype) -> tuple[Tensor, ...]:
            cx, cy, w, h = boxes
            a, c = (0.5 * size + torch.log(-torch.expm1(-0.5 * size)) for size in (w, h))
            return cx, cy, a, a, c, c

    for projection in ("linear", "conv"):
        head = make(TwoNumbersASize(), projection)
        features = make_features(head)
        assert_close(head(features), expected_boxes(head, features), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=r"raw: got shape \(3, 4\), expected 6 numbers along dim -1"):
        TwoNumbersASize().decode(torch.zeros(3, 4))


# Dtypes and transforms


@each_head
def test_autocast_does_not_coarsen_boxes(decoder: Decoder, projection: Projection) -> None:
    head = make(decoder, projection)
    nn.init.normal_(head.projection.weight, std=0.1)
    features = make_features(head).bfloat16()
    expected = head(features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = head(features)
    assert boxes.dtype == torch.float32
    assert_close(boxes, expected, rtol=0, atol=0)


@each_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_head_in_another_dtype(decoder: Decoder, projection: Projection, dtype: torch.dtype) -> None:
    head = make(decoder, projection).to(dtype)
    head.reset_parameters()
    features = make_features(head).to(dtype)
    boxes = head(features)
    assert boxes.dtype == dtype
    # The bias is rounded to the dtype, the raw output too, then the box.
    tolerance = 4 * torch.finfo(dtype).eps + 1e-5
    expected = expected_boxes(head, features).to(dtype)
    assert_close(boxes, expected, rtol=tolerance, atol=tolerance * max(decoder.extent))


@each_head
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_compiles_without_a_graph_break(decoder: Decoder, projection: Projection, autocast: bool) -> None:
    head = make(decoder, projection)
    nn.init.normal_(head.projection.weight, std=0.1)
    features = make_features(head)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        boxes = torch.compile(head, fullgraph=True, backend="aot_eager")(features)
    assert_close(boxes, head(features))


def test_vmap_over_an_ensemble() -> None:
    ensemble = [BoxHead(IN, (0.5, 0.5, size, size)) for size in (0.1, 0.2, 0.3)]
    parameters, buffers = torch.func.stack_module_state(ensemble)
    base = ensemble[0]

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], features: Tensor) -> Tensor:
        boxes: Tensor = torch.func.functional_call(base, (parameters, buffers), (features,))
        return boxes

    features = torch.randn(7, IN)
    boxes = torch.func.vmap(call, in_dims=(0, 0, None))(parameters, buffers, features)
    assert_close(boxes, torch.stack([head(features) for head in ensemble]))


def test_exports() -> None:
    head = make(GridCellDecoder(), "conv").eval()
    features = make_features(head)
    exported = torch.export.export(head, (features,)).module()
    assert_close(exported(features), head(features))


def test_parametrized_projection() -> None:
    head = BoxHead(IN, PRIOR)
    features = torch.randn(3, IN)
    before = head(features)
    parametrizations.weight_norm(head.projection)
    assert_close(head(features), before)


# prior_from


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64], ids=str)
def test_prior_from_is_the_median_of_each_coordinate(dtype: torch.dtype) -> None:
    odd = torch.tensor([[1, 9, 2, 4], [5, 5, 4, 6], [9, 1, 900, 2]], dtype=dtype)
    assert BoxHead.prior_from(odd) == (5.0, 5.0, 4.0, 4.0)
    assert BoxHead.prior_from(odd[:2]) == (3.0, 7.0, 3.0, 5.0)
    assert BoxHead.prior_from(odd[:1]) == (1.0, 9.0, 2.0, 4.0)


def test_prior_from_other_formats() -> None:
    corners = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 0.75, 1.0], [0.5, 0.5, 1.0, 1.0]])
    assert BoxHead.prior_from(corners, fmt="xyxy") == (0.5, 0.75, 0.5, 0.5)
    assert BoxHead.prior_from(corners[1:], fmt="xywh") == (0.8125, 1.0, 0.875, 1.0)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (torch.zeros(0, 4), r"boxes: got shape \(0, 4\), expected \(N, 4\) with N of at least 1"),
        (torch.ones(4), r"boxes: got shape \(4,\)"),
        (torch.ones(3, 5), r"boxes: got shape \(3, 5\)"),
        (torch.tensor([[0.5, 0.5, math.nan, 0.1]]), "boxes: got NaN or infinity"),
        (torch.tensor([[0.5, 0.5, 0.0, 0.1]]), "boxes: got a median width of 0.0 .* expected both above 0"),
        (torch.tensor([[0.5, 0.5, 0.1, -0.5]]), "boxes: got a median width .* height of -0.5"),
    ],
)
def test_prior_from_bad_boxes(boxes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoxHead.prior_from(boxes)


def test_prior_from_bad_arguments() -> None:
    with pytest.raises(TypeError, match="boxes: got list"):
        BoxHead.prior_from([[0.5, 0.5, 0.1, 0.1]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'xyxz', expected one of .* did you mean"):
        BoxHead.prior_from(torch.ones(1, 4), fmt="xyxz")


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "in_features: got 0, expected at least 1"),
        ({"in_features": 8.0}, TypeError, "in_features: got float, expected an int"),
        ({"prior": (1.5, 0.5, 0.1, 0.1)}, ValueError, r"prior: got \(1.5, .*expected a centre inside"),
        ({"decoder": UnitSquareDecoder}, TypeError, "decoder: got .*expected an instance of a Decoder"),
        (
            {"projection": "convolution"},
            ValueError,
            "projection: got 'convolution', expected one of 'linear'",
        ),
        ({"decoder": GridCellDecoder()}, ValueError, 'GridCellDecoder needs one: use projection="conv"'),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BoxHead(**{"in_features": 8, "prior": PRIOR, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("projection", "shape", "message"),
    [
        ("linear", (2, 9), r"features: got shape \(2, 9\), expected \(..., 8\) with in_features=8"),
        ("linear", (), r"features: got shape \(\), expected"),
        ("conv", (2, 8), r"features: got shape \(2, 8\), expected \(B, 8, H, W\) with in_features=8"),
        ("conv", (8, 3, 3), r"features: got shape \(8, 3, 3\), expected \(B, 8, H, W\)"),
        ("conv", (2, 9, 3, 3), r"features: got shape \(2, 9, 3, 3\)"),
    ],
)
def test_bad_features(projection: Projection, shape: tuple[int, ...], message: str) -> None:
    head = BoxHead(8, PRIOR, projection=projection)
    with pytest.raises(ValueError, match=message):
        head(torch.zeros(shape))


def test_features_must_be_floating() -> None:
    with pytest.raises(TypeError, match=r"features: got a tensor of torch\.int64"):
        BoxHead(8, PRIOR)(torch.zeros(2, 8, dtype=torch.int64))
