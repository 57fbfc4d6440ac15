"""Work on many files, shared out to processes that are forked for it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

T = TypeVar("T")

_LEAST = 32
"""Fewer files than this are not worth a process."""

_MOST = 8
"""Processes even on fewer cores: files of another machine are waited for."""


def shared_out(work: Callable[[range], T], count: int) -> Iterator[T]:
    """What `work` makes of each part of `range(count)`, in their order.

    A process looks at its part and sends what it made of it, so that what it needed on the way never grows
    the memory of this one. Where processes cannot be forked, all is done here.

    Raises:
        RuntimeError: if a process ends without an answer; it has said why.
    """
    parts = min(max(os.cpu_count() or 1, _MOST), count // _LEAST) if sys.platform == "linux" else 1
    if parts <= 1:
        yield work(range(count))
        return
    context = get_context("fork")
    bounds = [count * part // parts for part in range(parts + 1)]
    running = []
    for start, end in pairwise(bounds):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(work, range(start, end), sender), daemon=True)
        process.start()
        sender.close()
        running.append((process, receiver))
    try:
        for process, receiver in running:
            try:
                yield receiver.recv()
            except EOFError:
                process.join()
                raise RuntimeError(f"a process that read files ended with {process.exitcode}") from None
    finally:
        for process, receiver in running:
            receiver.close()
            process.terminate()
            process.join()


def _answer(work: Callable[[range], T], part: range, sender: Connection) -> None:
    # Ctrl-C reaches every process of the terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # torch's threads are not there in a process that was forked.
    torch.set_num_threads(1)
    sender.send(work(part))
