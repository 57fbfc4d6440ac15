"""How long Triton took to compile: heard through its own listener."""

from __future__ import annotations

from importlib.util import find_spec
from types import TracebackType
from typing import Any


class CompileTimes:
    """Counts the kernels that are compiled while it is entered, and the seconds that it takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __enter__(self) -> CompileTimes:
        if find_spec("triton"):
            import triton

            triton.knobs.compilation.listener = self.hear
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if find_spec("triton"):
            import triton

            triton.knobs.compilation.listener = None

    def hear(self, *, times: Any, cache_hit: bool, **others: Any) -> None:
        """What Triton calls for each kernel."""
        if not cache_hit:
            self.seconds.append(times.total / 1e6)

    def figures(self) -> dict[str, float | int]:
        """Kernels compiled, and seconds."""
        if not self.seconds:
            return {}
        return {"compiled": len(self.seconds), "compile s": round(sum(self.seconds), 2)}
