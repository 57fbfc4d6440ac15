"""What is added to docstrings on their way to the API pages."""

from __future__ import annotations

import re

import griffe
from names import documented, see_also


class Docstrings(griffe.Extension):
    """Lets examples be read as examples, and says at the end of each entry where else to look."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rename "Example:" to what the parser of Google's style knows, and add "See also"."""
        if obj.docstring is None:
            return
        text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
        value = documented().get(obj.name)
        if value is not None and obj.path == f"{value.__module__}.{value.__qualname__}":
            text += f"\n\n**See also:** {see_also(obj.name)}"
        obj.docstring.value = text
