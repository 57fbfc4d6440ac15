"""The built pages: every public name is there, and every link and anchor holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

import boxreg
from boxreg import functional, iou
from boxreg.iou.spec import FAMILY
from reference_trainer.ablation.rows import NO_ROW, RECOMMENDATIONS
from tests.docs.site import DOCS, ROOT

SEE_ALSO = re.compile(r"<strong>See also:</strong>\s*<a ")
HERE = "http://here/"


class Reader(HTMLParser):
    """Collects the ids, links and assets of a page, and the levels of its headings."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.headings: list[int] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag in ("img", "script", "link", "source"):
            self.assets += [value for name in ("src", "href") if (value := given.get(name))]
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.headings.append(int(tag[1]))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Reader]:
    """Each page by its address below the site's."""
    found = {}
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":
            found[path.relative_to(site).as_posix().removesuffix("index.html")] = Reader(path)
    return found


def public_names() -> list[str]:
    """Each public name once: loss functions in `boxreg.functional`, what else there is in `boxreg` there."""
    functions = {name for name in vars(functional) if name.endswith("_loss")}
    here = {name: value for name, value in vars(boxreg).items() if name not in functions}
    named = [f"boxreg.{name}" for name, value in here.items() if is_offered(name, value)]
    for module in (functional, iou):
        for name, value in vars(module).items():
            if is_offered(name, value) and here.get(name) is not value:
                named.append(f"{module.__name__}.{name}")
    return named


def test_every_public_name_is_documented_once(pages: dict[str, Reader]) -> None:
    found = [name for url, page in pages.items() if url.startswith("api/") for name in page.ids]
    entries = [name for name in found if name.startswith("boxreg.")]
    assert len(entries) == len(set(entries))
    assert [name for name in vars(functional) if f"boxreg.{name}" in found and name.endswith("_loss")] == []


def is_offered(name: str, value: object) -> bool:
    return not name.startswith("_") and type(value).__name__ != "module"


def test_every_public_name_has_its_place(pages: dict[str, Reader]) -> None:
    ids = {found for url, page in pages.items() if url.startswith("api/") for found in page.ids}
    assert [name for name in public_names() if name not in ids] == []


def test_every_public_name_says_where_else_to_look(pages: dict[str, Reader], site: Path) -> None:
    """Each entry, a heading of the second level on a page of the API, has its line with a link in it."""
    silent = []
    for url in pages:
        if url.startswith("api/") and url != "api/":
            _, *entries = re.split(r'<h2 id="', (site / url / "index.html").read_text())
            silent += [entry.partition('"')[0] for entry in entries if not SEE_ALSO.search(entry)]
    assert silent == []


def test_what_is_returned_is_said_in_one_piece(site: Path) -> None:
    """A second line of a docstring's "Returns" is no second value."""
    text = "".join(path.read_text() for path in (site / "api").rglob("index.html"))
    returned = re.findall(r">Returns:</span></p>\s*<ul>(.*?)</ul>", text, re.S)
    assert len(returned) > 20
    assert [piece for piece in returned if piece.count("doc-section-item") != 1] == []


def test_the_index_lists_them_all(pages: dict[str, Reader]) -> None:
    listed = {urldefrag(link).fragment for link in pages["api/"].links}
    assert [name for name in public_names() if name not in listed] == []


def test_no_page_is_stale(pages: dict[str, Reader]) -> None:
    modules = [url.split("/")[1] for url in pages if url.startswith("api/") and url != "api/"]
    assert [name for name in modules if not (ROOT / Path(*name.split("."))).is_dir()] == [
        name for name in modules if (ROOT / Path(*name.split("."))).with_suffix(".py").exists()
    ]
    about = {path.stem for path in (DOCS / "losses").glob("*.md")} - {"index"}
    assert about == set(FAMILY)


def test_every_link_holds(site: Path, pages: dict[str, Reader]) -> None:
    broken = []
    for url, page in pages.items():
        for link in [*page.links, *page.assets]:
            target, fragment = urldefrag(urljoin(HERE + url, link))
            if not target.startswith(HERE):
                continue
            path = unquote(urlsplit(target).path).lstrip("/")
            if not (site / path).exists():
                broken.append(f"{url}: {link}")
            elif fragment and path in pages and unquote(fragment) not in pages[path].ids:
                broken.append(f"{url}: {link}: no such anchor")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(pages: dict[str, Reader]) -> None:
    outside = {asset for page in pages.values() for asset in page.assets if urlsplit(asset).netloc}
    assert outside == set()


def test_headings_step_down_one_at_a_time(pages: dict[str, Reader]) -> None:
    wrong = []
    for url, page in pages.items():
        if page.headings.count(1) != 1:
            wrong.append(f"{url}: {page.headings.count(1)} titles")
        steps = zip(page.headings, page.headings[1:], strict=False)
        wrong += [f"{url}: h{above} then h{below}" for above, below in steps if below > above + 1]
    assert wrong == []


def test_formulas_are_drawn_without_scripts(site: Path) -> None:
    text = (site / "api" / "boxreg.functional" / "index.html").read_text()
    assert text.count("<math") > 20
    left = [path for path in site.rglob("index.html") if 'class="arithmatex"' in path.read_text()]
    assert left == []


def test_the_guide_serves_every_recommendation() -> None:
    marks = re.findall(r"^<!-- ablation (.*) -->$", (DOCS / "stuck.md").read_text(), re.M)
    served = sorted(note for mark in marks for note in mark.split("; "))
    assert served == sorted(RECOMMENDATIONS.keys() - NO_ROW.keys())


def test_the_guide_names_checks_that_there_are() -> None:
    guide = (DOCS / "stuck.md").read_text()
    lines = [line for line in guide.splitlines() if line.startswith("**Audit shows it as**")]
    named = {name for line in lines for name in re.findall(r"`([a-z-]+)`", line)} - {"declared"}
    source = "".join(path.read_text() for path in (ROOT / "boxreg" / "diagnostics" / "audit").glob("*.py"))
    assert len(named) > 20
    assert [name for name in sorted(named) if f'"{name}"' not in source] == []
