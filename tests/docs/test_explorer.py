"""The explorer's formulas against the library's, in float64."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from boxreg.iou import aligned_loss
from boxreg.iou.spec import FAMILY
from tests.docs.site import DOCS

NODE = shutil.which("node")
PARAMETERS = {"image_width": 12.0, "image_height": 8.0, "scale": 1.5, "constant": 2.0}

EVALUATE = """
import { readFileSync } from "node:fs";
import { LOSSES, evaluate } from "./family.mjs";
const { pred, target, parameters } = JSON.parse(readFileSync(0));
const found = {};
for (const kind of Object.keys(LOSSES))
  found[kind] = pred.map((p, i) => evaluate(kind, p, target[i], parameters));
console.log(JSON.stringify(found));
"""


def some_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """A thousand pairs: apart, crossing, nested, of one shape, flat, on an axis, and identical."""
    generator = torch.Generator().manual_seed(0)
    corner = 8 * torch.rand(2, 1000, 2, generator=generator, dtype=torch.float64)
    size = 0.05 + 5 * torch.rand(2, 1000, 2, generator=generator, dtype=torch.float64) ** 2
    pred, target = torch.cat((corner, corner + size), -1)
    target[:100] = pred[:100] + 0.3 * size[0, :100].repeat(1, 2) * torch.tensor([1.0, 1.0, -0.7, -0.5])
    target[100:150] = pred[100:150] + 0.5 * size[0, 100:150].repeat(1, 2)
    target[150:200] = pred[150:200]
    return pred, target


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """What the page computes for each row and pair."""
    if NODE is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("explorer")
    (folder / "family.mjs").write_text((DOCS / "explorer" / "family.js").read_text())
    (folder / "evaluate.mjs").write_text(EVALUATE)
    pred, target = some_pairs()
    given = json.dumps({"pred": pred.tolist(), "target": target.tolist(), "parameters": PARAMETERS})
    done = subprocess.run(
        [NODE, "evaluate.mjs"], cwd=Path(folder), input=given, capture_output=True, text=True, check=True
    )
    found: dict[str, list[dict[str, object]]] = json.loads(done.stdout)
    return found


def test_rows_are_losses_of_the_family_in_its_order(computed: dict[str, list[dict[str, object]]]) -> None:
    assert list(computed) == [kind for kind in FAMILY if kind in computed]
    assert "ciou" in computed


@pytest.mark.parametrize("kind", FAMILY)
def test_values_and_gradients(kind: str, computed: dict[str, list[dict[str, object]]]) -> None:
    if kind not in computed:
        pytest.skip("the explorer does not have it")
    pred, target = some_pairs()
    pred.requires_grad_()
    variant = FAMILY[kind]
    taken = {parameter.name for parameter in (*variant.penalty.parameters, *variant.overlap.parameters)}
    parameters = {name: PARAMETERS[name] for name in taken}
    loss = aligned_loss(kind, pred, target, **parameters)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    found = torch.tensor([row["loss"] for row in computed[kind]], dtype=torch.float64)
    grads = torch.tensor([row["gradient"] for row in computed[kind]], dtype=torch.float64)
    torch.testing.assert_close(found, loss.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads, gradient, rtol=1e-6, atol=1e-6)
