"""What the pages about losses take from the library: formulas, plots and measured figures."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from itertools import dropwhile
from typing import Any

from ablation import ablation
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page
from plots import PLOTS
from results import RESULTS, table

from boxreg import functional
from boxreg.losses import LOSSES
from boxreg.losses._docs import about

MARK = re.compile(r"^<!-- (?P<what>[a-z]+)(?: (?P<about>[a-z0-9; ]+))? -->$", re.M)


def formula(kind: str) -> str:
    """What the docstring of a loss says of it alone, before what all losses have in common."""
    return about(getattr(functional, f"{kind}_loss"))


def measured(kind: str) -> str:
    """The rows of the convergence benchmark that are about one loss."""
    lines = (RESULTS / "convergence.md").read_text().splitlines()
    rows = list(dict.fromkeys(row for row in lines if row.startswith(f"| {kind} |")))
    head = next(index for index, row in enumerate(lines) if row.startswith("| loss |"))
    return "\n".join([*lines[head : head + 2], *rows])


def code(kind: str) -> str:
    """The maths in a loss's file: all between its imports and its function."""
    source = inspect.getsource(sys.modules[LOSSES[kind].__module__])
    imports = (ast.Import, ast.ImportFrom, ast.Expr)
    nodes = list(dropwhile(lambda node: isinstance(node, imports), ast.parse(source).body))
    (end,) = (
        node.decorator_list[0].lineno
        for node in nodes
        if isinstance(node, ast.FunctionDef) and node.name == f"{kind}_loss"
    )
    return "```python\n" + "\n".join(source.splitlines()[nodes[0].lineno - 1 : end - 1]).strip() + "\n```"


MAKERS = {"formula": formula, "measured": measured, "code": code, "ablation": ablation, "results": table}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A page for each loss of the family, in its order."""
    assert config.nav is not None
    (section,) = (entry["Which loss?"] for entry in config.nav if "Which loss?" in entry)
    section += [f"losses/{kind}.md" for kind in LOSSES]
    return config


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put what is asked for in the place of its mark, `<!-- what about -->`."""

    def made(match: re.Match[str]) -> str:
        arguments = [match["about"]] if match["about"] else []
        return (MAKERS | PLOTS)[match["what"]](*arguments)

    return MARK.sub(made, markdown)
