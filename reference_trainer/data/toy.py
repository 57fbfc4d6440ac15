"""Generated toy pictures: one rectangle, ellipse or triangle on a restless background.

A picture is a pure function of (seed, index, side). Only element-wise arithmetic is used, no BLAS, so
that the number of threads changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .sample import Picture

SHAPES = ("rectangle", "ellipse", "triangle")
CONTRAST = 0.25
NOISE = 0.08

MIN_SIDE = 32
_LINES = 3
_CELLS = 4
# Coverage is rounded to quarters. A sliver too thin to be seen beside the noise is then not drawn at
# all, and with a contrast of 0.25 one step is 16 grey levels: a pixel covered is a pixel changed.
_LEVELS = 4
_SCANLINES = 8
_COLOUR_TRIES = 32

Array = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Edges = tuple[float, float, float, float]


class Scene(NamedTuple):
    """The parts of a toy picture, colours in 0..1.

    Attributes:
        background: float32 (3, side, side), the lines included.
        coverage: float32 (h, w), how much of each pixel of the box the object covers, in quarters.
        colour: float32 (3,), the object's.
        noise: float32 (3, side, side), the sensor's, added to everything.
        box: xyxy in whole pixels; the tight box of the pixels with coverage above 0.
        label: index into `SHAPES`.
    """

    background: Array
    coverage: Array
    colour: Array
    noise: Array
    box: tuple[int, int, int, int]
    label: int

    def render(self, *, with_object: bool = True, with_noise: bool = True) -> npt.NDArray[np.uint8]:
        """Draw the picture, uint8 (3, side, side), if asked without its object or its noise."""
        image = self.background.copy()
        if with_object:
            x1, y1, x2, y2 = self.box
            window = image[:, y1:y2, x1:x2]
            window += self.coverage * (self.colour[:, None, None] - window)
        if with_noise:
            image += self.noise
        np.clip(image, 0.0, 1.0, out=image)
        image *= 255.0
        return np.rint(image, out=image).astype(np.uint8)


class ToyPictures:
    """Toy pictures, drawn when asked for.

    Each holds one object. Its box is the tight box of the pixels it covers, by an eighth or more; its
    width and height are drawn independently, from 10 to 60 % of the side. At every pixel of the box and
    of the ring one pixel wide around it, the object's colour differs from the background by at least
    0.25 in at least one channel.

    Args:
        indices: which pictures; or their number, for the first so many.
        side: of a picture in pixels, at least 32.
        seed: of the data set, at least 0.

    Raises:
        ValueError: if `side`, `seed` or an index is too small.
    """

    def __init__(self, indices: int | Sequence[int], side: int = 128, seed: int = 0) -> None:
        self.indices: Sequence[int] = range(indices) if isinstance(indices, int) else indices
        if side < MIN_SIDE:
            raise ValueError(f"side: got {side}, expected at least {MIN_SIDE}")
        if seed < 0:
            raise ValueError(f"seed: got {seed}, expected at least 0")
        if len(self.indices) and min(self.indices) < 0:
            raise ValueError(f"indices: got {min(self.indices)}, expected at least 0")
        self.side = side
        self.seed = seed

    @property
    def names(self) -> list[str]:
        """The shapes' names."""
        return list(SHAPES)

    @property
    def box_counts(self) -> Sequence[int]:
        """One box in every picture."""
        return [1] * len(self.indices)

    @property
    def clipped(self) -> int:
        """None: boxes are taken from the pixels."""
        return 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Picture:
        number = self.indices[index]
        scene = draw_scene(self.seed, number, self.side)
        return Picture(
            image=torch.from_numpy(scene.render()),
            boxes=torch.tensor([scene.box], dtype=torch.float32),
            labels=torch.tensor([scene.label]),
            source=f"toy picture {number} of seed {self.seed}",
        )


