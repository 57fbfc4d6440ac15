"""What only a GPU has, in one place: events, graphs, streams, the profiler, its memory.

`Cuda` is the real thing. `StandIn` has the same methods for a rehearsal on the CPU; it runs what it is given
and measures with the host's clock, so that all code around it is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..measuring import calls_of_gpu, timed
from .report import LeftOutError

T = TypeVar("T")
Step = Callable[[], object]


class NoGpuError(Exception):
    """torch sees no GPU."""


class Cuda:
    """The GPU that torch uses by default."""

    rehearsal = False
    compiler = "inductor"
    """The backend of torch.compile."""
    backend = "auto"
    """The backend of losses; it comes to triton on a GPU."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise NoGpuError("torch sees no GPU; --rehearse runs the same code on the CPU")
        self.torch = torch.device("cuda", torch.cuda.current_device())

    def pick(self, real: T, tiny: T) -> T:
        """The size for a real run, or for a rehearsal."""
        return real

    def synchronize(self) -> None:
        """Wait until all work is done; an error of a kernel is raised here."""
        torch.cuda.synchronize()

    def seconds(self, step: Step) -> float:
        """Seconds that the GPU takes for a step, by its own clock."""
        return timed(step, self.torch)

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """While entered, whatever makes the host wait for the GPU is an error."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def waits(self, step: Step) -> list[str]:
        """The lines at which the host waits for the GPU in a step."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        found = [warning for warning in caught if "synchroniz" in str(warning.message)]
        return [f"{Path(warning.filename).name}:{warning.lineno}" for warning in found]

    def launches(self, step: Step) -> list[str]:
        """The names of the kernels, fills and copies that a step puts on the GPU, in order."""
        step()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            step()
            torch.cuda.synchronize()
        found = [event for event in profile.events() or () if event.device_type.name == "CUDA"]
        found.sort(key=lambda event: event.time_range.start)
        found = [event for event in found if not event.is_user_annotation and "Sync" not in event.name]
        names = [event.name for event in found]
        if not names:
            raise LeftOutError("the profiler sees no kernel on this machine")
        return names

    def calls(self, step: Step) -> tuple[int, int]:
        """Launches of a step, and how often it waited for the GPU."""
        return calls_of_gpu(step)

    def captured(self, step: Step) -> Step:
        """What replays a step, captured in a CUDA graph after three runs on a stream of its own."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def streams(self, number: int) -> list[Callable[[], AbstractContextManager[None]]]:
        """Reusable context managers, one per stream; each stream first waits for work already queued."""
        made = [torch.cuda.Stream() for _ in range(number)]  # type: ignore[no-untyped-call]
        for stream in made:
            stream.wait_stream(torch.cuda.current_stream())
        return [partial(torch.cuda.stream, stream) for stream in made]

    def hold(self) -> None:
        """Keep the current stream busy for some milliseconds, so that what is launched queues up."""
        torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]

    def at_once(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What several functions return, each run in a thread of its own."""
        with ThreadPoolExecutor(len(works)) as pool:
            return [future.result() for future in [pool.submit(work) for work in works]]

    def free_bytes(self) -> int:
        """Memory that nobody uses, after what torch keeps for later was given back."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def peak_bytes(self, step: Step) -> int:
        """What a step needs at its highest, beyond what there was before."""
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2")
"""Operators that synchronize: the host needs their value or their output's shape."""


class Refuse(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """An error where an operator would make the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, or refuse to."""
        name = func.overloadpacket.__name__
        mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if mask or name in WAITING:
            raise RuntimeError(f"aten::{name} would wait for the GPU")
        return func(*args, **(kwargs or {}))


NO_LAUNCH = (
    *("alias", "as_strided", "detach", "expand", "movedim", "permute", "select", "slice", "split", "squeeze"),
    *("t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "empty", "empty_like", "new_empty"),
    "empty_strided",
)
"""Operators that make a view, or memory that nothing is written to."""


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of the operators that compute: on a GPU each is at least one launch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and note it."""
        if func.overloadpacket.__name__ not in NO_LAUNCH:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class StandIn(Cuda):
    """The CPU in place of a GPU. Its figures mean nothing."""

    rehearsal = True
    compiler = "aot_eager"
    backend = "triton"

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def pick(self, real: T, tiny: T) -> T:
        return tiny

    def synchronize(self) -> None:
        pass

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        with Refuse():  # type: ignore[no-untyped-call]
            yield

    def waits(self, step: Step) -> list[str]:
        step()
        return []

    def launches(self, step: Step) -> list[str]:
        with Operators() as operators:
            step()
        names: list[str] = operators.names
        return names

    def calls(self, step: Step) -> tuple[int, int]:
        return len(self.launches(step)), 0

    def captured(self, step: Step) -> Step:
        step()
        return step

    def streams(self, number: int) -> list[Callable[[], AbstractContextManager[None]]]:
        return [nullcontext] * number

    def hold(self) -> None:
        pass

    def at_once(self, works: Sequence[Callable[[], T]]) -> list[T]:
        # Triton's interpreter serves one thread.
        return [work() for work in works]

    def free_bytes(self) -> int:
        return 2**26

    def peak_bytes(self, step: Step) -> int:
        step()
        return 1


def open_device(rehearse: bool) -> Cuda:
    """The GPU, or the stand-in for a rehearsal.

    Raises:
        NoGpuError: if there is no GPU and it is no rehearsal.
    """
    return StandIn() if rehearse else Cuda()
