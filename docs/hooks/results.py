"""The results of the benchmarks as pages, as their scripts wrote them."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


TITLE = re.compile(r"^# (.*)$", re.M)
COMMAND = re.compile(r"`(python -m benchmarks[\w.]*|reference_trainer (?:train|ablate)[^`]*)`")


def pages() -> list[Path]:
    """The files of results, by name."""
    return sorted(RESULTS.rglob("*.md"))


def place(path: Path) -> str:
    """Where a file of results is on the site, beside the page of all results."""
    return path.relative_to(RESULTS).as_posix()


def table() -> str:
    """What there is, and the command that each says it was made by."""
    lines = ["| page | made by |", "|---|---|"]
    for path in pages():
        text = path.read_text()
        command = COMMAND.search(text)
        lines.append(f"| [{TITLE.findall(text)[0]}]({place(path)}) | {command[0] if command else ''} |")
    return "\n".join(lines)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put each file of results into the navigation, by its own title."""
    assert config.nav is not None
    (section,) = (entry["Benchmarks"] for entry in config.nav if "Benchmarks" in entry)
    section += [f"benchmarks/{place(path)}" for path in pages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take over tables and figures."""
    for path in sorted([*pages(), *RESULTS.rglob("*.png"), *RESULTS.rglob("*.svg")]):
        files.append(File.generated(config, f"benchmarks/{place(path)}", abs_src_path=str(path)))
    return files
