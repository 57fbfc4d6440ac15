"""Ctrl-C and SIGTERM: finish the step, save, then leave; a second signal leaves at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from . import ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)

ONE_REQUEST = 2.0
"""Seconds: torchrun hands on a signal that a scheduler may have sent to each rank, too."""

PATIENCE = 8.0
"""Seconds that a rank may take to notice a signal."""


class StopRequest:
    """While entered, the first signal is only noted in `requested`; the second raises KeyboardInterrupt.

    Each rank notes its own; `requested` is what all of them have summed up.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._noted: signal.Signals | None = None
        self._since = 0.0
        self._awake = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether somebody asked to stop."""
        return self.signal is not None

    @property
    def name(self) -> str | None:
        """The signal's name, "SIGINT" or "SIGTERM", or None."""
        return self.signal.name if self.signal else None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if ranks.world_size() > 1:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer)
            threading.Thread(target=self._leave_if_stuck, args=(reader,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> list[float]:
        """For each of SIGNALS, 1 if it came to this rank."""
        return [float(self._noted is number) for number in SIGNALS]

    def agree(self, asked: Sequence[float]) -> None:
        """Take the sums of `asked` over all ranks for what they were asked."""
        came = [number for number, times in zip(SIGNALS, asked, strict=True) if times]
        self.signal = self.signal or (came[0] if came else None)

    def settle(self) -> bool:
        """Whether to stop; all ranks have to call this at the same place."""
        if ranks.world_size() > 1:
            self.agree(ranks.all_reduce_sum(torch.tensor(self.asked)).tolist())
        return self.requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._awake.set()
        if self._noted:
            if ranks.in_group() and time.monotonic() < self._since + ONE_REQUEST:
                return
            raise KeyboardInterrupt
        self._noted, self._since = signal.Signals(number), time.monotonic()
        if ranks.world_size() == 1:
            self.signal = self._noted
        if ranks.rank() == 0:
            # Not print: the signal may have come in the middle of one.
            text = f"\n{self._noted.name}: finishing this step, then saving; once more to stop at once\n"
            os.write(2, text.encode())

    def _leave_if_stuck(self, reader: int) -> None:
        """End a rank that waits, inside torch, for one that is gone: it would never notice a signal."""
        while number := os.read(reader, 1):
            if number[0] in SIGNALS and not self._awake.wait(PATIENCE):
                os.write(2, f"rank {ranks.rank()}: waits for a rank that is gone; leaving\n".encode())
                os._exit(1)
