"""The site in a real browser, offline but for its own host."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from boxreg.iou import aligned_loss
from tests.docs.site import BROWSES, NO_BROWSER

pytestmark = pytest.mark.skipif(not BROWSES, reason=NO_BROWSER)

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
MAIN = [
    "",
    "start/",
    "explorer/",
    "losses/",
    "losses/ciou/",
    "stuck/",
    "how/",
    "benchmarks/torture/",
    "api/",
    "api/boxreg.heads/",
]
SCREENSHOTS = os.environ.get("BOXREG_SCREENSHOTS")
"""A folder for screenshots of the main pages, if somebody wants to look at them."""


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A fresh page, with what went wrong on it."""
    context = browser.new_context(viewport=DESK, permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.wrong = []
    watch(opened, address)
    yield opened
    assert opened.wrong == []
    context.close()


def watch(page: Any, address: str) -> None:
    """Note console errors, exceptions, and requests to other hosts or without an answer."""
    page.on("console", lambda m: page.wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))

    def failed(request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # that is what leaving a page does to its requests
            page.wrong.append(f"failed: {request.url}")

    page.on("requestfailed", failed)

    def outside(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            page.wrong.append(f"outgoing: {request.url}")

    page.on("request", outside)


def every_page(site: Path) -> list[str]:
    found = [
        path.relative_to(site).as_posix().removesuffix("index.html") for path in site.rglob("index.html")
    ]
    return sorted(found)


def test_every_page_opens_cleanly_and_fits_a_phone(page: Any, address: str, site: Path) -> None:
    page.set_viewport_size(PHONE)
    wide = []
    for url in every_page(site):
        page.goto(address + url)
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"]:
            wide.append(f"{url}: {width}")
    assert wide == []


@pytest.mark.parametrize("word", ["CIoULoss", "softplus"])
def test_search_finds(word: str, page: Any, address: str) -> None:
    page.goto(address)
    page.locator("input[name=query]").click()
    page.keyboard.type(word)
    page.wait_for_selector(".md-search-result__item a")
    found = page.locator(".md-search-result__item").all_inner_texts()
    assert any(word.lower() in text.lower() for text in found)


def test_copy_buttons_copy(page: Any, address: str) -> None:
    page.goto(address)
    block = page.locator(".highlight").first
    block.hover()
    block.locator("button").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == block.locator("code").inner_text().strip()


def numbers(page: Any, name: str) -> list[float]:
    return [float(page.input_value(f"#{name}-{number}")) for number in ("x1", "y1", "x2", "y2")]


def shown(page: Any, kind: str) -> list[float]:
    """Loss and gradient of a row, as the page shows them."""
    cells = page.locator(f"tr[data-kind={kind}] td").all_inner_texts()
    return [float(cells[index]) for index in (0, 2, 3, 4, 5)]


def computed(page: Any, kind: str) -> list[float]:
    """The same by the library."""
    pred = torch.tensor([numbers(page, "pred")], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([numbers(page, "target")], dtype=torch.float64)
    loss = aligned_loss(kind, pred, target)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    return [loss.item(), *gradient[0].tolist()]


class TestExplorer:
    @pytest.fixture
    def explorer(self, page: Any, address: str) -> Any:
        page.goto(address + "explorer/")
        return page

    def drag(self, page: Any, selector: str, dx: float, dy: float) -> None:
        box = page.locator(selector).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + dx, y + dy, steps=4)
        page.mouse.up()

    @pytest.mark.parametrize("selector", ["#pred .body", "#pred .se", "#target .nw"])
    def test_dragging_changes_the_numbers_as_the_library_says(self, selector: str, explorer: Any) -> None:
        before = shown(explorer, "ciou")
        self.drag(explorer, selector, 60, 45)
        after = shown(explorer, "ciou")
        assert after != before
        for kind in ("iou", "giou", "ciou", "siou"):
            assert shown(explorer, kind) == pytest.approx(computed(explorer, kind), abs=2e-6)

    def test_a_dragged_box_stays_under_the_pointer(self, explorer: Any) -> None:
        unit = explorer.locator("#pair svg").bounding_box()["width"] / 12
        before = numbers(explorer, "pred")
        self.drag(explorer, "#pred .body", unit, 0.5 * unit)
        after = [value + way for value, way in zip(before, (1, 0.5, 1, 0.5), strict=True)]
        assert numbers(explorer, "pred") == pytest.approx(after, abs=0.03)

    def test_keys_move_and_size(self, explorer: Any) -> None:
        x1, y1, x2, y2 = numbers(explorer, "pred")
        explorer.focus("#pred")
        explorer.keyboard.press("ArrowRight")
        explorer.keyboard.press("Shift+ArrowDown")
        assert numbers(explorer, "pred") == pytest.approx([x1 + 0.1, y1, x2 + 0.1, y2 + 0.1])

    def test_typed_numbers_count_and_inverted_ones_are_refused(self, explorer: Any) -> None:
        explorer.fill("#pred-x2", "7.5")
        assert shown(explorer, "giou") == pytest.approx(computed(explorer, "giou"), abs=2e-6)
        explorer.fill("#pred-x2", "0")
        assert explorer.get_attribute("#pred-x2", "aria-invalid") == "true"

    def test_the_address_holds_the_state(self, explorer: Any, address: str) -> None:
        explorer.fill("#target-y1", "2.5")
        explorer.check("input[value=eiou]")
        link, before = explorer.url, shown(explorer, "eiou")
        explorer.goto("about:blank")
        explorer.goto(link)
        assert shown(explorer, "eiou") == before
        assert explorer.is_checked("input[value=eiou]")

    def test_steps_lower_the_loss(self, explorer: Any) -> None:
        before = shown(explorer, "ciou")[0]
        explorer.click("#step")
        assert shown(explorer, "ciou")[0] < before


# The theme makes a landmark of every copy button. Only colours differ in the dark.
AXE = {
    "light": """{
      runOnly: ["wcag2a", "wcag2aa", "best-practice"], rules: { "landmark-unique": { enabled: false } }
    }""",
    "dark": "{ runOnly: ['color-contrast'] }",
}


@pytest.mark.skipif(not find_spec("axe_core_python"), reason="axe-core-python is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(scheme: str, page: Any, address: str) -> None:
    from axe_core_python.base import AXE_FILE_PATH

    page.emulate_media(color_scheme=scheme)
    found = []
    for url in MAIN:
        page.goto(address + url)
        page.evaluate(AXE_FILE_PATH.read_text())
        result = page.evaluate(f"axe.run({AXE[scheme]})")
        for rule in result["violations"]:
            places = [re.sub(r"\s+", " ", node["html"])[:120] for node in rule["nodes"][:3]]
            found.append(f"{url} {rule['id']} x{len(rule['nodes'])}: {places}")
    assert found == []


@pytest.mark.skipif(SCREENSHOTS is None, reason="BOXREG_SCREENSHOTS names no folder")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_screenshots(scheme: str, size: dict[str, int], page: Any, address: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(size)
    folder = Path(str(SCREENSHOTS))
    folder.mkdir(parents=True, exist_ok=True)
    for url in MAIN:
        page.goto(address + url)
        name = url.strip("/").replace("/", "-") or "home"
        page.screenshot(path=folder / f"{name}-{scheme}-{size['width']}.png", full_page=True)
