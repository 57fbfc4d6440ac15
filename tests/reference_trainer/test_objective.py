from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from boxreg import BoxLoss, MPDIoULoss, NWDLoss
from boxreg.iou.spec import FAMILY
from reference_trainer.config import LossConfig
from reference_trainer.model import Prediction
from reference_trainer.objective import Criterion, cells_near_centre, overlap_parameters

EPS = torch.finfo(torch.float32).eps
BOX_TERMS = ("coord", "wh", "iou")
TERMS = {"pooled": BOX_TERMS, "dense": (*BOX_TERMS, "obj", "noobj")}
CASES = [(head, term) for head, terms in TERMS.items() for term in terms]


def uniform(*shape: int, seed: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def prediction_of(head: str) -> tuple[Prediction, list[Tensor]]:
    """A prediction for three images and its leaves."""
    shape = (3, 4) if head == "pooled" else (3, 4, 5, 6)
    boxes = uniform(*shape, seed=1, low=0.2, high=0.7).requires_grad_()
    if head == "pooled":
        return Prediction(boxes), [boxes]
    objectness = uniform(3, 5, 6, seed=2, low=-3, high=3).requires_grad_()
    return Prediction(boxes, objectness), [boxes, objectness]


TARGET = uniform(3, 4, seed=3, low=0.2, high=0.7)


def gradients(term: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(term, leaves, retain_graph=True, materialize_grads=True))


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [
        ((3.5, 4.5), [3, 4, 5], [2, 3, 4]),
        ((4.0, 4.5), [3, 4, 5], [3, 4]),
        ((4.0, 2.0), [1, 2], [3, 4]),
        ((3.25, 4.75), [3, 4, 5], [2, 3, 4]),
        ((0.0, 0.0), [0], [0]),
        ((8.0, 8.0), [7], [7]),
        ((0.5, 8.0), [7], [0, 1]),
    ],
    ids=["middle", "side", "corner", "off the middle", "first corner", "last corner", "bottom left"],
)
def test_the_cells_around_the_centre_learn(
    centre: tuple[float, float], rows: list[int], columns: list[int]
) -> None:
    target = torch.tensor([[centre[0] / 8, centre[1] / 8, 0.3, 0.1]])
    expected = torch.zeros(1, 8, 8, dtype=torch.bool)
    expected[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    torch.testing.assert_close(cells_near_centre(target, 8, 8), expected, rtol=0, atol=0)


def test_rows_and_columns_are_not_mixed_up() -> None:
    found = cells_near_centre(torch.tensor([[0.75, 0.5, 0.1, 0.1], [0.25, 1.0, 0.1, 0.1]]), 3, 6)
    # Centres at column 4.5, row 1.5 and at column 1.5, row 3.
    expected = torch.zeros(2, 3, 6, dtype=torch.bool)
    expected[0, :, 3:6] = True
    expected[1, 2, 0:3] = True
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@settings(deadline=None)
@given(
    centre=st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
)
def test_the_cell_that_holds_the_centre_always_learns(
    centre: tuple[float, float], rows: int, columns: int
) -> None:
    target = torch.tensor([[*centre, 0.2, 0.2]])
    found = cells_near_centre(target, rows, columns)[0]
    column = min(int(target[0, 0] * columns), columns - 1)
    row = min(int(target[0, 1] * rows), rows - 1)
    assert found[row, column]
    assert 1 <= int(found.sum()) <= 9


@pytest.mark.parametrize(("head", "term"), CASES, ids=[f"{head}-{term}" for head, term in CASES])
@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_a_lambda_scales_its_own_term_and_no_other(head: str, term: str, factor: float) -> None:
    prediction, leaves = prediction_of(head)
    ones = {f"lambda_{name}": 1.0 for name in TERMS["dense"]}
    plain = Criterion(LossConfig(**ones))(prediction, TARGET)
    scaled = Criterion(LossConfig(**ones | {f"lambda_{term}": factor}))(prediction, TARGET)
    assert tuple(plain.unweighted) == tuple(scaled.weighted) == TERMS[head]
    for name in TERMS[head]:
        by = factor if name == term else 1.0
        torch.testing.assert_close(scaled.unweighted[name], plain.unweighted[name], rtol=0, atol=0)
        torch.testing.assert_close(scaled.weighted[name], by * plain.unweighted[name], rtol=0, atol=0)
        before, after = (gradients(each.weighted[name], leaves) for each in (plain, scaled))
        assert any(gradient.any() for gradient in before)
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(new, by * old, rtol=0, atol=0)


@pytest.mark.parametrize("head", TERMS)
def test_the_total_is_the_sum_of_the_weighted_terms(head: str) -> None:
    prediction, leaves = prediction_of(head)
    objective = Criterion(LossConfig(lambda_coord=3.0, lambda_wh=0.3, lambda_obj=7.0))(prediction, TARGET)
    terms = list(objective.weighted.values())
    torch.testing.assert_close(objective.total, torch.stack(terms).sum())
    summed = [sum(parts) for parts in zip(*(gradients(term, leaves) for term in terms), strict=True)]
    for whole, parts in zip(gradients(objective.total, leaves), summed, strict=True):
        torch.testing.assert_close(whole, parts)


def test_a_row_that_wants_lengths_gets_those_of_the_image() -> None:
    prediction, _ = prediction_of("pooled")
    for overlap, loss in {
        "mpdiou": MPDIoULoss("cxcywh", image_width=1, image_height=1),
        "nwd": NWDLoss("cxcywh", constant=0.4),
    }.items():
        terms = Criterion(LossConfig(overlap=overlap, nwd_constant=0.4))(prediction, TARGET)
        torch.testing.assert_close(terms.unweighted["iou"], loss(prediction.boxes, TARGET))
    # In pixels as in fractions.
    for overlap in FAMILY:
        config = LossConfig(overlap=overlap)
        fractions, pixels = (
            BoxLoss(overlap, fmt="cxcywh", **overlap_parameters(config, side)).overlap(
                side * prediction.boxes, side * TARGET
            )
            for side in (1.0, 128.0)
        )
        torch.testing.assert_close(fractions, pixels)


def test_a_dense_loss_is_the_mean_over_the_cells_that_learn() -> None:
    prediction, _ = prediction_of("dense")
    dense = Criterion(LossConfig())(prediction, TARGET)
    learns = cells_near_centre(TARGET, 5, 6)
    boxes = prediction.boxes.movedim(1, -1)[learns]
    targets = TARGET[:, None, None].expand(3, 5, 6, 4)[learns]
    pooled = Criterion(LossConfig())(Prediction(boxes), targets)
    for name in BOX_TERMS:
        torch.testing.assert_close(dense.unweighted[name], pooled.unweighted[name])


def test_objectness_is_compared_with_the_iou_of_the_cell_s_own_box() -> None:
    # One row of four cells, the object's centre in the first: the first two learn.
    target = torch.tensor([[0.125, 0.5, 0.2, 0.2]])
    boxes = torch.tensor(
        [[0.125, 0.5, 0.2, 0.2], [0.225, 0.5, 0.2, 0.2], [0.9, 0.5, 0.2, 0.2], [0.125, 0.6, 0.2, 0.2]]
    )
    logits, own_iou = [0.0, 1.0, -2.0, 3.0], [1.0, 1 / 3, 0.0, 1 / 3]
    surprise = [math.log1p(math.exp(z)) - z * iou for z, iou in zip(logits, own_iou, strict=True)]
    leaf = boxes.T[None, :, None].clone().requires_grad_()
    objective = Criterion(LossConfig(lambda_obj=3.0, lambda_noobj=0.5))(
        Prediction(leaf, torch.tensor(logits)[None, None]), target
    )
    # Both are divided by the number of cells that learn.
    torch.testing.assert_close(objective.unweighted["obj"], torch.tensor((surprise[0] + surprise[1]) / 2))
    torch.testing.assert_close(objective.unweighted["noobj"], torch.tensor((surprise[2] + surprise[3]) / 2))
    torch.testing.assert_close(objective.weighted["obj"], 3.0 * objective.unweighted["obj"])
    torch.testing.assert_close(objective.weighted["noobj"], 0.5 * objective.unweighted["noobj"])
    assert not objective.unweighted["obj"].requires_grad, "objectness does not move the boxes"


@pytest.mark.parametrize("size", ["wh", "sqrt_wh"])
@pytest.mark.parametrize("distance", ["mse", "smooth_l1", "l1"])
@pytest.mark.parametrize("head", TERMS)
def test_a_perfect_prediction_has_no_box_loss(head: str, distance: str, size: str) -> None:
    criterion = Criterion(LossConfig.model_validate({"distance": distance, "size": size}))
    perfect = {
        "pooled": Prediction(TARGET),
        "dense": Prediction(TARGET[:, :, None, None].expand(3, 4, 5, 6), torch.zeros(3, 5, 6)),
    }
    objective = criterion(perfect[head], TARGET)
    for name in BOX_TERMS:
        torch.testing.assert_close(objective.unweighted[name], torch.tensor(0.0), rtol=0, atol=8 * EPS)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_a_broken_box_in_a_cell_that_does_not_learn_stays_there(value: float) -> None:
    target = torch.tensor([[0.1, 0.1, 0.2, 0.2]])
    boxes = uniform(1, 4, 5, 6, seed=1, low=0.2, high=0.7)
    assert not cells_near_centre(target, 5, 6)[0, 4, 5]
    whole, gradient = learn(boxes, target)
    boxes[:, :, 4, 5] = value
    broken, broken_gradient = learn(boxes, target)
    for name in (*BOX_TERMS, "obj"):
        torch.testing.assert_close(broken[name], whole[name], rtol=0, atol=0)
    torch.testing.assert_close(broken_gradient, gradient, rtol=0, atol=0)
    assert not broken_gradient[:, :, 4, 5].any()


def learn(boxes: Tensor, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The unweighted terms, and the gradient that the boxes get."""
    leaf = boxes.clone().requires_grad_()
    objective = Criterion(LossConfig())(Prediction(leaf, torch.zeros(1, 5, 6)), target)
    (gradient,) = torch.autograd.grad(objective.total, leaf)
    return {name: value.detach() for name, value in objective.unweighted.items()}, gradient
