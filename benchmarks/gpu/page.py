"""The records of a run as one Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from ..aims import AIMS
from ..rows import Row
from .report import ENDED, FAILED, LEFT_OUT, OK, STARTED, Record, failures, in_words
from .sections import SECTIONS

ROW = "row: "
"""How the names of records start that hold a `benchmarks.rows.Row`."""

CASE = "case: "
"""How the names of records start that hold a case of `right_cases.py`."""

INTRODUCTION = """\
# Measured on a GPU

Written by `python -m benchmarks.gpu`, section by section. What failed stands at the top of its section, with
its traceback."""


def markdown(records: Sequence[Record]) -> str:
    """The whole page."""
    lines = [INTRODUCTION, *machine(records), *overview(records)]
    for name, section in SECTIONS.items():
        own = [record for record in records if record.section == name]
        lines += ["", f"## {section.title}", "", *body(own)]
    return "\n".join(lines) + "\n"


def machine(records: Sequence[Record]) -> Iterator[str]:
    """What the first section ran on."""
    for record in records:
        if record.outcome == STARTED:
            if record.figures.get("rehearsal"):
                yield from ("", "**A rehearsal on the CPU: no figure below means anything.**")
            named = {name: record.figures[name] for name in ("gpu",) if name in record.figures}
            others = {name: value for name, value in record.figures.items() if name != "rehearsal"}
            yield from ("", ", ".join(in_words({**named, **others})) + ".")
            return


def overview(records: Sequence[Record]) -> Iterator[str]:
    """A line for each section: how it ended, and how long it took."""
    yield from (
        "",
        "| section | steps ok | failed | left out | seconds | limit |",
        "|---|---|---|---|---|---|",
    )
    for name, section in SECTIONS.items():
        own = [r for r in records if r.section == name and not r.name.startswith(ROW)]
        counts = [sum(record.outcome == outcome for record in own) for outcome in (OK, FAILED, LEFT_OUT)]
        ended = [record for record in own if record.outcome == ENDED]
        taken = f"{ended[-1].seconds:.0f}" if ended else "under way" if own else "not run"
        share = f"{ended[-1].figures.get('of', 0):.0f}" if ended else ""
        yield f"| {section.title} | {' | '.join(map(str, counts))} | {taken} | {share} |"


def body(records: Sequence[Record]) -> Iterator[str]:
    """What a section found: failures first, the figures, and what was left out."""
    if not records:
        yield "Not run."
        return
    for record in failures(records):
        yield from (f"**Failed: {record.name}**", "", "```text", record.detail.strip(), "```", "")
    rows = rows_of(records)
    if rows:
        yield from speed_tables(rows)
    well = [record for record in records if record.outcome == OK and not record.name.startswith(ROW)]
    cases = [record for record in well if record.name.startswith(CASE)]
    if cases:
        yield from case_table(cases)
    others = [record for record in well if record not in cases]
    # Processes that share the checks end them in any order.
    yield from steps(sorted(others, key=lambda record: record.name) if cases else others)
    left_out = [r for r in records if r.outcome == LEFT_OUT and not r.name.startswith(ROW)]
    if left_out:
        yield from ("", "Left out:", "", *(f"- {record.name}: {record.detail}" for record in left_out))


def rows_of(records: Sequence[Record]) -> list[Row]:
    """The rows of benchmarks that records hold."""
    known = {field.name for field in fields(Row)}
    own = [record.figures for record in records if record.name.startswith(ROW)]
    # Rows that another version wrote are passed over.
    return [Row(**figures) for figures in own if set(figures) == known]


def case_table(records: Sequence[Record]) -> Iterator[str]:
    """The cases of the kernels, a line for each loss: the largest error and the time to compile."""
    yield from (
        "| loss | cases | largest error, allowed is 1 | kernels compiled | compile s |",
        "|---|---|---|---|---|",
    )
    kinds = [record.name.removeprefix(CASE).split()[0] for record in records]
    for kind in dict.fromkeys(kinds):
        own = [record.figures for record, other in zip(records, kinds, strict=True) if other == kind]
        worst = max(figures["error"] for figures in own)
        compiled, seconds = (
            sum(figures.get(name, 0) for figures in own) for name in ("compiled", "compile s")
        )
        yield f"| {kind} | {len(own)} | {worst} | {compiled} | {seconds:.1f} |"
    yield ""


def speed_tables(rows: list[Row]) -> Iterator[str]:
    """The aims for a GPU, and the tables of `python -m benchmarks`."""
    from ..report import table

    yield from ("| on | provider | figure | aim | measured |", "|---|---|---|---|---|")
    yield from (aim.line(rows) for aim in AIMS if aim.device == "cuda")
    for place in dict.fromkeys(row.place for row in rows):
        yield from table([row for row in rows if row.place == place], rows[0].device)
    yield ""


def steps(records: Sequence[Record]) -> Iterator[str]:
    """What went well, a line each."""
    if records:
        yield from ("| step | seconds | figures |", "|---|---|---|")
    for record in records:
        figures = ", ".join(in_words(record.figures)).replace("|", "\\|")
        yield f"| {record.name} | {record.seconds:.1f} | {figures} |"
