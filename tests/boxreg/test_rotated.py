"""Losses of rotated boxes: against covariance matrices, by hand, their symmetries, layouts and arguments."""

from __future__ import annotations

import copy
import inspect
import math
import re
from functools import partial
from typing import get_type_hints

import pytest
import torch
from torch import Tensor

from boxreg import functional
from boxreg.losses.rotated import RotatedOptions
from tests.cases import WAITING, Recorder, eps, seeded, to_planes, uniform
from tests.rotated_cases import (
    COUNT,
    FAMILY,
    MODULES,
    boxes,
    every_variant,
    exchanged,
    least,
    loss_of,
    pairs,
    smooth,
    turned,
    value_and_gradients,
    with_column,
    working_dtypes,
)


def covariance(rows: Tensor, k: float) -> Tensor:
    cos, sin = rows[:, 4].cos(), rows[:, 4].sin()
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    return rotation @ torch.diag_embed(k * rows[:, 2:4].square()) @ rotation.mT


def matrix_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag_embed(values.clamp(min=1e-300).sqrt()) @ vectors.mT


def trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def reference_distance(name: str, pred: Tensor, target: Tensor) -> Tensor:
    offset = (pred - target)[:, :2, None]
    det, inv = torch.linalg.det, torch.linalg.inv
    if name == "probiou":
        p, t = covariance(pred, 1 / 12), covariance(target, 1 / 12)
        mean = (p + t) / 2
        shape = (det(mean) / (det(p) * det(t)).sqrt()).log() / 2
        return (offset.mT @ inv(mean) @ offset)[:, 0, 0] / 8 + shape
    p, t = covariance(pred, 1 / 4), covariance(target, 1 / 4)
    if name == "kld":
        quadratic = (offset.mT @ inv(t) @ offset)[:, 0, 0]
        return (quadratic + trace(inv(t) @ p) + (det(t) / det(p)).log()) / 2 - 1
    root = matrix_root(p)
    squared = offset.square().sum((1, 2)) + trace(p + t - 2 * matrix_root(root @ t @ root))
    return squared / (pred[:, 2:4].prod(-1) * target[:, 2:4].prod(-1)).sqrt()


def reference(variant: str, pred: Tensor, target: Tensor) -> Tensor:
    """The slow oracle, from covariance matrices in float64; for positive sides."""
    name, settings = FAMILY[variant]
    distance = reference_distance(name, pred.double(), target.double())
    if name == "probiou":
        return distance if settings["mode"] == "l2" else (1 - (-distance).exp()).sqrt()
    value = (1 + distance).log() if settings["fun"] == "log1p" else distance.clamp(min=0).sqrt()
    return 1 - 1 / (settings.get("tau", 1.0) + value)  # type: ignore[operator]


@every_variant
class TestReference:
    @smooth
    def test_value_and_gradient(self, variant: str, regime: str) -> None:
        pred, target = pairs(regime)
        found = value_and_gradients(variant, pred, target)
        leaves = pred.clone().requires_grad_(), target.clone().requires_grad_()
        expected = reference(variant, *leaves)
        upstream = torch.randn(expected.shape, generator=seeded(9), dtype=torch.float64)
        grads = torch.autograd.grad(expected, leaves, upstream)
        # The reference cancels: its error is that of traces up to 1e6, or of a root near 0.
        for value, oracle in zip(found, (expected.detach(), *grads), strict=True):
            torch.testing.assert_close(value, oracle, rtol=1e-8, atol=1e-8)

    @smooth
    def test_float32(self, variant: str, regime: str) -> None:
        pred, target = pairs(regime, torch.float32)
        expected = reference(variant, pred, target)
        # An angle of 3 radians is off by an eps or so, which a slender box feels times its aspect.
        torch.testing.assert_close(
            loss_of(variant, pred, target).double(),
            expected,
            rtol=2e-3 if regime == "slender" else 1e-5,
            atol=1e-6,
        )

    @pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
    def test_float32_near_identical(self, variant: str, step: float) -> None:
        target = boxes(seeded(), 256).float()
        pred = target + step * torch.randn(256, 5, generator=seeded(1))
        expected = loss_of(variant, pred.double(), target.double())
        torch.testing.assert_close(
            loss_of(variant, pred, target).double(), expected, rtol=1e-4, atol=4 * eps(torch.float32)
        )

    def test_gradcheck(self, variant: str) -> None:
        pred, target = (side[:4].requires_grad_() for side in pairs("random"))
        assert torch.autograd.gradcheck(lambda p, t: loss_of(variant, p, t), (pred, target))


