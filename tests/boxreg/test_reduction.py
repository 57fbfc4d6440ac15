"""From one loss a box to one number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boxreg.reduction import REDUCTIONS, Normalizer, reduce_loss
from tests.cases import DTYPES, WORKING_DTYPES, named, seeded

LOSS = [1.0, 2.0, 4.0, 8.0]
quick = settings(max_examples=100, deadline=None)
NUMBERS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("reduction", "weight", "normalizer", "expected"),
    [
        ("none", None, None, LOSS),
        ("none", [1, 0, 0.5, 2], None, [1.0, 0.0, 2.0, 16.0]),
        ("sum", None, None, 15.0),
        ("sum", [1, 0, 0.5, 2], None, 19.0),
        ("mean", None, None, 3.75),
        ("mean", [1, 0, 0.5, 2], None, 4.75),
        ("mean", None, 5, 3.0),
        ("mean", None, 0.5, 30.0),
        ("mean", [True, False, True, False], torch.tensor(2), 2.5),
        ("mean", [1, 0, 1, 0], torch.tensor([2.0]), 2.5),
        ("mean", None, 0, 0.0),
        ("mean", None, torch.tensor(0), 0.0),
    ],
)
@pytest.mark.parametrize("dtype", named(DTYPES))
def test_by_hand(
    reduction: str,
    weight: list[float] | None,
    normalizer: Normalizer | None,
    expected: float | list[float],
    dtype: torch.dtype,
) -> None:
    loss = torch.tensor(LOSS, dtype=dtype)
    weights = None if weight is None else torch.tensor(weight)
    found = reduce_loss(loss, reduction, weight=weights, normalizer=normalizer)
    assert torch.equal(found, torch.tensor(expected, dtype=dtype))


def test_mean_is_the_default() -> None:
    assert reduce_loss(torch.tensor(LOSS)).item() == 3.75


@pytest.mark.parametrize("dtype", named(WORKING_DTYPES))
@pytest.mark.parametrize("normalizer", [None, 3.0, torch.tensor(3)], ids=["count", "number", "tensor"])
def test_gradient_is_weight_over_normalizer(dtype: torch.dtype, normalizer: Normalizer | None) -> None:
    loss = torch.rand(2, 3, 5, generator=seeded(1), dtype=dtype, requires_grad=True)
    weight = torch.rand(2, 3, 5, generator=seeded(2), dtype=dtype)
    upstream = torch.randn((), generator=seeded(3), dtype=dtype)
    (grads,) = torch.autograd.grad(reduce_loss(loss, weight=weight, normalizer=normalizer), loss, upstream)
    torch.testing.assert_close(grads, upstream * weight / (30 if normalizer is None else 3))


def test_gradient_reaches_the_weight() -> None:
    weight = torch.tensor([1.0, 0.5, 2.0, 1.0], requires_grad=True)
    (grads,) = torch.autograd.grad(reduce_loss(torch.tensor(LOSS), "sum", weight=weight), weight)
    assert torch.equal(grads, torch.tensor(LOSS))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weight_zero_is_exactly_nothing(reduction: str, bad: float) -> None:
    loss = torch.tensor([bad, 3.0, bad], requires_grad=True)
    reduced = reduce_loss(loss, reduction, weight=torch.tensor([0.0, 1.0, -0.0]))
    torch.testing.assert_close(reduced.sum().item(), 1.0 if reduction == "mean" else 3.0)
    (grads,) = torch.autograd.grad(reduced.sum(), loss)
    assert grads[::2].tolist() == [0, 0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_empty_is_an_attached_zero(reduction: str, shape: tuple[int, ...], weighted: bool) -> None:
    loss = torch.zeros(shape, requires_grad=True)
    reduced = reduce_loss(loss, reduction, weight=torch.ones(shape) if weighted else None)
    assert reduced.sum().item() == 0
    reduced.sum().backward()
    assert loss.grad is not None


@pytest.mark.parametrize("normalizer", [0, 0.0, torch.tensor(0), torch.tensor(0.0)], ids=repr)
def test_no_positives_are_an_attached_zero(normalizer: Normalizer) -> None:
    loss = torch.tensor(LOSS, requires_grad=True)
    reduced = reduce_loss(loss, normalizer=normalizer)
    reduced.backward()
    assert reduced.item() == 0
    assert torch.equal(loss.grad, torch.zeros(4))  # type: ignore[arg-type]


@quick
@given(values=NUMBERS, normalizer=st.floats(1, 100, width=32))
def test_numbers_and_tensors_normalise_alike(values: list[float], normalizer: float) -> None:
    loss = torch.tensor(values)
    by_number = reduce_loss(loss, normalizer=normalizer)
    by_tensor = reduce_loss(loss, normalizer=torch.tensor(normalizer))
    torch.testing.assert_close(by_tensor, by_number)
    torch.testing.assert_close(by_number, reduce_loss(loss, "sum") / normalizer)


@quick
@given(values=NUMBERS)
def test_a_weight_of_one_changes_nothing(values: list[float]) -> None:
    loss = torch.tensor(values)
    for reduction in REDUCTIONS:
        weighted = reduce_loss(loss, reduction, weight=torch.ones(len(values)))
        assert torch.equal(weighted, reduce_loss(loss, reduction))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reduction": "men"}, ValueError, "reduction: got 'men', .*did you mean 'mean'"),
        ({"reduction": None}, ValueError, "reduction: got None, expected one of 'none', 'mean', 'sum'"),
        ({"weight": torch.ones(3)}, ValueError, r"weight and the loss per box .*\(3,\) and \(4,\)"),
        ({"weight": torch.ones(4, 1)}, ValueError, r"\(4, 1\) and \(4,\)"),
        ({"weight": 2.0}, TypeError, "weight: got float, expected a torch.Tensor"),
        ({"normalizer": -1}, ValueError, "normalizer: got -1, expected a finite number of at least 0"),
        ({"normalizer": float("nan")}, ValueError, "normalizer: got nan"),
        ({"normalizer": float("inf")}, ValueError, "normalizer: got inf"),
        ({"normalizer": True}, TypeError, "normalizer: got bool, expected a number"),
        ({"normalizer": "4"}, TypeError, "normalizer: got str, expected a number"),
        ({"normalizer": torch.ones(4)}, ValueError, r"normalizer: got a tensor of shape \(4,\)"),
        ({"normalizer": 4, "reduction": "sum"}, ValueError, "normalizer: .* reduction is 'sum'"),
        ({"normalizer": 4, "reduction": "none"}, ValueError, "normalizer: .* reduction is 'none'"),
    ],
)
def test_bad_arguments(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reduce_loss(torch.tensor(LOSS), **options)  # type: ignore[arg-type]
