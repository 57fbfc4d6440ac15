"""Parameter groups: which parameter decays, which learning rate it gets, and that none is lost."""

from __future__ import annotations

import copy
import doctest
import importlib
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrizations, prune

from boxreg.parameters import DEFAULT_RULES, Rule, param_groups, param_table

OPTIMIZERS = [
    value
    for value in vars(torch.optim).values()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
]


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


class Raw(nn.Module):
    """A module of no known type that owns the given parameters."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, parameter(*shape))


class LocalRMSNorm(Raw):
    """A norm known by its name alone."""


class NormAct2d(Raw):
    """A norm whose name goes on after "Norm"."""


class NormedProjection(Raw):
    """No norm."""


class FusedLayerNormLinear(Raw):
    """A norm and a linear layer in one."""


class LayerScale(Raw):
    """The usual name of a per-channel factor."""


class PosEncoder(Raw):
    """A network, not a table."""


class LearnedPositionalEncoding(Raw):
    """A position table known by its type alone."""


def weight_norm_hook(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module)


def materialised(lazy: nn.Module, *shape: int) -> nn.Module:
    lazy(torch.randn(shape))
    return lazy


def everything() -> nn.ModuleDict:
    """Every case that one of the rules speaks of."""
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 4),
            "narrow": nn.Linear(5, 1),
            "bilinear": nn.Bilinear(2, 3, 4),
            "lazy": materialised(nn.LazyLinear(2), 1, 3),
            "conv1": nn.Conv1d(2, 3, 3),
            "conv2": nn.Conv2d(2, 3, 3),
            "one_channel": nn.Conv1d(1, 1, 3),
            "conv3": nn.Conv3d(2, 3, 3),
            "up1": nn.ConvTranspose1d(2, 3, 3),
            "up2": nn.ConvTranspose2d(2, 3, 3),
            "up3": nn.ConvTranspose3d(2, 3, 3),
            "embedding": nn.Embedding(5, 4),
            "bag": nn.EmbeddingBag(5, 4),
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "cross": nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            "rnn": nn.RNN(2, 3),
            "lstm": nn.LSTM(2, 3, proj_size=2),
            "gru": nn.GRU(2, 3, bidirectional=True),
            "cell": nn.LSTMCell(2, 3),
            "thin_bilinear": nn.Bilinear(1, 3, 1),
            "thin_embedding": nn.Embedding(5, 1),
            "thin_bag": nn.EmbeddingBag(5, 1),
            "thin_attention": nn.MultiheadAttention(1, 1),
            "thin_rnn": nn.RNN(1, 1),
            "thin_cell": nn.GRUCell(1, 1),
            "batch": nn.BatchNorm2d(3),
            "group": nn.GroupNorm(1, 3),
            "layer": nn.LayerNorm(3),
            "layer2": nn.LayerNorm((3, 4)),
            "instance": nn.InstanceNorm2d(3, affine=True),
            "rms": nn.RMSNorm((3, 4)),
            "local": LocalRMSNorm(scale=(3, 4)),
            "act": NormAct2d(table=(3, 4)),
            "normed": NormedProjection(matrix=(3, 4)),
            "fused": FusedLayerNormLinear(matrix=(3, 4), layer_norm_weight=(4,)),
            "prelu": nn.PReLU(3),
            "layer_scale": LayerScale(gamma=(3,)),
            "scales": Raw(image=(1, 3, 1, 1), number=(), one=(1,), column=(3, 1)),
            "raw": Raw(matrix=(3, 4), kernel=(3, 4, 3, 3), weight_g=(3, 4), bias_projection=(3, 4)),
            "old": weight_norm_hook(nn.Conv2d(2, 3, 3)),
            "old_narrow": weight_norm_hook(nn.Linear(5, 1)),
            "new": parametrizations.weight_norm(nn.Conv2d(2, 3, 3)),
            "new_narrow": parametrizations.weight_norm(nn.Linear(5, 1)),
            "orthogonal": parametrizations.orthogonal(nn.Linear(3, 4)),
            "spectral": parametrizations.spectral_norm(nn.Linear(3, 4), "bias", dim=0),
            "pruned": prune.identity(nn.Linear(5, 1), "weight"),
            "debias": nn.Linear(3, 4, bias=False),
            "bias": nn.Linear(3, 4),
            "vit": Raw(
                pos_embed=(1, 5, 4),
                cls_token=(1, 2, 4),
                register_tokens=(1, 2, 4),
                mask_token=(2, 4),
                relative_position_bias_table=(9, 2),
                rel_pos_h=(9, 2),
                q_bias=(4,),
                attention_biases=(2, 9),
                query=(9, 4),
            ),
            "position_embeddings": nn.Embedding(5, 4),
            "pos_embed": nn.Linear(2, 4),
            "encoder": PosEncoder(matrix=(3, 4)),
            "wpe": nn.Embedding(5, 4),
            "encoding": LearnedPositionalEncoding(table=(5, 4)),
            "embed_tokens": nn.Embedding(5, 4),
            "tables": nn.ParameterDict({"pos_embeds": nn.ParameterList([parameter(3, 4)])}),
            "frozen": nn.Linear(3, 4).requires_grad_(False),
            "module": nn.Linear(3, 4),
            "_orig_mod": nn.Linear(3, 4),
        }
    )
    head = nn.Linear(4, 5)
    head.weight = model["embedding"].weight
    model["head"] = head
    return model


DECAYED = {
    "linear.weight",
    "narrow.weight",
    "bilinear.weight",
    "lazy.weight",
    "conv1.weight",
    "conv2.weight",
    "one_channel.weight",
    "conv3.weight",
    "up1.weight",
    "up2.weight",
    "up3.weight",
    "embedding.weight",
    "bag.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "cross.q_proj_weight",
    "cross.k_proj_weight",
    "cross.v_proj_weight",
    "cross.out_proj.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "lstm.weight_hr_l0",
    "gru.weight_ih_l0",
    "gru.weight_hh_l0",
    "gru.weight_ih_l0_reverse",
    "gru.weight_hh_l0_reverse",
    "cell.weight_ih",
    "cell.weight_hh",
    "thin_bilinear.weight",
    "thin_embedding.weight",
    "thin_bag.weight",
    "thin_attention.in_proj_weight",
    "thin_attention.out_proj.weight",
    "thin_rnn.weight_ih_l0",
    "thin_rnn.weight_hh_l0",
    "thin_cell.weight_ih",
    "thin_cell.weight_hh",
    "normed.matrix",
    "fused.matrix",
    "raw.matrix",
    "raw.kernel",
    "raw.weight_g",
    "raw.bias_projection",
    "encoder.matrix",
    "old.weight_v",
    "old_narrow.weight_v",
    "new.parametrizations.weight.original1",
    "new_narrow.parametrizations.weight.original1",
    "orthogonal.parametrizations.weight.original",
    "spectral.weight",
    "pruned.weight_orig",
    "debias.weight",
    "bias.weight",
    "vit.query",
    "pos_embed.weight",
    "embed_tokens.weight",
    "module.weight",
    "_orig_mod.weight",
}


def names_by_group(model: nn.Module, **kwargs: Any) -> dict[str, set[str]]:
    """The groups as sets of names, read from the parameters themselves."""
    names = {p: name for name, p in model.named_parameters()}
    return {g["name"]: {names[p] for p in g["params"]} for g in param_groups(model, 0.1, **kwargs)}


def decisions(model: nn.Module, **kwargs: Any) -> list[tuple[Any, ...]]:
    return [(r.name, r.shape, r.group, r.reason, r.aliases) for r in param_table(model, **kwargs)]


def test_every_case_is_decided_as_listed():
    model = everything()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    groups = names_by_group(model)
    assert groups["decay"] == DECAYED
    assert groups["no_decay"] == trainable - DECAYED
    assert list(groups) == ["decay", "no_decay"]


def test_groups_carry_the_weight_decay_they_are_named_for():
    groups = param_groups(everything(), 0.1)
    assert [(g["name"], g["weight_decay"]) for g in groups] == [("decay", 0.1), ("no_decay", 0.0)]
    assert all(set(g) == {"name", "params", "weight_decay"} for g in groups)


def test_an_optimizer_shrinks_exactly_the_decayed_parameters():
    model = everything()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(param_groups(model, 0.25), lr=1.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.75 if name in DECAYED else 1.0), msg=name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("linear.weight", "weight of a layer"),
        ("old_narrow.weight_v", "weight of a layer"),
        ("new_narrow.parametrizations.weight.original1", "weight of a layer"),
        ("linear.bias", "bias"),
        ("vit.q_bias", "bias"),
        ("attention.in_proj_bias", "bias"),
        ("attention.bias_k", "bias"),
        ("rnn.bias_hh_l0", "bias"),
        ("spectral.parametrizations.bias.original", "bias"),
        ("old.weight_g", "weight_norm magnitude"),
        ("old_narrow.weight_g", "weight_norm magnitude"),
        ("new.parametrizations.weight.original0", "weight_norm magnitude"),
        ("layer2.weight", "normalisation layer"),
        ("local.scale", "normalisation layer"),
        ("prelu.weight", "slope of PReLU"),
        ("layer_scale.gamma", "LayerScale"),
        ("scales.image", "scale: at most one dimension longer than 1"),
        ("raw.matrix", "weight: more than one dimension longer than 1"),
        ("position_embeddings.weight", "position table or learned token"),
        ("encoding.table", "position table or learned token"),
        ("tables.pos_embeds.0", "position table or learned token"),
        ("vit.relative_position_bias_table", "position table or learned token"),
    ],
)
def test_the_table_gives_the_reason(name: str, reason: str):
    assert {row.name: row.reason for row in param_table(everything())}[name] == reason


def test_every_default_rule_decides_something():
    reasons = {row.reason for row in param_table(everything())}
    assert reasons == {rule.reason for rule in DEFAULT_RULES}


# What other builders get wrong: a model, and the parameters that must not decay or must.
PEERS: dict[str, tuple[Callable[[], nn.Module], set[str], set[str]]] = {
    "timm": (
        lambda: nn.ModuleDict(
            {
                "norm": nn.LayerNorm((3, 4)),
                "scale": Raw(scale=(1, 3, 1, 1)),
                "conv": weight_norm_hook(nn.Conv2d(2, 3, 3)),
                "words": nn.Embedding(5, 4),
                "vit": Raw(pos_embed=(1, 5, 4), cls_token=(1, 1, 4), relative_position_bias_table=(9, 2)),
            }
        ),
        {
            "norm.weight",
            "norm.bias",
            "scale.scale",
            "conv.weight_g",
            "conv.bias",
            "vit.pos_embed",
            "vit.cls_token",
            "vit.relative_position_bias_table",
        },
        {"conv.weight_v", "words.weight"},
    ),
    "detectron2": (
        lambda: nn.ModuleDict(
            {
                "norm": LocalRMSNorm(weight=(4,)),
                "prelu": nn.PReLU(),
                "ls": LayerScale(gamma=(4,)),
                "raw": Raw(temperature=(), pos_embed=(1, 5, 4)),
                "attention": nn.MultiheadAttention(4, 2),
            }
        ),
        {
            "norm.weight",
            "prelu.weight",
            "ls.gamma",
            "raw.temperature",
            "raw.pos_embed",
            "attention.in_proj_bias",
            "attention.out_proj.bias",
        },
        {"attention.in_proj_weight", "attention.out_proj.weight"},
    ),
    "ultralytics": (
        lambda: nn.ModuleDict({"debias": nn.Linear(3, 4), "bias_net": nn.Conv2d(2, 3, 3, bias=False)}),
        {"debias.bias"},
        {"debias.weight", "bias_net.weight"},
    ),
    "YOLOX": (
        lambda: Raw(matrix=(3, 4), scale=(3,)),
        {"scale"},
        {"matrix"},
    ),
    "mmengine": (
        lambda: Raw(scale=(), pos_embed=(5, 4), kernel=(3, 2, 3, 3)),
        {"scale", "pos_embed"},
        {"kernel"},
    ),
}


@pytest.mark.parametrize("peer", PEERS)
def test_cases_that_other_builders_get_wrong(peer: str):
    build, no_decay, decay = PEERS[peer]
    assert names_by_group(build()) == {"decay": decay, "no_decay": no_decay}


@pytest.mark.parametrize("peer", ["yolov5", "ultralytics", "mmengine"])
def test_tied_parameters_go_in_once_and_frozen_ones_not_at_all(peer: str):
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5), "stem": nn.Linear(3, 4)})
    model["head"].weight = model["embed"].weight
    model["stem"].requires_grad_(False)
    groups = {g["name"]: g["params"] for g in param_groups(model, 0.1)}
    assert [id(p) for p in groups["decay"]] == [id(model["embed"].weight)]
    assert [id(p) for p in groups["no_decay"]] == [id(model["head"].bias)]
    rows = {row.name: row for row in param_table(model)}
    assert rows["embed.weight"].aliases == ("head.weight",)
    assert [rows[name].group for name in ("stem.weight", "stem.bias")] == ["frozen", "frozen"]


def test_mmengine_one_group_a_parameter_is_not_ours():
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    assert [len(g["params"]) for g in param_groups(deep, 0.1)] == [9, 9]


def test_the_first_owner_of_a_tied_parameter_decides():
    def tie(first: str, second: str) -> nn.ModuleDict:
        layers = {"pos_embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)}
        layers["head"].weight = layers["pos_embed"].weight
        return nn.ModuleDict({first: layers[first], second: layers[second]})

    assert names_by_group(tie("pos_embed", "head")) == {"no_decay": {"pos_embed.weight"}}
    assert names_by_group(tie("head", "pos_embed")) == {"decay": {"head.weight"}}


def test_a_module_used_twice_has_two_names():
    shared = nn.Linear(2, 2, bias=False)
    (row,) = param_table(nn.Sequential(shared, nn.ReLU(), shared))
    assert (row.name, row.aliases) == ("0.weight", ("2.weight",))


def detector() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
            "head": nn.Linear(4, 2),
        }
    )


def test_decay_and_learning_rate_are_decided_apart():
    rules = [
        Rule(pattern="head.weight", decay=False),
        Rule(pattern="head.*", lr_scale=10),
        Rule(pattern="*.weight", module=nn.BatchNorm2d, decay=True),
        Rule(pattern="backbone.*", lr_scale=0.1),
        Rule(lr_scale=3.0),
    ]
    assert names_by_group(detector(), lr=0.5, rules=rules) == {
        "decay_lr_x0.1": {"backbone.0.weight", "backbone.1.weight"},
        "no_decay_lr_x0.1": {"backbone.1.bias"},
        "no_decay_lr_x10": {"head.weight", "head.bias"},
    }
    groups = param_groups(detector(), 0.1, lr=0.5, rules=rules)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.05, 0.1), (0.05, 0.0), (5.0, 0.0)]


def test_the_first_rule_for_a_property_wins():
    rules = [Rule(pattern="head.*", lr_scale=2.0), Rule(pattern="*.bias", lr_scale=4.0)]
    rows = {row.name: row.lr_scale for row in param_table(detector(), rules=rules)}
    assert rows == {
        "backbone.0.weight": 1.0,
        "backbone.1.weight": 1.0,
        "backbone.1.bias": 4.0,
        "head.weight": 2.0,
        "head.bias": 2.0,
    }


def test_lr_is_in_every_group_when_given():
    assert [g["lr"] for g in param_groups(detector(), 0.1, lr=0.5)] == [0.5, 0.5]


def test_scales_that_differ_late_stay_apart():
    rules = [
        Rule(pattern="head.weight", lr_scale=0.1),
        Rule(pattern="backbone.0.*", lr_scale=math.nextafter(0.1, 1)),
    ]
    groups = {g["name"]: g["lr"] for g in param_groups(detector(), 0.1, lr=1.0, rules=rules)}
    assert groups == {
        "decay_lr_x0.10000000000000002": math.nextafter(0.1, 1),
        "no_decay": 1.0,
        "decay_lr_x0.1": 0.1,
    }


@pytest.mark.parametrize(
    ("rule", "matched"),
    [
        (Rule(pattern="vit.pos_embed", decay=True), {"vit.pos_embed"}),
        (Rule(pattern="*token", decay=True), {"vit.cls_token", "vit.mask_token"}),
        (Rule(pattern=re.compile(r"layer\d?\.weight"), decay=True), {"layer.weight", "layer2.weight"}),
        (Rule(module=nn.RMSNorm, decay=True), {"rms.weight"}),
        (Rule(module=(nn.RMSNorm, nn.PReLU), decay=True), {"rms.weight", "prelu.weight"}),
        (Rule(module="NormAct*", decay=True), {"act.table"}),
        (Rule(module=re.compile(r"(Layer)?Scale"), decay=True), {"layer_scale.gamma"}),
        (Rule(max_dims=0, decay=True), {"scales.number", "scales.one", "old_narrow.weight_g"}),
        (Rule(pattern="*.weight", module=nn.BatchNorm2d, decay=True), {"batch.weight"}),
        (Rule(pattern="spectral.bias", decay=True), {"spectral.parametrizations.bias.original"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_rule_of_the_user_comes_before_the_defaults(rule: Rule, matched: set[str]):
    decided = names_by_group(everything(), rules=[rule])["decay"] - DECAYED
    if rule.max_dims is not None:
        decided &= matched
    assert decided == matched


@pytest.mark.parametrize("name", ["old", "new", "orthogonal", "pruned"])
def test_a_reparametrised_weight_answers_to_its_plain_name(name: str):
    rows = param_table(everything(), rules=[Rule(pattern=f"{name}.weight", decay=False, reason="mine")])
    (mine,) = [row for row in rows if row.reason == "mine"]
    assert mine.name in DECAYED
    assert mine.name.startswith(name + ".")


def test_the_table_prints_a_line_a_parameter():
    lines = str(param_table(everything(), rules=[Rule(pattern="linear.*", lr_scale=2.0)])).splitlines()
    assert lines[0].split() == ["name", "shape", "group", "decay", "lr", "reason"]
    assert len(lines) == 1 + len(list(everything().parameters()))
    shown = {line.split()[0]: re.split(r" {2,}", line) for line in lines}
    reason = "bias; lr: Rule(pattern='linear.*', lr_scale=2.0)"
    assert shown["linear.bias"] == ["linear.bias", "(4,)", "no_decay_lr_x2", "no", "x2", reason]
    assert shown["frozen.weight"][2:] == ["frozen", "yes", "x1", "weight of a layer"]
    assert shown["embedding.weight"][-1] == "weight of a layer; tied to head.weight"


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compile_inside(model: nn.ModuleDict) -> nn.Module:
    model["conv2"] = torch.compile(model["conv2"])
    model["module"] = torch.compile(model["module"])
    model["vit"] = DataParallel(model["vit"])
    return model


WRAPS: dict[str, Callable[[Any], nn.Module]] = {
    "compile": torch.compile,
    "data parallel": DataParallel,
    "ddp": DistributedDataParallel,
    "compile of ddp": lambda model: torch.compile(DistributedDataParallel(model)),
    "ddp of compile": lambda model: DistributedDataParallel(torch.compile(model)),
    "inside": compile_inside,
    "inside ddp": lambda model: DistributedDataParallel(compile_inside(model)),
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", WRAPS)
def test_wrappers_change_nothing(wrap: str):
    model = everything()
    rules = [Rule(pattern="module.*", lr_scale=0.5), Rule(pattern="vit.pos*", decay=True)]
    expected = decisions(model, rules=rules)
    bare = param_groups(model, 0.1, lr=1.0, rules=rules)
    wrapped = WRAPS[wrap](model)
    assert decisions(wrapped, rules=rules) == expected
    groups = param_groups(wrapped, 0.1, lr=1.0, rules=rules)
    assert [{**g, "params": [id(p) for p in g["params"]]} for g in groups] == [
        {**g, "params": [id(p) for p in g["params"]]} for g in bare
    ]


def test_modules_of_the_users_with_the_names_of_wrappers_keep_them():
    model = nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": nn.ModuleDict({"module": nn.PReLU()})})})
    assert [row.name for row in param_table(model)] == ["module._orig_mod.module.weight"]
    assert [row.name for row in param_table(DataParallel(model))] == ["module._orig_mod.module.weight"]


def train_step(
    optimizer_class: type[torch.optim.Optimizer],
) -> tuple[nn.Module, list[dict[str, Any]], Tensor]:
    """A model that the optimizer can train, its groups, and an input."""
    if optimizer_class is torch.optim.SparseAdam:
        model: nn.Module = nn.EmbeddingBag(4, 3, sparse=True)
        return model, param_groups(model, 0.1, lr=0.1), torch.arange(4)[None]
    if optimizer_class.__name__ == "Muon":
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
        return model, param_groups(model, 0.1, lr=0.1), torch.randn(5, 4)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.PReLU(), nn.Linear(6, 3))
    model[0].weight.requires_grad_(False)
    # LBFGS takes one group.
    rules = (
        [Rule(decay=False)] if optimizer_class is torch.optim.LBFGS else [Rule(pattern="3.*", lr_scale=0.5)]
    )
    return model, param_groups(model, 0.1, lr=0.1, rules=rules), torch.randn(5, 4)


@pytest.mark.parametrize("optimizer_class", OPTIMIZERS, ids=lambda c: c.__name__)
def test_every_torch_optimizer_takes_the_groups(optimizer_class: type[torch.optim.Optimizer]):
    torch.manual_seed(0)
    model, groups, inputs = train_step(optimizer_class)
    names = [g["name"] for g in groups]
    optimizer = optimizer_class(groups)  # type: ignore[call-arg]
    before = copy.deepcopy(model.state_dict())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(inputs) - 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [g["name"] for g in optimizer.param_groups] == names
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


class Leaf:
    """Makers of the leaves of a random model; `shared` is one module for a whole model."""

    def __init__(self) -> None:
        self.shared = nn.Linear(3, 3)

    def tied(self) -> nn.Module:
        layer = nn.Linear(3, 3)
        layer.weight = self.shared.weight
        return layer

    def make(self, kind: str) -> nn.Module:
        makers: dict[str, Callable[[], nn.Module]] = {
            "linear": lambda: nn.Linear(2, 3),
            "conv": lambda: nn.Conv2d(1, 2, 3),
            "norm": lambda: nn.LayerNorm((2, 2)),
            "embedding": lambda: nn.Embedding(3, 2),
            "attention": lambda: nn.MultiheadAttention(2, 1, add_bias_kv=True),
            "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(2, 3)),
            "raw": lambda: Raw(matrix=(2, 3), number=(), pos_embed=(2, 3)),
            "relu": nn.ReLU,
            "shared": lambda: self.shared,
            "tied": self.tied,
        }
        return makers[kind]()


LEAVES = ("linear", "conv", "norm", "embedding", "attention", "weight_norm", "raw", "relu", "shared", "tied")
NODES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda m: m,
    "compile": torch.compile,
    "data parallel": DataParallel,
    "module": lambda m: nn.ModuleDict({"module": m}),
}
TREES = st.recursive(
    st.sampled_from(LEAVES),
    lambda children: st.tuples(st.sampled_from(sorted(NODES)), st.lists(children, min_size=1, max_size=3)),
    max_leaves=8,
)


def grow(tree: Any, leaf: Leaf, *, wrappers: bool) -> nn.Module:
    if isinstance(tree, str):
        return leaf.make(tree)
    kind, children = tree
    inner = nn.Sequential(*(grow(child, leaf, wrappers=wrappers) for child in children))
    return NODES[kind](inner) if wrappers or kind == "module" else inner


@settings(max_examples=60, deadline=None)
@given(tree=TREES, frozen=st.sets(st.integers(0, 20), max_size=6))
def test_every_trainable_parameter_is_in_exactly_one_group(tree: Any, frozen: set[int]):
    model, bare = (grow(("plain", [tree, "norm"]), Leaf(), wrappers=w) for w in (True, False))
    for m in (model, bare):
        for i, p in enumerate(m.parameters()):
            p.requires_grad_(i not in frozen)
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    table = param_table(model)
    assert [row.name for row in table] == [name for name, _ in bare.named_parameters()]
    assert decisions(model) == decisions(bare)
    if not trainable:
        with pytest.raises(ValueError, match="none trainable"):
            param_groups(model, 0.1)
        return
    groups = param_groups(model, 0.1)
    grouped = [[id(p) for p in g["params"]] for g in groups]
    assert sorted(itertools.chain(*grouped)) == sorted(trainable)
    assert all(grouped)
    assert all(sorted(group, key=trainable.index) == group for group in grouped)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_bad_number_is_named(value: float):
    with pytest.raises(
        ValueError, match=rf"weight_decay: got {value}, expected a finite number of at least 0"
    ):
        param_groups(detector(), value)
    with pytest.raises(ValueError, match=rf"lr: got {value}, expected"):
        param_groups(detector(), 0.1, lr=value)
    with pytest.raises(ValueError, match=rf"lr_scale: got {value}, expected"):
        Rule(lr_scale=value)


def test_a_value_of_the_wrong_type_is_named():
    with pytest.raises(TypeError, match="weight_decay: got str, expected a number"):
        param_groups(detector(), "0.1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"decay: got 0\.05, expected True, False or None"):
        Rule(pattern="head.*", decay=0.05)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"rules\[1\]: got str, expected a Rule"):
        param_groups(detector(), 0.1, rules=[Rule(decay=False), "head.*"])  # type: ignore[list-item]


def test_a_rule_that_sets_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"Rule\(pattern='head.\*'\): got decay=None and lr_scale=None"):
        Rule(pattern="head.*")


@pytest.mark.parametrize("model", [[nn.Linear(1, 1)], nn.Linear(1, 1).parameters(), nn.Linear])
def test_what_is_no_module_is_a_type_error(model: Any):
    for call in (lambda: param_groups(model, 0.1), lambda: param_table(model)):
        with pytest.raises(TypeError, match=r"model: got \w+, expected a torch.nn.Module"):
            call()


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)])
def test_a_model_without_trainable_parameters_is_an_error(model: nn.Module):
    with pytest.raises(ValueError, match=r"model: got \w+ with \d parameters, none trainable"):
        param_groups(model, 0.1)


def test_an_uninitialised_parameter_is_named():
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "neck": nn.LazyLinear(2)})
    with pytest.raises(ValueError, match=r"uninitialised parameter 'neck.weight'"):
        param_groups(model, 0.1)


def test_lr_scale_without_lr_is_an_error():
    with pytest.raises(ValueError, match=r"lr: got None, expected .* Rule\(pattern='head.\*', lr_scale=10\)"):
        param_groups(detector(), 0.1, rules=[Rule(decay=False), Rule(pattern="head.*", lr_scale=10)])


@pytest.mark.parametrize(
    ("rule", "suggestion"),
    [
        (Rule(pattern="backbon.*", decay=False), "backbone.*"),
        (Rule(pattern="module.backbone.*", decay=False), "backbone.*"),
        (Rule(pattern="head.wieght", decay=False), "head.weight"),
        (Rule(module="BatchNorm3d", decay=False), "BatchNorm2d"),
    ],
    ids=str,
)
def test_a_rule_that_matches_nothing_is_named_with_the_nearest_name(rule: Rule, suggestion: str):
    message = re.escape(f"rules[0]: {rule} matches no parameter; did you mean {suggestion!r}?")
    with pytest.raises(ValueError, match=message):
        param_groups(detector(), 0.1, rules=[rule])


@pytest.mark.parametrize(
    "rule",
    [Rule(module=nn.PReLU, decay=True), Rule(pattern="head.bias", module=nn.Conv2d, decay=True)],
    ids=str,
)
def test_a_rule_that_matches_nothing_is_an_error_without_a_near_name_too(rule: Rule):
    with pytest.raises(ValueError, match=re.escape(f"rules[0]: {rule} matches no parameter") + "$"):
        param_groups(detector(), 0.1, rules=[rule])


def test_a_rule_that_matches_only_a_tied_name_says_so():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    with pytest.raises(ValueError, match=r"'head.weight' is tied to 'embed.weight'"):
        param_groups(model, 0.1, rules=[Rule(pattern="head.*", decay=False)])


def test_a_rule_for_frozen_parameters_is_no_error():
    model = detector()
    model["backbone"].requires_grad_(False)
    groups = names_by_group(model, lr=1.0, rules=[Rule(pattern="backbone.*", lr_scale=0.1)])
    assert groups == {"decay": {"head.weight"}, "no_decay": {"head.bias"}}


def test_the_examples_run():
    results = doctest.testmod(importlib.import_module("boxreg.parameters"))
    assert results.attempted >= 10
    assert results.failed == 0
