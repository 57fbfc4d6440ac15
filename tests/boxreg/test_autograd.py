"""How the losses behave inside of autograd: gradients that are changed, batched, or of unusual tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from boxreg import CIoULoss, IoULoss, pairwise_box_iou
from tests.cases import BACKENDS, seeded, upright

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def boxes() -> tuple[Tensor, Tensor]:
    pred, target = (upright(seeded(seed), 40).float() for seed in (1, 2))
    return pred.requires_grad_(), target


@every_backend
class TestTwice:
    def test_a_gradient_that_was_changed_does_not_come_back(self, backend: str) -> None:
        pred, target = boxes()
        loss = CIoULoss(backend=backend)(pred, target)
        (first,) = torch.autograd.grad(loss, pred, retain_graph=True)
        expected = first.clone()
        first.data.zero_()
        (second,) = torch.autograd.grad(loss, pred, retain_graph=True)
        assert torch.equal(second, expected)
        second.fill_(9.0)
        assert torch.equal(torch.autograd.grad(loss, pred)[0], expected)

    def test_a_hook_that_changes_it_in_place(self, backend: str) -> None:
        pred, target = boxes()
        moved = pred * 1.0
        moved.register_hook(lambda grad: grad.mul_(3.0))
        loss = CIoULoss(backend=backend)(moved, target)
        found = [torch.autograd.grad(loss, pred, retain_graph=True)[0] for _ in range(2)]
        assert torch.equal(*found)

    def test_without_retain_graph_the_second_is_an_error(self, backend: str) -> None:
        pred, target = boxes()
        loss = CIoULoss(backend=backend)(pred, target)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_batched_upstream_gradients(backend: str, dtype: torch.dtype) -> None:
    pred, target = (side.detach().to(dtype) for side in boxes())
    pred.requires_grad_()
    loss = CIoULoss(backend=backend)(pred, target)
    upstream = torch.tensor([1.0, 2.0])
    (found,) = torch.autograd.grad(loss, pred, upstream, is_grads_batched=True, retain_graph=True)
    expected = torch.stack([torch.autograd.grad(loss, pred, part, retain_graph=True)[0] for part in upstream])
    torch.testing.assert_close(found, expected)
    each = IoULoss(reduction="none", backend=backend)(pred, target)
    (jacobian,) = torch.autograd.grad(each, pred, torch.eye(40), is_grads_batched=True)
    assert jacobian.shape == (40, 40, 4)
    scores = pairwise_box_iou(pred[:3], target[:2], backend=backend)
    (jacobian,) = torch.autograd.grad(scores, pred, torch.eye(6).view(6, 3, 2), is_grads_batched=True)
    assert jacobian.shape == (6, 40, 4)


@every_backend
def test_views_that_are_negated_only_when_they_are_read(backend: str) -> None:
    pred, target = (side.detach() for side in boxes())
    negated, weight = torch._neg_view(-pred), torch._neg_view(-torch.arange(40.0))
    criterion = CIoULoss(backend=backend)
    assert torch.equal(criterion(negated, target), criterion(pred, target))
    assert torch.equal(criterion(target, negated), criterion(target, pred))
    assert torch.equal(criterion(pred, target, weight), criterion(pred, target, torch.arange(40.0)))
    expected = pairwise_box_iou(pred, target, backend=backend)
    assert torch.equal(pairwise_box_iou(negated, target, backend=backend), expected)
    zeros = torch._efficientzerotensor(target.shape)
    assert torch.equal(criterion(pred, zeros), criterion(pred, torch.zeros_like(target)))


@every_backend
def test_targets_of_inference_mode(backend: str) -> None:
    pred, target = boxes()
    with torch.inference_mode():
        made = target * 1.0
    CIoULoss(backend=backend)(pred, made).backward()
    assert pred.grad is not None
