"""The results as Markdown: a table for each section, and sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from boxreg import AuditReport

from ..config import PRESETS
from ..files import write_whole
from .intervals import CONFIDENCE, Interval
from .lines import Line
from .plan import Common
from .results import Result, difference
from .rows import NO_ROW, PARTS, QUICK_TEST, RECOMMENDATIONS, SECTIONS, Row, added, removed, setting

PASSED = 0.5
"""The IoU that the quick test was to pass."""

HEAD = ("row", "against", "change", "seeds", "IoU", "best epoch", "difference", "reading")


def write_table(
    path: Path,
    results: Mapping[str, Result],
    common: Common,
    lines: Mapping[tuple[str, int], Line],
    figure: str,
    audit: AuditReport | None,
) -> None:
    """Replace the file of the table; `figure` is the name of the figure beside it, `audit` of baseline."""
    parts = [
        f"# Ablation, {common.epochs} epochs",
        setting_of(common, results, lines),
        f"![Mean IoU of every row, and its difference to its base]({figure})",
        *(section(title, rows, results) for title, rows in SECTIONS.items()),
        failures(results),
        explained(results, audit) if audit else "",
        headed("Reference against baseline", whole(results)),
        headed("The quick test", quick_test(results)),
        "## Did not help here",
        *sentences(results),
        headed("What was recommended", recommendations(results)),
    ]
    write_whole(path, ("\n\n".join(part for part in parts if part) + "\n").encode())


def setting_of(common: Common, results: Mapping[str, Result], lines: Mapping[tuple[str, int], Line]) -> str:
    """How all rows were trained, where, and how to read the table."""
    toys = f"{common.images} toy images (four fifths to train on)"
    machines = {_machine(line["machine"]) for line in lines.values() if "machine" in line}
    share = common.epochs / PRESETS["reference"].epochs
    seeds = {len(result.finals) for result in results.values()}
    counts = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return (
        f"Made by `{command_of(common)}`. "
        f"Task single, {common.data.name if common.data else toys} at {common.size} pixels, "
        f"{common.epochs} epochs, width {common.width}, nothing stops early; "
        f"settings in epochs are cut to {100 * min(share, 1):.0f} % of the presets'. "
        "A short run of a small network tells what helps at once, not what helps late. "
        f"{len(lines)} runs, {counts} seeds a row; a seed decides images, weights, order and augmentation, "
        "and rows are compared seed by seed. IoU is the mean over the validation images after the last "
        f"epoch. Intervals are Student's t, {100 * CONFIDENCE:.0f} %: one row in twenty without any effect "
        f"will look as if it had one. {common.threads} thread a run; {'; '.join(sorted(machines))}."
    )


def command_of(common: Common) -> str:
    """What trains the same rows in the same way."""
    options = {**common.as_json(), "rows": " ".join(f"'{row}'" for row in common.rows)}
    given = " ".join(f"--{name} {value}" for name, value in options.items() if value not in (None, ""))
    return f"reference_trainer ablate {given}"


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"Python {machine['python']}, torch {machine['torch']}, "
        f"{machine['cuda'] or 'CPU with ' + machine['capability']}, {machine['cores']} cores"
    )


def section(title: str, rows: Iterable[Row], results: Mapping[str, Result]) -> str:
    """A heading and a table of those rows that have results."""
    shown = [results[row.name] for row in rows if row.name in results]
    if not shown:
        return ""
    cells = [HEAD, ["---"] * len(HEAD), *map(_cells, shown)]
    return headed(title, (f"| {' | '.join(line)} |" for line in cells))


def headed(title: str, lines: Iterable[str]) -> str:
    """The lines under a heading, and nothing at all where there is none."""
    body = "\n".join(lines)
    return f"## {title}\n\n{body}" if body else ""


def _cells(result: Result) -> list[str]:
    row, level = result.row, result.level
    return [
        row.name,
        row.base or "",
        "; ".join(changes_of(row)),
        str(level.of) + (f", {len(result.errors)} failed" if result.errors else ""),
        f"{level.mean:.3f}" if level.of else "",
        f"{result.best:.3f}" if level.of else "",
        show(result.difference),
        result.reading,
    ]


def show(interval: Interval | None) -> str:
    """`+0.012 (-0.003 to +0.027)`, as far as it is known."""
    if interval is None or interval.of == 0:
        return ""
    if interval.low is None:
        return f"{interval.mean:+.3f}"
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def changes_of(row: Row) -> list[str]:
    """The settings that a row changes, with their values."""
    preset = PRESETS["reference"]
    named = []
    for name, value in row.changes.items():
        if isinstance(value, Mapping):
            other = "reference" if value == setting(preset, name) else "baseline"
            named.append(f"{name} of {other}")
        else:
            named.append(f"{name} {value}")
    return named


def failures(results: Mapping[str, Result]) -> str:
    """The runs that ended with an error."""
    errors = [
        f"- {name}, seed {seed}: {error.splitlines()[0]}"
        for name, result in results.items()
        for seed, error in sorted(result.errors.items())
    ]
    return headed("Runs that failed", errors)


def explained(results: Mapping[str, Result], audit: AuditReport) -> str:
    """What audit finds in the set-up that is stuck, the worst first, and what each remedy alone was worth."""
    lines = [
        "What `reference_trainer audit` measures on baseline before its first step, the worst first; "
        "and what each remedy was worth alone.",
        "",
        "| finding | what it says | severity | remedy | its IoU | difference |",
        "|---|---|---|---|---|---|",
    ]
    remedies = {part.finding: added(part).name for part in PARTS if part.finding}
    for finding in audit.findings:
        result = results.get(remedies.get(finding.check, ""))
        cells = [f"`{finding.check}`", finding.what, finding.severity]
        cells += (
            [result.row.name, f"{result.level.mean:.3f}", show(result.difference)] if result else [""] * 3
        )
        lines.append(f"| {' | '.join(cells)} |")
    return headed("Why baseline is stuck", lines)


def whole(results: Mapping[str, Result]) -> Iterator[str]:
    """The whole recipe against the set-up that is stuck, with its own head and with the same one."""
    for name, what in (("reference", "Reference"), ("reference - dense head", "With the head held the same")):
        if name in results and "baseline" in results:
            between = difference(results[name].finals, results["baseline"].finals)
            yield f"- {what} against baseline, {name}: {show(between)}."


def sentences(results: Mapping[str, Result]) -> Iterator[str]:
    """Which recommendations held and which did not, by the intervals alone."""
    known = [result for result in results.values() if result.held is not None]
    if not known:
        yield "With one seed there is no interval, and nothing can be said."
        return
    ours = {removed(part).name for part in PARTS}
    kinds: dict[tuple[str, str], Callable[[Row], bool]] = {
        ("Recommended, and not better", "Recommended, and better"): lambda row: row.claim > 0,
        ("Warned of, and not worse", "Warned of, and worse"): lambda row: (
            row.claim < 0 and row.name not in ours
        ),
        ("Taken out of reference, and not missed", "Taken out of reference, and missed"): lambda row: (
            row.name in ours
        ),
    }
    nowhere = [
        part.name
        for part in PARTS
        if part.notes and all(_failed(results, row.name) for row in (added(part), removed(part)))
    ]
    yield "Rows whose interval holds 0, or lies on the other side of it than was said."
    if nowhere:
        yield f"**Helped neither added to baseline alone nor kept in reference: {'; '.join(nowhere)}.**"
    for held in (False, True):
        if held:
            yield "## Helped here"
        for texts, fits in kinds.items():
            those = [result for result in known if fits(result.row)]
            listed = [f"- {one.row.name}: {show(one.difference)}" for one in those if one.held is held]
            if listed:
                yield "\n".join([f"{texts[held]} ({len(listed)} of {len(those)}):", "", *listed])


def _failed(results: Mapping[str, Result], name: str) -> bool:
    return name in results and results[name].held is False


def quick_test(results: Mapping[str, Result]) -> Iterator[str]:
    """Whether it passed the IoU that was promised."""
    for row in QUICK_TEST:
        if row.name not in results or not results[row.name].finals:
            continue
        level = results[row.name].level
        text = f"- {row.name}: IoU {level.mean:.3f}"
        if level.low is None or level.high is None:
            yield f"{text}, one seed."
            continue
        said = (
            "confirmed"
            if level.low > PASSED
            else "refuted"
            if level.high < PASSED
            else "neither shown nor refuted"
        )
        yield f"{text} ({level.low:.3f} to {level.high:.3f}); past {PASSED:.2f} is {said} on this task."


def recommendations(results: Mapping[str, Result]) -> Iterator[str]:
    """Each recommendation with the rows that serve it."""
    without = {removed(part).name for part in PARTS}
    for note, text in RECOMMENDATIONS.items():
        serving = [
            f"{name} ({one.reading}{' without it' * (name in without)})" if one.reading else name
            for name, one in results.items()
            if note in one.row.notes
        ]
        yield f"- {note}: {text}. {'; '.join(serving) or NO_ROW.get(note, 'not tried in these rows')}."
