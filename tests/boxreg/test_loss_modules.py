"""The losses' files: names, signatures and help of functions and modules, and sums of losses."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

import boxreg
from boxreg import (
    BoxLoss,
    CIoULoss,
    DFLoss,
    GIoULoss,
    GWDLoss,
    LossSum,
    MPDIoULoss,
    NWDLoss,
    ProbIoULoss,
    ResponsibleCellAssigner,
    UnitSquareDecoder,
    WiseWeighting,
    YOLOLoss,
    box_iou,
    functional,
)
from boxreg.iou.functional import aligned_loss
from boxreg.iou.spec import FAMILY
from boxreg.losses import LOSSES, IoUFamilyLoss
from boxreg.losses._options import ModuleOptions, Options
from tests.cases import PARAMETERS

every_kind = pytest.mark.parametrize("kind", LOSSES)

PRED = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 4.0], [5.0, 5.0, 6.0, 8.0]])
TARGET = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 4.0, 4.0], [5.0, 5.0, 7.0, 8.0]])
CELLS = ResponsibleCellAssigner()


def function_of(kind: str) -> Callable[..., Tensor]:
    return getattr(functional, f"{kind}_loss")  # type: ignore[no-any-return]


def options_of(callable_: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(callable_).parameters.items()
        if name not in ("pred", "target", "kind", "parameters")
    }


COMMON = options_of(aligned_loss)


class TestTheFamily:
    def test_each_loss_is_defined_and_listed_once(self) -> None:
        assert list(LOSSES) == list(FAMILY)
        assert {cls.__name__.lower() for cls in LOSSES.values()} == {f"{kind}loss" for kind in FAMILY}

    @every_kind
    def test_function_and_module_are_in_its_file(self, kind: str) -> None:
        assert function_of(kind).__module__ == LOSSES[kind].__module__ == f"boxreg.losses.{kind}"
        assert getattr(boxreg, LOSSES[kind].__name__) is LOSSES[kind]

    @every_kind
    def test_each_module_states_its_kind(self, kind: str) -> None:
        assert vars(LOSSES[kind])["kind"] == kind

    def test_a_subclass_keeps_the_kind_whatever_its_name(self) -> None:
        subclass = type("GIoULoss", (CIoULoss,), {})
        assert subclass.kind == "ciou"
        assert torch.equal(subclass()(PRED, TARGET), CIoULoss()(PRED, TARGET))


class TestSignatures:
    @every_kind
    def test_functions_take_the_common_options_and_their_own_parameters(self, kind: str) -> None:
        options = options_of(function_of(kind))
        assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options.values())
        assert {name: option for name, option in options.items() if name in COMMON} == COMMON
        assert set(options) - set(COMMON) == set(PARAMETERS.get(kind, {}))

    def test_type_checkers_read_the_options_of_run_time(self) -> None:
        hints = get_type_hints(aligned_loss)
        assert get_type_hints(Options) == {name: hints[name] for name in COMMON}
        own = inspect.signature(IoUFamilyLoss).parameters.values()
        assert set(get_type_hints(ModuleOptions)) == {
            each.name for each in own if each.kind is each.KEYWORD_ONLY
        }

    @every_kind
    def test_annotations_are_types(self, kind: str) -> None:
        hints = get_type_hints(function_of(kind))
        assert get_type_hints(Options).items() <= hints.items()
        assert set(hints) == {*inspect.signature(function_of(kind)).parameters, "return"}

    @every_kind
    def test_modules_take_the_options_of_their_functions(self, kind: str) -> None:
        of_function, of_module = options_of(function_of(kind)), options_of(LOSSES[kind])
        assert set(of_module) == set(of_function) - {"weight", "normalizer"}
        for name, option in of_module.items():
            expected = "mean" if name == "reduction" else of_function[name].default
            assert (option.default, option.annotation) == (expected, of_function[name].annotation)

    @every_kind
    def test_help_explains_every_option(self, kind: str) -> None:
        for documented in (function_of(kind), LOSSES[kind]):
            text = inspect.getdoc(documented) or ""
            _, _, arguments = text.partition("\nArgs:\n")
            for name in inspect.signature(documented).parameters:
                assert f"\n    {name}: " in f"\n{arguments}"
            for part in ("arXiv:", r"\(", "\nRaises:\n", "\nExample:\n", "Inner-IoU", "Alpha-IoU", "NaN"):
                assert part in text
            assert max(map(len, text.splitlines())) <= 115

    @every_kind
    def test_an_unknown_option_is_named(self, kind: str) -> None:
        parameters = PARAMETERS.get(kind, {})
        for refusing in (partial(function_of(kind), PRED, TARGET), LOSSES[kind]):
            with pytest.raises(TypeError, match="unexpected keyword argument 'reductoin'"):
                refusing(reductoin="sum", **parameters)

    @every_kind
    def test_options_are_read_at_each_call(self, kind: str) -> None:
        criterion = LOSSES[kind](**PARAMETERS.get(kind, {}))
        changed: dict[str, Any] = {"reduction": "sum", "fmt": "cxcywh", "mode": "log", "loss_weight": 3.0}
        changed |= dict.fromkeys(PARAMETERS.get(kind, {}), 2.0)
        for name, value in changed.items():
            setattr(criterion, name, value)
        assert torch.equal(criterion(PRED, TARGET), function_of(kind)(PRED, TARGET, **changed))

    @every_kind
    def test_print_shows_the_options(self, kind: str) -> None:
        criterion = LOSSES[kind](
            **PARAMETERS.get(kind, {}), decoder=UnitSquareDecoder(), mode="alpha", alpha=2.0
        )
        shown = repr(criterion)
        for name in options_of(LOSSES[kind]).keys() - {"weighting", "inner_ratio"}:
            assert f"{name}={getattr(criterion, name)!r}" in shown

    def test_a_decoder_is_an_option(self) -> None:
        raw, decoder = torch.randn(3, 4), UnitSquareDecoder()
        criterion = CIoULoss(fmt="cxcywh", decoder=decoder)
        expected = CIoULoss(fmt="cxcywh")(decoder.decode(raw), PRED)
        torch.testing.assert_close(criterion(raw, PRED), expected)
        assert torch.equal(CIoULoss().from_raw(decoder)(raw, PRED), criterion(raw, PRED))
        with pytest.raises(TypeError, match="decoder: got 'ltrb', expected an instance of a Decoder"):
            CIoULoss(decoder="ltrb")  # type: ignore[arg-type]


class TestSums:
    def test_a_sum_is_the_weighted_sum(self) -> None:
        ciou, nwd = CIoULoss(), NWDLoss(constant=1.5, loss_weight=2.0)
        expected = 0.5 * ciou(PRED, TARGET) + 0.25 * nwd(PRED, TARGET)
        for criterion in (
            0.5 * ciou + 0.25 * nwd,
            ciou * 0.5 + nwd / 4,
            (2 * ciou + nwd) / 4,
            sum([0.5 * ciou, 0.25 * nwd]),
            LossSum([ciou, nwd], [0.5, 0.25]),
            LossSum([0.5 * ciou, 0.25 * nwd]),
        ):
            assert isinstance(criterion, LossSum)
            assert list(criterion.terms) == [ciou, nwd]
            assert criterion.factors == (0.5, 0.25)
            torch.testing.assert_close(criterion(PRED, TARGET), expected)

    def test_weight_and_normalizer_reach_every_term(self) -> None:
        ciou, giou, weight = CIoULoss(), GIoULoss(), torch.tensor([1.0, 0.0, 2.0])
        expected = ciou(PRED, TARGET, weight, 7.0) + 2 * giou(PRED, TARGET, weight, 7.0)
        torch.testing.assert_close((ciou + 2 * giou)(PRED, TARGET, weight, normalizer=7.0), expected)

    def test_a_sum_of_one_and_a_sum_from_zero(self) -> None:
        ciou = CIoULoss()
        assert sum([ciou]) is ciou
        assert torch.equal((3 * ciou)(PRED, TARGET), 3 * ciou(PRED, TARGET))

    def test_terms_are_submodules(self) -> None:
        criterion = 0.5 * CIoULoss(weighting=WiseWeighting(momentum=0.5)) + GIoULoss()
        assert list(criterion.state_dict()) == ["terms.0.weighting.mean"]
        criterion(PRED, TARGET)
        other = 0.5 * CIoULoss(weighting=WiseWeighting(momentum=0.5)) + GIoULoss()
        other.load_state_dict(criterion.state_dict())
        assert torch.equal(other.eval()(PRED, TARGET), criterion.eval()(PRED, TARGET))
        assert not any(module.training for module in criterion.modules())

    @pytest.mark.parametrize(
        "copied",
        [copy.deepcopy, lambda criterion: pickle.loads(pickle.dumps(criterion))],
        ids=["copy", "pickle"],
    )
    def test_copies(self, copied: Callable[[LossSum], LossSum]) -> None:
        criterion = 0.5 * CIoULoss(fmt="xywh") + 0.5 * NWDLoss(constant=1.5, fmt="xywh")
        found = copied(criterion)
        assert torch.equal(found(PRED, TARGET), criterion(PRED, TARGET))
        assert repr(found) == repr(criterion)

    def test_print_shows_the_sum(self) -> None:
        shown = repr(0.5 * CIoULoss() + NWDLoss(constant=1.5))
        assert shown.startswith("LossSum(0.5 * CIoULoss(fmt='xyxy'")
        assert " + NWDLoss(constant=1.5, " in shown

    def test_options_in_common_are_read_and_set_together(self) -> None:
        criterion = CIoULoss(reduction="sum") + GIoULoss(reduction="sum")
        assert (criterion.fmt, criterion.reduction, criterion.dim) == ("xyxy", "sum", -1)
        criterion.reduction = "none"
        assert [term.reduction for term in criterion.terms] == ["none", "none"]
        assert criterion(PRED, TARGET).shape == (3,)

    def test_of_raw_outputs(self) -> None:
        raw, decoder = torch.randn(3, 4, requires_grad=True), UnitSquareDecoder()
        criterion = 0.5 * CIoULoss() + 0.5 * GIoULoss()
        found = criterion.from_raw(decoder)(raw, PRED)
        assert criterion.decoder is None
        boxes = 0.5 * CIoULoss(fmt="cxcywh") + 0.5 * GIoULoss(fmt="cxcywh")
        torch.testing.assert_close(found, boxes(decoder.decode(raw), PRED))
        assert torch.autograd.grad(found, raw)[0].isfinite().all()

    def test_losses_of_rotated_boxes_add_too(self) -> None:
        pred, target = torch.rand(3, 5), torch.rand(3, 5)
        prob, gwd = ProbIoULoss(), GWDLoss(loss_weight=3.0)
        criterion = 0.5 * prob + 0.25 * gwd
        torch.testing.assert_close(
            criterion(pred, target), 0.5 * prob(pred, target) + 0.25 * gwd(pred, target)
        )
        with pytest.raises(TypeError, match="ProbIoULoss takes boxes"):
            criterion.from_raw(UnitSquareDecoder())
        with pytest.raises(ValueError, match="CIoULoss and ProbIoULoss compare upright and rotated boxes"):
            CIoULoss() + prob

    def test_compiles_to_one_graph(self) -> None:
        criterion = 0.5 * CIoULoss() + 0.5 * GIoULoss()
        compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(PRED, TARGET), criterion(PRED, TARGET))

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (CIoULoss(reduction="sum"), "reduction: CIoULoss has 'sum' and NWDLoss has 'mean'"),
            (CIoULoss(fmt="cxcywh"), "fmt: CIoULoss has 'cxcywh' and NWDLoss has 'xyxy'"),
            (CIoULoss(dim=1), "dim: CIoULoss has 1 and NWDLoss has -1"),
            (CIoULoss().from_raw(UnitSquareDecoder(), fmt="xyxy"), "decoder: .*UnitSquareDecoder.* has None"),
        ],
        ids=["reduction", "fmt", "dim", "decoder"],
    )
    def test_terms_must_agree(self, other: IoUFamilyLoss, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            other + 2 * NWDLoss(constant=1.5)

    @pytest.mark.parametrize("factor", [-1, float("nan"), float("inf"), -0.5])
    def test_factors_are_finite_and_not_negative(self, factor: float) -> None:
        for scaled in (lambda: factor * CIoULoss(), lambda: CIoULoss() * factor):
            with pytest.raises(
                ValueError, match=f"factor: got {factor}, expected a finite number of at least 0"
            ):
                scaled()
        with pytest.raises(ValueError, match="divisor: got 0, expected"):
            CIoULoss() / 0
        with pytest.raises(ValueError, match="factor: got inf"):
            1e300 * (1e300 * CIoULoss())

    @pytest.mark.parametrize(
        "combined",
        [
            lambda loss: True * loss,
            lambda loss: loss * "2",
            lambda loss: loss * loss,
            lambda loss: loss + 1,
            lambda loss: 1 + loss,
            lambda loss: loss + nn.L1Loss(),
            lambda loss: nn.L1Loss() + loss,
            lambda loss: LossSum([nn.L1Loss()]),
        ],
        ids=["bool", "str", "product", "number", "number first", "module", "module first", "constructor"],
    )
    def test_what_is_no_loss_and_no_number(self, combined: Callable[[object], object]) -> None:
        with pytest.raises(TypeError):
            combined(CIoULoss())

    def test_a_sum_has_terms_and_as_many_factors(self) -> None:
        for losses, factors in (([], None), ([CIoULoss()], [1.0, 2.0])):
            with pytest.raises(ValueError, match=r"losses: got \d losses and \d factors"):
                LossSum(losses, factors)


class TestBoxLoss:
    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_takes_a_loss_or_a_sum(self, reduction: str) -> None:
        ciou = CIoULoss(reduction=reduction, loss_weight=2.0)
        for overlap in (ciou, ciou + 0.5 * NWDLoss(constant=1.5, reduction=reduction)):
            criterion = BoxLoss(overlap, lambda_iou=3.0, reduction=reduction)
            assert criterion.overlap is overlap
            terms = criterion(PRED, TARGET)
            torch.testing.assert_close(terms.weighted["iou"], 3 * overlap(PRED, TARGET))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"fmt": "cxcywh"}, "fmt: BoxLoss has 'cxcywh' and LossSum has 'xyxy'"),
            ({"reduction": "sum"}, "reduction: BoxLoss has 'sum' and LossSum has 'mean'"),
            ({"dim": 1}, "dim: BoxLoss has 1 and LossSum has -1"),
            ({"mode": "log"}, "mode: got 'log' beside a loss"),
            ({"alpha": 2.0}, "alpha: got 2.0 beside a loss"),
            ({"constant": 2.0}, "constant: got 2.0 beside a loss"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_options_must_agree(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BoxLoss(0.5 * CIoULoss(), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: functional.ciou_loss(PRED, TARGET, reductoin="sum"),
            "'reductoin'; did you mean 'reduction'",
        ),
        (lambda: CIoULoss(reductoin="sum"), "^CIoULoss.* 'reductoin'; did you mean 'reduction'"),
        (lambda: MPDIoULoss(image_with=4.0, image_height=2.0), "'image_with'; did you mean 'image_width'"),
        (lambda: BoxLoss(distanse="l1"), "^BoxLoss.* 'distanse'; did you mean 'distance'"),
        (lambda: BoxLoss("nwd", constnat=1.0), "^BoxLoss.* 'constnat'; did you mean 'constant'"),
        (lambda: BoxLoss(CIoULoss(), distanse="l1"), "^BoxLoss.* 'distanse'; did you mean 'distance'"),
        (lambda: YOLOLoss(CELLS, lambda_objj=1.0), "^YOLOLoss.* 'lambda_objj'; did you mean 'lambda_obj'"),
        (lambda: YOLOLoss(CELLS, "nwd", constnat=1.0), "^YOLOLoss.* 'constnat'; did you mean 'constant'"),
        (lambda: DFLoss(reductoin="sum"), "'reductoin'; did you mean 'reduction'"),
        (
            lambda: functional.dfl_loss(PRED, TARGET[0], redction="sum"),
            "'redction'; did you mean 'reduction'",
        ),
        (lambda: LossSum([CIoULoss()], factor=[1.0]), "'factor'; did you mean 'factors'"),
        (lambda: ProbIoULoss(moode="l2"), "'moode'; did you mean 'mode'"),
        (lambda: box_iou(PRED, TARGET, "mpdiou", image_with=4.0), "did you mean 'image_width'"),
    ],
)
def test_a_misspelt_keyword_is_answered_with_the_right_one(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()
