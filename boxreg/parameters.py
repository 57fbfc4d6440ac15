"""Parameter groups for weight decay and layer-wise learning rates, ready for any `torch.optim` optimizer."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from ._checks import check_number


@dataclass(frozen=True)
class Rule:
    """What to do with the parameters that meet every condition given; no condition means all parameters.

    Attributes:
        pattern: The parameter's dotted name, without the prefixes of `torch.compile` and
            `DistributedDataParallel`. A string is a glob over the whole name, in which `*` crosses dots
            (`"backbone.*"`); a compiled regular expression must match the whole name. A reparametrised
            tensor also answers to the name it has without the reparametrisation (`"head.weight"`).
        module: The module that owns the parameter directly: a class or a tuple of classes as for
            `isinstance`, or a glob or regular expression over the names of its class and base classes.
        max_dims: Most dimensions longer than 1 that the parameter may have: 0 for a single number, 1 for
            vectors and scales such as (C,) or (1, C, 1, 1).
        decay: Whether weight decay applies; None leaves it to the next rule.
        lr_scale: Factor on the learning rate; None leaves it to the next rule, and to 1 after the last.
        reason: Why, for the printed table.

    Raises:
        TypeError: If `decay` is not a bool or `lr_scale` not a number.
        ValueError: If the rule sets neither `decay` nor `lr_scale`, or `lr_scale` is negative or not
            finite.
    """

    pattern: str | re.Pattern[str] | None = None
    module: type[nn.Module] | tuple[type[nn.Module], ...] | str | re.Pattern[str] | None = None
    max_dims: int | None = None
    decay: bool | None = None
    lr_scale: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.decay, bool | None):
            raise TypeError(f"decay: got {self.decay!r}, expected True, False or None")
        if self.lr_scale is not None:
            check_number("lr_scale", self.lr_scale, minimum=0)
        if self.decay is None and self.lr_scale is None:
            raise ValueError(f"{self}: got decay=None and lr_scale=None, expected at least one of them")

    def __str__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "reason"}
        shown = ", ".join(f"{name}={_show(value)}" for name, value in given.items() if value is not None)
        return f"Rule({shown})"


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_show, value))})"
    return value.__name__ if isinstance(value, type) else repr(value)


def _own_name(expression: str) -> re.Pattern[str]:
    """Match the last part of a dotted name, whatever the path before it."""
    return re.compile(rf"(?:.*\.)?(?:{expression})")


_WEIGHT_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)
_TABLES = (
    r"(?:\w+_)?pos(?:ition|itional)?_?(?:emb|enc)\w*|rel(?:ative)?_pos(?:ition)?(?:_\w+)?"
    r"|embed_positions?|(?:row|col)_embed|wpe"
    r"|(?:\w+_)?(?:cls|class|dist|distillation|reg|register|storage|mask)_tokens?"
)
_TABLE_REASON = "position table or learned token"

DEFAULT_RULES: tuple[Rule, ...] = (
    Rule(pattern=_own_name(rf"(?:{_TABLES})(?:\.\d+)?"), decay=False, reason=_TABLE_REASON),
    Rule(
        pattern=_own_name(rf"(?:{_TABLES})\.weight"), module=nn.Embedding, decay=False, reason=_TABLE_REASON
    ),
    Rule(
        module=re.compile(r".*Pos(?:ition|itional)?(?:Emb|Enc)(?!oder).*"), decay=False, reason=_TABLE_REASON
    ),
    Rule(pattern=_own_name(r"(?:\w+_)?bias(?:es)?"), decay=False, reason="bias"),
    Rule(pattern=_own_name(r"(?:\w+_)?bias_\w+"), max_dims=1, decay=False, reason="bias"),
    # The direction of weight_norm is the weight it stands for; its magnitude is a scale.
    Rule(
        pattern=_own_name(r"\w*weight\w*_g|parametrizations\.\w+\.original0"),
        max_dims=1,
        decay=False,
        reason="weight_norm magnitude",
    ),
    Rule(pattern=_own_name(r"\w*weight\w*"), module=_WEIGHT_LAYERS, decay=True, reason="weight of a layer"),
    # Not "NormedLinear" or "LayerNormMLP", which also hold weights; their scales are met further down.
    Rule(
        module=re.compile(r".*[Nn]orm(?![a-z])(?!.*(?:Linear|Conv|MLP)).*"),
        decay=False,
        reason="normalisation layer",
    ),
    Rule(module=nn.PReLU, decay=False, reason="slope of PReLU"),
    Rule(module="*LayerScale*", decay=False, reason="LayerScale"),
    Rule(max_dims=1, decay=False, reason="scale: at most one dimension longer than 1"),
    Rule(decay=True, reason="weight: more than one dimension longer than 1"),
)
"""What decays and what does not; the first match decides, and the last rule matches every parameter."""


@dataclass(frozen=True)
class ParamRow:
    """Where one parameter goes, and why.

    Attributes:
        name: Dotted name of its first owner, as `named_parameters` of the bare model gives it.
        parameter: The parameter itself.
        decay: Whether weight decay applies.
        lr_scale: Factor on the learning rate.
        reason: The rules that decided.
        aliases: The further names of a tied parameter.
    """

    name: str
    parameter: nn.Parameter = field(repr=False, compare=False)
    decay: bool
    lr_scale: float
    reason: str
    aliases: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.parameter.shape)

    @property
    def group(self) -> str:
        """Name of the group: `decay` or `no_decay`, with the factor as in `decay_lr_x0.1`; or `frozen`."""
        if not self.parameter.requires_grad:
            return "frozen"
        kind = "decay" if self.decay else "no_decay"
        return kind if self.lr_scale == 1 else f"{kind}_lr_x{str(self.lr_scale).removesuffix('.0')}"


class ParamTable(tuple[ParamRow, ...]):
    """The rows of `param_table`; `print` shows them as a table."""

    def __str__(self) -> str:
        cells = [("name", "shape", "group", "decay", "lr", "reason")]
        for row in self:
            tied = f"; tied to {', '.join(row.aliases)}" if row.aliases else ""
            decay = "yes" if row.decay else "no"
            cells.append(
                (row.name, str(row.shape), row.group, decay, f"x{row.lr_scale:g}", row.reason + tied)
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
        return "\n".join(lines)


# Wrappers and the child that holds the wrapped module. By qualified name: importing torch._dynamo is slow.
_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
}


@dataclass(frozen=True)
class _Owned:
    """A parameter under one of its names."""

    names: tuple[str, ...]  # the name, and for a reparametrised tensor the name it stands for
    owner: nn.Module
    parameter: nn.Parameter
    tied: list[_Owned] = field(default_factory=list)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _wrapped_child(module: nn.Module) -> str | None:
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)
    return next((_WRAPPERS[name] for name in names if name in _WRAPPERS), None)


def _walk(model: nn.Module) -> Iterator[_Owned]:
    """Yield every parameter under each of its names, in model order, wrappers left out of the names."""
    modules: dict[str, nn.Module] = {}
    clean = {"": ""}
    for path, module in model.named_modules(remove_duplicate=False):
        modules[path] = module
        parent, _, key = path.rpartition(".")
        if path:
            wrapped = key == _wrapped_child(modules[parent])
            clean[path] = clean[parent] if wrapped else _join(clean[parent], key)
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        for own_name, parameter in own.items():
            names, owner = [_join(clean[path], own_name)], module
            stem, _, suffix = own_name.rpartition("_")
            if isinstance(module, ParametrizationList):
                root = parent.rpartition(".")[0]  # path is root.parametrizations.key
                owner = modules[root]
                if own_name != "original0":
                    names.append(_join(clean[root], key))
            elif suffix in ("v", "orig") and isinstance(module.__dict__.get(stem), Tensor):
                # A hook of torch.nn.utils (weight_norm, spectral_norm, prune) recomputes the plain name.
                names.append(_join(clean[path], stem))
            yield _Owned(tuple(names), owner, parameter)


def _collect(model: nn.Module) -> list[_Owned]:
    """Return every parameter once, under its first name, with the further names in `tied`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    first: dict[nn.Parameter, _Owned] = {}
    for owned in _walk(model):
        if is_lazy(owned.parameter):
            raise ValueError(
                f"model: got the uninitialised parameter {owned.names[0]!r}, expected a shape: "
                "run one forward pass through its lazy module first"
            )
        if owned.parameter in first:
            first[owned.parameter].tied.append(owned)
        else:
            first[owned.parameter] = owned
    return list(first.values())


