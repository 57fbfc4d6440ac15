"""Work on many files, shared out to processes that are forked for it."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from ..errors import UserError

T = TypeVar("T")

_LEAST = 32
"""Fewer files than this are not worth a process."""

_MOST = 8
"""Processes even on fewer cores: files of another machine are waited for."""


def shared_out(work: Callable[[range], T], count: int) -> Iterator[T]:
    """What `work` makes of each part of `range(count)`, in their order, each part in a process of its own.

    Raises:
        UserError: that `work` raises.
        RuntimeError: if a process ends without an answer; it has said why.
    """
    parts = min(max(os.cpu_count() or 1, _MOST), count // _LEAST)
    if parts <= 1:
        return iter([work(range(count))])
    bounds = [count * part // parts for part in range(parts + 1)]
    return _forked([partial(work, range(start, end)) for start, end in pairwise(bounds)])


def apart(make: Callable[[], T]) -> T:
    """What `make` returns. What it needs on the way stays out of the memory of this process and its workers.

    Raises:
        UserError: that `make` raises.
        RuntimeError: if its process ends without an answer; it has said why.
    """
    (made,) = _forked([make])
    return made


def _forked(makes: Sequence[Callable[[], T]]) -> Iterator[T]:
    """What each returns in a process of its own; where none can be forked, all is made here."""
    if sys.platform != "linux":
        yield from (make() for make in makes)
        return
    context = get_context("fork")
    running = []
    for make in makes:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(make, sender))
        process.start()
        sender.close()
        running.append((process, receiver))
    try:
        for process, receiver in running:
            try:
                answer = receiver.recv_bytes()
            except EOFError:
                process.join()
                raise RuntimeError(f"a process that read files ended with {process.exitcode}") from None
            made = pickle.loads(answer)
            if isinstance(made, UserError):
                raise made
            yield made
    finally:
        for process, receiver in running:
            receiver.close()
            process.terminate()
            process.join()


def _answer(make: Callable[[], T], sender: Connection) -> None:
    # Ctrl-C reaches every process of the terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # torch's threads are not there in a process that was forked.
    torch.set_num_threads(1)
    try:
        made: T | UserError = make()
    except UserError as error:
        made = error
    # As bytes: a pipe would hand tensors over in memory that ends with this process.
    sender.send_bytes(pickle.dumps(made))
