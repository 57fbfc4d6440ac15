"""The shapes of the toy images: how much of each pixel a rectangle, an ellipse or a triangle covers."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

SHAPES = ("rectangle", "ellipse", "triangle")

# Coverage is rounded to quarters. A sliver too thin to be seen beside the noise is then not drawn at
# all, and with a contrast of 0.25 one step is 16 grey levels: a pixel covered is a pixel changed.
_LEVELS = 4
_SCANLINES = 8

Array = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Edges = tuple[float, float, float, float]


def size_limits(side: int) -> tuple[int, int]:
    """The least and the greatest width and height of a shape, in pixels: 10 and 60 % of `side`."""
    return (side + 9) // 10, side * 6 // 10


def draw_shape(rng: np.random.Generator, shape: str, side: int) -> Array:
    """Coverage (h, w) of a random object, cropped to the pixels covered, 10 to 60 % of `side` each way."""
    smallest, largest = size_limits(side)
    while True:
        width, height = rng.uniform(0.1, 0.6, 2) * side
        left, top = rng.random(2)
        coverage = _coverage(rng, shape, (left, top, left + width, top + height))
        rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
        coverage = coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if smallest <= min(coverage.shape) and max(coverage.shape) <= largest:
            return coverage


def _coverage(rng: np.random.Generator, shape: str, edges: Edges) -> Array:
    """How much of each pixel, from (0, 0) on, is covered by a shape that fills `edges`."""
    height, width = math.ceil(edges[3]), math.ceil(edges[2])
    if shape == "rectangle":
        exact = np.outer(_overlap(edges[1], edges[3], height), _overlap(edges[0], edges[2], width))
    elif shape == "ellipse":
        exact = _scan(*_ellipse_spans(edges, height), width)
    else:
        exact = _scan(*_triangle_spans(rng, edges, height), width)
    return (np.rint(exact * _LEVELS) / _LEVELS).astype(np.float32)


def _overlap(start: float | Doubles, end: float | Doubles, count: int) -> Doubles:
    """How much of each of `count` unit cells lies between `start` and `end`."""
    cell = np.arange(count)
    part: Doubles = np.minimum(end, cell + 1) - np.maximum(start, cell)
    return part.clip(0.0, 1.0)


def _scan(start: Doubles, end: Doubles, width: int) -> Doubles:
    """Coverage (height, width) of a convex shape, from where it starts and ends on each scan line."""
    lines = _overlap(start[:, None], end[:, None], width)
    mean: Doubles = lines.reshape(-1, _SCANLINES, width).mean(axis=1)
    return mean


def _scanlines(height: int) -> Doubles:
    return (np.arange(height * _SCANLINES) + 0.5) / _SCANLINES


def _ellipse_spans(edges: Edges, height: int) -> tuple[Doubles, Doubles]:
    """Start and end, on each scan line, of the ellipse that fills `edges` (xyxy)."""
    x1, y1, x2, y2 = edges
    offset = (2.0 * _scanlines(height) - y1 - y2) / (y2 - y1)
    half = 0.5 * (x2 - x1) * np.sqrt(np.clip(1.0 - offset * offset, 0.0, None))
    centre = 0.5 * (x1 + x2)
    return centre - half, centre + half


def _triangle_spans(rng: np.random.Generator, edges: Edges, height: int) -> tuple[Doubles, Doubles]:
    """Start and end, on each scan line, of a random triangle that fills `edges` (xyxy)."""
    x1, y1, x2, y2 = edges
    corners = _unit_triangle(rng) * (x2 - x1, y2 - y1) + (x1, y1)
    line = _scanlines(height)
    start, end = np.full_like(line, np.inf), np.full_like(line, -np.inf)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        crosses = (line > min(ay, by)) & (line < max(ay, by))
        x = ax + (bx - ax) * (line[crosses] - ay) / (by - ay)
        start[crosses] = np.minimum(start[crosses], x)
        end[crosses] = np.maximum(end[crosses], x)
    return start, end


def _unit_triangle(rng: np.random.Generator) -> Doubles:
    """Corners (3, 2) of a triangle that spans the unit square and fills three tenths of it or more."""
    while True:
        points = rng.random((3, 2))
        points -= points.min(axis=0)
        points /= points.max(axis=0)
        (ax, ay), (bx, by) = points[1:] - points[0]
        if abs(ax * by - ay * bx) >= 0.6:
            return points
