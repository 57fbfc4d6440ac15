"""What is added to docstrings on their way to the API pages."""

from __future__ import annotations

import inspect
import re

import griffe
from names import documented, see_also


class Docstrings(griffe.Extension):
    """Lets examples be read as examples, and says at the end of each entry where else to look."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Take the docstring of run time, name examples as Google's style does, and add "See also"."""
        if obj.docstring is None:
            return
        value = documented().get(obj.name)
        is_documented = value is not None and obj.path == f"{value.__module__}.{value.__qualname__}"
        # Losses complete their docstrings when they are imported.
        text = (inspect.getdoc(value) if is_documented else None) or obj.docstring.value
        text = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.M)
        if is_documented:
            text += f"\n\n**See also:** {see_also(obj.name)}"
        obj.docstring.value = text
