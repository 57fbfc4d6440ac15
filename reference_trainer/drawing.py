"""The figures of a run as PNG: curves, and boxes on what was learned from and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import matplotlib
from torch import Tensor

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle

TARGET, PREDICTION = "lime", "red"
MEANINGS = {TARGET: "target", PREDICTION: "prediction"}
IMAGES_SHOWN = 24


def draw_curves(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> bytes:
    """Loss terms, the figures `shown` under their labels, and the learning rate over the epochs."""
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for name in rows[0]["weighted"]:
        left.plot(epochs, [row["weighted"][name] for row in rows], label=name)
    left.plot(epochs, [row["loss"] for row in rows], "k", label="total")
    left.set(title="training loss, terms times their lambda", xlabel="epoch", yscale="log")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    for key, label in shown.items():
        measured = [row for row in rows if key in row]
        middle.plot([row["epoch"] for row in measured], [row[key] for row in measured], ".-", label=label)
    middle.set(title="scores", xlabel="epoch", ylim=(0, 1))
    middle.grid(alpha=0.3)
    middle.legend(loc="lower right")
    right.plot(epochs, [row["lr"] for row in rows], "C3")
    right.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    for axes in (left, middle, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


class Mark(NamedTuple):
    """A box to be drawn, xyxy in pixels of the image, and what is written at it."""

    box: Sequence[float]
    colour: str
    text: str = ""


def draw_grid(
    images: Tensor, marks: Sequence[Sequence[Mark]], titles: Sequence[str], legend: Sequence[str]
) -> bytes:
    """The first of some images side by side, with their boxes and what the colours in the legend mean."""
    count = min(len(images), IMAGES_SHOWN)
    columns = min(count, 8)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(1.8 * columns, 2.0 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, drawn, title in zip(axes.flat, images, marks, titles, strict=False):
        _draw_image(axis, image, title)
        for mark in drawn:
            _draw_mark(axis, mark)
    handles = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=colour) for colour in legend]
    names = [MEANINGS[colour] for colour in legend]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return _png(figure)


def draw_image(image: Tensor, marks: Sequence[Mark], title: str) -> bytes:
    """One image of any size with its boxes."""
    height, width = image.shape[-2:]
    tall = min(max(6 * height / width, 1), 60)
    figure = pyplot.figure(figsize=(6, tall), layout="constrained")
    axes = figure.subplots()
    _draw_image(axes, image, title)
    for mark in marks:
        _draw_mark(axes, mark)
    return _png(figure)


def _draw_image(axes: Any, image: Tensor, title: str) -> None:
    height, width = image.shape[-2:]
    axes.imshow(image.permute(1, 2, 0).numpy(), extent=(0, width, height, 0), interpolation="nearest")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))


def _draw_mark(axes: Any, mark: Mark) -> None:
    x1, y1, x2, y2 = mark.box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=mark.colour, linewidth=1.5))
    if mark.text:
        background = {"facecolor": mark.colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.7}
        axes.text(x1, y1, mark.text, fontsize=6, va="bottom", bbox=background, parse_math=False, clip_on=True)


def _png(figure: Any) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100)
    pyplot.close(figure)
    return content.getvalue()
