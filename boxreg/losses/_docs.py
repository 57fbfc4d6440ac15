"""What the docstrings of all losses of the IoU family have in common, filled in when they are imported."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .._checks import Function, suggests_keywords

Class = TypeVar("Class", bound=type)

COMMON = r"""
`mode` combines the overlap, mostly the IoU, with the penalty:

- `"linear"`: \( 1 - \mathrm{IoU} + \mathrm{penalty} \).
- `"log"`: \( -\log \mathrm{IoU} + \mathrm{penalty} \) (Yu et al. 2016, "UnitBox", arXiv:1608.01471).
  Below an IoU of 2^-20 (1e-6) the logarithm continues as its tangent, up to 14.9 at an IoU of 0.
- `"square"`: \( 1 - \mathrm{IoU}^2 + \mathrm{penalty} \).
- `"alpha"`: \( 1 - \mathrm{IoU}^\alpha + \mathrm{penalty}^\alpha \) (He et al. 2021, "Alpha-IoU",
  arXiv:2110.13675). The power is taken of the whole penalty, as in the paper's general form; the paper's
  CIoU raises each part of its penalty separately. A penalty above 4 continues as the tangent. Where boxes
  only touch, the power of the IoU has no gradient.

`inner_ratio` takes the IoU between boxes scaled by this factor about their own centres; the penalty remains
that of the boxes (Zhang et al. 2023, "Inner-IoU", arXiv:2311.02877, with ratios from 0.5 to 1.5). Below 1 the
gradient of nearly fitting boxes is larger; above 1 boxes that do not touch have one too.

Any finite input gives a finite loss and gradient, including boxes without area and inverted boxes (x2 < x1).
An inverted box never costs less than the same box with its corners sorted, and its gradient un-inverts it.
NaN or infinity gives NaN for that pair alone. Gradients grow as 1 / side, up to a side of 2^-100.
"""

OPTIONS = {
    "pred": """predicted boxes, four coordinates along `dim`, any shape and unit, floating; with a `decoder`,
        its raw outputs.""",
    "target": "target boxes, the same shape and unit; nothing is broadcast.",
    "fmt": """`"xyxy"`, `"xywh"` or `"cxcywh"`, the format of predictions and targets; with a `decoder`, of
        the targets alone.""",
    "reduction": '`"none"`, `"mean"` or `"sum"` over the boxes.',
    "weight": """a factor for each box, the shape of `pred` without `dim`. A box of weight 0 has a loss and
        a gradient of exactly 0, even if it holds NaN.""",
    "normalizer": """the divisor of `"mean"` in place of the number of boxes, such as the number of positives
        of all ranks: a number or a tensor of one element; with 0 the loss is 0.""",
    "dim": "the coordinate axis: -1 for boxes (N, 4), 1 for planes (B, 4, H, W).",
    "backend": '`"auto"`, `"eager"`, `"numba"` (CPU) or `"triton"` (CUDA).',
    "decoder": """how raw outputs stand for boxes: `pred` then holds `decoder.channels` of them along `dim`.
        Loss and gradient at the raw outputs come from one pass if it is an `AxisDecoder`; any other decodes
        through autograd.""",
    "mode": '`"linear"`, `"log"`, `"square"` or `"alpha"`, see above.',
    "alpha": 'the exponent of mode `"alpha"`, from 1 to 10; None for 3. No other mode takes one.',
    "inner_ratio": """the scale of the boxes between which the IoU is taken, from 0.1 to 10; None for the
        boxes themselves. NWD, which has no IoU, takes none.""",
    "weighting": """a factor for each box from its IoU, such as `FocalWeighting()`; applied before `weight`.
        If it is a module, it is a submodule of the loss's module.""",
    "loss_weight": "lambda, the factor of the result, finite and not negative.",
}
"""The text of every argument that the losses share."""

RETURNS = """A loss for each box, {}, in the shape of `pred` without `dim`; or a scalar if `reduction` is not
    `"none"`. float32, or float64 for float64 input."""

RAISES = [
    "TypeError: for a tensor that is not floating, a parameter that is no number, or an unknown keyword.",
    """ValueError: for an unknown name, a parameter out of its range, no axis of four coordinates, or shapes
    or devices that differ.""",
]

_sources: dict[Callable[..., Any], tuple[str, str, Mapping[str, str]]] = {}


def loss_docs(values: str, **own: str) -> Callable[[Function], Function]:
    """Complete the docstring of a loss function: common text, arguments, what it returns and raises.

    Args:
        values: what the loss of a box may be, such as "in [0, 2]".
        **own: the text of the arguments that the losses do not share.
    """

    def complete(function: Function) -> Function:
        function = suggests_keywords(function)
        if function.__doc__:  # there is none under python -OO
            text, example = _parts(function.__doc__)
            _sources[function] = text, values, own
            returns = _section("Returns", [RETURNS.format(values)], hanging=4)
            function.__doc__ = _joined(text, COMMON, _arguments(function, own), returns, _raises(), example)
        return function

    return complete


def module_docs(function: Callable[..., Any]) -> Callable[[Class], Class]:
    """Complete the docstring of a loss's module with the text of its function."""

    def complete(module: Class) -> Class:
        if module.__doc__:
            line, example = _parts(module.__doc__)
            text, values, own = _sources[function]
            bounds = f"The loss of a box is {values}."
            arguments = _arguments(module, own)
            module.__doc__ = _joined(line, text, bounds, COMMON, arguments, _raises(), example)
        return module

    return complete


def about(function: Callable[..., Any]) -> str:
    """What the docstring of a loss function says before the common text: formula and paper."""
    return _sources[function][0]


def _parts(text: str) -> tuple[str, str]:
    before, heading, example = inspect.cleandoc(text).partition("Example:\n")
    return before.strip(), heading + example


def _joined(*sections: str) -> str:
    return "\n\n".join(section.strip("\n") for section in sections)


def _arguments(documented: Callable[..., Any], own: Mapping[str, str]) -> str:
    texts, entries = {**OPTIONS, **own}, []
    for name, parameter in inspect.signature(documented).parameters.items():
        stated = parameter.default not in (parameter.empty, None)
        entries.append(f"{name}: {texts[name]}" + f" Default: {parameter.default!r}." * stated)
    return _section("Args", entries)


def _raises() -> str:
    return _section("Raises", RAISES)


def _section(heading: str, entries: list[str], hanging: int = 8) -> str:
    wrapper = textwrap.TextWrapper(100, initial_indent=" " * 4, subsequent_indent=" " * hanging)
    lines = [wrapper.fill(" ".join(entry.split())) for entry in entries]
    return "\n".join([f"{heading}:", *lines])
