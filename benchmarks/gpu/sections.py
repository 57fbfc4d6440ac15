"""The sections of a run, in the order of their worth."""

from __future__ import annotations

from typing import NamedTuple


class Section(NamedTuple):
    """A part of the run: its module in this folder has `main(device, report)`."""

    title: str
    share: float
    """Weight by which the remaining time is divided among it and the sections after it."""


SECTIONS = {
    "right": Section("Right?", 0.30),
    "waiting": Section("No waiting, few launches", 0.12),
    "fast": Section("Fast?", 0.28),
    "trainer": Section("The trainer", 0.30),
}
"""By the name of the module."""
