"""Finding files and reading their lines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What people call the splits, in names of files and folders."""


def files_below(folder: Path, extensions: Sequence[str]) -> Iterator[str]:
    """Files at any depth; hidden ones, such as the shadows that macOS leaves, are passed over."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(tuple(extensions)) and not name.startswith("."):
                yield os.path.join(parent, name)


def read_lines(file: str | Path) -> list[str]:
    """The lines of a text file.

    Raises:
        ValueError: if it cannot be read as UTF-8.
    """
    try:
        with open(file, encoding="utf-8-sig") as opened:
            return opened.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read as text: {error}") from error
