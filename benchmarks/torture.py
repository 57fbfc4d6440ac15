"""Boxes that break losses, ours and the installed peers': `python -m benchmarks.torture`.

Each case states what a loss should do with it, and every library is judged by that alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from boxreg.iou import aligned_loss

RESULTS = Path(__file__).parent / "results"
Loss = Callable[[Tensor, Tensor], Tensor]
"""Predicted and target boxes, xyxy, in; their mean loss out."""


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
    def largest_gradient(self) -> float:
        """The largest coordinate of the gradient, without its sign."""
        known = self.gradient is not None and self.gradient.numel()
        return self.gradient.abs().max().item() if known and self.gradient is not None else 0.0

    def __str__(self) -> str:
        if self.error:
            return self.error
        if self.gradient is None:
            return f"{self.value:.4g}, not attached to the graph"
        return f"{self.value:.4g}, gradient {self.largest_gradient:.2g}"


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
    """Random boxes in a image of 640 x 640."""
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
    Case(
        "float16, 200 x 300 pixels, identical",
        "loss 0",
        LARGE_HALF,
        LARGE_HALF,
        near_zero(1e-3),
        "giou",
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


def mean_of(loss: Callable[..., Tensor]) -> Loss:
    """A loss with the usual argument `reduction`."""
    return lambda pred, target: loss(pred, target, reduction="mean")


def ours() -> dict[str, Loss]:
    def row(kind: str) -> Loss:
        return lambda pred, target: aligned_loss(kind, pred, target, reduction="mean")

    return {kind: row(kind) for kind in ("giou", "ciou")}


def torchvision() -> dict[str, Loss]:
    from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

    return {"giou": mean_of(generalized_box_iou_loss), "ciou": mean_of(complete_box_iou_loss)}


def ultralytics() -> dict[str, Loss]:
    from ultralytics.utils.metrics import bbox_iou

    return {
        "giou": lambda pred, target: (1 - bbox_iou(pred, target, xywh=False, GIoU=True)).mean(),
        "ciou": lambda pred, target: (1 - bbox_iou(pred, target, xywh=False, CIoU=True)).mean(),
    }


def mmdetection() -> dict[str, Loss]:
    from mmdet.models.losses import CIoULoss, GIoULoss

    return {"giou": GIoULoss(), "ciou": CIoULoss()}


def fvcore() -> dict[str, Loss]:
    from fvcore.nn import giou_loss  # the only one of its releases

    return {"giou": mean_of(giou_loss)}


LIBRARIES: dict[str, Callable[[], dict[str, Loss]]] = {
    "boxreg": ours,
    "torchvision": torchvision,
    "ultralytics": ultralytics,
    "mmdet": mmdetection,
    "fvcore": fvcore,
}
"""The losses of each library, by row of the family; the name is also that of its package."""


@cache
def libraries() -> dict[str, dict[str, Loss]]:
    """Those that are installed."""
    return {name: losses() for name, losses in LIBRARIES.items() if find_spec(name)}


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


def compiled(losses: dict[str, Loss]) -> str:
    """How often torch.compile has to leave the graph in a call, with the verdict."""
    if "ciou" not in losses:
        return "no ciou"
    torch._dynamo.reset()
    explained = torch._dynamo.explain(losses["ciou"])(pixels(8).requires_grad_(), pixels(8))
    return f"{'✗' if explained.graph_break_count else '✓'} {explained.graph_break_count}"


def cell(losses: dict[str, Loss], case: Case) -> str:
    """An outcome with its verdict."""
    if case.kind not in losses:
        return f"no {case.kind}"
    outcome = run(losses[case.kind], case)
    text = str(outcome)
    return ("✓ " if case.holds(outcome) else "✗ ") + (text if len(text) < 90 else text[:87] + "...")


def summary(name: str, cells: Sequence[str]) -> list[str]:
    """A library, its version, and how many of its outcomes are as promised; it has none if not installed."""
    if not cells:
        return [name, "not installed", ""]
    kept, missed = (sum(text.startswith(sign) for text in cells) for sign in "✓✗")
    return [name, version(name), f"{kept} of {kept + missed}"]


def table(*rows: Sequence[str]) -> list[str]:
    """Lines of Markdown; the first row is the head."""
    head, *others = rows
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *others)]


def report() -> str:
    """The page of results."""
    columns = {
        name: [*(cell(losses, case) for case in CASES), compiled(losses)]
        for name, losses in libraries().items()
    }
    cases = [(case.name, case.kind, case.promise) for case in CASES]
    cases.append(("torch.compile", "ciou", "no graph break"))
    outcomes = [(*case, *cells) for case, *cells in zip(cases, *columns.values(), strict=True)]
    return "\n".join(
        [
            "# Torture: boxes that break losses",
            "",
            f"Written by `python -m benchmarks.torture`, on the CPU with torch {version('torch')}. Every "
            "library gets the same boxes, and is judged by the promise alone; what is installed is run.",
            "",
            *table(
                ("library", "version", "promises kept"),
                *(summary(name, columns.get(name, [])) for name in LIBRARIES),
            ),
            "",
            "Mean losses of xyxy boxes, with the largest coordinate of their gradient at the predictions. "
            "✓ keeps the promise, ✗ does not.",
            "",
            *table(("case", "loss", "promise", *columns), *outcomes),
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
