"""The results of the benchmarks as pages, as their scripts wrote them."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put each file of results into the navigation, by its own title."""
    assert config.nav is not None
    (section,) = (entry["Benchmarks"] for entry in config.nav if "Benchmarks" in entry)
    section += [f"benchmarks/{path.name}" for path in sorted(RESULTS.glob("*.md"))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take over tables and pictures."""
    for path in sorted([*RESULTS.glob("*.md"), *RESULTS.glob("*.png"), *RESULTS.glob("*.svg")]):
        files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    return files