BY_HAND = [
    # variant, pred, target, loss; B = 1.5 d^2 / w^2 for a shift along the width
    ("probiou-l2", (1, 0, 4, 2, 0), (0, 0, 4, 2, 0), 1.5 / 16),
    ("probiou-l1", (1, 0, 4, 2, 0), (0, 0, 4, 2, 0), math.sqrt(1 - math.exp(-1.5 / 16))),
    ("probiou-l1", (0, 0, 2, 4, 0), (0, 0, 4, 2, 0), math.sqrt(1 - 0.8)),
    ("probiou-l1", (0, 0, 4, 2, math.pi / 2), (0, 0, 4, 2, 0), math.sqrt(1 - 0.8)),
    ("probiou-l2", (5, 3, 1, 1, 0.3), (5, 3, 2, 2, -2.0), math.log(1.25)),
    # D = 2 d^2 / w^2 for a shift, (r^2 - 1 - 2 ln r) / 2 for each side r times as long
    ("kld-sqrt", (1, 0, 4, 2, 0), (0, 0, 4, 2, 0), 1 - 1 / (1 + math.sqrt(1 / 8))),
    ("kld-log1p", (0, 2, 4, 2, 0), (0, 0, 4, 2, 0), 1 - 1 / (1 + math.log(3))),
    ("kld-log1p", (0, 0, 2, 4, 0), (0, 0, 4, 2, 0), 1 - 1 / (1 + math.log(2.125))),
    ("kld-log1p", (0, 0, 2, 2, 0.7), (0, 0, 1, 1, 0), 1 - 1 / (1 + math.log(4 - 2 * math.log(2)))),
    ("kld-sqrt-2", (0, 0, 2, 2, 0.7), (0, 0, 2, 2, 0), 0.5),
    # W^2 = d^2 + ((w - wt)^2 + (h - ht)^2) / 4, D = W^2 / sqrt(w h wt ht)
    ("gwd-sqrt", (2, 0, 4, 2, 0), (0, 0, 4, 2, 0), 1 - 1 / (1 + math.sqrt(0.5))),
    ("gwd-log1p", (0, 0, 2, 4, 0), (0, 0, 4, 2, 0), 1 - 1 / (1 + math.log(1.25))),
    ("gwd-log1p", (0, 0, 4, 2, -math.pi / 2), (0, 0, 4, 2, 0), 1 - 1 / (1 + math.log(1.25))),
    ("gwd-log1p-3", (0, 0, 1, 1, 0), (3, 4, 1, 1, 1.0), 1 - 1 / (3 + math.log(26))),
]


@pytest.mark.parametrize(("variant", "pred", "target", "expected"), BY_HAND)
def test_worked_by_hand(
    variant: str, pred: tuple[float, ...], target: tuple[float, ...], expected: float
) -> None:
    sides = (torch.tensor(side, dtype=torch.float64) for side in (pred, target))
    assert loss_of(variant, *sides).item() == pytest.approx(expected, rel=1e-14)


