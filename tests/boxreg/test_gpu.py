"""What a GPU adds to the tests: `pytest -m cuda -n 0`. The checks are those of `benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from benchmarks.gpu import waiting
from benchmarks.gpu.device import Cuda
from benchmarks.gpu.report import LeftOutError
from benchmarks.gpu.right_cases import CASES, Case, check
from benchmarks.gpu.right_others import ALONE, OTHERS

pytestmark = pytest.mark.cuda

LOSSES = (
    "float32",
    "float16",
    "planes",
    "anchors",
    "weight",
    "normalizer on the GPU",
    "pairwise",
    "eager",
    "BoxLoss",
)
SOME = CASES[::7]
"""One in seven: dtypes and inner boxes take turns of six."""

CHECKS = {
    name: check for name, check in OTHERS.items() if not name.startswith("arbitrary") or name.endswith("ciou")
}
"""The checks on arbitrary floats compile a kernel for each mode: one loss is enough."""


@pytest.fixture(scope="module")
def device() -> Cuda:
    return Cuda()


def passes(work: Callable[[], object]) -> None:
    try:
        work()
    except LeftOutError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("case", SOME, ids=str)
def test_a_kernel_is_eager_in_float64(case: Case, device: Cuda) -> None:
    check(case, device)


@pytest.mark.parametrize("name", [*CHECKS, *ALONE])
def test_checks(name: str, device: Cuda) -> None:
    passes(partial({**CHECKS, **ALONE}[name], device))


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_waits_for_nothing_and_is_few_launches(name: str, device: Cuda) -> None:
    loss, leaves = waiting.steps(device)[name]
    waiting.no_wait(device, loss, leaves)
    passes(partial(waiting.launches, device, loss, leaves, name in waiting.IN_ONE_PASS))


@pytest.mark.parametrize("name", LOSSES)
def test_a_cuda_graph_computes_with_new_numbers(name: str, device: Cuda) -> None:
    waiting.graph(device, *waiting.steps(device)[name])


@pytest.mark.parametrize("work", [waiting.streams, waiting.threads])
def test_several_at_once(work: Callable[[Cuda], object], device: Cuda) -> None:
    work(device)
