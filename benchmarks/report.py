"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from .aims import AIMS
from .cases import SCALING
from .rows import DEVICES, Row

INTRODUCTION = """\
# CIoU: time and memory

Written by `python -m benchmarks`. A step is the mean loss of aligned boxes and its gradient at the
predictions, the same from raw outputs of a head, or pairwise scores, forward alone. No time is shown before
values and gradients agree with the textbook's formula in float64. Times are medians; providers take turns.
Peak memory is that of a fresh process, beyond inputs and gradient. Where an aim covers several cases, the
worst of them is shown.

| on | provider | figure | aim | measured |
|---|---|---|---|---|"""


def markdown(rows: list[Row]) -> str:
    """The aims, then the tables of each device."""
    lines = [INTRODUCTION, *(aim.line(rows) for aim in AIMS)]
    for device, name in DEVICES.items():
        lines += ["", f"## {name}", "", *section([row for row in rows if row.device == device], device)]
    return "\n".join(lines) + "\n"


def section(rows: list[Row], device: str) -> Iterator[str]:
    """What was measured on a device, a table for each case."""
    if not rows:
        yield "Not measured."
        return
    yield (
        ", ".join(f"{name} {value}" for name, value in rows[0].machine.items())
        + f". A copy reads and writes {rows[0].copy_bytes_per_s / 1e9:.1f} GB/s."
    )
    yield from ("", f"![Time of a step against the number of pairs](scaling-{device}.png)")
    scaling = {case.name for case in SCALING}
    for place in dict.fromkeys(row.place for row in rows if row.case not in scaling):
        yield from table([row for row in rows if row.place == place], device)


def table(rows: list[Row], device: str) -> Iterator[str]:
    """The rows of one case."""
    first = rows[0]
    layout = "" if first.job == "pairwise" else f", {first.layout}"
    yield from ("", f"### {first.case[0].upper()}{first.case[1:]}: {first.pairs:,} pairs{layout}", "")
    columns = ["provider", "median", "p20 to p80", "times torchvision's speed", "peak memory"]
    if device == "cuda":
        columns += ["launches", "waits", "of a copy's bandwidth"]
    for cells in (columns, ["---"] * len(columns), *(cells_of(row)[: len(columns)] for row in rows)):
        yield f"| {' | '.join(cells)} |"


def cells_of(row: Row) -> list[str]:
    """A row as cells; what was not measured stays empty."""
    if row.why_not is not None:
        return [row.provider, row.why_not, *[""] * 6]

    def cell(value: float | None, form: str, unit: str = "") -> str:
        return "" if value is None else f"{value:{form}}{unit}"

    return [
        row.provider,
        cell(row.median_us, ",.0f", " us"),
        f"{cell(row.p20_us, ',.0f')} to {cell(row.p80_us, ',.0f')}",
        cell(row.times_torchvision, ".2f"),
        cell(None if row.peak_bytes is None else row.peak_bytes / 2**20, ",.0f", " MiB"),
        cell(row.launches, "d"),
        cell(row.synchronisations, "d"),
        cell(row.share_of_bandwidth, ".0%"),
    ]
