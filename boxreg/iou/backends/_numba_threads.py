"""Threads that share the chunks of a call with the thread that makes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy
from numpy.typing import NDArray

Counters = NDArray[numpy.int64]
"""Two counters, which compiled code raises atomically: chunks taken, and chunks finished."""

_POOL: list[ThreadPoolExecutor] = []


def share(work: Callable[[], None], counters: Counters, chunks: int, helpers: int) -> None:
    """Run work in this thread and in others, until all chunks are done.

    The work takes chunks until there are none, so that a thread that is late, because other programs keep
    the cores busy, finds nothing left to do and is not waited for.

    Args:
        work: what takes chunks, without the GIL. It keeps alive the memory that it reads and writes.
        counters: of the chunks.
        chunks: how many there are.
        helpers: threads beside this one.
    """

    def help_along() -> None:
        if counters[0] < chunks:
            work()

    futures = [_submit(help_along) for _ in range(helpers)]
    work()
    for future in futures:
        if future is not None:
            future.cancel()
    while counters[1] < chunks:
        time.sleep(0)


def _submit(work: Callable[[], None]) -> Future[None] | None:
    """The future of work in another thread; None if there can be no more threads."""
    if not _POOL:
        _POOL.append(ThreadPoolExecutor(max(os.cpu_count() or 1, 1), thread_name_prefix="boxreg"))
    try:
        return _POOL[0].submit(work)
    except RuntimeError:  # the interpreter is about to exit
        return None


# A forked process has none of the threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.clear)
