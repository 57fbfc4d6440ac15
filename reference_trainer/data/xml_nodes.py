"""Small XML files as nodes that know their line; entities, the stuff of bombs, are refused."""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

_DEEPEST = 32


class XmlError(ValueError):
    """What is wrong, and the line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


class XmlNode:
    """An element: its tag, the line that it starts on, its text and the elements in it."""

    __slots__ = ("children", "line", "tag", "text")

    def __init__(self, tag: str, line: int) -> None:
        self.tag, self.line, self.text = tag, line, ""
        self.children: list[XmlNode] = []

    def all(self, tag: str) -> list[XmlNode]:
        """The elements of a tag directly in this one."""
        return [child for child in self.children if child.tag == tag]

    def only(self, tag: str) -> XmlNode:
        """The one element of a tag directly in this one.

        Raises:
            XmlError: if there is none, or if there are several.
        """
        found = self.all(tag)
        if len(found) != 1:
            raise XmlError(self.line, f"{self.tag}: expected one {tag}: got {len(found)}")
        return found[0]


def parse_xml(content: bytes) -> XmlNode:
    """Parse a file's content.

    Raises:
        XmlError: if it is not well-formed, declares an entity, or is nested deeper than any label.
    """
    parser = expat.ParserCreate()
    stack = [XmlNode("", 1)]

    def start(tag: str, attributes: dict[str, str]) -> None:
        node = XmlNode(tag, parser.CurrentLineNumber)
        stack[-1].children.append(node)
        stack.append(node)
        if len(stack) > _DEEPEST:
            raise XmlError(node.line, f"nested deeper than {_DEEPEST - 1}: {tag}")

    def end(tag: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].text += data

    def refuse(name: str, *rest: Any) -> None:
        raise XmlError(parser.CurrentLineNumber, f"declares an entity, which no label needs: {name}")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise XmlError(error.lineno, f"not valid XML: {expat.ErrorString(error.code)}") from error
    except ValueError as error:
        if isinstance(error, XmlError):
            raise
        # An encoding that Python does not know.
        raise XmlError(1, f"not valid XML: {error}") from error
    return stack[0].children[0]
