"""Boxes that break losses, ours and the installed peers': `python -m benchmarks.torture`.

Each case states what a loss should do with it, and every library is judged by that alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torchvision import ops

from boxreg.iou import overlap_loss

from .machine import describe
from .providers import PEERS

RESULTS = Path(__file__).parent / "results"
Loss = Callable[[Tensor, Tensor], Tensor]
"""Predicted and target boxes, xyxy, in; their mean loss out."""

OTHERS = ("ultralytics", "mmdet", "fvcore", "detectron2", "yolox")
"""Libraries that offer such losses too; those in `PEERS` are run where they are installed."""


@dataclass(frozen=True)
class Outcome:
    """What a library made of a case."""

    loss: Tensor | None = None
    gradient: Tensor | None = None
    error: str = ""

    @property
    def finite(self) -> bool:
        """Whether there are a loss and a gradient without NaN or infinity."""
        if self.loss is None or self.gradient is None:
            return False
        return bool(self.loss.isfinite().all() and self.gradient.isfinite().all())

    @property
    def value(self) -> float:
        """The loss, NaN without one."""
        return float("nan") if self.loss is None else float(self.loss)

    @property
    def steepest(self) -> float:
        """The largest slope."""
        known = self.gradient is not None and self.gradient.numel()
        return self.gradient.abs().max().item() if known and self.gradient is not None else 0.0

    def __str__(self) -> str:
        if self.error:
            return self.error
        if self.gradient is None:
            return f"{self.value:.4g}, not attached to the graph"
        return f"{self.value:.4g}, slope {self.steepest:.2g}"


@dataclass(frozen=True)
class Case:
    """A pair of boxes, what should come of it, and how to see whether it did."""

    name: str
    promise: str
    pred: Tensor
    target: Tensor
    holds: Callable[[Outcome], bool]
    kind: str = "ciou"


def boxes(*rows: tuple[float, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows x1, y1, x2, y2."""
    return torch.tensor(rows, dtype=dtype).reshape(-1, 4)


def pixels(count: int = 10_000) -> Tensor:
    """Random boxes in a picture of 640 x 640."""
    generator = torch.Generator().manual_seed(0)
    corners = 600 * torch.rand(count, 2, generator=generator)
    return torch.cat((corners, corners + 1 + 39 * torch.rand(count, 2, generator=generator)), -1)


def near_zero(bound: float) -> Callable[[Outcome], bool]:
    """A finite loss of 0, up to rounding."""
    return lambda outcome: outcome.finite and abs(outcome.value) <= bound


def finite(outcome: Outcome) -> bool:
    """A finite loss and gradient."""
    return outcome.finite


UNIT = boxes((0, 0, 1, 1))
WIDE = boxes((0, 0, 4, 2))
SMALL = boxes((0.5, 0.5, 0.5001, 0.5001))
LARGE_HALF = boxes((0, 0, 200, 300), dtype=torch.float16)
ONE_NAN = boxes((float("nan"), 0, 1, 1), (0, 0, 2, 1))

CASES = (
    Case("identical boxes, 10,000 in pixels", "loss 0", pixels(), pixels(), near_zero(1e-5)),
    Case("identical boxes, side 1e-4", "loss 0", SMALL, SMALL, near_zero(1e-6)),
    Case("identical boxes, side 1e-15", "loss 0", UNIT * 1e-15, UNIT * 1e-15, near_zero(1e-6)),
    Case("identical points", "finite", boxes((3, 3, 3, 3)), boxes((3, 3, 3, 3)), finite),
    Case("the prediction is a point", "finite", boxes((1, 1, 1, 1)), WIDE, finite),
    Case("the prediction has no height", "finite", boxes((0, 1, 4, 1)), WIDE, finite),
    Case("the target has no width", "finite", WIDE, boxes((2, 0, 2, 2)), finite),
    Case(
        "an inverted prediction",
        "at least 1.5 (IoU 0, half of it empty or worse)",
        boxes((1, 1, 0, 0)),
        UNIT,
        lambda outcome: outcome.finite and outcome.value >= 1.5,
        "giou",
    ),
    Case(
        "an inverted prediction, larger",
        "at least 1.5",
        boxes((2, 2, -1, -1)),
        UNIT,
        lambda outcome: outcome.finite and outcome.value >= 1.5,
        "giou",
    ),
    Case("coordinates of 1e20", "finite", UNIT * 1e20, boxes((0.5, 0, 2, 1)) * 1e20, finite),
    Case("coordinates of 3e38", "finite", UNIT * -3e38, UNIT * 3e38, finite),
    Case("sides of 1e-38", "finite", UNIT * 1e-38, boxes((0.5, 0, 2, 1)) * 1e-38, finite),
    Case(
        "float16, 200 x 300 pixels, identical",
        "loss 0",
        LARGE_HALF,
        LARGE_HALF,
        near_zero(1e-3),
    ),
    Case("no boxes", "0, attached to the graph", boxes(), boxes(), near_zero(0)),
    Case("float32 against float64", "finite", WIDE, (WIDE + 0.5).double(), finite),
    Case(
        "(2, 4) against (2, 1, 4)",
        "an error that names the shapes",
        torch.cat((UNIT, WIDE)),
        torch.cat((UNIT, WIDE)).unsqueeze(1),
        lambda outcome: "(2, 1, 4)" in outcome.error,
    ),
    Case(
        "NaN in another box",
        "that box alone has a gradient of NaN",
        ONE_NAN,
        torch.cat((UNIT, UNIT)),
        lambda outcome: outcome.gradient is not None and bool(outcome.gradient[1].isfinite().all()),
    ),
)


