"""What the losses of a family have in common, added to signatures and docstrings when they are imported."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_type_hints

from .._checks import Function, suggests_keywords

Class = TypeVar("Class", bound=type)
Documented = TypeVar("Documented", bound=Callable[..., Any])

RETURNS = """A loss for each box, {values}, in the shape of `pred` without `dim`; or a scalar if `reduction`
    is not `"none"`. float32, or float64 for float64 input."""

FORWARD = """A scalar; or with `reduction="none"` a loss for each box, in the shape of `pred` without `dim`.
    float32, or float64 for float64 input."""

BOUNDS = "The loss of a box is {values}."

CALL = "Call it as `criterion(pred, target, weight=None, normalizer=None)`, see `forward`."

WRONG_OPTIONS = {
    "TypeError": "for a parameter that is no number, or an unknown keyword",
    "ValueError": "for an unknown name, or a parameter out of its range",
}

WRONG_BOXES = {
    "TypeError": """if `pred` or `target` is not a floating tensor, `weight` not a real or boolean one, or
        `normalizer` not a number""",
    "ValueError": """for no axis of {coordinates} coordinates, a `weight` of another shape, a `normalizer`
        that is negative or not for `"mean"`, or shapes or devices that differ""",
}


class LossFamily(NamedTuple):
    """Losses that take the same options, and the part of their docstrings that is the same.

    Attributes:
        common: what holds for each of them.
        texts: the text of each argument that they share, by its name.
        coordinates: how many a box has, as a word.
        called: the function to which each loss function passes its `**options` on.
    """

    common: str
    texts: Mapping[str, str]
    coordinates: str
    called: Callable[..., Any]

    def function(self, values: str, **own: str) -> Callable[[Function], Function]:
        """Complete a loss function: its options in its signature, and its docstring.

        Args:
            values: what the loss of a box may be, such as "in [0, 2]".
            **own: the texts of the arguments that the family does not share.
        """

        def complete(function: Function) -> Function:
            function = with_options(function, self.called)
            text, example = _parts(function.__doc__)
            _sources[function] = text, values, own
            returns = _section("Returns", [RETURNS.format(values=values)], hanging=4)
            arguments, raises = self._arguments(function, own), self._raises(WRONG_OPTIONS, WRONG_BOXES)
            function.__doc__ = _joined(text, self.common, arguments, returns, raises, example)
            return function

        return complete

    def module(self, function: Callable[..., Any]) -> Callable[[Class], Class]:
        """Complete the module of a loss function: the same, with the text of its function."""

        def complete(module: Class) -> Class:
            if own_init := vars(module).get("__init__"):
                module.__init__ = with_options(own_init, module.__mro__[1].__init__)  # type: ignore[misc]
            line, example = _parts(module.__doc__)
            text, values, own = _sources[function]
            bounds, arguments = BOUNDS.format(values=values), self._arguments(module, own)
            raises = self._raises(WRONG_OPTIONS)
            module.__doc__ = _joined(line, text, bounds, self.common, CALL, arguments, raises, example)
            return module

        return complete

    def arguments(self, **own: str) -> Callable[[Documented], Documented]:
        """Complete the docstring of a base class or of its `forward`; `own` as in `function`."""

        def complete(documented: Documented) -> Documented:
            sections = [documented.__doc__ or "", self._arguments(documented, own)]
            if inspect.isclass(documented):
                sections += [self._raises(WRONG_OPTIONS)]
            else:
                sections += [_section("Returns", [FORWARD], hanging=4), self._raises(WRONG_BOXES)]
            documented.__doc__ = _joined(*sections)
            return documented

        return complete

    def _arguments(self, documented: Callable[..., Any], own: Mapping[str, str]) -> str:
        texts, entries = {**self.texts, **own}, []
        for name, parameter in inspect.signature(documented).parameters.items():
            if name == "self":
                continue
            stated = parameter.default not in (parameter.empty, None)
            entries.append(f"{name}: {texts[name]}" + f" Default: {parameter.default!r}." * stated)
        return _section("Args", entries)

    def _raises(self, *wrong: Mapping[str, str]) -> str:
        entries = [f"{error}: {'; '.join(each[error] for each in wrong)}." for error in WRONG_OPTIONS]
        return _section("Raises", [entry.format(coordinates=self.coordinates) for entry in entries])


_sources: dict[Callable[..., Any], tuple[str, str, Mapping[str, str]]] = {}
"""What the docstring of each loss function says of it alone, its values and its own arguments."""


def with_options(function: Function, called: Callable[..., Any]) -> Function:
    """Replace `**options` in a function's signature by the keyword options of `called`, which gets them."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    if len(own) < len(signature.parameters):
        keywords = inspect.signature(called).parameters.values()
        options = [each for each in keywords if each.kind is each.KEYWORD_ONLY]
        types = get_type_hints(called)
        function.__annotations__ = {
            **{name: text for name, text in function.__annotations__.items() if name != "options"},
            **{option.name: types[option.name] for option in options},
        }
        function.__signature__ = signature.replace(parameters=own + options)  # type: ignore[attr-defined]
    return suggests_keywords(function)


def texts_of(options: type) -> dict[str, str]:
    """The text of each option of a `TypedDict`, whose types are `Annotated[type, text]`."""
    hints = get_type_hints(options, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def about(function: Callable[..., Any]) -> str:
    """What the docstring of a loss function says before the common text: formula and paper."""
    return _sources[function][0]


def _parts(text: str | None) -> tuple[str, str]:
    before, heading, example = inspect.cleandoc(text or "").partition("Example:\n")
    return before.strip(), heading + example


def _joined(*sections: str) -> str:
    return "\n\n".join(section.strip("\n") for section in sections)


def _section(heading: str, entries: list[str], hanging: int = 8) -> str:
    return "\n".join([f"{heading}:", *(_wrapped(entry, hanging) for entry in entries)])


@cache  # wrapping takes long, and most entries are the same in all losses
def _wrapped(entry: str, hanging: int) -> str:
    text = " ".join(entry.split())
    return textwrap.fill(text, 100, initial_indent=" " * 4, subsequent_indent=" " * hanging)
