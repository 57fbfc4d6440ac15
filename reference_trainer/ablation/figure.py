"""The results as one figure: how good every row is, and how far from its base."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

from ..files import write_whole
from .plan import Common
from .results import Result
from .rows import SECTIONS

matplotlib.use("agg")
from matplotlib import pyplot

COLOURS = {"better": "#1b6ca8", "worse": "#c8553d", "no difference shown": "#8a8a8a", "": "#333333"}
"""By reading; blue and orange are distinct to all eyes."""

BASE_LINES = {"baseline": ":", "reference": "--"}
ROW_HEIGHT = 0.2


def draw(path: Path, results: Mapping[str, Result], common: Common) -> None:
    """Replace the figure: left the IoU, each seed a dot, right the difference with its interval."""
    places, headings, bottom = _places(results)
    figure, (levels, differences) = pyplot.subplots(
        1,
        2,
        figsize=(11, 1.6 + ROW_HEIGHT * bottom),
        sharey=True,
        width_ratios=(1, 1.3),
        layout="constrained",
    )
    for name, place in places.items():
        _draw_row(levels, differences, results[name], place)
    for name, style in BASE_LINES.items():
        if name in results and results[name].finals:
            levels.axvline(results[name].level.mean, color="black", ls=style, lw=1, label=name, zorder=0)
    differences.axvline(0, color="black", lw=1, zorder=0)
    levels.set_yticks(list(places.values()), list(places), fontsize=8)
    levels.set(ylim=(bottom, -1), xlabel="mean IoU after the last epoch, each seed and the mean")
    differences.set(xlabel="difference to the row's base, mean and 95 % interval")
    for axes in (levels, differences):
        axes.grid(axis="x", color="#e4e4e4", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", top=True, labeltop=True)
        for place in headings.values():
            axes.axhline(place - 0.45, color="#bbbbbb", lw=0.6)
    for title, place in headings.items():
        levels.annotate(
            title,
            (0, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    _legend(figure, levels)
    data = common.data.name if common.data else f"{common.images} toy images"
    seeds = max(len(result.finals) for result in results.values())
    figure.suptitle(
        f"Ablation: {data}, {common.size} pixels, {common.epochs} epochs, width {common.width}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110)
    pyplot.close(figure)
    write_whole(path, content.getbuffer())


def _places(results: Mapping[str, Result]) -> tuple[dict[str, float], dict[str, float], float]:
    """Where each row and each section's heading stands, from the top, and the end."""
    places, headings, place = dict[str, float](), dict[str, float](), 0.0
    for title, rows in SECTIONS.items():
        shown = [row.name for row in rows if row.name in results]
        if shown:
            headings[title] = place
            for number, name in enumerate(shown, 1):
                places[name] = place + number
            place += len(shown) + 1.4
    return places, headings, place


def _draw_row(levels: Any, differences: Any, result: Result, place: float) -> None:
    colour = COLOURS[result.reading]
    finals = list(result.finals.values())
    levels.plot(finals, [place] * len(finals), "o", ms=3, color=colour, alpha=0.4, mew=0)
    if finals:
        levels.plot(result.level.mean, place, "|", ms=9, mew=2, color=colour)
    if result.errors:
        levels.annotate(
            f"{len(result.errors)} failed",
            (0.99, place),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="center",
            fontsize=7,
            color=COLOURS["worse"],
        )
    own = result.difference
    if own is not None and own.of:
        if own.low is not None and own.high is not None:
            differences.plot([own.low, own.high], [place, place], color=colour, lw=1.8, solid_capstyle="butt")
        differences.plot(own.mean, place, "o", ms=4.5, color=colour)


def _legend(figure: Any, levels: Any) -> None:
    handles, labels = levels.get_legend_handles_labels()
    for reading, colour in COLOURS.items():
        if reading:
            handles += levels.plot([], [], "o-", color=colour, ms=4.5)
            labels.append(reading)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
