"""The API pages, from the public names of boxreg: one page a module, nothing listed by hand."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections import defaultdict
from functools import cache
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

import boxreg
from boxreg import functional, iou

NAMED = re.compile(r"(?P<before><a\b[^>]*>\s*)?<code>(?P<name>[A-Za-z_][\w.]*)(?:\(\))?</code>")


def names_of(module: types.ModuleType) -> dict[str, Any]:
    """What a module offers: all without an underscore, but for its submodules."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


@cache
def pages() -> dict[str, list[str]]:
    """The module of each page, and the dotted names that it documents."""
    found: dict[str, list[str]] = defaultdict(list)
    known: set[int] = set()

    def add(page: str, dotted: str, value: object) -> None:
        if id(value) not in known:
            known.add(id(value))
            found[page].append(dotted)

    for name, value in names_of(boxreg).items():
        add(home(value), f"boxreg.{name}", value)
    for namespace in (functional, iou):
        for name, value in names_of(namespace).items():
            add(namespace.__name__, f"{namespace.__name__}.{name}", value)
    # What public classes derive from, once those have been listed: their arguments are described there.
    for value in list(names_of(boxreg).values()):
        for base in value.__mro__[1:] if inspect.isclass(value) else ():
            if base.__module__.startswith("boxreg."):
                add(home(base), f"{base.__module__}.{base.__qualname__}", base)
    return dict(sorted(found.items()))


def home(value: Any) -> str:
    """The part of boxreg that a name comes from: `boxreg.assign` of `boxreg.assign.cells`."""
    return ".".join(value.__module__.split(".")[:2])


def first_line(dotted: str) -> str:
    """The first line of a docstring, its formula left out of the table."""
    return (inspect.getdoc(find(dotted)) or "").partition("\n")[0].replace("|", "\\|")


def find(dotted: str) -> Any:
    """The object of a dotted name."""
    value: Any = boxreg
    for part in dotted.split(".")[1:]:
        value = getattr(value, part)
    return value


def index() -> str:
    """The page that lists them all."""
    lines = ["# API", "", "Every public name. Whatever is in the first two columns of a row is a link.", ""]
    lines += ["| name | module | what it is |", "|---|---|---|"]
    for module, names in pages().items():
        for dotted in names:
            short = dotted.rpartition(".")[2]
            link = f"[`{short}`]({module}.md#{dotted})"
            lines.append(f"| {link} | [`{module}`]({module}.md) | {first_line(dotted)} |")
    return "\n".join(lines) + "\n"


def page(module: str, names: list[str]) -> str:
    """The page of one module: its docstring, then its names."""
    about = inspect.getdoc(sys.modules[module]) or ""
    return "\n\n".join([f"# {module}", about, *map(entry, names)]) + "\n"


def entry(dotted: str) -> str:
    """The directive that documents a name; one that is a module's too is found where it is defined."""
    if dotted not in sys.modules:
        return f"::: {dotted}"
    value = find(dotted)
    options = f"    options:\n      heading: {dotted}\n      toc_label: {value.__name__}"
    return f'<a id="{dotted}"></a>\n\n::: {value.__module__}.{value.__qualname__}\n{options}'


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


@cache
def targets() -> dict[str, str]:
    """Where each name is documented, by its last part and by its whole."""
    found = {}
    for module, names in pages().items():
        for dotted in names:
            url = f"api/{module}/#{dotted}"
            found[dotted] = url
            found.setdefault(dotted.rpartition(".")[2], url)
    return found


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Link every public name in running text to its documentation."""

    def linked(match: re.Match[str]) -> str:
        url = targets().get(match["name"])
        if match["before"] or url is None:
            return match[0]
        return f'<a href="{get_relative_url(url, page.url)}">{match[0]}</a>'

    parts = re.split(r"(<h[1-6].*?</h[1-6]>|<pre.*?</pre>)", html, flags=re.DOTALL)
    return "".join(part if index % 2 else NAMED.sub(linked, part) for index, part in enumerate(parts))
