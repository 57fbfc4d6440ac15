"""Files that are replaced whole: whoever reads one, at whatever moment, finds the old or the new."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"
"""What the name of a file ends in while it is being written."""


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Replace a file, or make it; the old one stays until the new one is whole and on the disk.

    Raises:
        OSError: if it cannot be written; the old file is as it was, and nothing else is left behind.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def as_json(content: Any) -> bytes:
    """A JSON file's content, for people too."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