@every_variant
class TestSymmetry:
    @smooth
    @pytest.mark.parametrize("angle", [0.3, math.pi / 2, -2.5])
    def test_rotating_both_changes_nothing(self, variant: str, regime: str, angle: float) -> None:
        pred, target = pairs(regime)
        found = loss_of(variant, turned(pred, angle), turned(target, angle))
        torch.testing.assert_close(found, loss_of(variant, pred, target), rtol=1e-10, atol=1e-10)

    @smooth
    @pytest.mark.parametrize("turns", [1, -1, 2, 7])
    def test_half_a_turn_changes_nothing(self, variant: str, regime: str, turns: int) -> None:
        pred, target = pairs(regime)
        angle = pred.new_tensor([0, 0, 0, 0, turns * math.pi])
        expected = loss_of(variant, pred, target)
        for changed in ((pred + angle, target), (pred, target + angle)):
            torch.testing.assert_close(loss_of(variant, *changed), expected, rtol=1e-10, atol=1e-10)

    @smooth
    def test_width_and_height_exchange_with_a_quarter_turn(self, variant: str, regime: str) -> None:
        pred, target = pairs(regime)
        expected = loss_of(variant, pred, target)
        for changed in ((exchanged(pred), target), (pred, exchanged(target))):
            torch.testing.assert_close(loss_of(variant, *changed), expected, rtol=1e-10, atol=1e-10)

    @working_dtypes
    def test_the_same_box_said_otherwise_costs_nothing(self, variant: str, dtype: torch.dtype) -> None:
        target = pairs("random", dtype)[1]
        for same in (exchanged(target), target + target.new_tensor([0, 0, 0, 0, math.pi])):
            loss = loss_of(variant, same, target)
            # The angle is rounded once more, which boxes feel times their aspect, 5 at most.
            expected = torch.full_like(loss, least(variant))
            torch.testing.assert_close(loss, expected, rtol=0, atol=32 * eps(dtype))

    def test_the_angle_of_a_square_is_free(self, variant: str) -> None:
        target = with_column(3, 0.5)(with_column(2, 0.5)(boxes(seeded())))
        pred = target + uniform(seeded(1), COUNT, 5) * target.new_tensor([0, 0, 0, 0, 1])
        loss = loss_of(variant, pred, target)
        torch.testing.assert_close(loss, torch.full_like(loss, least(variant)), rtol=0, atol=1e-15)

    @smooth
    def test_order_of_the_boxes(self, variant: str, regime: str) -> None:
        pred, target = pairs(regime)
        ahead, back = loss_of(variant, pred, target), loss_of(variant, target, pred)
        if variant.startswith("kld"):
            assert (ahead != back).any()
        else:
            torch.testing.assert_close(ahead, back, rtol=1e-12, atol=1e-12)


