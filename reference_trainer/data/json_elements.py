"""JSON files of long lists, element by element and with line numbers, by the standard library's parser."""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[^\]}])")
_SPACE = re.compile(r"[ \t\r\n]*")


class Element(NamedTuple):
    """An element of a list of the file: the list's key, its number in the file, and what it is."""

    key: str
    number: int
    value: Any


class JsonElements:
    """The top-level object of a JSON file, whose lists are read one element at a time.

    Reading a list whole takes ten times the memory of its text, and forgets where each element was.

    Args:
        file: the file.

    Attributes:
        values: what the keys hold that hold no list, once `elements` is through.
        lists: the keys that hold a list, in order.

    Raises:
        ValueError: if the file cannot be read as text.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: cannot be read as text: {error}") from error
        self._decoder = json.JSONDecoder()
        self._offsets = array("q")
        self._starts: list[int] = []
        self._newlines: list[int] | None = None
        self.lists: list[str] = []
        self.values: dict[str, Any] = {}

    def elements(self) -> Iterator[Element]:
        """The elements of all lists, in the file's order.

        Raises:
            ValueError: `file:line: not valid JSON: why`, or that there is no object at the top.
        """
        try:
            yield from self._top()
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.file}:{error.lineno}: not valid JSON: {error.msg}") from error
        except RecursionError as error:
            raise ValueError(f"{self.file}: not valid JSON: nested too deep") from error

    def where(self, number: int) -> str:
        """Where an element is: `file:line: key[index]`, and its id where it has one."""
        which = bisect_right(self._starts, number) - 1
        offset = self._offsets[number]
        value, _ = self._decoder.raw_decode(self._text, offset)
        identity = f" (id {value['id']!r})" if isinstance(value, dict) and "id" in value else ""
        index = number - self._starts[which]
        return f"{self.file}:{self._line(offset)}: {self.lists[which]}[{index}]{identity}"

    def _line(self, offset: int) -> int:
        if self._newlines is None:
            self._newlines = [match.start() for match in re.finditer("\n", self._text)]
        return bisect_right(self._newlines, offset) + 1

    def _top(self) -> Iterator[Element]:
        at = self._skip(0)
        if self._text[at : at + 1] != "{":
            value, _ = self._decoder.raw_decode(self._text, at)
            raise ValueError(f"{self.file}: expected an object at the top: {short(value)}")
        at = self._skip(at + 1)
        while self._text[at : at + 1] != "}":
            key, at = self._decoder.raw_decode(self._text, at)
            if not isinstance(key, str):
                raise json.JSONDecodeError("Expecting a key in double quotes", self._text, at)
            if key in self.values or key in self.lists:
                raise ValueError(f"{self.file}:{self._line(at - 1)}: the key comes twice: {key!r}")
            at = self._skip(self._expect(at, ":"))
            if self._text[at : at + 1] == "[":
                self.lists.append(key)
                self._starts.append(len(self._offsets))
                at = yield from self._list(key, at + 1)
            else:
                self.values[key], at = self._decoder.raw_decode(self._text, at)
            at = self._next(at, "}")
        end = self._skip(at + 1)
        if end != len(self._text):
            raise json.JSONDecodeError("Extra data", self._text, end)

    def _list(self, key: str, at: int) -> Generator[Element, None, int]:
        at = self._skip(at)
        while self._text[at : at + 1] != "]":
            self._offsets.append(at)
            value, at = self._decoder.raw_decode(self._text, at)
            yield Element(key, len(self._offsets) - 1, value)
            at = self._next(at, "]")
        return at + 1

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        assert match is not None  # it matches nothing, too
        return match.end()

    def _expect(self, at: int, mark: str) -> int:
        at = self._skip(at)
        if self._text[at : at + 1] != mark:
            raise json.JSONDecodeError(f"Expecting {mark!r}", self._text, at)
        return at + 1

    def _next(self, at: int, end: str) -> int:
        """Go to the next element, or stay before the mark that ends the list."""
        if comma := _COMMA.match(self._text, at):  # nearly always
            return comma.end()
        at = self._skip(at)
        if self._text[at : at + 1] == end:
            return at
        at = self._skip(self._expect(at, ","))
        if self._text[at : at + 1] == end:
            raise json.JSONDecodeError("A comma before the end", self._text, at)
        return at


def short(value: Any) -> str:
    """A value for a message, cut off where it gets long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
