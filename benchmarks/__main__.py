"""Losses by boxreg and by others: agreement, time, memory, and what a GPU was asked to do.

    python -m benchmarks                                          everything, into benchmarks/results
    python -m benchmarks --quick --out /tmp/trial                 everything, with few repetitions
    python -m benchmarks --cases stress --no-compile --out /tmp   a part, elsewhere

Run it on a machine that does nothing else. The rows of a device replace those that the results hold of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch._functorch.config
import torch._inductor.config

from . import costs
from .cases import CASES, HUGE, ON_CPU, SCALING, Case
from .figure import draw
from .machine import describe
from .measuring import (
    BYTES_A_PAIR,
    SMALL,
    TOLERANCE,
    Work,
    calls_of_gpu,
    copy_bandwidth,
    disagreement,
    in_turns,
    one_core_busy,
    peak_on_cpu,
    peak_on_gpu,
    spread,
)
from .providers import RIVAL, Provider, providers
from .report import markdown
from .rows import Row, merge

HERE = Path(__file__).parent


def main() -> int:
    options = arguments()
    if options.quick:
        options.seconds = min(options.seconds, 0.3)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.peak:
        name, case = json.loads(options.peak)
        print(peak_on_cpu(providers(device, compiling=True)[name], Case(**case)))
        return 0

    able = providers(device, options.compile)
    chosen = {name: able[name] for name in able if not options.providers or name in options.providers}
    bandwidth, machine = copy_bandwidth(device), describe(device)
    rows: list[Row] = []
    for case in cases(options):
        print(f"{case.name}, {case.pairs:,} pairs, {case.layout} ...", file=sys.stderr)
        blank = [
            replace(
                Row(case.name, case.job, case.layout, case.pairs, name, device.type, machine, bandwidth),
                kind=case.kind,
            )
            for name in chosen
            if name == RIVAL or chosen[name].offers(case)
        ]
        measure(case, blank, chosen, device, options)
        rows += blank
    if device.type == "cpu" and (not options.cases or "costs" in options.cases):
        print("starting and calling ...", file=sys.stderr)
        rows += costs.rows(machine, bandwidth, options.quick)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = merge(rows, options.out / "losses.json")
    (options.out / "losses.md").write_text(markdown(rows))
    draw([row for row in rows if row.device == device.type], options.out / f"scaling-{device.type}.png")
    print((options.out / "losses.md").read_text())
    wrong = [row for row in rows if row.disagreement is not None and not row.disagreement <= TOLERANCE]
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=here)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder to write to")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each case")
    parser.add_argument("--quick", action="store_true", help="few repetitions, for a trial")
    parser.add_argument("--cases", nargs="*", help="names of cases, or costs; by default all")
    parser.add_argument("--providers", nargs="*", help="names of providers; by default all that can run")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--busy", action=argparse.BooleanOptionalAction, default=True, help="with one core busy too"
    )
    parser.add_argument("--huge", action="store_true", help="10,000,000 pairs on a CPU too")
    parser.add_argument("--most", type=int, default=10**8, help="shorten cases to so many pairs, for a trial")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args()


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The cases that are asked for."""
    huge = HUGE if options.huge or options.device == "cuda" else ()
    on_cpu = ON_CPU if options.device == "cpu" else ()
    for case in (*CASES, *huge, *SCALING, *on_cpu):
        if not options.cases or case.name in options.cases:
            yield case.of(min(case.pairs, options.most))


def start_compiling_afresh() -> None:
    """Forget what torch.compile made for other sizes, on disk too: it would be used for these.

    Code for any number of boxes is made for as many threads as the first number deserved.
    """
    torch._dynamo.reset()
    torch._functorch.config.enable_autograd_cache = False
    torch._inductor.config.fx_graph_cache = False


def measure(
    case: Case,
    rows: list[Row],
    able: dict[str, Provider],
    device: torch.device,
    options: argparse.Namespace,
) -> None:
    """Fill the rows of a case in, one for each provider."""
    if options.compile:
        start_compiling_afresh()
    works = {row.provider: work for row in rows if (work := agreeing(row, able[row.provider], case, device))}
    steps: dict[str, Callable[[], object]] = {name: work.step for name, work in works.items()}
    taken = in_turns(steps, device, options.seconds)
    beside_busy: dict[str, list[float]] = {}
    if device.type == "cpu" and options.busy:
        with one_core_busy():
            beside_busy = in_turns(steps, device, options.seconds, least_turns=3)
    for row in rows:
        if row.provider in works:
            fill_in(row, works[row.provider], taken[row.provider], device, options)
        if beside_busy.get(row.provider):
            figures = spread(beside_busy[row.provider])
            row.busy_us, row.busy_p20_us, row.busy_p80_us = (1e6 * figure for figure in figures)
    base, rival = (
        next((row.median_us for row in rows if row.provider == name), None) for name in ("torchvision", RIVAL)
    )
    for row in rows:
        row.times_torchvision = base / row.median_us if base and row.median_us else None
        row.times_compiled = rival / row.median_us if rival and row.median_us else None


def agreeing(row: Row, provider: Provider, case: Case, device: torch.device) -> Work | None:
    """A provider's share of a case; None, and the row says why, if it cannot run or disagrees."""
    if provider.missing:
        row.why_not = provider.missing
        return None
    if not provider.offers(case):  # the rival, which knows CIoU alone
        case = replace(case, kind="ciou")
    try:
        work = Work(provider, case, device)
        small = [Work(provider, case.of(min(case.pairs, SMALL)), device, torch.float64)]
        row.disagreement = max(map(disagreement, [work, *(small if provider.double else [])]))
    except Exception as error:
        row.why_not = f"cannot run: {type(error).__name__}"
        print(f"{row.provider}: {error}", file=sys.stderr)
        return None
    if row.disagreement <= TOLERANCE:
        return work
    row.why_not = f"disagrees with the textbook by {row.disagreement:.1g}"
    return None


def fill_in(
    row: Row, work: Work, seconds: list[float], device: torch.device, options: argparse.Namespace
) -> None:
    """What the turns of a provider say, and what else is measured of it."""
    row.turns = len(seconds)
    row.median_us, row.p20_us, row.p80_us = (1e6 * figure for figure in spread(seconds))
    if row.job == "loss":
        row.share_of_bandwidth = BYTES_A_PAIR * row.pairs / (row.median_us / 1e6) / row.copy_bytes_per_s
    if device.type == "cuda":
        row.peak_bytes = peak_on_gpu(work, device)
        row.launches, row.synchronisations = calls_of_gpu(work.step)
    elif work.case.memory and sys.platform == "linux":
        command = [sys.executable, "-m", "benchmarks", "--device", "cpu", "--threads", str(options.threads)]
        command += ["--peak", json.dumps([row.provider, asdict(work.case)])]
        row.peak_bytes = int(subprocess.check_output(command, cwd=HERE.parent))


if __name__ == "__main__":
    sys.exit(main())
