"""Decoders: the published formulas, exact inverses, live gradients, nothing clamped."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from boxreg import decoders
from boxreg.decoders import AxisDecoder, Decoder, DFLDecoder, GridCellDecoder, UnitSquareDecoder
from tests.cases import ALL_DECODERS, DECODERS

ROWS, COLS = 3, 5
LAYOUTS = {"planes": 1, "planes_from_the_end": -3, "channels_last": -1}
DTYPES = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]

each_decoder = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())
every_scheme = pytest.mark.parametrize("decoder", ALL_DECODERS.values(), ids=ALL_DECODERS.keys())
each_dim = pytest.mark.parametrize("dim", LAYOUTS.values(), ids=LAYOUTS.keys())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def grid_of(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """The shape of a grid of boxes in the layout `dim`."""
    batch, rows, cols = shape
    return (batch, rows, cols, 4) if dim == -1 else (batch, 4, rows, cols)


def boxes_in_reach(decoder: Decoder, seed: int, dtype: torch.dtype, dim: int) -> Tensor:
    """Boxes that each cell can express, with sizes over twenty decades."""
    generator = torch.Generator().manual_seed(seed)
    cx, cy, w, h = torch.rand((4, 2, ROWS, COLS), generator=generator, dtype=torch.float64)
    if decoder.needs_grid:
        cx = (torch.arange(COLS) + cx) / COLS
        cy = (torch.arange(ROWS).unsqueeze(-1) + cy) / ROWS
    width, height = decoder.extent
    sizes = (width * 10 ** (22 * w - 20), height * 10 ** (22 * h - 20))
    return torch.stack((cx * width, cy * height, *sizes), dim).to(dtype)


def test_the_table_holds_every_decoder() -> None:
    defined = {value for value in vars(decoders).values() if isinstance(value, type)}
    concrete = {value for value in defined if issubclass(value, Decoder)} - {Decoder, AxisDecoder}
    assert {type(decoder) for decoder in ALL_DECODERS.values()} == concrete


# The formulas


def test_unit_square_by_hand() -> None:
    # sigmoid(ln 3) = 3/4, sigmoid(-ln 4) = 1/5, softplus(0) = ln 2, softplus(ln(e - 1)) = 1
    raw = torch.tensor([math.log(3), -math.log(4), 0.0, math.log(math.e - 1)], dtype=torch.float64)
    expected = torch.tensor([0.75, 0.2, math.log(2), 1.0], dtype=torch.float64)
    assert_close(UnitSquareDecoder().decode(raw), expected)


def test_grid_cell_by_hand() -> None:
    # 2 rows, 4 columns, image of 400 x 100: cells of 100 x 50. Cell (1, 2) has its corner at (200, 50).
    # sigmoid 3/4 across: 200 + 75; sigmoid 1/5 down: 50 + 10.
    raw = torch.zeros(4, 2, 4, dtype=torch.float64)
    raw[:, 1, 2] = torch.tensor([math.log(3), -math.log(4), 0.0, math.log(math.e - 1)])
    boxes = GridCellDecoder(image_size=(400.0, 100.0)).decode(raw, dim=0)
    expected = torch.tensor([275.0, 60.0, 400 * math.log(2), 100.0], dtype=torch.float64)
    assert_close(boxes[:, 1, 2], expected, rtol=1e-6, atol=0)
    assert_close(boxes[:2, 0, 0], torch.tensor([50.0, 25.0], dtype=torch.float64))


def test_grid_cell_stretch_by_hand() -> None:
    # stretch 2, offsets from -1/2 to 3/2: 2 * 3/4 - 1/2 = 1, the cell's far edge; 2 * 1/5 - 1/2 = -1/10.
    raw = torch.zeros(4, 2, 4, dtype=torch.float64)
    raw[0], raw[1] = math.log(3), -math.log(4)
    boxes = GridCellDecoder(image_size=(400.0, 100.0), stretch=2.0).decode(raw, dim=0)
    assert_close(boxes[:2, 1, 2], torch.tensor([300.0, 45.0], dtype=torch.float64))


def test_one_cell_grid_is_the_unit_square() -> None:
    raw = normal((7, 4, 1, 1), 0)
    assert_close(GridCellDecoder().decode(raw, dim=1), UnitSquareDecoder().decode(raw, dim=1), rtol=0, atol=0)


@every_scheme
def test_layouts_agree(decoder: Decoder) -> None:
    raw = normal((2, decoder.channels, ROWS, COLS), 1)
    planes = decoder.decode(raw, dim=1)
    assert_close(decoder.decode(raw, dim=-3), planes, rtol=0, atol=0)
    # An expectation is added up in another order.
    exact = None if isinstance(decoder, DFLDecoder) else 0
    rows = decoder.decode(raw.movedim(1, -1), dim=-1)
    assert_close(rows, planes.movedim(1, -1), rtol=exact, atol=exact)
    assert_close(decoder.encode(planes.movedim(1, -1), dim=-1), decoder.encode(planes, dim=1).movedim(1, -1))


def test_rows_of_any_rank() -> None:
    raw = normal((2, 3, 5, 7, 4), 2)
    decoder = UnitSquareDecoder()
    boxes = decoder.decode(raw)
    assert_close(boxes[1, 2, 4, 6], decoder.decode(raw[1, 2, 4, 6]), rtol=0, atol=0)


# Inverses


@each_decoder
@each_dim
@each_dtype
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_decode_undoes_encode(decoder: Decoder, dim: int, dtype: torch.dtype, seed: int) -> None:
    eps = torch.finfo(dtype).eps
    boxes = boxes_in_reach(decoder, seed, dtype, dim)
    cx, cy, w, h = decoder.decode(decoder.encode(boxes, dim), dim).unbind(dim)
    cx_in, cy_in, w_in, h_in = boxes.unbind(dim)
    width, height = decoder.extent
    assert_close(cx, cx_in, rtol=0, atol=8 * eps * width)
    assert_close(cy, cy_in, rtol=0, atol=8 * eps * height)
    # A raw size t is off by eps * |t|, and w = exp(t) for the small ones: |t| reaches 46 at 1e-20.
    for size, size_in in ((w, w_in), (h, h_in)):
        assert_close(size, size_in, rtol=60 * eps, atol=0)


@each_decoder
@each_dim
@each_dtype
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 3.0]))
def test_encode_undoes_decode(
    decoder: Decoder, dim: int, dtype: torch.dtype, seed: int, scale: float
) -> None:
    eps = torch.finfo(dtype).eps
    raw = (scale * normal(grid_of((2, ROWS, COLS), dim), seed, dtype)).clamp(-8, 8)
    tx, ty, tw, th = decoder.encode(decoder.decode(raw, dim), dim).unbind(dim)
    tx_in, ty_in, tw_in, th_in = raw.unbind(dim)
    # A centre c is off by eps, in cells by eps times their number; dt = dc / (c * (1 - c)).
    cells = max(ROWS, COLS) if decoder.needs_grid else 1
    for t, t_in in ((tx, tx_in), (ty, ty_in)):
        allowed = 8 * eps * cells * (2 + t_in.exp() + (-t_in).exp())
        assert ((t - t_in).abs() <= allowed).all()
    for t, t_in in ((tw, tw_in), (th, th_in)):
        assert_close(t, t_in, rtol=16 * eps, atol=16 * eps)


@each_dtype
def test_sizes_invert_over_the_whole_range(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    sizes = [info.smallest_normal, 1e-30, 1e-7, 0.5, math.log(2), 1.0, 19.9, 20.1, 36.0, 41.0, 1e30, info.max]
    w = torch.tensor(sizes, dtype=dtype)
    boxes = torch.stack((torch.full_like(w, 0.5), torch.full_like(w, 0.5), w, w), -1)
    raw = UnitSquareDecoder().encode(boxes)
    reference = w.double() + torch.log(-torch.expm1(-w.double()))
    assert_close(raw[:, 2], reference.to(dtype), rtol=4 * info.eps, atol=4 * info.eps)
    relative = (UnitSquareDecoder().decode(raw)[:, 2] / w - 1).abs()
    conditioning = 1 + raw[:, 2].abs().where(w < 1, torch.zeros_like(w))
    assert (relative <= 4 * info.eps * conditioning).all()


def test_raw_sizes_above_torchs_own_threshold_invert() -> None:
    raw = torch.full((4,), 20.5, dtype=torch.float64)
    w = UnitSquareDecoder().decode(raw)[2].item()
    assert w - 20.5 == pytest.approx(math.log1p(math.exp(-20.5)), rel=1e-5)


@every_scheme
@pytest.mark.parametrize("dtype", DTYPES + HALVES, ids=str)
def test_finite_boxes_encode_to_finite_numbers_with_a_live_gradient(
    decoder: Decoder, dtype: torch.dtype
) -> None:
    big = torch.finfo(dtype).max
    values = torch.tensor([0.0, 1.0, -1.0, big, -big, torch.finfo(dtype).smallest_normal, 0.5], dtype=dtype)
    boxes = values.repeat(4, 3, 1)
    raw = decoder.encode(boxes, dim=0)
    assert raw.isfinite().all()
    assert raw.dtype == dtype
    unclipped = raw.double().clamp(-80, 80).to(dtype).requires_grad_()
    (grad,) = torch.autograd.grad(decoder.decode(unclipped, dim=0).double().sum(), unclipped)
    # The lower bins of a distribution have a gradient of the other sign.
    assert (grad.view(4, -1, 3, 7).amax(1) > 0).all()
    assert isinstance(decoder, DFLDecoder) or (grad > 0).all()


def test_the_margins_are_the_documented_ones() -> None:
    decoder = UnitSquareDecoder()
    documented = {
        torch.float64: (2.2e-16, 2.2e-308),
        torch.float32: (1.2e-7, 1.2e-38),
        torch.bfloat16: (1.2e-7, 1.2e-38),
        torch.float16: (6.1e-5, 6.1e-5),
    }
    for dtype, (margin, smallest) in documented.items():
        low, high = decoder.encode(torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=dtype)).double()[:2].tolist()
        tw = decoder.encode(torch.zeros(4, dtype=dtype))[2].item()
        # The raw output is rounded to its dtype, bfloat16's at -87 by up to a quarter.
        rounding = 0.05 + 100 * torch.finfo(dtype).eps
        assert high == pytest.approx(-low)
        assert low == pytest.approx(math.log(margin), abs=rounding)
        assert tw == pytest.approx(math.log(smallest), abs=rounding)


@each_decoder
def test_nan_stays_with_its_coordinate(decoder: Decoder) -> None:
    raw = normal((4, ROWS, COLS), 3)
    raw[0, 1, 1] = raw[3, 2, 0] = math.nan
    boxes = decoder.decode(raw, dim=0)
    assert torch.equal(boxes.isnan(), raw.isnan())
    assert torch.equal(decoder.encode(boxes, dim=0).isnan(), raw.isnan())


# Gradients


@every_scheme
def test_gradients_match_finite_differences(decoder: Decoder) -> None:
    raw = normal((decoder.channels, 1, 2), 4, torch.float64).requires_grad_()
    boxes = decoder.decode(raw, dim=0).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: decoder.decode(r, dim=0), raw)
    assert torch.autograd.gradgradcheck(lambda r: decoder.decode(r, dim=0), raw)
    assert torch.autograd.gradcheck(lambda b: decoder.encode(b, dim=0), boxes)


@each_decoder
@pytest.mark.parametrize(("dtype", "reach"), [(torch.float32, 86.0), (torch.float64, 700.0)], ids=str)
def test_gradient_is_alive_far_out(decoder: Decoder, dtype: torch.dtype, reach: float) -> None:
    raw = torch.linspace(-reach, reach, 101, dtype=dtype).expand(4, 1, 101).clone().requires_grad_()
    (grad,) = torch.autograd.grad(decoder.decode(raw, dim=0).sum(), raw)
    assert (grad > 0).all()
    # Centres: the derivative is even in t, so both ends are equally alive. Sizes: it tends to 1.
    assert_close(grad[0], grad[0].flip(-1), rtol=1e-5, atol=0)
    assert_close(grad[2, 0, -1].item(), decoder.extent[0], rtol=1e-6, atol=0)


@each_decoder
def test_gradient_at_zero_is_not_lost_to_the_reflection(decoder: Decoder) -> None:
    raw = torch.zeros(4, 1, 1, requires_grad=True)
    (grad,) = torch.autograd.grad(decoder.decode(raw, dim=0).sum(), raw)
    width, height = decoder.extent
    stretch = decoder.stretch if isinstance(decoder, GridCellDecoder) else 1.0
    expected = torch.tensor([stretch * width / 4, stretch * height / 4, width / 2, height / 2])
    assert_close(grad.flatten(), expected)


@each_decoder
def test_a_box_beyond_the_image_keeps_value_and_gradient(decoder: Decoder) -> None:
    width, height = decoder.extent
    given = torch.tensor([0.99 * width, 0.99 * height, 1.7 * width, 2.5 * height]).view(4, 1, 1)
    raw = decoder.encode(given, dim=0).requires_grad_()
    boxes = decoder.decode(raw, dim=0)
    assert_close(boxes, given)
    assert (boxes[0] + boxes[2] / 2 > 1.5 * width).all()
    upstream = torch.tensor([-1.0, 2.0, -3.0, 0.5]).view(4, 1, 1)
    (grad,) = torch.autograd.grad(boxes, raw, upstream)
    assert (grad * upstream > 0).all()


# Dtypes and transforms


@every_scheme
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_computed_in_float32(decoder: Decoder, dtype: torch.dtype) -> None:
    raw = normal((2, decoder.channels, ROWS, COLS), 5, dtype)
    boxes = decoder.decode(raw, dim=1)
    assert_close(boxes, decoder.decode(raw.float(), dim=1).to(dtype), rtol=0, atol=0)
    assert_close(decoder.encode(boxes, dim=1), decoder.encode(boxes.float(), dim=1).to(dtype))


@every_scheme
def test_compiles_without_a_graph_break(decoder: Decoder) -> None:
    def there_and_back(raw: Tensor) -> Tensor:
        return decoder.encode(decoder.decode(raw, dim=1), dim=1)

    torch._dynamo.reset()
    raw = normal((2, decoder.channels, ROWS, COLS), 6).requires_grad_()
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    assert_close(compiled(raw), there_and_back(raw))
    (grad,) = torch.autograd.grad(compiled(raw).sum(), raw)
    assert_close(grad, torch.autograd.grad(there_and_back(raw).sum(), raw)[0])


@every_scheme
def test_vmap_of_gradients(decoder: Decoder) -> None:
    raw = normal((6, decoder.channels, ROWS, COLS), 7, torch.float64)

    def total(one: Tensor) -> Tensor:
        return decoder.decode(one, dim=0).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(total))(raw)
    assert_close(per_sample, torch.stack([torch.func.grad(total)(one) for one in raw]))
    encoded = torch.func.vmap(lambda one: decoder.encode(decoder.decode(one, dim=0), dim=0))(raw)
    assert_close(decoder.decode(encoded, dim=1), decoder.decode(raw, dim=1))


@every_scheme
def test_an_empty_batch_stays_attached(decoder: Decoder) -> None:
    raw = torch.zeros(0, decoder.channels, ROWS, COLS, requires_grad=True)
    boxes = decoder.decode(raw, dim=1)
    assert boxes.shape == (0, 4, ROWS, COLS)
    (grad,) = torch.autograd.grad(boxes.sum(), raw)
    assert grad.shape == raw.shape


# Priors


@each_decoder
@each_dtype
def test_bias_decodes_to_the_prior(decoder: Decoder, dtype: torch.dtype) -> None:
    width, height = decoder.extent
    prior = (0.4 * width, 0.7 * height, 0.05 * width, 1.3 * height)
    bias = decoder.bias(prior, dtype)
    assert bias.shape == (decoder.channels,)
    boxes = decoder.decode(bias.view(-1, 1, 1), dim=0).flatten()
    assert_close(boxes, torch.tensor(prior, dtype=dtype))


def test_bias_of_a_grid_reads_the_centre_inside_each_cell() -> None:
    decoder = GridCellDecoder(image_size=(8.0, 4.0))
    raw = decoder.bias((2.0, 3.0, 1.0, 1.0)).view(4, 1, 1).expand(4, 2, 4)
    cx, cy, w, h = decoder.decode(raw, dim=0)
    assert_close(cx[0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    assert_close(cy[:, 0], torch.tensor([1.5, 3.5]))
    assert_close(torch.stack((w, h)), torch.ones(2, 2, 4))


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        ((0.5, 0.5, 0.2), ValueError, r"prior: got \(0.5, 0.5, 0.2\), expected four numbers"),
        (0.5, ValueError, "prior: got 0.5, expected four numbers"),
        ((0.5, 0.5, 0.0, 0.2), ValueError, "prior: .* a width and a height above 0"),
        ((0.5, 0.5, 0.2, -1.0), ValueError, "prior: .* a width and a height above 0"),
        ((0.5, math.nan, 0.2, 0.2), ValueError, "prior: got nan, expected a finite number"),
        ((0.5, 0.5, math.inf, 0.2), ValueError, "prior: got inf, expected a finite number"),
        (("0.5", 0.5, 0.2, 0.2), TypeError, "prior: got str, expected a number"),
        ((0.0, 0.5, 0.2, 0.2), ValueError, r"prior: got \(0.0, .*\), expected a centre inside the image"),
        ((0.5, 1.0, 0.2, 0.2), ValueError, "expected a centre inside the image: 0 < cx < 1.0"),
    ],
)
def test_bad_priors(prior: tuple[float, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        UnitSquareDecoder().bias(prior)


# Decoders as values, and errors


def test_decoders_are_values() -> None:
    decoder = GridCellDecoder(image_size=(640, 480), stretch=1.05)
    same = GridCellDecoder(image_size=[640, 480], stretch=1.05)  # type: ignore[arg-type]
    assert decoder == same
    assert hash(decoder) == hash(same)
    assert decoder != GridCellDecoder()
    assert pickle.loads(pickle.dumps(decoder)) == decoder
    assert repr(decoder) == "GridCellDecoder(image_size=(640, 480), stretch=1.05)"
    assert repr(UnitSquareDecoder()) == "UnitSquareDecoder()"
    with pytest.raises(FrozenInstanceError):
        decoder.stretch = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stretch": 0.9}, ValueError, "stretch: got 0.9, expected a finite number of at least 1"),
        ({"stretch": "1"}, TypeError, "stretch: got str, expected a number"),
        ({"image_size": 640}, ValueError, r"image_size: got 640, expected \(width, height\)"),
        (
            {"image_size": (640, 0)},
            ValueError,
            r"image_size: got \(640, 0\), expected a width and a height",
        ),
        ({"image_size": (math.inf, 1)}, ValueError, "image_size: got inf, expected a finite number"),
    ],
)
def test_bad_settings(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GridCellDecoder(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["decode", "encode"])
def test_bad_tensors(method: str) -> None:
    name = {"decode": "raw", "encode": "boxes"}[method]
    call = getattr(UnitSquareDecoder(), method)
    with pytest.raises(ValueError, match=rf"{name}: got shape \(3, 5\), expected 4"):
        call(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        call(torch.zeros(4), dim=1)
    with pytest.raises(TypeError, match=f"{name}: got a tensor of torch.int64"):
        call(torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match=f"{name}: got list"):
        call([0.0, 0.0, 0.0, 0.0])
    for shape in [(4,), (7, 4)]:
        with pytest.raises(
            ValueError, match=rf"{name}: got shape .*GridCellDecoder.*\(B, 4, H, W\) with dim=1"
        ):
            getattr(GridCellDecoder(), method)(torch.zeros(shape))
