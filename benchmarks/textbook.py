"""CIoU, IoU and decoding as their formulas are usually written, from planes of corners."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .cases import IMAGE, STRIDE

Planes = tuple[Tensor, ...]
"""x1, y1, x2, y2, of any one shape."""

EPS = 1e-7


def iou(pred: Planes, target: Planes) -> Tensor:
    x1, y1, x2, y2 = pred
    u1, v1, u2, v2 = target
    wide = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    high = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    overlap = wide * high
    return overlap / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap + EPS)


def ciou(pred: Planes, target: Planes) -> Tensor:
    x1, y1, x2, y2 = pred
    u1, v1, u2, v2 = target
    w, h, wt, ht = x2 - x1, y2 - y1, u2 - u1, v2 - v1
    overlap = iou(pred, target)
    cw, ch = torch.maximum(x2, u2) - torch.minimum(x1, u1), torch.maximum(y2, v2) - torch.minimum(y1, v1)
    distance = ((x1 + x2 - u1 - u2) ** 2 + (y1 + y2 - v1 - v2) ** 2) / 4 / (cw**2 + ch**2 + EPS)
    v = 4 / math.pi**2 * (torch.atan(wt / ht) - torch.atan(w / h)) ** 2
    with torch.no_grad():
        alpha = v / (1 - overlap + v + EPS)
    return overlap - distance - alpha * v


def loss(pred: Planes, target: Planes) -> Tensor:
    return 1 - ciou(pred, target)


SCORES: dict[str, Callable[[Planes, Planes], Tensor]] = {"iou": iou, "ciou": ciou}


def unit_square(raw: Planes) -> Planes:
    """Corners from raw outputs: sigmoid centres, softplus sizes."""
    tx, ty, tw, th = raw
    return corners(tx.sigmoid(), ty.sigmoid(), F.softplus(tw), F.softplus(th))


def grid_cell(raw: Planes) -> Planes:
    """Sigmoid centres in the cells of an image, softplus sizes."""
    tx, ty, tw, th = raw
    (rows, row), (cols, col) = cells(tx)
    cx, cy = (col + tx.sigmoid()) / cols * IMAGE, (row + ty.sigmoid()) / rows * IMAGE
    return corners(cx, cy, F.softplus(tw) * IMAGE, F.softplus(th) * IMAGE)


def ltrb(raw: Planes) -> Planes:
    """Softplus distances of the sides from the middle of a cell."""
    left, top, right, bottom = (F.softplus(side) for side in raw)
    (_, row), (_, col) = cells(left)
    x1, y1 = (col + 0.5 - left) * STRIDE, (row + 0.5 - top) * STRIDE
    return x1, y1, (col + 0.5 + right) * STRIDE, (row + 0.5 + bottom) * STRIDE


def corners(cx: Tensor, cy: Tensor, w: Tensor, h: Tensor) -> Planes:
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def cells(plane: Tensor) -> tuple[tuple[int, Tensor], tuple[int, Tensor]]:
    """How many rows there are and their indices, and the same of columns."""
    rows, cols = plane.shape[-2:]
    row = torch.arange(rows, device=plane.device, dtype=plane.dtype).unsqueeze(-1)
    return (rows, row), (cols, torch.arange(cols, device=plane.device, dtype=plane.dtype))


DECODED: dict[str, Callable[[Planes], Planes]] = {
    "UnitSquareDecoder": unit_square,
    "GridCellDecoder": grid_cell,
    "LTRBDecoder": ltrb,
}
"""By the decoder of boxreg that they stand for."""
