"""Points and strides of a pyramid."""

from __future__ import annotations

import pytest
import torch

from boxreg import Level, points_of
from tests.cases import WORKING_DTYPES, named


def test_by_hand() -> None:
    points = points_of([Level(1, 2, 8), (2, 1, 16)])
    assert points.x.tolist() == [4, 12, 8, 8]
    assert points.y.tolist() == [4, 4, 8, 24]
    assert points.stride.tolist() == [8, 8, 16, 16]


def test_of_a_unit_image() -> None:
    points = points_of([(2, 2, 0.5)])
    assert points.x.tolist() == [0.25, 0.75, 0.25, 0.75]
    assert points.y.tolist() == [0.25, 0.25, 0.75, 0.75]


@pytest.mark.parametrize("per_cell", [1, 3])
@pytest.mark.parametrize("dtype", named(WORKING_DTYPES))
def test_the_order_is_that_of_flattened_maps(per_cell: int, dtype: torch.dtype) -> None:
    levels = [Level(3, 5, 8), Level(2, 3, 16)]
    maps = []
    for rows, cols, stride in levels:
        row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        middle = torch.stack([(col + 0.5) * stride, (row + 0.5) * stride]).to(dtype)  # (2, H, W)
        maps.append(middle.unsqueeze(1).expand(2, per_cell, rows, cols))
    x, y = torch.cat([level.flatten(1) for level in maps], 1)
    points = points_of(levels, per_cell=per_cell, dtype=dtype)
    assert torch.equal(points.x, x)
    assert torch.equal(points.y, y)
    assert points.stride.dtype == dtype
    assert points.stride.tolist() == [8.0] * 15 * per_cell + [16.0] * 6 * per_cell


def test_device() -> None:
    assert all(plane.device.type == "meta" for plane in points_of([(2, 2, 8)], device="meta"))


@pytest.mark.parametrize(
    ("levels", "per_cell", "error", "message"),
    [
        ([], 1, ValueError, "levels: got none, expected at least one"),
        (torch.rand(1, 3), 1, TypeError, "levels: got Tensor, expected a sequence"),
        ([(2, 2)], 1, ValueError, r"levels: got \(2, 2\), expected \(rows, cols, stride\)"),
        ([(0, 2, 8)], 1, ValueError, "levels: rows: got 0, expected at least 1"),
        ([(2, 2.0, 8)], 1, TypeError, "levels: cols: got float, expected an int"),
        ([(2, 2, 0)], 1, ValueError, "levels: stride: got 0, expected a number above 0"),
        ([(2, 2, "8")], 1, TypeError, "levels: stride: got str, expected a number"),
        ([(2, 2, 8)], 0, ValueError, "per_cell: got 0, expected at least 1"),
    ],
)
def test_bad_arguments(
    levels: list[tuple[int, int, float]], per_cell: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        points_of(levels, per_cell=per_cell)
