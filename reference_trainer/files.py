"""Files that are replaced whole: whoever reads one, at whatever moment, finds the old or the new."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
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


class RunFolder:
    """Writes the files of a run; one that cannot be written is said and kept for later, and the run goes on.

    Args:
        path: the folder.
        say: shows a message to people.
        writes: False in a process that is not to write, since another does.

    Attributes:
        waiting: what could not be written so far, by name.
    """

    def __init__(self, path: Path, say: Callable[[str], None], writes: bool = True) -> None:
        self.path, self.say, self.writes = path, say, writes
        self.waiting: dict[str, bytes] = {}

    def write(self, name: str, content: bytes | memoryview, later: bool = True) -> bool:
        """Replace a file whole; whether that was possible. `later`: `retry` tries again."""
        if not self.writes:
            return True
        self.waiting.pop(name, None)
        try:
            write_whole(self.path / name, content)
        except OSError as error:
            if later:
                self.waiting[name] = bytes(content)
            self.say(f"NOT SAVED: {name}: {error.strerror or error} ({self._room(len(content))}); going on")
            return False
        return True

    def retry(self) -> None:
        """Write what waits."""
        for name, content in list(self.waiting.items()):
            self.write(name, content)

    def _room(self, needed: int) -> str:
        try:
            free = f"{shutil.disk_usage(self.path).free:,} free"
        except OSError as error:
            free = f"{self.path}: {error.strerror}"
        return f"{needed:,} bytes needed, {free}"
