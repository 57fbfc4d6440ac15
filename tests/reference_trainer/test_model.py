from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reference_trainer.config import LossConfig, ModelConfig
from reference_trainer.model import (
    ACTIVATIONS,
    NORMS,
    STRIDE,
    UNTRAINED_LOGIT,
    DenseRegressor,
    PooledRegressor,
    Prediction,
    answer,
    batch_norm_warning,
    build_model,
    synchronised,
)
from reference_trainer.objective import Criterion

PRIOR = (0.4, 0.6, 0.25, 0.35)
# What BoxHead documents: untrained, its boxes are within 1e-3 of the prior.
WITHIN = {"rtol": 0.0, "atol": 1e-3}


def random_images(count: int = 3, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def config_of(head: str, **settings: object) -> ModelConfig:
    return ModelConfig.model_validate({"head": head, "width": 8} | settings)


def centres(cells: int) -> Tensor:
    return (torch.arange(cells) + 0.5) / cells


@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_an_untrained_dense_network_predicts_the_prior_in_the_middle_of_each_cell(size: int) -> None:
    torch.manual_seed(0)
    boxes, objectness = build_model(config_of("dense"), PRIOR)(random_images(2, size))
    cells = size // STRIDE
    expected = torch.empty(2, 4, cells, cells)
    expected[:, 0] = centres(cells)
    expected[:, 1] = centres(cells)[:, None]
    expected[:, 2], expected[:, 3] = PRIOR[2:]
    torch.testing.assert_close(boxes, expected, **WITHIN)
    torch.testing.assert_close(objectness, torch.full((2, cells, cells), UNTRAINED_LOGIT))


@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_an_untrained_pooled_network_predicts_the_prior(size: int) -> None:
    torch.manual_seed(0)
    boxes, objectness = build_model(config_of("pooled"), PRIOR)(random_images(2, size))
    assert objectness is None
    torch.testing.assert_close(boxes, torch.tensor([PRIOR, PRIOR]), **WITHIN)


@pytest.mark.parametrize("output", ["linear", "sigmoid", "clamp"])
def test_the_bias_of_a_bare_layer_starts_at_the_prior(output: str) -> None:
    torch.manual_seed(0)
    model = build_model(config_of("pooled", output=output), PRIOR)
    for parameters in model.head.parameters():
        if parameters.ndim > 1:
            nn.init.zeros_(parameters)
    torch.testing.assert_close(model(random_images(1)).boxes, torch.tensor([PRIOR]))


@pytest.mark.parametrize("head", ["dense", "pooled"])
def test_without_a_prior_a_head_starts_anywhere(head: str) -> None:
    torch.manual_seed(0)
    projections = [
        build_model(config_of(head, prior=prior), PRIOR).head.projection for prior in (True, False)
    ]
    small, usual = (projection.weight.abs().max() for projection in projections)
    assert small < 1e-5 < 1e-2 < usual
    assert (projections[0].bias - projections[1].bias).abs().min() > 1e-3


@pytest.mark.parametrize(("output", "flat"), [("linear", False), ("sigmoid", False), ("clamp", True)])
def test_a_clamp_alone_has_no_gradient_outside_the_image(output: str, flat: bool) -> None:
    torch.manual_seed(0)
    model = build_model(config_of("pooled", output=output), PRIOR)
    *_, bias = model.head.parameters()
    bias.data = torch.tensor([1.5, -0.5, 3.0, -1.0])
    boxes = model(random_images(1)).boxes
    boxes.sum().backward()
    assert (bias.grad == 0).all() == flat
    if output != "linear":
        assert ((boxes >= 0) & (boxes <= 1)).all()


@pytest.mark.parametrize("size", [32, 96])
def test_a_linear_output_is_the_bare_numbers_and_knows_no_prior(size: int) -> None:
    torch.manual_seed(0)
    model = build_model(config_of("pooled", output="linear", prior=False), PRIOR).eval()
    assert isinstance(model, PooledRegressor)
    images = random_images(2, size)
    expected = model.head(model.neck(model.backbone(images)))
    torch.testing.assert_close(model(images).boxes, expected, rtol=0, atol=0)
    assert (expected - torch.tensor(PRIOR)).abs().max() > 0.05
    assert type(model.head) is nn.Linear


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("head", ["dense", "pooled"])
def test_every_norm_and_activation_is_used_and_learns(head: str, norm: str, activation: str) -> None:
    torch.manual_seed(0)
    model = build_model(config_of(head, norm=norm, activation=activation), PRIOR)
    kinds = [type(module) for module in model.modules()]
    # Two in each of four stages; the dense head has one more convolution, the pooled one one more activation.
    of_each = {"group": nn.GroupNorm, "layer": nn.GroupNorm, "batch": nn.BatchNorm2d, "none": nn.Identity}
    for kind in set(of_each.values()):
        assert kinds.count(kind) == ((9 if head == "dense" else 8) if kind == of_each[norm] else 0), kind
    groups = {module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)}
    assert groups == {"group": {8}, "layer": {1}}.get(norm, set())
    assert kinds.count(type(ACTIVATIONS[activation]())) == 9
    convolutions = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)]
    # A norm has a shift of its own.
    assert {module.bias is None for module in convolutions} == {norm != "none"}

    target = torch.tensor([[0.7, 0.3, 0.5, 0.5]]).repeat(3, 1)
    Criterion(LossConfig())(model(random_images()), target).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("world_size", "device", "chosen"), [(2, "cuda", True), (2, "cpu", False), (1, "cuda", False)]
)
def test_batch_norm_sees_the_images_of_all_gpus(
    world_size: int, device: str, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)
    model = build_model(config_of("dense", norm="batch"), PRIOR)
    names = list(model.state_dict())
    found = synchronised(model, torch.device(device))
    kinds = [type(module) for module in found.modules()]
    assert kinds.count(nn.SyncBatchNorm) == (9 if chosen else 0)
    assert kinds.count(nn.BatchNorm2d) == (0 if chosen else 9)
    assert list(found.state_dict()) == names


