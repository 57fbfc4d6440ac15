"""Plots of the losses, drawn from the library when the site is built: SVG in the page's colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import torch
from names import DOCS
from torch import Tensor

from benchmarks.convergence import PARAMETERS, walk
from boxreg import box_iou
from boxreg.iou import aligned_loss
from boxreg.iou.spec import FAMILY

PANEL, GAP, TITLE = 280, 50, 24


def losses(kind: str, pred: Tensor, target: Tensor) -> Tensor:
    """The loss of each box, with the parameters of the convergence benchmark."""
    return aligned_loss(kind, pred, target, fmt="cxcywh", **PARAMETERS.get(kind, {}))


def svg(width: float, height: float, alt: str, parts: Iterable[str]) -> str:
    """A plot with its text alternative."""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    body = "".join(parts)
    label = escape(alt, quote=True)
    return f'<svg class="plot" {size} role="img" aria-label="{label}">{body}</svg>'


def figure(plots: Iterable[str], kind: str = "") -> str:
    """Plots that belong together."""
    return f"<figure{kind and f' class={kind}'}>{''.join(plots)}</figure>"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(points: Sequence[tuple[float, float]], kind: str) -> str:
    """A line through points."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{places}"/>'


def rectangle(box: Sequence[float], unit: float, origin: tuple[float, float], kind: str) -> str:
    """A box (cx, cy, w, h), `unit` pixels to its unit; an inverted one as it lies."""
    cx, cy, w, h = box
    w, h = abs(w), abs(h)
    x, y = origin[0] + (cx - w / 2) * unit, origin[1] + (cy - h / 2) * unit
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w * unit:.1f}" height="{h * unit:.1f}"/>'


def paths(kind: str) -> str:
    """The loss of a box that slides over its target, and of one that grows; IoU's beside it, dashed."""
    along = torch.linspace(0, 1, 121, dtype=torch.float64)
    target = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).expand(121, 4)
    sliding, growing = target.clone(), target.clone()
    sliding[:, 0] = 6 * along - 3
    growing[:, 2] = 0.1 + 3.9 * along
    panels = [
        ("slides over its target", "offset of the centres", sliding, sliding[:, 0]),
        ("grows in width alone", "width, the target's being 1", growing, growing[:, 2]),
    ]
    names = list(dict.fromkeys((kind, "iou")))
    values = {(name, i): losses(name, panel[2], target) for name in names for i, panel in enumerate(panels)}
    top = max(1.0, max(value.max().item() for value in values.values()))
    parts = []
    for i, (title, label, _, across) in enumerate(panels):
        left, low, high = GAP + i * (PANEL + GAP), across[0].item(), across[-1].item()
        parts.append(text(left, 16, title, "title"))
        for level in torch.arange(0, top + 1e-9, 0.5).tolist():
            y = TITLE + PANEL * 0.6 * (1 - level / top)
            parts += [
                line([(left, y), (left + PANEL, y)], "grid"),
                text(left - 6, y + 4, f"{level:g}", "", "end"),
            ]
        for name in reversed(names):
            points = [
                (left + PANEL * (x - low) / (high - low), TITLE + PANEL * 0.6 * (1 - value / top))
                for x, value in zip(across.tolist(), values[name, i].tolist(), strict=True)
            ]
            parts.append(line(points, "pred last" if name == kind else "other"))
        bottom = TITLE + PANEL * 0.6
        parts += [
            text(left, bottom + 18, f"{low:g}"),
            text(left + PANEL, bottom + 18, f"{high:g}", "", "end"),
        ]
        parts.append(text(left + PANEL / 2, bottom + 18, label, "", "middle"))
    alt = f"Loss of {kind} along two paths: a box that slides over its target and one that grows in width."
    return figure([svg(2 * (PANEL + GAP) + 10, TITLE + PANEL * 0.6 + 26, alt, parts)])


def field(kind: str) -> str:
    """Where a square box is sent from each place around a wide target: arrows against the gradient."""
    places = torch.linspace(-3, 3, 17, dtype=torch.float64)
    cx, cy = torch.meshgrid(places * 1.5, places, indexing="xy")
    pred = torch.stack((cx, cy, torch.ones_like(cx), torch.ones_like(cx)), -1).reshape(-1, 4)
    target = torch.tensor([0.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    pred.requires_grad_()
    losses(kind, pred, target.expand_as(pred)).sum().backward()
    assert pred.grad is not None
    descent = -pred.grad[:, :2]
    strength = descent.norm(dim=-1, keepdim=True)
    length = (strength / strength.max()).sqrt()  # the root: weak gradients are seen beside strong ones
    steps = torch.where(strength > 0, descent / strength.clamp(min=1e-300) * length, 0.0) * 0.5
    unit, width, height = 60.0, 620.0, 420.0
    middle = (width / 2, height / 2)
    parts = [rectangle(target.tolist(), unit, middle, "target")]
    for (x, y), (dx, dy) in zip(pred[:, :2].tolist(), steps.tolist(), strict=True):
        start = (middle[0] + x * unit, middle[1] + y * unit)
        if abs(dx) + abs(dy) < 1e-6:
            parts.append(f'<circle class="grid" cx="{start[0]:.1f}" cy="{start[1]:.1f}" r="2"/>')
        else:
            parts.append(arrow(start, (start[0] + dx * unit, start[1] + dy * unit)))
    alt = f"Gradient field of {kind}: from each place of its centre, the way a square box is sent."
    return figure([svg(width, height, alt, parts)])


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """A line with a head."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    ux, uy = dx / length, dy / length
    size = min(5.0, 0.6 * length)
    left = (end[0] - size * ux + 0.6 * size * uy, end[1] - size * uy - 0.6 * size * ux)
    right = (end[0] - size * ux - 0.6 * size * uy, end[1] - size * uy + 0.6 * size * ux)
    return line([start, end, left, end, right], "arrow")


def name_of(kind: str) -> str:
    """What a loss is called, by the title of its page."""
    return (DOCS / "losses" / f"{kind}.md").read_text().partition("\n")[0].removeprefix("# ")


def walks(kinds: Iterable[str] = tuple(FAMILY), steps: int = 120, rate: float = 0.1) -> str:
    """One start, one target, one rate: where each loss takes the box, in a panel of its own."""
    start = torch.tensor([[8.6, 8.9, 1.4, 0.6]], dtype=torch.float64)
    target = torch.tensor([[10.0, 10.0, 0.7, 1.4]], dtype=torch.float64)
    unit, side, head = 58.0, 176.0, 40.0
    origin = (side / 2 - 9.2 * unit, head + side / 2 - 9.7 * unit)
    panels = []
    for kind in kinds:
        seen = list(walk(kind, start, target, rate, steps))
        iou = box_iou(seen[-1], target, fmt="cxcywh").item()
        reached = f"IoU {max(iou, 0):.2f} after {steps} steps"
        parts = [text(8, 16, name_of(kind), "title"), text(8, 34, reached)]
        parts += [rectangle(boxes[0].tolist(), unit, origin, "pred") for boxes in seen[:-1:12]]
        parts.append(rectangle(target[0].tolist(), unit, origin, "target"))
        parts.append(rectangle(seen[-1][0].tolist(), unit, origin, "pred last"))
        alt = f"A box walks to its target by {name_of(kind)}: {reached}."
        panels.append(svg(side, side + head, alt, parts))
    return figure(panels, "walks")


PLOTS = {"paths": paths, "field": field, "walks": walks}
