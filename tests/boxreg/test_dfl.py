"""The distribution focal loss and its integral."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from boxreg import DFLoss
from boxreg.functional import dfl_integral, dfl_loss
from tests.cases import HALF_DTYPES, WAITING, Recorder, assert_all_finite, eps, named, seeded, uniform

BINS = 8

half_dtypes = pytest.mark.parametrize("dtype", named(HALF_DTYPES))


def logits_and_target(count: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = seeded(1)
    logits = 3 * torch.randn(count, BINS, generator=generator, dtype=torch.float64)
    return logits.to(dtype), uniform(generator, count, high=BINS - 1).to(dtype)


def gradients_of(logits: Tensor, target: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """The loss a side, and the gradient at the logits under a random upstream gradient."""
    leaf = logits.clone().requires_grad_()
    loss = dfl_loss(leaf, target, **options)  # type: ignore[arg-type]
    upstream = torch.randn(loss.shape, generator=seeded(9), dtype=loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, leaf, upstream)


def log_odds(*shares: float) -> Tensor:
    return torch.tensor(shares, dtype=torch.float64).log()


class TestValues:
    @pytest.mark.parametrize(
        ("shares", "target", "expected"),
        [
            ((0.5, 0.25, 0.25), 0.0, math.log(2)),
            ((0.5, 0.25, 0.25), 2.0, math.log(4)),
            ((0.5, 0.25, 0.25), 0.5, 1.5 * math.log(2)),
            ((0.5, 0.25, 0.25), 0.25, 0.75 * math.log(2) + 0.25 * math.log(4)),
            ((0.5, 0.25, 0.25), 1.875, math.log(4)),
            ((0.25, 0.75), 0.75, -0.25 * math.log(0.25) - 0.75 * math.log(0.75)),
        ],
    )
    def test_worked_by_hand(self, shares: tuple[float, ...], target: float, expected: float) -> None:
        loss = dfl_loss(log_odds(*shares), torch.tensor(target, dtype=torch.float64))
        assert loss.item() == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize("whole", range(BINS))
    def test_whole_targets_are_classes(self, whole: int) -> None:
        logits, _ = logits_and_target()
        expected = F.cross_entropy(logits, torch.full((len(logits),), whole), reduction="none")
        found = dfl_loss(logits, torch.full((len(logits),), float(whole), dtype=logits.dtype))
        torch.testing.assert_close(found, expected, rtol=0, atol=32 * eps(logits.dtype))

    def test_neighbours_by_index(self) -> None:
        logits, target = logits_and_target()
        left = target.long()
        by_class = [F.cross_entropy(logits, index, reduction="none") for index in (left, left + 1)]
        expected = (left + 1 - target) * by_class[0] + (target - left) * by_class[1]
        torch.testing.assert_close(dfl_loss(logits, target), expected)

    def test_last_bin_takes_all_at_the_upper_end(self) -> None:
        grads = gradients_of(torch.zeros(1, BINS), torch.tensor([BINS - 1.0]))[1]
        upstream = torch.randn(1, generator=seeded(9))
        share = torch.zeros(1, BINS)
        share[0, -1] = 1.0
        torch.testing.assert_close(grads, (1 / BINS - share) * upstream)

    @pytest.mark.parametrize(("target", "nearest"), [(-0.5, 0.0), (-1e30, 0.0), (7.5, 7.0), (3e38, 7.0)])
    def test_targets_out_of_range_are_clipped(self, target: float, nearest: float) -> None:
        logits = logits_and_target(dtype=torch.float32)[0][0]
        assert torch.equal(dfl_loss(logits, torch.tensor(target)), dfl_loss(logits, torch.tensor(nearest)))

    @pytest.mark.parametrize("target", [0.0, 1.0, 2.25, 3.5, 7.0])
    def test_least_at_the_linear_split(self, target: float) -> None:
        position = torch.tensor([target], dtype=torch.float64)
        shares = (1 - (torch.arange(BINS) - position).abs()).clamp(min=0)[None]
        best = dfl_loss((shares + 1e-30).log(), position)
        entropy = -(shares * shares.clamp(min=1e-300).log()).sum()
        torch.testing.assert_close(best, entropy.view(1), rtol=0, atol=1e-12)
        _, grads = gradients_of((shares + 1e-30).log(), position)
        torch.testing.assert_close(grads, torch.zeros_like(grads), rtol=0, atol=1e-12)
        others, _ = logits_and_target()
        assert (dfl_loss(others, position.expand(len(others))) > best).all()

    def test_descent_puts_the_expectation_at_the_target(self) -> None:
        logits, target = torch.zeros(2, BINS), torch.tensor([2.3, 6.75])
        for _ in range(4000):
            logits.requires_grad_()
            (grads,) = torch.autograd.grad(dfl_loss(logits, target, reduction="sum"), logits)
            logits = (logits - grads).detach()
        torch.testing.assert_close(dfl_integral(logits), target, rtol=0, atol=5e-3)


class TestGradient:
    def test_of_logits_and_target(self) -> None:
        logits, target = logits_and_target(6)
        assert torch.autograd.gradcheck(dfl_loss, (logits.requires_grad_(), target.requires_grad_()))
        assert torch.autograd.gradgradcheck(dfl_loss, (logits, target))

    def test_of_integral(self) -> None:
        logits, _ = logits_and_target(6)
        assert torch.autograd.gradcheck(dfl_integral, (logits.requires_grad_(),))

    def test_is_softmax_less_shares(self) -> None:
        logits, target = logits_and_target()
        leaf = logits.clone().requires_grad_()
        (grads,) = torch.autograd.grad(dfl_loss(leaf, target, reduction="sum"), leaf)
        shares = (1 - (torch.arange(BINS) - target[:, None]).abs()).clamp(min=0)
        torch.testing.assert_close(grads, logits.softmax(-1) - shares)


class TestIntegral:
    @pytest.mark.parametrize("whole", range(BINS))
    def test_one_bin(self, whole: int) -> None:
        logits = torch.full((BINS,), -200.0)
        logits[whole] = 0.0
        assert dfl_integral(logits).item() == whole

    def test_two_bins(self) -> None:
        assert dfl_integral(log_odds(0.25, 0.75)).item() == pytest.approx(0.75)

    def test_any_dim(self) -> None:
        logits = torch.randn(3, BINS, 4, generator=seeded())
        expected = dfl_integral(logits.movedim(1, -1))
        for dim in (1, -2):
            torch.testing.assert_close(dfl_integral(logits, dim), expected)

    @half_dtypes
    def test_half_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        logits = logits_and_target()[0].to(dtype)
        assert torch.equal(dfl_integral(logits), dfl_integral(logits.float()).to(dtype))

    def test_huge_logits(self) -> None:
        assert dfl_integral(torch.tensor([-3e38, 3e38, -3e38])).item() == 1.0


class TestLayouts:
    def test_planes_are_rows(self) -> None:
        rows, target = logits_and_target(2 * 4 * 3 * 5, torch.float32)
        rows, target = rows.view(2, 3, 5, 4, BINS), target.view(2, 3, 5, 4)
        weight = uniform(seeded(2), 2, 3, 5, 4).float().round()
        planes, target_planes, weight_planes = (
            side.movedim((3, *range(4, side.ndim)), (1, *range(2, side.ndim - 2))).contiguous()
            for side in (rows, target, weight)
        )
        assert planes.shape == (2, 4, BINS, 3, 5)
        by_row, row_grads = gradients_of(rows, target, weight=weight)
        for dim in (2, -3):
            leaf = planes.clone().requires_grad_()
            by_plane = dfl_loss(leaf, target_planes, weight=weight_planes, dim=dim)
            torch.testing.assert_close(by_plane, by_row.movedim(3, 1))
            upstream = torch.randn(by_row.shape, generator=seeded(9)).movedim(3, 1)
            (grads,) = torch.autograd.grad(by_plane, leaf, upstream)
            torch.testing.assert_close(grads, row_grads.movedim((3, 4), (1, 2)))

    def test_module_is_the_function(self) -> None:
        logits, target = logits_and_target(dtype=torch.float32)
        weight = uniform(seeded(2), len(target)).float()
        for reduction, normalizer in (("none", None), ("sum", None), ("mean", None), ("mean", 5.0)):
            module = copy.deepcopy(DFLoss(reduction=reduction, loss_weight=4.0))
            expected = dfl_loss(logits, target, reduction=reduction, weight=weight, normalizer=normalizer)
            assert torch.equal(module(logits, target, weight, normalizer), 4 * expected)
        assert "loss_weight=4.0" in repr(DFLoss(loss_weight=4.0))


class TestNumerics:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_non_finite_taints_its_side_alone(self, value: float) -> None:
        logits, target = logits_and_target(10, torch.float32)
        expected, expected_grads = gradients_of(logits, target)
        logits[3, 2] = value
        loss, grads = gradients_of(logits, target)
        rest = torch.arange(10) != 3
        assert loss[3].isnan().item()
        assert torch.equal(loss[rest], expected[rest])
        assert torch.equal(grads[rest], expected_grads[rest])

    def test_nan_target_taints_its_side_alone(self) -> None:
        logits, target = logits_and_target(10, torch.float32)
        target[3] = float("nan")
        assert dfl_loss(logits, target).isnan().tolist() == [number == 3 for number in range(10)]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
    def test_weight_zero_masks_exactly(self, value: float, dtype: torch.dtype) -> None:
        logits, target = logits_and_target(10, torch.float32)
        weight = (torch.arange(10) % 2).to(dtype)
        expected = gradients_of(logits, target, weight=weight)
        logits[::4], target[2::4] = value, value
        for found, reference in zip(gradients_of(logits, target, weight=weight), expected, strict=True):
            assert torch.equal(found, reference)
            assert (found[::2] == 0).all()

    @settings(max_examples=100, deadline=None)
    @given(
        logits=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=6),
        target=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
    def test_any_finite_numbers(self, logits: list[float], target: float) -> None:
        row, position = torch.tensor([logits]), torch.tensor([target])
        loss, grads = gradients_of(row, position)
        assert_all_finite(loss, grads)
        assert (loss >= -4 * eps(torch.float32)).all()
        expectation = dfl_integral(row)
        assert (expectation >= 0).all()
        assert (expectation <= (len(logits) - 1) * (1 + 4 * eps(torch.float32))).all()

    def test_a_far_logit_keeps_its_gradient(self) -> None:
        _, grads = gradients_of(torch.tensor([[-3e38, 3e38]]), torch.tensor([0.0]))
        upstream = torch.randn(1, generator=seeded(9))
        torch.testing.assert_close(grads, torch.tensor([[-1.0, 1.0]]) * upstream)

    def test_a_shift_of_all_logits_changes_nothing(self) -> None:
        logits, target = logits_and_target(dtype=torch.float32)
        logits = (logits * 256).round() / 256
        torch.testing.assert_close(
            dfl_loss(logits + 1000, target), dfl_loss(logits, target), rtol=0, atol=32 * eps(torch.float32)
        )

    @half_dtypes
    def test_half_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        logits, target = (side.to(dtype) for side in logits_and_target())
        loss, grads = gradients_of(logits, target)
        wide_loss, wide_grads = gradients_of(logits.float(), target.float())
        assert loss.dtype == torch.float32
        assert torch.equal(loss, wide_loss)
        assert torch.equal(grads, wide_grads.to(dtype))

    def test_mixed_floats_promote(self) -> None:
        logits, target = logits_and_target()
        assert torch.equal(dfl_loss(logits.float(), target), dfl_loss(logits.float().double(), target))

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_empty_is_an_attached_zero(self, reduction: str) -> None:
        logits = torch.zeros(0, 4, BINS, requires_grad=True)
        loss = dfl_loss(logits, torch.zeros(0, 4), reduction=reduction)
        assert loss.item() == 0
        loss.backward()
        assert logits.grad is not None
        assert dfl_integral(logits).shape == (0, 4)

    def test_no_positives_give_an_attached_zero(self) -> None:
        logits, target = logits_and_target(dtype=torch.float32)
        logits.requires_grad_()
        loss = dfl_loss(logits, target, reduction="mean", normalizer=0)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(logits.grad, torch.zeros_like(logits))  # type: ignore[arg-type]


class TestGraphs:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_compiles_without_a_graph_break(self, dtype: torch.dtype) -> None:
        logits, target = logits_and_target(dtype=dtype)
        weight = (torch.arange(len(target)) % 3).float()
        logits.requires_grad_()

        def step(logits: Tensor) -> Tensor:
            return dfl_loss(logits, target, reduction="mean", weight=weight, normalizer=weight.sum())

        torch._dynamo.reset()
        loss = torch.compile(step, fullgraph=True, backend="aot_eager")(logits)
        torch.testing.assert_close(loss, step(logits))
        found, expected = (torch.autograd.grad(value, logits)[0] for value in (loss, step(logits)))
        torch.testing.assert_close(found, expected)

    def test_vmap(self) -> None:
        logits, target = logits_and_target()
        found = torch.func.vmap(dfl_loss)(logits.view(4, 10, BINS), target.view(4, 10))
        torch.testing.assert_close(found.flatten(), dfl_loss(logits, target))

    def test_no_operator_waits_for_the_device(self) -> None:
        logits, target = logits_and_target()
        logits.requires_grad_()
        with Recorder() as recorder:
            dfl_loss(logits, target, reduction="mean", weight=target > 2).backward()
        assert not recorder.names & WAITING


class TestArguments:
    good = torch.zeros(3, 4, BINS)

    @pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4, BINS), (4, 3), ()], ids=str)
    def test_nothing_is_broadcast(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"target and logits without dim -1 .*\(3, 4\)"):
            dfl_loss(self.good, torch.zeros(shape))

    @pytest.mark.parametrize(
        ("logits", "dim", "message"),
        [
            (torch.zeros(3, 1), -1, r"logits: got shape \(3, 1\), expected at least 2 bins along dim -1"),
            (torch.zeros(3, 4), 2, r"dim: got 2, but logits has shape \(3, 4\)"),
            (torch.tensor(1.0), -1, r"dim: got -1, but logits has shape \(\)"),
        ],
    )
    def test_bins(self, logits: Tensor, dim: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            dfl_loss(logits, torch.zeros(3), dim=dim)
        with pytest.raises(ValueError, match=message):
            dfl_integral(logits, dim)

    def test_kinds(self) -> None:
        with pytest.raises(
            TypeError, match=r"target: got a tensor of torch\.int64, expected a floating dtype"
        ):
            dfl_loss(self.good, torch.zeros(3, 4, dtype=torch.int64))
        with pytest.raises(TypeError, match=r"logits: got list, expected a torch\.Tensor"):
            dfl_loss([0.0, 1.0], torch.tensor(0.0))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"weight .*\(3,\) and \(3, 4\)"):
            dfl_loss(self.good, torch.zeros(3, 4), weight=torch.ones(3))
        with pytest.raises(ValueError, match="reduction: got 'avg'"):
            dfl_loss(self.good, torch.zeros(3, 4), reduction="avg")

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"reduction": "avg"}, ValueError),
            ({"loss_weight": -1.0}, ValueError),
            ({"loss_weight": "5"}, TypeError),
        ],
        ids=repr,
    )
    def test_modules_refuse_at_construction(self, options: dict[str, object], error: type[Exception]) -> None:
        with pytest.raises(error, match=f"^{next(iter(options))}: got"):
            DFLoss(**options)  # type: ignore[arg-type]
