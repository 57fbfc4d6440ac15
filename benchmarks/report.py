"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .aims import AIMS, busy, other_losses
from .providers import RIVAL
from .rows import DEVICES, Row

INTRODUCTION = """\
# Losses: time and memory

Written by `python -m benchmarks`. A step is the mean CIoU of aligned boxes and its gradient at the
predictions, the same from raw outputs of a head, the weighted sum, another loss, or pairwise scores. No time
is shown before values and gradients agree with the textbook's formula in float64 (of other losses: with
autograd). Times are medians; providers take turns of a twentieth of a second. "One core busy": another
process computes without end, as a worker that loads data does. Peak memory is that of a fresh process, beyond
inputs and gradient. Where an aim covers several cases, the worst of them is shown.

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
    others = [row for row in rows if other_losses(row)]
    costs = [row for row in rows if row.job == "cost"]
    places = dict.fromkeys(row.place for row in rows if row not in others and row not in costs)
    # The sizes of a job beside each other.
    for place in sorted(places, key=lambda place: (JOBS.index(place[1]), place[3])):
        yield from table([row for row in rows if row.place == place], device)
    yield from losses_table(others)
    yield from costs_table(costs)


JOBS = ("loss", "weighted", "from_raw", "pairwise")


def table(rows: list[Row], device: str) -> Iterator[str]:
    """The rows of one case."""
    first = rows[0]
    layout = "" if first.job == "pairwise" else f", {first.layout}"
    yield from ("", f"### {first.case[0].upper()}{first.case[1:]}: {first.pairs:,} pairs{layout}", "")
    columns = ["provider", "median", "p20 to p80", "times torchvision's speed"]
    columns += ["times the compiled textbook's", "peak memory", "launches", "waits", "of a copy's bandwidth"]
    cells = [cells_of(row) for row in rows]
    if device == "cpu":
        columns[5:] = ["one core busy", "times the quiet time", "peak memory"]
        cells = [[*line[:5], *busy_cells(row), line[5]] for row, line in zip(rows, cells, strict=True)]
    yield from lines(columns, cells)


def lines(columns: list[str], cells: Iterable[list[str]]) -> Iterator[str]:
    """A table."""
    for line in (columns, ["---"] * len(columns), *cells):
        yield f"| {' | '.join(line)} |"


def cell(value: float | None, form: str, unit: str = "") -> str:
    """A figure; what was not measured stays empty."""
    return "" if value is None else f"{value:{form}}{unit}"


def cells_of(row: Row) -> list[str]:
    """A row as cells."""
    if row.why_not is not None:
        return [row.provider, row.why_not, *[""] * 7]
    return [
        row.provider,
        cell(row.median_us, ",.0f", " us"),
        f"{cell(row.p20_us, ',.0f')} to {cell(row.p80_us, ',.0f')}",
        cell(row.times_torchvision, ".2f"),
        cell(row.times_compiled, ".2f"),
        cell(None if row.peak_bytes is None else row.peak_bytes / 2**20, ",.0f", " MiB"),
        cell(row.launches, "d"),
        cell(row.synchronisations, "d"),
        cell(row.share_of_bandwidth, ".0%"),
    ]


def busy_cells(row: Row) -> list[str]:
    """What a busy core makes of a row."""
    return [cell(row.busy_us, ",.0f", " us"), cell(busy(row, None), ".1f")]


def losses_table(rows: list[Row]) -> Iterator[str]:
    """A line for each other loss."""
    if not rows:
        return
    yield from ("", f"### Other losses: {rows[0].pairs:,} pairs, {rows[0].layout}", "")
    yield from ("The textbook's is CIoU: the rival has no code for the others.", "")
    by_loss = {kind: {row.provider: row for row in rows if row.kind == kind} for kind in kinds(rows)}
    columns = ["loss", "boxreg auto", "p20 to p80", "one core busy", "times the quiet time", "boxreg eager"]
    columns += ["times its speed", "textbook, torch.compile", "times its speed"]
    yield from lines(columns, (loss_cells(kind, found) for kind, found in by_loss.items()))


def kinds(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.kind for row in rows))


def loss_cells(kind: str, found: dict[str, Row]) -> list[str]:
    """What was measured of a loss, and of what it is held against."""
    if "boxreg auto" not in found:
        return [kind, *[""] * 8]
    mine = found["boxreg auto"]
    line = [kind, *cells_of(mine)[1:3], *busy_cells(mine)]
    for other in ("boxreg eager", RIVAL):
        us = found[other].median_us if other in found else None
        times = us / mine.median_us if us and mine.median_us else None
        line += [cell(us, ",.0f", " us"), cell(times, ".2f")]
    return line


def costs_table(rows: list[Row]) -> Iterator[str]:
    """Starting and calling."""
    if not rows:
        return
    yield from ("", "### Starting and calling", "", "In fresh processes; a first call imports Numba too.", "")
    yield from lines(["what", "median", "p20 to p80"], (cost_cells(row) for row in rows))


def cost_cells(row: Row) -> list[str]:
    if row.python_calls is not None:
        return [row.case, f"{row.python_calls} Python calls in {row.python_files} files", ""]
    figures = (row.median_us, row.p20_us, row.p80_us)
    median, p20, p80 = (cell(None if us is None else us / 1e3, ",.0f") for us in figures)
    return [row.case, f"{median} ms", f"{p20} to {p80}"]
