"""The code blocks of the pages run: those of a page one after the other, as a reader would type them."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.site import DOCS, ROOT

BLOCK = re.compile(r"^```python(?P<options>[^\n]*)\n(?P<code>.*?)^```", re.M | re.S)
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if BLOCK.search(page.read_text())]


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def missing(code: str) -> list[str]:
    """The packages that a block imports and that are not installed."""
    imported = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(str(node.module))
    return [name for name in imported if not find_spec(name.partition(".")[0])]


def blocks() -> list[object]:
    """Each block with those before it on its page; those with a title belong into a file."""
    found = []
    for page in PAGES:
        run = [match for match in BLOCK.finditer(page.read_text()) if not match["options"]]
        for index in range(len(run)):
            codes = [match["code"] for match in run[: index + 1]]
            found.append(pytest.param(codes, id=f"{name_of(page)}-{index}"))
    return found


@pytest.mark.parametrize("codes", blocks())
def test_block_runs(codes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    *before, code = codes
    if absent := missing(code):
        pytest.skip(f"{', '.join(absent)} is not installed")
    names: dict[str, object] = {"__name__": "page"}
    for earlier in before:
        if shares_names(earlier, code) and not missing(earlier):
            exec(compile(earlier, "page", "exec"), names)
    exec(compile(code, "page", "exec"), names)


def shares_names(earlier: str, code: str) -> bool:
    """Whether a block needs one before it: it does not import torch for itself."""
    return "import torch" not in code


COMPARE = """
import torch
from boxreg.iou import aligned_loss
torch.manual_seed(0)
pred = torch.rand(1000, 4, dtype=torch.float64).sort(-1).values[:, [0, 1, 2, 3]].requires_grad_()
target = torch.rand(1000, 4, dtype=torch.float64).sort(-1).values
found = []
for backend in ("eager", "numba"):
    loss = aligned_loss("axisiou", pred, target, backend=backend)
    found.append((loss, *torch.autograd.grad(loss.sum(), pred)))
torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
assert (found[0][0] > aligned_loss("iou", pred, target)).any()
"""


def test_the_loss_that_the_guide_adds(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "boxreg", tmp_path / "boxreg", ignore=shutil.ignore_patterns("__pycache__"))
    added = []
    for match in BLOCK.finditer((DOCS / "how.md").read_text()):
        if title := re.search(r'title="(.*?)"', match["options"]):
            added.append(title[1])
            with (tmp_path / title[1]).open("a") as file:
                file.write("\n\n" + match["code"])
    assert added == ["boxreg/losses/axisiou.py", "boxreg/losses/__init__.py"]
    done = subprocess.run([sys.executable, "-c", COMPARE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
