"""The API pages, from the public names of boxreg: one page a module, nothing listed by hand."""

from __future__ import annotations

import inspect
import re
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from names import find, pages, targets

NAMED = re.compile(r"(?P<before><a\b[^>]*>\s*)?<code>(?P<name>[A-Za-z_][\w.]*)(?:\(\))?</code>")


def first_line(dotted: str) -> str:
    """The first line of a docstring, its formula left out of the table."""
    return (inspect.getdoc(find(dotted)) or "").partition("\n")[0].replace("|", "\\|")


def summary(module: str) -> str:
    """The first line of a module's docstring."""
    return (inspect.getdoc(sys.modules[module]) or "").partition("\n")[0]


def index() -> str:
    """The page that lists them all."""
    lines = ["# API", "", "Every public name, by the part of the library that it is in."]
    for module, names in pages().items():
        lines += ["", f"## [{module}]({module}.md)", "", summary(module), ""]
        lines += ["| name | what it is |", "|---|---|"]
        for dotted in names:
            short = dotted.rpartition(".")[2]
            lines.append(f"| [`{short}`]({module}.md#{dotted}) | {first_line(dotted)} |")
    return "\n".join(lines) + "\n"


def page(module: str, names: list[str]) -> str:
    """The page of one module: its docstring, then its names."""
    about = inspect.getdoc(sys.modules[module]) or ""
    return "\n\n".join([f"# {module}", about, *map(entry, names)]) + "\n"


def entry(dotted: str) -> str:
    """The directive that documents a name."""
    return f"::: {dotted}"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages into the navigation."""
    assert config.nav is not None
    (section,) = (entry["API"] for entry in config.nav if "API" in entry)
    section += [{module.removeprefix("boxreg."): f"api/{module}.md"} for module in pages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the pages."""
    files.append(File.generated(config, "api/index.md", content=index()))
    for module, names in pages().items():
        files.append(File.generated(config, f"api/{module}.md", content=page(module, names)))
    return files


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Link every public name in running text to its documentation."""

    def linked(match: re.Match[str]) -> str:
        url = targets().get(match["name"])
        if match["before"] or url is None:
            return match[0]
        return f'<a href="{get_relative_url(url, page.url)}">{match[0]}</a>'

    parts = re.split(r"(<h[1-6].*?</h[1-6]>|<pre.*?</pre>)", html, flags=re.DOTALL)
    return "".join(part if index % 2 else NAMED.sub(linked, part) for index, part in enumerate(parts))
