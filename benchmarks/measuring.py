"""How a figure is taken: agreement first, then time in turns, memory, and what a GPU was asked to do."""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .cases import Case, inputs
from .providers import TEXTBOOK, Provider, ours

TOLERANCE = 3e-4
"""How far values and gradients may be apart, as a share of the largest: float32 and an eps of 1e-7 do it."""

SMALL = 4096
"""Pairs of a small case: to compare in float64 too, and to warm up with."""

LEAST_TURNS = 5

TURN = 0.05
"""Seconds for which a provider repeats its step before it is another's turn."""

PAUSE = 0.01
"""Seconds between two turns."""

BYTES_A_PAIR = 48
"""What a step of the mean loss must move at least: two boxes in and a gradient out, in float32."""


class Work:
    """A provider's share of a case: its inputs, and a step over them."""

    def __init__(
        self, provider: Provider, case: Case, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        fmt = provider.fmt if case.job == "from_raw" else "xyxy"
        pred, target, self.dim = made(case, device, fmt, provider.near)
        self.pred = pred.detach().to(dtype, copy=True).requires_grad_(pred.requires_grad)
        self.target = target.to(dtype)
        self.provider, self.case = provider, case
        self.weight = weights(self.target.select(self.dim, 0), provider.zeros)
        self.upstream: Tensor | None = None

    def step(self) -> Tensor:
        """The loss or the scores, with the gradient in `pred.grad`."""
        self.pred.grad = None
        result = self.forward()
        if not self.pred.requires_grad:
            return result
        if self.upstream is None:
            self.upstream = torch.ones_like(result)
        # Given, so that nobody is charged for making it.
        result.backward(self.upstream)  # type: ignore[no-untyped-call]
        return result

    def forward(self) -> Tensor:
        """The loss or the scores alone."""
        provider, case, boxes = self.provider, self.case, (self.pred, self.target)
        if case.job == "pairwise":
            assert provider.pairwise
            scores: Tensor = provider.pairwise(*boxes, case.kind)
            return scores
        if case.job == "weighted":
            assert provider.weighted
            return provider.weighted(*boxes, self.weight, self.dim)
        if case.job == "from_raw":
            assert provider.from_raw
            return provider.from_raw(*boxes, self.dim, case.decoder)
        if case.kind != "ciou":
            assert provider.other_loss
            return provider.other_loss(*boxes, self.dim, case.kind)
        assert provider.loss
        return provider.loss(*boxes, self.dim)

    def results(self) -> list[Tensor]:
        """The value of a step and its gradient, if there is one, in float64."""
        value = torch.as_tensor(self.step()).detach().double()
        if self.provider.distance:
            value = 1 - value.unsqueeze(0)
        return [value] if self.pred.grad is None else [value, self.pred.grad.double()]


def weights(like: Tensor, zeros: bool) -> Tensor:
    """A weight for each box, between 0.5 and 1.5; if `zeros`, 0 for about half of them."""
    drawn = torch.rand(like.shape, generator=torch.Generator().manual_seed(1)).to(like)
    return torch.where(drawn < 0.5, 0.0, drawn + 0.5) if zeros else drawn + 0.5


@lru_cache(maxsize=2)
def made(case: Case, device: torch.device, fmt: str, near: bool) -> tuple[Tensor, Tensor, int]:
    """The inputs of a case in float64, which providers share: ten million boxes take seconds to draw."""
    return inputs(case, device, torch.float64, fmt=fmt, near=near)


def disagreement(work: Work) -> float:
    """How far a step's value and gradient are from the truth in float64, as a share of the largest.

    One coordinate of the gradients in 10,000 is left out: where edges of two boxes coincide but for a
    rounding, the gradient jumps, and float32 may see the other side.
    """
    expected = truth(work.case, work.pred.device, work.provider.near, work.provider.zeros)
    (value, *grads), (true_value, *true_grads) = work.results(), expected
    apart = [(value - true_value).abs().max() / true_value.abs().max()]
    for found, true in zip(grads, true_grads, strict=True):
        errors = (found - true).abs().flatten()
        most = max(round(0.9999 * errors.numel()), 1)
        apart.append(errors.kthvalue(most).values / true.abs().max())
    return torch.stack(apart).max().item()


@lru_cache(maxsize=2)
def truth(case: Case, device: torch.device, near: bool, zeros: bool) -> list[Tensor]:
    """Value and gradient of a case in float64, by the textbook, or by autograd where it lacks the loss."""
    provider = TEXTBOOK if TEXTBOOK.offers(case) else ours("eager", device)
    return Work(replace(provider, near=near, zeros=zeros), case, device, torch.float64).results()


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds that a step takes, on the device's own clock where it has one."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def in_turns(
    steps: dict[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    least_turns: int = LEAST_TURNS,
) -> dict[str, list[float]]:
    """Seconds a step by name, some of each in turn, so that a machine that slows down slows them all.

    Steps should have been run before.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    turns = 0
    while steps and (turns < least_turns or time.perf_counter() < end):
        for name, step in steps.items():
            # Threads of torch wait for more work on their cores for some milliseconds after a step.
            time.sleep(min(PAUSE, seconds))
            end_of_turn = time.perf_counter() + min(TURN, seconds)
            taken[name].append(timed(step, device))
            while time.perf_counter() < end_of_turn:
                taken[name].append(timed(step, device))
        turns += 1
    return taken


@contextmanager
def one_core_busy() -> Iterator[None]:
    """While entered, another process keeps a core busy, as a worker that loads data does."""
    spin = f"import os\nwhile os.getppid() == {os.getpid()}:\n    sum(range(10**5))"
    process = subprocess.Popen([sys.executable, "-c", spin])
    time.sleep(0.2)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    fifths = statistics.quantiles(seconds, n=5)
    return statistics.median(seconds), fifths[0], fifths[3]


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second that a copy reads and writes, from buffers that no cache holds."""
    source = torch.ones(megabytes * 2**18, device=device)
    out = torch.empty_like(source)
    seconds = in_turns({"copy": lambda: out.copy_(source)}, device, 1.0)["copy"]
    return 2 * source.nbytes / statistics.median(seconds)


def peak_on_gpu(work: Work, device: torch.device) -> int:
    """Bytes that a step needs at its highest, beyond inputs and gradient."""
    work.step()
    work.pred.grad = None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work.step()
    return torch.cuda.max_memory_allocated(device) - before - own(work)


def peak_on_cpu(provider: Provider, case: Case) -> int:
    """The same on a CPU under Linux: for a fresh process, where nothing is kept that could be used again."""
    device = torch.device("cpu")
    Work(provider, case.of(min(case.pairs, SMALL)), device).step()
    work = Work(provider, case, device)
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would be used without being counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    work.step()
    return resident("VmHWM") - before - own(work)


def own(work: Work) -> int:
    """Bytes of the gradient that the step leaves behind."""
    return work.pred.nbytes if work.pred.requires_grad else 0


def resident(line: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(entry.split()[1]) * 1024 for entry in status if entry.startswith(line))


def calls_of_gpu(step: Callable[[], object]) -> tuple[int, int]:
    """Kernels launched by a step, and times that it waited for the device."""
    step()
    launches, waits = recorded(step)
    of_nothing = recorded(lambda: None)
    return launches - of_nothing[0], waits - of_nothing[1]


def recorded(step: Callable[[], object]) -> tuple[int, int]:
    """Launches and waits that the profiler saw, its own among them."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
    return counted(event.name for event in profile.events() or ())


def counted(names: Iterable[str]) -> tuple[int, int]:
    """Launches and waits among calls of the CUDA runtime (cuda...) and driver (cu...)."""
    calls = [name for name in names if name.startswith("cu")]
    return sum("LaunchKernel" in name for name in calls), sum("Synchronize" in name for name in calls)
