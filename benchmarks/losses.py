"""Mean CIoU, forward and backward, ours against torchvision and the textbook: `python benchmarks/losses.py`.

Providers take turns, so that a machine that slows down slows them all; medians of the turns are shown, and
the ratio to torchvision's median. No speed is shown before values and gradients agree in float64. Peak memory
is that of a fresh process, beyond inputs and the gradient (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from boxreg.functional import ciou_loss

CASES = {
    "one-box head": 64,
    "positives of a YOLO batch": 1_024,
    "points of a picture": 8_400,
    "dense maps": 134_400,
    "stress": 1_000_000,
}


def textbook(pred: Tensor, target: Tensor) -> Tensor:
    """The formula as it is usually written, differentiated by autograd."""
    x1, y1, x2, y2 = pred.unbind(-1)
    u1, v1, u2, v2 = target.unbind(-1)
    w, h, wt, ht = x2 - x1, y2 - y1, u2 - u1, v2 - v1
    overlap = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0) * (
        torch.minimum(y2, v2) - torch.maximum(y1, v1)
    ).clamp(min=0)
    iou = overlap / (w * h + wt * ht - overlap + 1e-7)
    cw, ch = torch.maximum(x2, u2) - torch.minimum(x1, u1), torch.maximum(y2, v2) - torch.minimum(y1, v1)
    distance = ((x1 + x2 - u1 - u2) ** 2 + (y1 + y2 - v1 - v2) ** 2) / 4 / (cw**2 + ch**2 + 1e-7)
    v = 4 / math.pi**2 * (torch.atan(wt / ht) - torch.atan(w / h)) ** 2
    with torch.no_grad():
        alpha = v / (1 - iou + v + 1e-7)
    return (1 - iou + distance + alpha * v).mean()


def ours(backend: str, dim: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda pred, target: ciou_loss(pred, target, reduction="mean", backend=backend, dim=dim)


PROVIDERS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "torchvision": (lambda pred, target: complete_box_iou_loss(pred, target, reduction="mean"), -1),
    "textbook": (textbook, -1),
    "boxreg eager": (ours("eager", -1), -1),
    "boxreg auto": (ours("auto", -1), -1),
    "boxreg auto, planes": (ours("auto", 0), 0),
}
COMPILED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "textbook, torch.compile": (torch.compile(textbook, dynamic=True), -1),
    "boxreg compile": (ours("compile", -1), -1),
    "boxreg compile, planes": (ours("compile", 0), 0),
}


def boxes(count: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sides = []
    for _ in range(2):
        corner, size = (torch.rand(count, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        side = torch.cat([0.6 * corner, 0.6 * corner + 0.3 * size + 0.05], 1).to(dtype)
        sides.append(side.t().contiguous() if dim == 0 else side)
    return sides[0].requires_grad_(), sides[1]


def step(provider: tuple[Callable[[Tensor, Tensor], Tensor], int], pred: Tensor, target: Tensor) -> None:
    pred.grad = None
    provider[0](pred, target).backward()


def check(providers: dict[str, Any]) -> None:
    """Values and gradients agree, but for the additive eps of the others."""
    expected = None
    for name, provider in providers.items():
        pred, target = boxes(1000, provider[1], torch.float64)
        step(provider, pred, target)
        assert pred.grad is not None
        gradient = pred.grad.t() if provider[1] == 0 else pred.grad
        expected = gradient if expected is None else expected
        torch.testing.assert_close(
            gradient, expected, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def measure(providers: dict[str, Any], count: int, seconds: float) -> dict[str, list[float]]:
    inputs = {name: boxes(count, provider[1]) for name, provider in providers.items()}
    taken: dict[str, list[float]] = {name: [] for name in providers}
    for name, provider in providers.items():
        for _ in range(3):
            step(provider, *inputs[name])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["torchvision"]) < 5:
        for name, provider in providers.items():
            start = time.perf_counter()
            step(provider, *inputs[name])
            taken[name].append(time.perf_counter() - start)
    return taken


def peak(name: str, count: int) -> int:
    """Bytes that a step needs beyond what is there before and the gradient."""
    provider = (PROVIDERS | COMPILED)[name]
    step(provider, *boxes(64, provider[1]))
    pred, target = boxes(count, provider[1])
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would be used without being counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    step(provider, pred, target)
    return resident("VmHWM") - before - pred.nbytes


def resident(line: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(entry.split()[1]) * 1024 for entry in status if entry.startswith(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write NAME.json and NAME.md")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each case")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; needs a C++ compiler")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak, CASES["stress"]))
        return

    providers = PROVIDERS | (COMPILED if options.compile else {})
    check(providers)
    rows: list[dict[str, Any]] = []
    for case, count in CASES.items():
        taken = measure(providers, count, options.seconds)
        base = statistics.median(taken["torchvision"])
        for name, seconds in taken.items():
            low, median, high = (statistics.quantiles(seconds, n=5)[i] for i in (0, 1, 3))
            median = statistics.median(seconds)
            row = {"case": case, "pairs": count, "provider": name, "turns": len(seconds)}
            row |= {"median_us": median * 1e6, "p20_us": low * 1e6, "p80_us": high * 1e6}
            rows.append(row | {"times_torchvision": base / median})
    memory = {
        name: int(subprocess.check_output([sys.executable, __file__, "--peak", name])) for name in providers
    }
    where = (
        f"{cpu_name()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    )
    text = table(rows, memory, where)
    print(text)
    if options.out:
        options.out.with_suffix(".md").write_text(text)
        content = {"machine": where, "rows": rows, "peak_bytes_at_1e6": memory}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def table(rows: list[dict[str, Any]], memory: dict[str, int], where: str) -> str:
    lines = [
        "# Mean CIoU, forward and backward, on the CPU",
        "",
        f"`python benchmarks/losses.py`: {where}. Not measured on a GPU.",
        "",
        "| case | pairs | provider | median | p20 to p80 | times as fast as torchvision |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{row['p20_us']:,.0f} to {row['p80_us']:,.0f}"
        lines.append(
            f"| {row['case']} | {row['pairs']:,} | {row['provider']} | {row['median_us']:,.0f} us | {spread} "
            f"| {row['times_torchvision']:.2f} |"
        )
    lines += ["", "| provider | peak memory at 1,000,000 pairs, beyond inputs and gradient |", "|---|---|"]
    lines += [f"| {name} | {amount / 2**20:,.0f} MiB |" for name, amount in memory.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
