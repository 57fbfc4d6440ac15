"""Files: which one may be meant, reading YAML, and replacing a file whole.

Whoever reads a file that is replaced, at whatever moment, finds the old or the new.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

UNFINISHED = ".unfinished"
"""What the name of a file ends in while it is being written."""


def not_there(path: Path) -> str:
    """That a path leads nowhere, with the name beside it that may be meant; or to a file, not a folder."""
    if path.exists():
        return f"{path}: expected a folder, it is a file"
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"{path}: no such file or folder" + (f"; did you mean {near[0]!r}?" if near else "")


class _OnceEach(yaml.SafeLoader):
    """Refuses a key that comes twice, of which PyYAML would drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: `file:line: not valid YAML: why`.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _OnceEach)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{file}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from error


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
        writes: False on a rank that is not to write, since another does.

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
