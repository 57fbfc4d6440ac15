"""The picture."""

from __future__ import annotations

from typing import Any


def draw(*_: Any) -> None:
    """Draw it."""
