"""A figure with all that it depends on: a row of the results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

DEVICES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass
class Row:
    """What one provider did in one case; None where it was not measured, or does not apply."""

    case: str
    job: str
    layout: str
    pairs: int
    provider: str
    device: str
    machine: dict[str, str | int]
    copy_bytes_per_s: float
    disagreement: float | None = None
    """From the textbook (of other losses: from autograd) in float64, as a share of the largest."""
    why_not: str | None = None
    """Why there is no figure."""
    turns: int | None = None
    median_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    busy_us: float | None = None
    """The median while another process keeps a core busy."""
    busy_p20_us: float | None = None
    busy_p80_us: float | None = None
    times_torchvision: float | None = None
    times_compiled: float | None = None
    """The time of the textbook's CIoU under torch.compile by this one."""
    share_of_bandwidth: float | None = None
    peak_bytes: int | None = None
    launches: int | None = None
    synchronisations: int | None = None
    python_calls: int | None = None
    """Calls of Python functions in a step."""
    python_files: int | None = None
    """Files that these functions are in."""
    kind: str = "ciou"

    @property
    def place(self) -> tuple[str, str, str, int, str]:
        """The case that the row is of."""
        return self.case, self.job, self.layout, self.pairs, self.kind


def read(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def merge(rows: list[Row], path: Path) -> list[Row]:
    """The rows and, of the devices that they are not of, those that the file holds; written back to it."""
    measured = {row.device for row in rows}
    rows = rows + [row for row in read(path) if row.device not in measured]
    rows.sort(key=lambda row: list(DEVICES).index(row.device))
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows
