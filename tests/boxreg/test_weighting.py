"""Weightings: the focal weight and WIoU v3's focusing, with any loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from boxreg import (
    CIoULoss,
    EIoULoss,
    FocalWeighting,
    IoULoss,
    UnitSquareDecoder,
    WIoULoss,
    WiseWeighting,
)
from boxreg.boxes import convert
from boxreg.functional import iou_loss
from tests.cases import (
    BACKENDS,
    KINDS,
    REGIMES,
    WAITING,
    Recorder,
    aligned_loss,
    assert_all_finite,
    box_iou,
    gradient,
    pairs,
    seeded,
    to_planes,
    upright,
    wild_pairs,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
WEIGHTINGS = {"focal": lambda: FocalWeighting(0.5), "wise": lambda: WiseWeighting(momentum=0.25)}
every_weighting = pytest.mark.parametrize("name", WEIGHTINGS)

TARGET = torch.tensor([[0.0, 0, 2, 2]]).expand(3, 4)
BOXES = torch.tensor([[0.0, 0, 1, 2], [0, 0, 2, 2], [3, 3, 4, 4]])
"""Boxes of IoU 1/2, 1 and 0."""


@every_weighting
class TestAny:
    @every_kind
    def test_multiplies_loss_and_gradient_as_a_constant(self, name: str, kind: str) -> None:
        pred, target = pairs("overlapping")
        weighting = WEIGHTINGS[name]()
        factor = copy.deepcopy(weighting)(box_iou(pred, target), None)
        loss = aligned_loss(kind, pred, target, weighting=copy.deepcopy(weighting))
        torch.testing.assert_close(loss, factor * aligned_loss(kind, pred, target))
        found = gradient(kind, pred, target, weighting=weighting)
        torch.testing.assert_close(found, factor[:, None] * gradient(kind, pred, target))

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_comes_before_weight_and_reduction(self, name: str, backend: str) -> None:
        pred, target = pairs("overlapping", torch.float32)
        weight = torch.arange(len(pred)) % 3
        factor = WEIGHTINGS[name]()(box_iou(pred, target), weight)
        total = (factor * weight * aligned_loss("ciou", pred, target)).sum()
        criterion = CIoULoss(weighting=WEIGHTINGS[name](), backend=backend, loss_weight=2.0)
        torch.testing.assert_close(criterion(pred, target, weight, normalizer=7.0), 2 * total / 7)

    @pytest.mark.parametrize("regime", REGIMES)
    def test_finite(self, name: str, regime: str) -> None:
        pred, target = pairs(regime, torch.float32)
        weighting = WEIGHTINGS[name]()
        assert_all_finite(
            aligned_loss("ciou", pred, target, weighting=weighting),
            gradient("ciou", pred, target, weighting=weighting),
        )

    def test_finite_on_wild_exponents(self, name: str) -> None:
        pred, target = wild_pairs(3000, torch.float32)
        weighting = WEIGHTINGS[name]()
        assert_all_finite(
            gradient("wiou", pred, target, weighting=weighting), *weighting.state_dict().values()
        )

    def test_planes(self, name: str) -> None:
        pred, target = pairs("overlapping", torch.float32)
        rows = CIoULoss(reduction="none", weighting=WEIGHTINGS[name]())(pred, target)
        planes = CIoULoss(reduction="none", weighting=WEIGHTINGS[name](), dim=1)(
            to_planes(pred), to_planes(target)
        )
        torch.testing.assert_close(planes, to_planes(rows))

    def test_ignored_boxes_do_not_exist(self, name: str) -> None:
        pred, target = pairs("overlapping", torch.float32)
        weight = (torch.arange(len(pred)) % 2).float()
        broken = pred.clone()
        broken[::2] = float("nan")
        losses = [CIoULoss(weighting=WEIGHTINGS[name]()) for _ in range(2)]
        found, expected = (
            loss(boxes, target, weight) for loss, boxes in zip(losses, (broken, pred), strict=True)
        )
        assert torch.equal(found, expected)
        for one, other in zip(*(loss.state_dict().values() for loss in losses), strict=True):
            assert torch.equal(one, other)

    def test_of_raw_numbers_it_is_that_of_their_boxes(self, name: str) -> None:
        raw = torch.randn(20, 4, generator=seeded(1), dtype=torch.float64)
        target = convert(upright(seeded(2), 20), "xyxy", "cxcywh")
        decoder = UnitSquareDecoder()
        found = CIoULoss(weighting=WEIGHTINGS[name]()).from_raw(decoder)(raw, target)
        expected = CIoULoss(fmt="cxcywh", weighting=WEIGHTINGS[name]())(decoder.decode(raw), target)
        torch.testing.assert_close(found, expected)

    def test_no_boxes(self, name: str) -> None:
        pred = torch.zeros(0, 4, requires_grad=True)
        loss = CIoULoss(weighting=WEIGHTINGS[name]())(pred, torch.zeros(0, 4))
        loss.backward()
        assert loss.item() == 0

    def test_no_operator_waits_for_the_device(self, name: str) -> None:
        pred, target = pairs("random", torch.float32)
        criterion = CIoULoss(weighting=WEIGHTINGS[name]())
        with Recorder() as recorder:
            criterion(pred.requires_grad_(), target, torch.ones(len(pred))).backward()
        assert not recorder.names & WAITING

    def test_compiles_without_a_graph_break(self, name: str) -> None:
        pred, target = pairs("overlapping", torch.float32)
        torch._dynamo.reset()
        criterion, other = (CIoULoss(weighting=WEIGHTINGS[name]()) for _ in range(2))
        compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(pred, target), other(pred, target))


class TestFocal:
    def test_by_hand(self) -> None:
        loss = IoULoss(reduction="none", weighting=FocalWeighting(2.0))(BOXES, TARGET)
        torch.testing.assert_close(loss, torch.tensor([1 / 8, 0, 0]))

    def test_gamma_0_changes_nothing(self) -> None:
        pred, target = pairs("random", torch.float32)
        assert torch.equal(EIoULoss(weighting=FocalWeighting(0.0))(pred, target), EIoULoss()(pred, target))

    def test_boxes_that_hardly_fit_are_still_drawn_in(self) -> None:
        # With the weight differentiated, sqrt(IoU) (1 - IoU) would rise with the IoU here.
        pred = torch.tensor([1.6, 0, 3.6, 2], requires_grad=True)
        loss = iou_loss(pred, TARGET[0], weighting=FocalWeighting(0.5))
        loss.backward()
        assert pred.grad is not None
        assert (pred.grad[0] + pred.grad[2]).item() > 0

    def test_bad_gamma(self) -> None:
        with pytest.raises(ValueError, match="gamma: got -1, expected"):
            FocalWeighting(-1)


def wise_factor(missing: Tensor, mean: float, alpha: float = 1.9, delta: float = 3.0) -> Tensor:
    beta = missing / mean
    return beta / (delta * alpha ** (beta - delta))


class TestWise:
    def test_by_hand(self) -> None:
        # Missing 1/2, 0 and 1: a mean of 1/2; half of the way from 1 the running mean is 3/4.
        weighting = WiseWeighting(momentum=0.5)
        loss = IoULoss(reduction="none", weighting=weighting)(BOXES, TARGET)
        torch.testing.assert_close(weighting.mean.item(), 0.75)
        first = 2 / 3 / (3 * 1.9 ** (2 / 3 - 3)) / 2
        torch.testing.assert_close(loss, torch.tensor([first, 0, 4 / 3 / (3 * 1.9 ** (4 / 3 - 3))]))

    def test_the_factor_is_1_at_delta_and_largest_where_the_paper_says(self) -> None:
        weighting = WiseWeighting().eval()
        weighting.mean.fill_(0.1)
        missing = torch.linspace(0, 1, 10_001, dtype=torch.float64)
        factor = weighting(1 - missing)
        torch.testing.assert_close(factor[3000].item(), 1.0)
        largest = missing[factor.argmax()].item() / 0.1
        torch.testing.assert_close(largest, 1 / torch.tensor(1.9).log().item(), rtol=0, atol=1e-3)

    def test_version_3(self) -> None:
        pred, target = pairs("overlapping")
        criterion = WIoULoss(reduction="none", weighting=WiseWeighting(momentum=0.5))
        missing = iou_loss(pred, target)
        mean = 0.5 + 0.5 * missing.mean().item()
        expected = wise_factor(missing, mean) * aligned_loss("wiou", pred, target)
        torch.testing.assert_close(criterion(pred, target), expected, rtol=1e-6, atol=0)

    def test_the_mean_stands_still_in_evaluation(self) -> None:
        criterion = CIoULoss(weighting=WiseWeighting(momentum=0.5))
        criterion.eval()
        criterion(BOXES, TARGET)
        assert criterion.weighting.mean.item() == 1  # type: ignore[union-attr]

    def test_the_mean_is_saved(self) -> None:
        criterion, other = (CIoULoss(weighting=WiseWeighting(momentum=0.5)) for _ in range(2))
        criterion(BOXES, TARGET)
        other.load_state_dict(criterion.state_dict())
        assert other.weighting.mean.item() == 0.75  # type: ignore[union-attr]
        assert other.state_dict().keys() == {"weighting.mean"}

    @pytest.mark.parametrize("weight", [torch.zeros(3), None], ids=["no-weight-left", "no-boxes"])
    def test_nothing_to_learn_from_changes_nothing(self, weight: Tensor | None) -> None:
        weighting = WiseWeighting(momentum=0.5)
        pred, target = (BOXES, TARGET) if weight is not None else (BOXES[:0], TARGET[:0])
        CIoULoss(weighting=weighting)(pred, target, weight)
        assert weighting.mean.item() == 1

    def test_a_broken_box_does_not_break_the_mean(self) -> None:
        weighting = WiseWeighting(momentum=0.5)
        broken = BOXES.clone()
        broken[1] = float("nan")
        CIoULoss(weighting=weighting)(broken, TARGET)
        torch.testing.assert_close(weighting.mean.item(), 0.5 + 0.5 * 0.75)

    def test_momentum_of_the_paper(self) -> None:
        weighting = WiseWeighting(momentum=1 - 0.05 ** (1 / 20))
        for _ in range(20):
            weighting(torch.ones(4))
        torch.testing.assert_close(weighting.mean.item(), 0.05)

    def test_the_factor_is_as_fine_as_the_boxes(self) -> None:
        assert WiseWeighting()(torch.rand(3, dtype=torch.float64)).dtype == torch.float64

    def test_another_device_is_refused(self) -> None:
        with pytest.raises(ValueError, match="weighting: its mean is on cpu and the boxes are on meta"):
            WiseWeighting()(torch.rand(3, device="meta"))

    @pytest.mark.parametrize("bad", [{"alpha": 0.9}, {"delta": 0.0}, {"momentum": 1.5}], ids=str)
    def test_bad_arguments(self, bad: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=f"^{next(iter(bad))}: got"):
            WiseWeighting(**bad)


def test_anything_that_can_be_called_is_a_weighting() -> None:
    def half(iou: Tensor, weight: Tensor | None) -> Tensor:
        return torch.full_like(iou, 0.5)

    pred, target = pairs("random")
    criterion = CIoULoss(weighting=half)
    assert torch.equal(criterion(pred, target), 0.5 * CIoULoss()(pred, target))
    assert not list(nn.Module.children(criterion))
