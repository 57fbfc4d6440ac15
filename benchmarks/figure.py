"""Time of a step against the number of pairs, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .measuring import BYTES_A_PAIR
from .rows import Row

LAYOUTS = {"rows": "rows (N, 4)", "planes": "planes (batch, 4, N)"}
COMPILED = ", torch.compile"
VIVID = ("#d1495b", "#edae49", "#8d5a97", "#00798c", "#2e86ab")
MUTED = ("#4d4d4d", "#9a9a9a", "#b08968", "#8a9a5b")


def draw(rows: list[Row], path: Path) -> None:
    """Draw the losses' rows of one device and write a PNG."""
    rows = [row for row in rows if row.job == "loss" and row.kind == "ciou" and row.median_us is not None]
    if not rows:
        return
    colors = colors_of(row.provider for row in rows)
    figure, panels = plt.subplots(1, 2, figsize=(12, 6.2), sharex=True, sharey=True, layout="constrained")
    for panel, (layout, title) in zip(panels, LAYOUTS.items(), strict=True):
        panel.set_title(title, loc="left", fontsize=11)
        bandwidth_line(panel, rows)
        of_layout = [row for row in rows if row.layout == layout]
        for name in dict.fromkeys(row.provider for row in of_layout):
            of_provider = [row for row in of_layout if row.provider == name]
            provider_line(panel, of_provider, colors[name.removesuffix(COMPILED)])
        axes_of(panel)
    panels[0].set_ylabel("time of a step, forward and backward")
    panels[0].set_ylim(bottom=min(row.median_us or 0 for row in rows) / 1e6 / 10)
    machine = rows[0].machine
    figure.suptitle(
        f"Mean CIoU with its gradient: {machine.get('gpu', machine['processor'])}"
        + (f", {machine['threads']} threads" if rows[0].device == "cpu" else "")
        + f", torch {machine['torch']}",
        x=0.01,
        ha="left",
        fontsize=13,
        fontweight="bold",
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def bandwidth_line(panel: Axes, rows: list[Row]) -> None:
    """What moving the bytes alone would take."""
    speed = rows[0].copy_bytes_per_s
    ends = [min(row.pairs for row in rows), max(row.pairs for row in rows)]
    label = f"{BYTES_A_PAIR} bytes a pair at the speed of a copy, {speed / 1e9:.0f} GB/s"
    seconds = [BYTES_A_PAIR * pairs / speed for pairs in ends]
    panel.plot(ends, seconds, color="black", ls=":", lw=1.2, label=label)


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """A vivid colour for each backend, a muted one for each other library, with and without torch.compile."""
    plain = list(dict.fromkeys(name.removesuffix(COMPILED) for name in names))
    ours, others = ([name for name in plain if name.startswith("boxreg") == mine] for mine in (True, False))
    return dict(zip(ours, cycle(VIVID), strict=False)) | dict(zip(others, cycle(MUTED), strict=False))


def provider_line(panel: Axes, rows: list[Row], color: str) -> None:
    """A provider's medians as a line, the 20th to the 80th percentile as a shade."""
    rows = sorted(rows, key=lambda row: row.pairs)
    name = rows[0].provider
    ours = name.startswith("boxreg")
    pairs = [row.pairs for row in rows]
    panel.plot(
        pairs,
        [(row.median_us or 0) / 1e6 for row in rows],
        color=color,
        ls="--" if name.endswith(COMPILED) else "-",
        lw=2.4 if name == "boxreg auto" else 1.6,
        marker="o",
        ms=4 if ours else 3,
        label=name,
        zorder=2 + ours + (name == "boxreg auto"),
    )
    low = [(row.p20_us or 0) / 1e6 for row in rows]
    high = [(row.p80_us or 0) / 1e6 for row in rows]
    panel.fill_between(pairs, low, high, color=color, alpha=0.12, lw=0)


def axes_of(panel: Axes) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("pairs of boxes")
    panel.yaxis.set_major_formatter(matplotlib.ticker.EngFormatter(unit="s"))
    panel.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.grid(which="major", color="#dddddd", lw=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_axisbelow(True)
