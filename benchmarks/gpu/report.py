"""Records of what was found, each written the moment it is there, and the page that is made of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]
"""What was measured, by name."""

RECORDS, PAGE = "gpu.jsonl", "gpu.md"
"""Files of a run's folder."""

STARTED, OK, FAILED, LEFT_OUT, ENDED = "started", "ok", "failed", "left out", "ended"
"""What a record can say: a section began or ended, or a step of it went well, failed or was left out."""


class LeftOutError(Exception):
    """A step cannot be done here; the message says why."""


@dataclass
class Record:
    """One step of a section."""

    section: str
    name: str
    outcome: str
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    detail: str = ""
    """Why it failed, with the traceback, or why it was left out."""


class Report:
    """What a section writes to, and the time that it has.

    Args:
        folder: where the records and the page are.
        section: the name of the section.
        seconds: how long it may take.
    """

    def __init__(self, folder: Path, section: str, seconds: float) -> None:
        self.folder, self.section, self.seconds = folder, section, seconds
        self.began = time.perf_counter()

    @property
    def left(self) -> float:
        """Seconds that are left; negative once the time is over."""
        return self.seconds - (time.perf_counter() - self.began)

    def step(self, name: str, work: Callable[[], Figures | None], needs: float = 1.0) -> None:
        """Do one step and write down what came of it; an error is written down too, and goes no further.

        Args:
            name: what is done.
            work: does it, and returns what it measured.
            needs: seconds without which it is left out.
        """
        if self.left < needs:
            detail = f"{max(self.left, 0):.0f} s left of {self.seconds:.0f}"
            return self.add(Record(self.section, name, LEFT_OUT, detail=detail))
        began = time.perf_counter()
        figures: Figures = {}
        outcome, detail = OK, ""
        try:
            figures = work() or {}
        except LeftOutError as error:
            outcome, detail = LEFT_OUT, str(error)
        except Exception:
            outcome, detail = FAILED, traceback.format_exc()
        seconds = time.perf_counter() - began
        return self.add(Record(self.section, name, outcome, round(seconds, 3), figures, detail))

    def add(self, record: Record) -> None:
        """Append a record, and make the page anew."""
        add(self.folder, record)


def add(folder: Path, record: Record) -> None:
    """Append a record to a folder's, make the page anew and print a line; none of it ends the run."""
    with contextlib.suppress(OSError):  # nobody reads what is printed any more
        print(in_a_line(record), flush=True)
    try:
        path = folder / RECORDS
        cut_off = path.exists() and not path.read_text().endswith("\n")
        with open(path, "a") as file:
            file.write("\n" if cut_off and path.stat().st_size else "")
            file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        write_page(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            print(f"{folder}: {error}; not written: {json.dumps(asdict(record))}", file=sys.stderr)


def in_a_line(record: Record) -> str:
    """A record as it is printed."""
    shown = {"us": record.figures["median_us"]} if "median_us" in record.figures else record.figures
    last = record.detail.strip().splitlines()[-1:]
    parts = [f"{record.section}: {record.name}: {record.outcome}", f"{record.seconds:.1f} s"]
    return "  ".join(part for part in (*parts, ", ".join(in_words(shown)), *last) if part)


def set_aside(folder: Path, sections: Sequence[str], rehearsal: bool) -> None:
    """Rename the records and the page of an earlier run, but go on with those of its other sections."""
    before = read(folder)
    if not before:
        return
    number = next(n for n in count(1) if not (folder / f"gpu-{n}.jsonl").exists())
    for name in (RECORDS, PAGE):
        if (folder / name).exists():
            # Copied, not moved: this process has the file open and locked.
            shutil.copyfile(folder / name, folder / name.replace("gpu", f"gpu-{number}"))
    (folder / RECORDS).write_text("")
    print(f"an earlier run is now {folder / f'gpu-{number}.md'}", flush=True)
    same_kind = all(
        record.figures.get("rehearsal") == rehearsal for record in before if record.outcome == STARTED
    )
    for record in before:
        if same_kind and record.section not in sections:
            add(folder, record)


def read(folder: Path) -> list[Record]:
    """The records of a folder; a line that was cut off is passed over."""
    records = []
    path = folder / RECORDS
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(Record(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return records


def write_page(folder: Path) -> None:
    """Make the page of a folder's records; the page before it stays whole until then."""
    from .page import markdown

    try:
        text = markdown(read(folder))
    except Exception:  # a page error must not end the run; the records are saved
        text = f"The page could not be made of {RECORDS}:\n\n```text\n{traceback.format_exc()}```\n"
    part = folder / (PAGE + ".part")
    part.write_text(text)
    part.replace(folder / PAGE)


def failures(records: Iterable[Record]) -> list[Record]:
    """What went wrong."""
    return [record for record in records if record.outcome == FAILED]


def in_words(figures: Figures) -> Iterator[str]:
    """Figures, formatted; nested and empty ones are omitted."""
    for name, value in figures.items():
        if isinstance(value, bool | str):
            yield f"{name} {value}"
        elif isinstance(value, int):
            yield f"{name} {value:,}"
        elif isinstance(value, float):
            yield f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.3g}"
