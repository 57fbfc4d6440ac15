"""Generated toy images: rectangles, ellipses and triangles on a restless background.

An image is a pure function of (seed, index, side, most objects). Only element-wise arithmetic is used,
no BLAS, so that the number of threads changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property, lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .sample import AnnotatedImage, Counts
from .shapes import SHAPES, Array, draw_shape, size_limits

CONTRAST = 0.25
NOISE = 0.08

MIN_SIDE = 32
WITHOUT_OBJECT = 0.05
"""Share of images without an object, where there may be several."""
MOST_OVERLAP = 0.3
"""Greatest IoU of two boxes of an image."""
LEAST_SHOWN = 0.5
"""Least share of an object that later ones leave to be seen."""

_LINES = 3
_CELLS = 4
_COLOUR_TRIES = 32
_PLACE_TRIES = 40
# With a contrast of 0.25 this share of a pixel is 4 grey levels: what is seen is a pixel changed.
_FAINTEST = 1 / 16

Box = tuple[int, int, int, int]


class ToyObject(NamedTuple):
    """One object of a toy image.

    Attributes:
        label: index into `SHAPES`.
        left: first column of `coverage` in the image.
        top: first row of `coverage` in the image.
        coverage: float32 (h, w), how much of each pixel the object covers, in quarters.
        shown: float32 (h, w), how much of each pixel is seen of it under the objects drawn later.
        box: xyxy in whole pixels; the tight box of the pixels with `shown` above 0.
    """

    label: int
    left: int
    top: int
    coverage: Array
    shown: Array
    box: Box

    def paint(self, image: Array, colour: Array) -> None:
        """Draw the object over (3, side, side), in place."""
        height, width = self.coverage.shape
        window = image[:, self.top : self.top + height, self.left : self.left + width]
        window += self.coverage * (colour[:, None, None] - window)

    def covered_by(self, later: ToyObject) -> ToyObject:
        """The same object with another one drawn over it."""
        x1, y1 = max(self.left, later.left), max(self.top, later.top)
        x2 = min(self.left + self.shown.shape[1], later.left + later.coverage.shape[1])
        y2 = min(self.top + self.shown.shape[0], later.top + later.coverage.shape[0])
        if x1 >= x2 or y1 >= y2:
            return self
        shown = self.shown.copy()
        cover = later.coverage[y1 - later.top : y2 - later.top, x1 - later.left : x2 - later.left]
        shown[y1 - self.top : y2 - self.top, x1 - self.left : x2 - self.left] *= 1.0 - cover
        rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
        if not len(rows):
            return self._replace(shown=shown, box=(self.left, self.top, self.left, self.top))
        box = (
            self.left + int(columns[0]),
            self.top + int(rows[0]),
            self.left + int(columns[-1]) + 1,
            self.top + int(rows[-1]) + 1,
        )
        return self._replace(shown=shown, box=box)

    def is_seen(self, smallest: int) -> bool:
        """Whether enough of it is seen, its box is large enough, and no pixel is too faint to tell."""
        x1, y1, x2, y2 = self.box
        faint = (self.shown > 0) & (self.shown < _FAINTEST)
        enough = self.shown.sum() >= LEAST_SHOWN * self.coverage.sum()
        return bool(min(x2 - x1, y2 - y1) >= smallest and enough and not faint.any())


class Scene(NamedTuple):
    """The parts of a toy image, colours in 0..1.

    Attributes:
        background: float32 (3, side, side), the lines included.
        objects: in the order in which they are drawn.
        colours: float32 (3,), one an object.
        noise: float32 (3, side, side), the sensor's, added to everything.
    """

    background: Array
    objects: list[ToyObject]
    colours: list[Array]
    noise: Array

    def render(self, *, without: Collection[int] = (), with_noise: bool = True) -> npt.NDArray[np.uint8]:
        """Draw the image, uint8 (3, side, side), if asked without some objects or its noise."""
        image = self.background.copy()
        for number, (each, colour) in enumerate(zip(self.objects, self.colours, strict=True)):
            if number not in without:
                each.paint(image, colour)
        if with_noise:
            image += self.noise
        np.clip(image, 0.0, 1.0, out=image)
        image *= 255.0
        return np.rint(image, out=image).astype(np.uint8)


class ToyImages:
    """Toy images, drawn when asked for.

    With `most` 1, the default, each holds one object. Otherwise one in twenty holds none, and the others 1
    to `most`, each number as often. An object drawn later hides what lies under it.

    The box of an object is the tight box of the pixels in which it is seen: those that it covers by an
    eighth or more, less those that later objects hide. At least half of an object is seen, and no two boxes
    overlap by an IoU above 0.3. Width and height of an object are drawn independently, from 10 to 60 % of
    the side; what is seen of it is at least 10 % wide and high. Objects that do not fit are drawn again, so
    that many objects are smaller ones. At every pixel of the object's rectangle and of the ring one pixel
    wide around it, its colour differs from what it is drawn over by at least 0.25 in at least one channel.

    Args:
        indices: which images; or their number, for the first ones.
        side: the side of an image in pixels, at least 32.
        seed: the seed of the dataset, at least 0.
        most: objects in an image, at least 1.

    Raises:
        ValueError: if `side`, `seed`, `most` or an index is too small.
    """

    def __init__(self, indices: int | Sequence[int], side: int = 128, seed: int = 0, most: int = 1) -> None:
        self.indices: Sequence[int] = range(indices) if isinstance(indices, int) else indices
        for name, value, least in (("side", side, MIN_SIDE), ("seed", seed, 0), ("most", most, 1)):
            if value < least:
                raise ValueError(f"{name}: got {value}, expected at least {least}")
        if len(self.indices) and min(self.indices) < 0:
            raise ValueError(f"indices: got {min(self.indices)}, expected at least 0")
        self.side, self.seed, self.most = side, seed, most

    @property
    def names(self) -> list[str]:
        """The shapes' names."""
        return list(SHAPES)

    @cached_property
    def box_counts(self) -> Counts:
        """The number of objects of each image."""
        if self.most == 1:
            return np.ones(len(self.indices), dtype=np.int64)
        generators = (_generator(self.seed, index, self.most) for index in self.indices)
        return np.array([_object_count(rng, self.most) for rng in generators], dtype=np.int64)

    @property
    def clipped(self) -> int:
        """None: boxes are taken from the pixels."""
        return 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> AnnotatedImage:
        number = self.indices[index]
        scene = draw_scene(self.seed, number, self.side, self.most)
        return AnnotatedImage(
            image=torch.from_numpy(scene.render()),
            boxes=torch.tensor([each.box for each in scene.objects], dtype=torch.float32).view(-1, 4),
            labels=torch.tensor([each.label for each in scene.objects], dtype=torch.int64),
            source=f"toy image {number} of seed {self.seed}",
        )


