"""Every loss inside what people put around a loss: compilers, export, graphs, several processes, autocast."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from boxreg.losses import LOSSES
from tests.cases import (
    BACKENDS,
    KINDS,
    PARAMETERS,
    REGIMES,
    aligned_loss,
    eps,
    pairs,
    seeded,
    value_and_gradients,
)

# Under a compiler, auto is eager.
every_backend = pytest.mark.parametrize("backend", [name for name in ["auto", *BACKENDS] if name != "eager"])

MODULES = list(LOSSES.values())


class Detector(nn.Module):
    """A layer that predicts boxes, and the sum of every loss of the family, or of some, over them."""

    def __init__(self, backend: str, kinds: Sequence[str] = KINDS) -> None:
        super().__init__()
        self.predict = nn.Linear(8, 4)
        self.losses = nn.ModuleList(
            module(fmt="cxcywh", backend=backend, **PARAMETERS.get(module.kind, {}))
            for module in MODULES
            if module.kind in kinds
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=seeded(3)))

    def forward(
        self, features: Tensor, target: Tensor, weight: Tensor, normalizer: Tensor | None = None
    ) -> Tensor:
        boxes = self.predict(features).sigmoid()
        divisor = weight.sum() if normalizer is None else normalizer
        losses = [loss(boxes, target, weight, divisor) for loss in self.losses]
        return torch.stack(losses).sum()


def batch(count: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Features, boxes as cxcywh, and weights of which some are 0."""
    generator = seeded(4)
    features = torch.randn(count, 8, generator=generator)
    target = 0.2 + 0.3 * torch.rand(count, 4, generator=generator)
    return features.to(dtype), target.to(dtype), (torch.arange(count) % 3).to(dtype)


def gradients(model: nn.Module, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tuple(model.parameters()))


def assert_same_step(found: Tensor, expected: Tensor, model: nn.Module) -> None:
    """The same loss, and the same gradients at the model's parameters."""
    torch.testing.assert_close(found, expected)
    for part, reference in zip(gradients(model, found), gradients(model, expected), strict=True):
        torch.testing.assert_close(part, reference, rtol=1e-5, atol=1e-5)


def test_the_model_has_every_loss() -> None:
    assert {module.kind for module in MODULES} == set(KINDS)


@every_backend
class TestCompilers:
    def test_one_graph_of_a_model_with_every_loss(self, backend: str) -> None:
        model = Detector(backend)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same_step(compiled(*batch()), model(*batch()), model)

    def test_export(self, backend: str) -> None:
        model = Detector(backend, ("ciou", "siou"))  # that each can be traced is tried above
        count = torch.export.Dim("count", min=2, max=64)
        exported = torch.export.export(model, batch(), dynamic_shapes=({0: count}, {0: count}, {0: count}))
        for number in (6, 11):
            found = exported.module()(*batch(number))
            torch.testing.assert_close(found, model(*batch(number)))

    def test_autocast(self, backend: str) -> None:
        model = Detector(backend)
        features, target, weight = batch()
        with torch.autocast("cpu", torch.bfloat16):
            boxes = model.predict(features).sigmoid()
            loss = model(features, target, weight)
        assert boxes.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        alone = [module(boxes, target, weight, weight.sum()) for module in model.losses]
        assert torch.equal(loss, torch.stack(alone).sum())
        for part in gradients(model, loss):
            assert part.isfinite().all()
            assert part.abs().max() > 0


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler for torch.compile"
)
def test_what_the_compiler_makes_of_the_maths() -> None:
    def loss_of(pred: Tensor, target: Tensor) -> Tensor:
        return aligned_loss("ciou", pred, target, fmt="cxcywh")

    torch._dynamo.reset()
    compiled = torch.compile(loss_of, fullgraph=True)
    for regime in REGIMES:
        pred, target = pairs(regime, torch.float32)
        expected, *grads = value_and_gradients("ciou", pred, target, fmt="cxcywh", backend="eager")
        sides = pred.requires_grad_(), target.requires_grad_()
        loss = compiled(*sides)
        upstream = torch.randn(loss.shape, generator=seeded(9))
        found = loss.detach(), *torch.autograd.grad(loss, sides, upstream)
        for part, reference in zip(found, (expected, *grads), strict=True):
            unit = reference.abs().max().clamp(min=1)
            torch.testing.assert_close(part / unit, reference / unit, rtol=0, atol=64 * eps(torch.float32))


PROCESS = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.boxreg.test_integration import Detector, batch

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
features, target, weight = batch(9, torch.float64)
mine = slice(0, 3) if rank == 0 else slice(3, 9)  # the ranks have 3 and 6 boxes, 2 and 4 of them positive
model = Detector("auto").double()
parallel = DistributedDataParallel(model)
positives = weight[mine].sum()
dist.all_reduce(positives)
# DDP averages gradients over the ranks: to end with their sum, the divisor is that of one rank.
loss = parallel(features[mine], target[mine], weight[mine], positives / dist.get_world_size())
loss.backward()
torch.save([parameter.grad for parameter in model.parameters()], f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without torch.distributed")
def test_two_ranks_find_the_gradient_of_one(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    commands = [[sys.executable, "-c", PROCESS, str(rank), str(tmp_path)] for rank in range(2)]
    processes = [
        subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    model = Detector("auto").double()
    expected = gradients(model, model(*batch(9, torch.float64)))
    for rank in range(2):
        for found, reference in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(found, reference)