def toy_splits(count: int = 1200, side: int = 128, seed: int = 0) -> dict[str, ToyPictures]:
    """The toy task: the first 80 % of `count` pictures to train, the rest to validate."""
    train = count * 4 // 5
    return {
        "train": ToyPictures(range(train), side, seed),
        "val": ToyPictures(range(train, count), side, seed),
    }


def draw_scene(seed: int, index: int, side: int) -> Scene:
    """Draw everything that picture `index` is made of."""
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, index])))
    label = int(rng.integers(len(SHAPES)))
    coverage = _draw_object(rng, SHAPES[label], side)
    height, width = coverage.shape
    x1 = int(rng.integers(side - width, endpoint=True))
    y1 = int(rng.integers(side - height, endpoint=True))
    ring = np.s_[:, max(y1 - 1, 0) : y1 + height + 1, max(x1 - 1, 0) : x1 + width + 1]
    while True:
        background = _background(rng, side)
        colour = _contrasting_colour(rng, background[ring])
        # Lines of many colours under one object can leave no colour at all: then the scene is redrawn.
        if colour is not None:
            break
    noise = rng.standard_normal((3, side, side), dtype=np.float32)
    noise *= np.float32(NOISE)
    return Scene(background, coverage, colour, noise, (x1, y1, x1 + width, y1 + height), label)


def _contrasting_colour(rng: np.random.Generator, surroundings: Array) -> Array | None:
    """Draw colours until one stands out at every pixel of (3, h, w); None after many tries."""
    for _ in range(_COLOUR_TRIES):
        colour = rng.random(3, dtype=np.float32)
        if np.abs(surroundings - colour[:, None, None]).max(axis=0).min() >= CONTRAST:
            return colour
    return None


def _background(rng: np.random.Generator, side: int) -> Array:
    """A smooth random field (3, side, side) with straight lines across it."""
    base = rng.uniform(0.2, 0.8, (3, 1, 1))
    grid = (base + rng.uniform(-0.2, 0.2, (3, _CELLS + 1, _CELLS + 1))).astype(np.float32)
    cell, weight = _smooth_interpolation(side)
    above, below = grid.take(cell, axis=1), grid.take(cell + 1, axis=1)
    rows = above + (below - above) * weight[:, None]
    left, right = rows.take(cell, axis=2), rows.take(cell + 1, axis=2)
    field: Array = left + (right - left) * weight
    for _ in range(_LINES):
        _draw_line(rng, field)
    return field


@lru_cache(maxsize=8)
def _smooth_interpolation(side: int) -> tuple[npt.NDArray[np.intp], Array]:
    """For each pixel, the grid cell that it lies in and the weight (0..1) of the cell's far end."""
    position = (np.arange(side) + 0.5) / side * _CELLS
    cell = position.astype(np.intp)
    part = position - cell
    return cell, (part * part * (3.0 - 2.0 * part)).astype(np.float32)


def _draw_line(rng: np.random.Generator, image: Array) -> None:
    """Draw a line through two random points, right across (3, side, side), in place."""
    side = image.shape[-1]
    x0, y0, x1, y1 = rng.uniform(0.0, side, 4)
    half_width = 0.5 * side * rng.uniform(0.01, 0.03)
    colour = rng.random((3, 1, 1), dtype=np.float32)
    length = max(np.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2), 1e-6)
    normal_x, normal_y = (y1 - y0) / length, (x0 - x1) / length
    centre = np.arange(side) + 0.5
    along_x = ((centre - x0) * normal_x).astype(np.float32)
    along_y = ((centre - y0) * normal_y).astype(np.float32)
    distance = np.abs(along_y[:, None] + along_x)
    # One pixel of ramp is the anti-aliasing.
    alpha = np.clip(np.float32(half_width + 0.5) - distance, 0.0, min(1.0, 2.0 * half_width))
    image += alpha * (colour - image)


def _draw_object(rng: np.random.Generator, shape: str, side: int) -> Array:
    """Coverage (h, w) of a random object, cropped to the pixels covered, 10 to 60 % of `side` each way."""
    smallest, largest = (side + 9) // 10, side * 6 // 10
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