def toy_splits(count: int = 1200, side: int = 128, seed: int = 0, most: int = 1) -> dict[str, ToyImages]:
    """The toy task: the first 80 % of `count` images to train, the rest to validate."""
    train = count * 4 // 5
    return {
        "train": ToyImages(range(train), side, seed, most),
        "val": ToyImages(range(train, count), side, seed, most),
    }


def draw_scene(seed: int, index: int, side: int, most: int = 1) -> Scene:
    """Draw everything that image `index` is made of."""
    rng = _generator(seed, index, most)
    objects = _arrange(rng, _object_count(rng, most), side)
    while True:
        background = _background(rng, side)
        colours = _contrasting_colours(rng, background, objects)
        # Lines of many colours under one object can leave no colour at all: then the scene is redrawn.
        if colours is not None:
            break
    noise = rng.standard_normal((3, side, side), dtype=np.float32)
    noise *= np.float32(NOISE)
    return Scene(background, objects, colours, noise)


def _generator(seed: int, index: int, most: int) -> np.random.Generator:
    key = [seed, index] if most == 1 else [seed, index, most]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def _object_count(rng: np.random.Generator, most: int) -> int:
    """How many objects an image holds; the first thing that is drawn."""
    if most == 1:
        return 1
    return 0 if rng.random() < WITHOUT_OBJECT else int(rng.integers(1, most, endpoint=True))


def _arrange(rng: np.random.Generator, count: int, side: int) -> list[ToyObject]:
    """Place objects one by one, each where all of them can still be seen and told apart."""
    smallest, _ = size_limits(side)
    placed: list[ToyObject] = []
    misses = 0
    while len(placed) < count:
        candidate = _random_object(rng, side)
        below = [each.covered_by(candidate) for each in placed]
        seen = all(new is old or new.is_seen(smallest) for new, old in zip(below, placed, strict=True))
        pairs = combinations([*below, candidate], 2)
        if seen and all(_iou(one.box, other.box) <= MOST_OVERLAP for one, other in pairs):
            placed = [*below, candidate]
        else:
            misses += 1
            if misses % _PLACE_TRIES == 0:  # large ones may leave no room: all of them anew
                placed = []
    return placed


def _random_object(rng: np.random.Generator, side: int) -> ToyObject:
    """An object of random shape, size and place, all of it seen."""
    label = int(rng.integers(len(SHAPES)))
    coverage = draw_shape(rng, SHAPES[label], side)
    height, width = coverage.shape
    left = int(rng.integers(side - width, endpoint=True))
    top = int(rng.integers(side - height, endpoint=True))
    return ToyObject(label, left, top, coverage, coverage, (left, top, left + width, top + height))


def _iou(one: Box, other: Box) -> float:
    """The IoU of two boxes in whole pixels; `boxreg.box_iou` would take as long as the drawing."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other))
    return shared / (areas - shared)


def _contrasting_colours(
    rng: np.random.Generator, background: Array, objects: Sequence[ToyObject]
) -> list[Array] | None:
    """A colour for each object that stands out from what it is drawn over; None if one is not found."""
    canvas = background.copy()
    colours = []
    for each in objects:
        height, width = each.coverage.shape
        rows = slice(max(each.top - 1, 0), each.top + height + 1)
        columns = slice(max(each.left - 1, 0), each.left + width + 1)
        colour = _contrasting_colour(rng, canvas[:, rows, columns])
        if colour is None:
            return None
        each.paint(canvas, colour)
        colours.append(colour)
    return colours


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
