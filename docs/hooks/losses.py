"""What the pages about losses take from the library: formulas, pictures and measured figures."""

from __future__ import annotations

import inspect
import re
from typing import Any

from ablation import ablation
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page
from pictures import PICTURES
from results import RESULTS, table

from boxreg import functional
from boxreg.iou.variants import VARIANTS

MARK = re.compile(r"^<!-- (?P<what>[a-z]+)(?: (?P<about>[a-z0-9; ]+))? -->$", re.M)


def formula(kind: str) -> str:
    """What the docstring of a loss says before its arguments."""
    return (inspect.getdoc(getattr(functional, f"{kind}_loss")) or "").partition("\nArgs:")[0].strip()


def measured(kind: str) -> str:
    """The rows of the convergence benchmark that are about one loss."""
    lines = (RESULTS / "convergence.md").read_text().splitlines()
    rows = list(dict.fromkeys(row for row in lines if row.startswith(f"| {kind} |")))
    head = next(index for index, row in enumerate(lines) if row.startswith("| loss |"))
    return "\n".join([*lines[head : head + 2], *rows])


def code(kind: str) -> str:
    """The loss's functions in source: its penalty, or what stands for its overlap."""
    variant = VARIANTS[kind]
    term = variant.penalty if kind == "iou" or variant.penalty != VARIANTS["iou"].penalty else variant.overlap
    return "```python\n" + inspect.getsource(term.value) + "\n\n" + inspect.getsource(term.slopes) + "```"


MAKERS = {"formula": formula, "measured": measured, "code": code, "ablation": ablation, "results": table}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A page for each row of the family, in its order."""
    assert config.nav is not None
    (section,) = (entry["Which loss?"] for entry in config.nav if "Which loss?" in entry)
    section += [f"losses/{kind}.md" for kind in VARIANTS]
    return config


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put what is asked for in the place of its mark, `<!-- what about -->`."""

    def made(match: re.Match[str]) -> str:
        arguments = [match["about"]] if match["about"] else []
        return (MAKERS | PICTURES)[match["what"]](*arguments)

    return MARK.sub(made, markdown)