def _hits(pattern: str | re.Pattern[str], text: str) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(text) is not None
    return fnmatchcase(text, pattern)


def _applies(rule: Rule, owned: _Owned) -> bool:
    pattern, module = rule.pattern, rule.module
    if pattern is not None and not any(_hits(pattern, name) for name in owned.names):
        return False
    if isinstance(module, str | re.Pattern):
        if not any(_hits(module, cls.__name__) for cls in type(owned.owner).__mro__):
            return False
    elif module is not None and not isinstance(owned.owner, module):
        return False
    return rule.max_dims is None or sum(size > 1 for size in owned.parameter.shape) <= rule.max_dims


def _hint(rule: Rule, parameters: Sequence[_Owned]) -> str:
    """Say what a rule without effect may have meant."""
    for owned in parameters:
        for tied in owned.tied:
            if _applies(rule, tied):
                return f": {tied.names[0]!r} is tied to {owned.names[0]!r}, whose first name decides"
    names = [name for owned in parameters for name in owned.names]
    if isinstance(rule.pattern, str) and not any(_hits(rule.pattern, name) for name in names):
        parents = dict.fromkeys(name[: dot.start()] for name in names for dot in re.finditer(r"\.", name))
        given, known = rule.pattern, [*names, *(f"{parent}.*" for parent in parents)]
    elif isinstance(rule.module, str):
        given, known = rule.module, [type(owned.owner).__name__ for owned in parameters]
    else:
        return ""
    near = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_rules(rules: Sequence[Rule], parameters: Sequence[_Owned]) -> None:
    for i, rule in enumerate(rules):
        if not isinstance(rule, Rule):
            raise TypeError(f"rules[{i}]: got {type(rule).__name__}, expected a Rule")
        if not any(_applies(rule, owned) for owned in parameters):
            raise ValueError(f"rules[{i}]: {rule} matches no parameter{_hint(rule, parameters)}")


