"""Docstrings head one example "Example:"; the parser of Google's style knows it by "Examples:"."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Lets the examples be read as examples."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the heading as the docstring is collected."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
