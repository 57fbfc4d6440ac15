"""What API pages take from run time: the docstrings and signatures that losses complete when imported."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import griffe
from names import documented, see_also


class Docstrings(griffe.Extension):
    """Shows what `help` shows, and says at the end of each entry where else to look."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Take signature and docstring of run time, name examples as Google's style does, add "See also"."""
        value = at_run_time(obj)
        if isinstance(obj, griffe.Function) and hasattr(value, "__signature__"):
            obj.parameters = griffe.Parameters(*map(parameter, inspect.signature(value).parameters.values()))
        if obj.docstring is None:
            return
        text = (inspect.getdoc(value) if obj.is_function or obj.is_class else None) or obj.docstring.value
        text = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.M)
        if value is not None and documented().get(obj.name) is value:
            text += f"\n\n**See also:** {see_also(obj.name)}"
        obj.docstring.value = text


def at_run_time(obj: griffe.Object) -> Any:
    """The object itself; None if its module was not imported."""
    value: Any = sys.modules.get(obj.module.path)
    for name in obj.path.removeprefix(obj.module.path).split(".")[1:]:
        value = getattr(value, name, None)
    return value


def parameter(stated: inspect.Parameter) -> griffe.Parameter:
    """A parameter as griffe has it."""
    return griffe.Parameter(
        stated.name,
        annotation=None if stated.annotation is stated.empty else stated.annotation,
        kind=griffe.ParameterKind(stated.kind.description),
        default=None if stated.default is stated.empty else repr(stated.default),
    )