@every_variant
class TestLayouts:
    @pytest.mark.parametrize("regime", ["random", "identical", "negative-w", "huge-3e38"])
    def test_planes_are_rows(self, variant: str, regime: str) -> None:
        pred, target = pairs(regime, torch.float32)
        rows, planes = pred.clone().requires_grad_(), to_planes(pred).requires_grad_()
        by_row = loss_of(variant, rows, target)
        upstream = torch.randn(by_row.shape, generator=seeded(9))
        (row_grads,) = torch.autograd.grad(by_row, rows, upstream)
        for dim in (1, -3):
            by_plane = loss_of(variant, planes, to_planes(target), dim=dim)
            (plane_grads,) = torch.autograd.grad(by_plane, planes, to_planes(upstream))
            # Sines of a strided tensor may be rounded otherwise.
            torch.testing.assert_close(by_plane, to_planes(by_row), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(plane_grads, to_planes(row_grads), rtol=1e-4, atol=1e-4)

    def test_any_shape(self, variant: str) -> None:
        pred, target = pairs("random")
        expected = loss_of(variant, pred, target)
        torch.testing.assert_close(
            loss_of(variant, pred.view(2, 16, 5), target.view(2, 16, 5)), expected.view(2, 16)
        )
        torch.testing.assert_close(loss_of(variant, pred[0], target[0]), expected[0])

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_modules_are_their_functions(self, variant: str, reduction: str) -> None:
        pred, target = (to_planes(side) for side in pairs("random", torch.float32))
        weight = uniform(seeded(2), *pred[:, 0].shape).float()
        normalizer = 5.0 if reduction == "mean" else None
        name, settings = FAMILY[variant]
        module = MODULES[name](**settings, reduction=reduction, loss_weight=4.0, dim=1)
        expected = 4 * loss_of(
            variant, pred, target, reduction=reduction, weight=weight, normalizer=normalizer, dim=1
        )
        for same in (module, copy.deepcopy(module)):
            assert torch.equal(same(pred, target, weight, normalizer), expected)
        for setting, value in {**settings, "loss_weight": 4.0, "dim": 1}.items():
            assert f"{setting}={value!r}" in repr(module)


@pytest.mark.parametrize("name", MODULES)
def test_functions_default_to_none_and_modules_to_mean(name: str) -> None:
    pred, target = pairs("random")
    loss = getattr(functional, f"{name}_loss")(pred, target)
    assert loss.shape == (COUNT,)
    torch.testing.assert_close(MODULES[name]()(pred, target), loss.mean())


def step(variant: str, pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """A training step's loss: weight and a tensor as normaliser."""
    return loss_of(variant, pred, target, reduction="mean", weight=weight, normalizer=weight.sum())


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    pred, target = pairs("random", dtype)
    return pred.requires_grad_(), target, (torch.arange(COUNT) % 3).float()


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [("probiou-l1", torch.float32), ("kld-log1p", torch.float32), ("gwd-sqrt", torch.float16)],
    ids=str,
)
def test_compiles_without_a_graph_break(variant: str, dtype: torch.dtype) -> None:
    given = inputs(dtype)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: step(variant, *args), fullgraph=True, backend="aot_eager")
    loss, expected = compiled(*given), step(variant, *given)
    torch.testing.assert_close(loss, expected)
    found, grads = (torch.autograd.grad(value, given[0])[0] for value in (loss, expected))
    torch.testing.assert_close(found, grads, rtol=1e-4, atol=1e-5)


@every_variant
class TestGraphs:
    def test_vmap(self, variant: str) -> None:
        given = [side.detach().double().reshape(4, 8, *side.shape[1:]) for side in inputs()]
        found = torch.func.vmap(torch.func.grad(lambda *args: step(variant, *args)))(*given)
        for number in range(4):
            one = [side[number] for side in given]
            torch.testing.assert_close(found[number], torch.func.grad(lambda *a: step(variant, *a))(*one))

    def test_no_operator_waits_for_the_device(self, variant: str) -> None:
        with Recorder() as recorder:
            step(variant, *inputs()).backward()
        assert not recorder.names & WAITING

    def test_inputs_are_not_written_to(self, variant: str) -> None:
        given = inputs()
        versions = [side._version for side in given]
        step(variant, *given).backward()
        assert [side._version for side in given] == versions


OWN = {"probiou": {"mode"}, "kld": {"fun", "tau"}, "gwd": {"fun", "tau"}}
"""The options that are not those of every loss."""