@cache
def libraries() -> dict[str, dict[str, Loss]]:
    """The losses of each library that is installed, by row of the family."""

    def ours(kind: str) -> Loss:
        return lambda pred, target: overlap_loss(kind, pred, target, reduction="mean")

    def theirs(loss: Callable[..., Tensor]) -> Loss:
        return lambda pred, target: loss(pred, target, reduction="mean")

    of_torchvision = {"giou": ops.generalized_box_iou_loss, "ciou": ops.complete_box_iou_loss}
    found = {
        "boxreg": {kind: ours(kind) for kind in of_torchvision},
        "torchvision": {kind: theirs(loss) for kind, loss in of_torchvision.items()},
    }
    for name, make in PEERS.items():
        if find_spec(name):
            loss = make().loss
            found[name] = {"ciou": lambda pred, target, loss=loss: loss(pred, target, -1)}  # type: ignore[misc]
    return found


def run(loss: Loss, case: Case) -> Outcome:
    """A case by a library."""
    pred = case.pred.clone().requires_grad_()
    try:
        value = loss(pred, case.target)
        if not value.requires_grad:
            return Outcome(value.detach())
        (gradient,) = torch.autograd.grad(value, pred)
    except Exception as error:  # whatever a library makes of the case is its outcome
        message = str(error).partition("\n")[0].replace("|", "\\|")
        return Outcome(error=f"{type(error).__name__}: {message}")
    return Outcome(value.detach(), gradient)


def graph_breaks(loss: Loss) -> int:
    """How often torch.compile has to leave the graph in a call."""
    torch._dynamo.reset()
    explained = torch._dynamo.explain(loss)(pixels(8).requires_grad_(), pixels(8))
    return int(explained.graph_break_count)


def cell(loss: Loss | None, case: Case) -> str:
    """An outcome with its verdict."""
    if loss is None:
        return "not run"
    outcome = run(loss, case)
    text = str(outcome)
    return ("✓ " if case.holds(outcome) else "✗ ") + (text if len(text) < 90 else text[:87] + "...")


def report() -> str:
    """The page of results."""
    found = libraries()
    missing = [name for name in OTHERS if name not in found and not find_spec(name)]
    machine = describe(torch.device("cpu"))
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", *found) if name in machine)
    rows = [
        [
            case.name,
            case.kind,
            case.promise,
            *(cell(losses.get(case.kind), case) for losses in found.values()),
        ]
        for case in CASES
    ]
    breaks = [graph_breaks(losses["ciou"]) for losses in found.values()]
    counted = [("✓ " if count == 0 else "✗ ") + str(count) for count in breaks]
    rows.append(["torch.compile", "ciou", "no graph break", *counted])
    kept = [sum(row[3 + column].startswith("✓") for row in rows) for column in range(len(found))]
    rows.append(["**kept**", "", "", *(f"**{count} of {len(rows)}**" for count in kept)])
    head = ["case", "loss", "promise", *found]
    return "\n".join(
        [
            "# Torture: boxes that break losses",
            "",
            f"Written by `python -m benchmarks.torture`, on the CPU: {versions}. Mean losses of xyxy boxes "
            "with their largest slope at the predictions. ✓ keeps the promise, ✗ does not. "
            f"Not installed, so not run: {', '.join(missing) or 'none'}.",
            "",
            *("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "torture.md").write_text(report())


if __name__ == "__main__":
    main()
