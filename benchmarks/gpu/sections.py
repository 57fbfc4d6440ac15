"""The sections of a run, in the order of their worth."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple


class Section(NamedTuple):
    """A part of the run: its module in this folder has `main(device, report)`."""

    title: str
    share: float
    """Weight by which the remaining time is divided among it and the sections after it."""


SECTIONS = {
    "right": Section("Right?", 0.22),
    "waiting": Section("No waiting, few launches", 0.20),
    "fast": Section("Fast?", 0.32),
    "trainer": Section("The trainer", 0.26),
}
"""By the name of the module."""

NEEDED = {
    "torchvision": "torchvision",
    "tyro": "tyro",
    "pydantic": "pydantic",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "yaml": "PyYAML",
    "safetensors": "safetensors",
    "PIL": "Pillow",
}
"""What `reference_trainer` imports, and the package that each is in."""


def missing_packages() -> list[str]:
    """The packages of the trainer that are not here."""
    return [package for module, package in NEEDED.items() if find_spec(module) is None]