@pytest.mark.parametrize("name", MODULES)
class TestSignatures:
    def test_every_option_is_written_out(self, name: str) -> None:
        of_function = inspect.signature(getattr(functional, f"{name}_loss")).parameters
        common = {"pred", "target", "reduction", "weight", "normalizer", "dim"}
        assert set(of_function) == OWN[name] | common
        assert set(get_type_hints(RotatedOptions)) == common - {"pred", "target"}
        of_module = inspect.signature(MODULES[name]).parameters
        assert set(of_module) == OWN[name] | {"reduction", "loss_weight", "dim"}
        for option in OWN[name] | {"dim"}:
            assert of_module[option].default == of_function[option].default

    def test_a_misspelt_keyword_is_answered_with_the_right_one(self, name: str) -> None:
        for refusing in (
            partial(getattr(functional, f"{name}_loss"), torch.zeros(5), torch.zeros(5)),
            MODULES[name],
        ):
            with pytest.raises(TypeError, match=r"got .*'reductoin'; did you mean 'reduction'\?"):
                refusing(reductoin="sum")

    def test_help_explains_every_option(self, name: str) -> None:
        for documented in (getattr(functional, f"{name}_loss"), MODULES[name]):
            text = inspect.getdoc(documented) or ""
            arguments = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
            entries = {
                entry.partition(":")[0]: entry for entry in re.split(r"^ {4}(?! )", arguments, flags=re.M)
            }
            for option, parameter in inspect.signature(documented).parameters.items():
                stated = parameter.default not in (parameter.empty, None)
                assert f"Default: {parameter.default!r}." * stated in entries[option]
            for part in ("arXiv:", r"\[", "\nRaises:\n", "\nExample:\n", "NaN"):
                assert part in text


class TestArguments:
    good = torch.rand(3, 5)

    @pytest.mark.parametrize("name", MODULES)
    @pytest.mark.parametrize("shape", [(1, 5), (3, 1, 5), (5,), (2, 5)], ids=str)
    def test_nothing_is_broadcast(self, name: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"pred and target .*\(3, 5\) and "):
            getattr(functional, f"{name}_loss")(self.good, torch.zeros(shape))

    @pytest.mark.parametrize("name", MODULES)
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reduction": "Mean"}, "reduction: got 'Mean', expected one of .*; did you mean 'mean'?"),
            ({"dim": 2}, r"dim: got 2, but pred has shape \(3, 5\)"),
            ({"dim": 0}, r"pred: got shape \(3, 5\), expected 5 coordinates along dim 0"),
            ({"weight": torch.ones(3, 1)}, r"weight .*\(3, 1\) and \(3,\)"),
            ({"normalizer": 3}, "normalizer: .* reduction is 'none'"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_bad_values_say_what_was_expected(
        self, name: str, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            getattr(functional, f"{name}_loss")(self.good, self.good, **options)

    def test_boxes_are_tensors_of_floats(self) -> None:
        with pytest.raises(TypeError, match=r"target: got list, expected a torch\.Tensor"):
            functional.kld_loss(self.good, self.good.tolist())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"pred: got a tensor of torch\.int64"):
            functional.gwd_loss(self.good.long(), self.good)
        with pytest.raises(ValueError, match=r"pred: got shape \(3, 4\), expected 5 coordinates"):
            functional.probiou_loss(self.good[:, :4], self.good[:, :4])

    @pytest.mark.parametrize(
        ("name", "options", "error"),
        [
            ("probiou", {"mode": "l3"}, ValueError),
            ("kld", {"fun": "log"}, ValueError),
            ("gwd", {"tau": 0.5}, ValueError),
            ("gwd", {"tau": float("nan")}, ValueError),
            ("kld", {"tau": "1"}, TypeError),
        ],
        ids=repr,
    )
    def test_settings(self, name: str, options: dict[str, object], error: type[Exception]) -> None:
        match = f"^{next(iter(options))}: got"
        with pytest.raises(error, match=match):
            getattr(functional, f"{name}_loss")(self.good, self.good, **options)
        with pytest.raises(error, match=match):
            MODULES[name](**options)

    @pytest.mark.parametrize("name", MODULES)
    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"reduction": "avg"}, ValueError),
            ({"loss_weight": -1.0}, ValueError),
            ({"loss_weight": "5"}, TypeError),
        ],
        ids=repr,
    )
    def test_modules_refuse_at_construction(
        self, name: str, options: dict[str, object], error: type[Exception]
    ) -> None:
        with pytest.raises(error, match=f"^{next(iter(options))}: got"):
            MODULES[name](**options)
