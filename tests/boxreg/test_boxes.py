"""Formats of boxes, and their areas."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxreg.boxes import FORMATS, area, convert
from tests.cases import REGIMES, WORKING_DTYPES, named, pairs, to_planes

SAME_BOX = {"xyxy": [1.0, 2.0, 4.0, 8.0], "xywh": [1.0, 2.0, 3.0, 6.0], "cxcywh": [2.5, 5.0, 3.0, 6.0]}
every_route = pytest.mark.parametrize(("src", "dst"), list(itertools.product(FORMATS, FORMATS)))
NUMBER = st.floats(-1e4, 1e4, width=32)
BOXES = st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), max_size=8)


@every_route
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_by_hand(src: str, dst: str, dtype: torch.dtype) -> None:
    found = convert(torch.tensor(SAME_BOX[src], dtype=dtype), src, dst)
    assert torch.equal(found, torch.tensor(SAME_BOX[dst], dtype=dtype))


@every_route
@settings(max_examples=50, deadline=None)
@given(boxes=BOXES)
def test_round_trip(src: str, dst: str, boxes: list[tuple[float, ...]]) -> None:
    start = torch.tensor(boxes).reshape(-1, 4)
    back = convert(convert(start, src, dst), dst, src)
    # A corner and a size round once or twice each, at the magnitude of the largest of them.
    magnitude = max(start.abs().max().item(), 1e-30) if len(start) else 1.0
    torch.testing.assert_close(back, start, rtol=0, atol=8 * torch.finfo(torch.float32).eps * magnitude)


@every_route
@pytest.mark.parametrize("third", FORMATS)
def test_a_detour_changes_nothing(src: str, dst: str, third: str) -> None:
    boxes, _ = pairs("random")
    detour = convert(convert(boxes, src, third), third, dst)
    torch.testing.assert_close(detour, convert(boxes, src, dst), rtol=0, atol=1e-14)


@every_route
@pytest.mark.parametrize("regime", ["random", "inverted-xy", "points"])
def test_planes_are_rows(src: str, dst: str, regime: str) -> None:
    boxes, _ = pairs(regime, torch.float32)
    assert torch.equal(convert(to_planes(boxes), src, dst, dim=1), to_planes(convert(boxes, src, dst)))


@every_route
def test_gradient(src: str, dst: str) -> None:
    boxes = pairs("random")[0][:3].requires_grad_()
    assert torch.autograd.gradcheck(lambda b: convert(b, src, dst), boxes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@every_route
def test_integers_become_float32(src: str, dst: str, dtype: torch.dtype) -> None:
    found = convert(torch.tensor([[2, 4, 6, 9]], dtype=dtype), src, dst)
    assert found.dtype == torch.float32
    assert torch.equal(found, convert(torch.tensor([[2.0, 4, 6, 9]]), src, dst))


class TestArea:
    @pytest.mark.parametrize("fmt", FORMATS)
    def test_by_hand(self, fmt: str) -> None:
        assert area(torch.tensor(SAME_BOX[fmt]), fmt).item() == 18

    @pytest.mark.parametrize("regime", ["inverted-x", "inverted-y", "inverted-xy", "point", "flat-x"])
    @pytest.mark.parametrize("dtype", named(WORKING_DTYPES))
    def test_empty_and_inverted_boxes_have_none(self, regime: str, dtype: torch.dtype) -> None:
        boxes, _ = pairs(regime, dtype)
        assert torch.equal(area(boxes), torch.zeros(len(boxes), dtype=dtype))

    @pytest.mark.parametrize("regime", REGIMES)
    def test_never_negative(self, regime: str) -> None:
        assert (area(pairs(regime)[0]) >= 0).all()

    def test_integers_and_planes(self) -> None:
        boxes = torch.tensor([[0, 0, 2, 3]] * 4)
        assert torch.equal(area(boxes), torch.full((4,), 6.0))
        assert torch.equal(area(to_planes(boxes), dim=1), torch.full((2, 1, 2), 6.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.rand(2, 4), "xyxy", "cxcyhw"), ValueError, "dst: got 'cxcyhw', .*did you mean 'cxcywh'"),
        ((torch.rand(2, 4), "XYXY", "xywh"), ValueError, "src: got 'XYXY', .*did you mean 'xyxy'"),
        (
            (torch.rand(2, 5), "xyxy", "xywh"),
            ValueError,
            r"boxes: got shape \(2, 5\), expected 4",
        ),
        (
            (torch.rand(4, 3), "xyxy", "xywh"),
            ValueError,
            r"shape \(4, 3\), expected .* along dim -1",
        ),
        ((torch.tensor(1.0), "xyxy", "xywh"), ValueError, r"dim: got -1, but boxes has shape \(\)"),
        ((torch.rand(2, 4), "xyxy", "xywh", 2), ValueError, r"dim: got 2, but boxes has shape \(2, 4\)"),
        (([[0, 0, 1, 1]], "xyxy", "xywh"), TypeError, "boxes: got list, expected a torch.Tensor"),
        ((torch.rand(2, 4) > 0, "xyxy", "xywh"), TypeError, "boxes: got a tensor of torch.bool"),
        ((torch.rand(2, 4) * 1j, "xyxy", "xywh"), TypeError, "boxes: got a tensor of torch.complex64"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(*arguments)  # type: ignore[arg-type]


def test_area_refuses_an_unknown_format() -> None:
    with pytest.raises(ValueError, match="fmt: got 'xxyy'"):
        area(torch.rand(2, 4), "xxyy")