def param_table(model: nn.Module, *, rules: Iterable[Rule] = ()) -> ParamTable:
    """Say for every parameter of a model in which group it goes, and by which rule.

    The decisions are those of `param_groups`; frozen parameters are listed too, in group `frozen`.

    Args:
        model: Any module, also compiled or in `DistributedDataParallel`.
        rules: Rules that come before `DEFAULT_RULES`.

    Returns:
        One `ParamRow` a parameter, in model order; `print` shows a table.

    Raises:
        TypeError: If `model` is not a module or `rules` holds something else than rules.
        ValueError: If a rule of `rules` matches no parameter, or a lazy module is not materialised.

    Example:
        >>> from torch import nn
        >>> from boxreg.parameters import Rule, param_table
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.PReLU())
        >>> print(param_table(model, rules=[Rule(pattern="1.*", lr_scale=0.5)]))
        name      shape   group             decay  lr    reason
        0.weight  (8, 4)  decay             yes    x1    weight of a layer
        0.bias    (8,)    no_decay          no     x1    bias
        1.weight  (1,)    no_decay_lr_x0.5  no     x0.5  slope of PReLU; lr: Rule(pattern='1.*', lr_scale=0.5)
    """
    parameters, rules = _collect(model), tuple(rules)
    _check_rules(rules, parameters)
    rows = []
    for owned in parameters:
        matching = [rule for rule in (*rules, *DEFAULT_RULES) if _applies(rule, owned)]
        decay, reason = next((r.decay, r.reason or str(r)) for r in matching if r.decay is not None)
        scale = next(((r.lr_scale, r.reason or str(r)) for r in matching if r.lr_scale is not None), None)
        rows.append(
            ParamRow(
                name=owned.names[0],
                parameter=owned.parameter,
                decay=decay,
                lr_scale=scale[0] if scale else 1.0,
                reason=f"{reason}; lr: {scale[1]}" if scale else reason,
                aliases=tuple(tied.names[0] for tied in owned.tied),
            )
        )
    return ParamTable(rows)


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    lr: float | None = None,
    rules: Iterable[Rule] = (),
) -> list[dict[str, Any]]:
    """Split the trainable parameters of a model into named groups for an optimizer.

    Each parameter takes the first rule that matches it and sets `decay`, and on its own the first that
    matches it and sets `lr_scale`: a norm in a slow backbone gets no decay and the slow rate. The rules are
    `rules`, then `DEFAULT_RULES`:

    1. No decay: position tables, class, register and mask tokens, as raw parameters or in an `nn.Embedding`;
       whatever a class named like `PositionalEncoding` owns.
    2. No decay: biases, by their own name (`bias`, `q_bias`, `bias_ih_l0`); `debias.weight` is none.
    3. No decay: magnitudes of `weight_norm`, old and new; its directions count as the weight.
    4. Decay: weights of linear, bilinear, convolution, embedding, attention and recurrent layers.
    5. No decay: everything a normalisation layer owns, known by "Norm" in the name of its class or a base
       class (not "Normed", and not with "Linear", "Conv" or "MLP" after it); PReLU; LayerScale.
    6. No decay: scales, which is every other parameter with at most one dimension longer than 1,
       such as (), (C,) and (1, C, 1, 1).
    7. Decay: the rest, which is every raw parameter with two or more dimensions longer than 1.

    Frozen parameters are left out. A tied parameter goes in once, as the module that comes first owns it.
    The groups do not depend on `torch.compile` or `DistributedDataParallel` around the model or parts of it.

    Some optimizers take less than others. `LBFGS` takes a single group, which
    `rules=[Rule(decay=False)]` gives; it and `SparseAdam` know no weight decay and ignore it. `Muon` takes
    matrices only.

    Args:
        model: Any module.
        weight_decay: Weight decay of the groups that decay, at least 0.
        lr: Base learning rate. With it each group carries `"lr"`, `lr` times its `lr_scale`; without it the
            optimizer's own applies.
        rules: Rules that come before `DEFAULT_RULES`.

    Returns:
        Groups in the order in which the model first needs them, parameters in model order, none empty: dicts
        with `"name"`, `"params"`, `"weight_decay"` and, given `lr`, `"lr"`. The names are `decay` and
        `no_decay`, with the factor where it is not 1: `decay_lr_x0.1`.

    Raises:
        TypeError: If `model` is not a module or another argument has the wrong type.
        ValueError: If a number is negative or not finite, a rule of `rules` matches no parameter or scales a
            learning rate while `lr` is None, no parameter is trainable, or a lazy module is not materialised.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from boxreg.parameters import Rule, param_groups
        >>> model = nn.ModuleDict({"backbone": nn.Conv2d(3, 8, 3), "head": nn.Linear(8, 4)})
        >>> slow = Rule(pattern="backbone.*", lr_scale=0.1)
        >>> groups = param_groups(model, weight_decay=0.05, lr=1e-3, rules=[slow])
        >>> for group in groups:
        ...     print(f"{group['name']:<16} {group['weight_decay']:<4} {group['lr']:g}")
        decay_lr_x0.1    0.05 0.0001
        no_decay_lr_x0.1 0.0  0.0001
        decay            0.05 0.001
        no_decay         0.0  0.001
        >>> optimizer = torch.optim.AdamW(groups)
    """
    check_number("weight_decay", weight_decay, minimum=0)
    if lr is not None:
        check_number("lr", lr, minimum=0)
    rules = tuple(rules)
    table = param_table(model, rules=rules)
    scaling = next((rule for rule in rules if rule.lr_scale is not None), None)
    if lr is None and scaling is not None:
        raise ValueError(
            f"lr: got None, expected the learning rate that {scaling} scales by {scaling.lr_scale}"
        )
    groups: dict[str, dict[str, Any]] = {}
    for row in table:
        if not row.parameter.requires_grad:
            continue
        if row.group not in groups:
            decay = float(weight_decay) if row.decay else 0.0
            groups[row.group] = {"name": row.group, "params": [], "weight_decay": decay}
            if lr is not None:
                groups[row.group]["lr"] = lr * row.lr_scale
        groups[row.group]["params"].append(row.parameter)
    if not groups:
        raise ValueError(
            f"model: got {type(model).__name__} with {len(table)} parameters, none trainable; "
            "expected at least one with requires_grad=True"
        )
    return list(groups.values())
