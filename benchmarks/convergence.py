"""Boxes that walk to their targets by a loss's gradient alone: `python -m benchmarks.convergence`.

The simulation of Zheng et al. 2020, "Distance-IoU Loss" (arXiv:1911.08287), on fewer places: boxes of seven
sizes and seven shapes start all over a disc of radius 3 around seven targets of area 1. Each step moves
(cx, cy, w, h) by rate x (2 - IoU) x gradient; the rate falls to a tenth after 80 % of the steps, and again
after 90 %. There is no network: a figure says how a loss moves boxes, not what a detector scores.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from boxreg import box_iou
from boxreg.iou import aligned_loss
from boxreg.iou.spec import FAMILY

from .machine import describe

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
RATIOS = (1 / 4, 1 / 3, 1 / 2, 1, 2, 3, 4)
SCALES = (1 / 2, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 2)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
PAPERS_RATE = 0.1
STEPS = 200
CENTRE, RADIUS = 10.0, 3.0
FITS = 0.9
PARAMETERS: dict[str, dict[str, Any]] = {
    "mpdiou": {"image_width": 2 * CENTRE, "image_height": 2 * CENTRE},
    "nwd": {"constant": 1.0},
}
"""Parameters of the losses that have any: the image around the targets, and the targets' size."""


@dataclass(frozen=True)
class Walk:
    """How far the boxes came with a loss at a rate; steps are infinite for boxes that did not get there."""

    kind: str
    rate: float
    median: float
    slow: float
    reached: float
    reached_apart: float
    final_iou: float
    curve: list[float]

    @property
    def rank(self) -> tuple[float, float]:
        """Lower is better: boxes left behind, then the steps that the slower ones took."""
        return -round(self.reached, 3), self.slow


def starts(places: int) -> tuple[Tensor, Tensor]:
    """Boxes and their targets, cxcywh in float64: every place x size x shape x target."""
    turns = torch.arange(places, dtype=torch.float64)
    radius, angle = RADIUS * ((turns + 0.5) / places).sqrt(), turns * math.pi * (3 - 5**0.5)
    centres = torch.stack((CENTRE + radius * angle.cos(), CENTRE + radius * angle.sin()), -1)
    sizes = [sides(scale, ratio) for scale in SCALES for ratio in RATIOS]
    boxes = product(centres, torch.tensor(sizes, dtype=torch.float64))
    targets = torch.tensor([(CENTRE, CENTRE, *sides(1, ratio)) for ratio in RATIOS], dtype=torch.float64)
    pairs = product(boxes, targets)
    return pairs[:, :4].contiguous(), pairs[:, 4:].contiguous()


def sides(area: float, ratio: float) -> tuple[float, float]:
    """Width and height of a box."""
    return (area * ratio) ** 0.5, (area / ratio) ** 0.5


def product(a: Tensor, b: Tensor) -> Tensor:
    """Every row of `a` beside every row of `b`."""
    return torch.cat((a.repeat_interleave(len(b), 0), b.repeat(len(a), 1)), -1)


def walk(kind: str, boxes: Tensor, targets: Tensor, rate: float, steps: int = STEPS) -> Iterable[Tensor]:
    """The boxes before the first step and after each."""
    boxes = boxes.clone().requires_grad_()
    yield boxes.detach().clone()
    for step in range(steps):
        iou = box_iou(boxes.detach(), targets, fmt="cxcywh")
        loss = aligned_loss(kind, boxes, targets, fmt="cxcywh", reduction="sum", **PARAMETERS.get(kind, {}))
        (gradient,) = torch.autograd.grad(loss, boxes)
        now = rate * 0.1 ** ((step >= 0.8 * steps) + (step >= 0.9 * steps))
        with torch.no_grad():
            boxes -= now * (2 - iou).unsqueeze(-1) * gradient
        yield boxes.detach().clone()