def test_batch_norm_over_few_images_is_warned_of_in_figures() -> None:
    model = build_model(config_of("dense", norm="batch"), PRIOR)
    said = batch_norm_warning(model, 4)
    assert said is not None
    assert "4 images at a time" in said
    assert "off by 50 % of their spread, against 12 % with 64" in said
    assert batch_norm_warning(model, 8)
    assert batch_norm_warning(model, 9) is None
    assert batch_norm_warning(build_model(config_of("dense"), PRIOR), 4) is None


@pytest.mark.parametrize("head", ["dense", "pooled"])
def test_dropout_works_while_training_only(head: str) -> None:
    torch.manual_seed(0)
    model = build_model(config_of(head, dropout=0.5), PRIOR)
    nn.init.normal_(model.head.projection.weight)
    images = random_images()
    assert not torch.equal(model(images).boxes, model(images).boxes)
    model.eval()
    torch.testing.assert_close(model(images).boxes, model(images).boxes, rtol=0, atol=0)


def test_the_answer_is_the_box_of_the_most_confident_cell() -> None:
    boxes = torch.arange(2 * 4 * 2 * 3).float().reshape(2, 4, 2, 3)
    objectness = torch.tensor(
        [[[-5.0, -4.0, -3.0], [2.0, -1.0, 0.0]], [[-9.0, 3.0, -8.0], [-7.0, 2.9, -6.0]]]
    )
    chosen, confidence = answer(Prediction(boxes, objectness))
    # Row 1, column 0 of the first image; row 0, column 1 of the second.
    torch.testing.assert_close(chosen, torch.stack([boxes[0, :, 1, 0], boxes[1, :, 0, 1]]), rtol=0, atol=0)
    torch.testing.assert_close(confidence, torch.tensor([2.0, 3.0]).sigmoid())


def test_the_answer_of_a_pooled_network_is_its_box() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.5, -0.5, -0.1, 2.0]])
    chosen, confidence = answer(Prediction(boxes))
    assert chosen is boxes
    torch.testing.assert_close(confidence, torch.ones(2))


@pytest.mark.parametrize(
    "box",
    [(1.5, 0.5, 0.2, 0.2), (-0.5, 1.5, 0.2, 0.2), (0.5, 0.5, 3.0, 2.0), (0.5, 0.4, -0.2, -0.1)],
    ids=["right of it", "left below", "larger than it", "inverted"],
)
def test_a_linear_prediction_outside_the_image_has_a_gradient(box: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    model = build_model(config_of("pooled", output="linear"), PRIOR)
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor(box)
    target = torch.tensor([[0.4, 0.6, 0.3, 0.3]])
    objective = Criterion(LossConfig(lambda_coord=5.0, lambda_wh=5.0, lambda_iou=1.0))(
        model(random_images(1)), target
    )
    objective.total.backward()
    assert model.head.bias.grad.isfinite().all()
    # Descending moves every coordinate to the target's.
    direction = torch.tensor(box) - target[0]
    torch.testing.assert_close(model.head.bias.grad.sign(), direction.sign(), rtol=0, atol=0)


@pytest.mark.parametrize("raw", [-20.0, 20.0])
@pytest.mark.parametrize("head", ["dense", "pooled"])
def test_a_decoded_prediction_far_out_of_range_has_a_gradient(head: str, raw: float) -> None:
    torch.manual_seed(0)
    model = build_model(config_of(head), PRIOR)
    assert isinstance(model, DenseRegressor | PooledRegressor)
    model.head.projection.bias.data.fill_(raw)
    Criterion(LossConfig())(model(random_images(1)), torch.tensor([[0.4, 0.6, 0.3, 0.3]])).total.backward()
    gradient = model.head.projection.bias.grad
    assert gradient.isfinite().all()
    assert (gradient != 0).all()