def measure(kind: str, boxes: Tensor, targets: Tensor, rate: float) -> Walk:
    """Walk, and see who arrived when."""
    apart = box_iou(boxes, targets, fmt="cxcywh") == 0
    first = torch.full((len(boxes),), math.inf, dtype=torch.float64)
    for step, now in enumerate(walk(kind, boxes, targets, rate)):
        iou = box_iou(now, targets, fmt="cxcywh")
        first = torch.where((iou >= FITS) & first.isinf(), float(step), first)
    median, slow = first.sort().values[[len(first) // 2, int(0.9 * len(first))]].tolist()
    reached = first.isfinite().double()
    arrived = [(first <= step).double().mean().item() for step in range(STEPS + 1)]
    return Walk(
        kind,
        rate,
        median,
        slow,
        reached.mean().item(),
        reached[apart].mean().item(),
        iou.clamp(min=0).mean().item(),
        [round(share, 4) for share in arrived],
    )


def steps_text(steps: float) -> str:
    """Steps in a table."""
    return "-" if math.isinf(steps) else f"{steps:.0f}"


def table(walks: Iterable[Walk]) -> list[str]:
    """One row a loss."""
    lines = [
        "| loss | rate | median steps | slowest tenth | reached | of those apart | mean IoU at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in walks:
        steps = f"{steps_text(row.median)} | {steps_text(row.slow)}"
        shares = f"{row.reached:.1%} | {row.reached_apart:.1%} | {row.final_iou:.3f}"
        lines.append(f"| {row.kind} | {row.rate:g} | {steps} | {shares} |")
    return lines


def best_of(walks: list[Walk]) -> list[Walk]:
    """The walk of each loss at the rate that leaves fewest boxes behind."""
    kinds = dict.fromkeys(row.kind for row in walks)
    return [min((row for row in walks if row.kind == kind), key=lambda row: row.rank) for kind in kinds]


def report(walks: list[Walk], pairs: int, apart: float, machine: str) -> str:
    """The page of results."""
    alike = [row for row in walks if row.rate == PAPERS_RATE]
    return "\n".join(
        [
            "# Convergence: boxes that walk to their targets",
            "",
            f"Written by `python -m benchmarks.convergence`: {pairs:,} boxes, {apart:.0%} of them apart "
            f"from their target at the start, {STEPS} steps. Steps are those to an IoU of {FITS}: the "
            "median box's, "
            "and the first of the slowest tenth's; a dash where that box never got there. Reached are all "
            "boxes that got there, and of those that started apart from their target. It is the first time "
            "that counts: boxes overshoot and come back. Where they settle, once the rate has fallen, is the "
            f"mean IoU at the end. {machine}.",
            "",
            'The simulation is that of Zheng et al. 2020, "Distance-IoU Loss" (arXiv:1911.08287): seven '
            "sizes and seven shapes of boxes all over a disc around seven targets, moved by rate x (2 - IoU) "
            "x gradient, the rate falling to a tenth after 80 % and 90 % of the steps. MPDIoU's image is "
            "20 x 20, NWD's constant 1, the targets' size.",
            "",
            f"## At one rate, {PAPERS_RATE}",
            "",
            *table(sorted(alike, key=lambda row: row.rank)),
            "",
            "![Share of boxes that have been at an IoU of 0.9, by step](convergence.png)",
            "",
            "## Each at its own best rate",
            "",
            f"The best of the rates {', '.join(f'{rate:g}' for rate in RATES)}: losses differ in gradient "
            "size, so one rate does not suit all of them.",
            "",
            *table(sorted(best_of(walks), key=lambda row: row.rank)),
            "",
            "What it does not say: there is no network here, so no step of one box moves another, and no "
            "noise. A loss that walks faster does not train a better detector for that.",
            "",
        ]
    )


def draw(walks: list[Walk], path: Path) -> None:
    """Share of boxes that have arrived against steps, at the paper's rate and at each loss's best."""
    plt.rcParams["font.size"] = 9
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    groups = {
        f"rate {PAPERS_RATE:g} for all": [row for row in walks if row.rate == PAPERS_RATE],
        "each at its own best rate": best_of(walks),
    }
    kinds = dict.fromkeys(row.kind for row in walks)
    colors = {kind: plt.get_cmap("tab10")(index % 10) for index, kind in enumerate(kinds)}
    for panel, (title, group) in zip(panels, groups.items(), strict=True):
        for row in group:
            panel.plot(row.curve, color=colors[row.kind], label=row.kind, linewidth=1.6)
        panel.set_title(title, loc="left")
        panel.set_xlabel("steps")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"share of boxes that have been at IoU {FITS}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=95)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--places", type=int, default=60, help="starting places; 343 boxes at each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    boxes, targets = starts(options.places)
    walks = [measure(kind, boxes, targets, rate) for kind in FAMILY for rate in RATES]
    apart = (box_iou(boxes, targets, fmt="cxcywh") == 0).double().mean().item()
    machine = describe(torch.device("cpu"))
    named = f"{machine['processor']}, torch {machine['torch']}, float64"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "convergence.md").write_text(report(walks, len(boxes), apart, named))
    (options.out / "convergence.json").write_text(
        json.dumps([asdict(row) | {"curve": row.curve[::10]} for row in walks], indent=1) + "\n"
    )
    draw(walks, options.out / "convergence.png")


if __name__ == "__main__":
    main()
