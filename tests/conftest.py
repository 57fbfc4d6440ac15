"""What every test process needs to know before it starts."""

import os
import zlib

import pytest
import torch

# The processes share the cores.
torch.set_num_threads(1)

# Without a GPU, Triton's kernels run in its interpreter; it must know before it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sweep",
        type=int,
        default=200_000,
        help="pairs that the adversarial sweep tries on each row and backend (a long one: 10000000)",
    )
    parser.addoption(
        "--every-kernel",
        action="store_true",
        help="all tests of Triton kernels in the interpreter, which takes 0.2 s a launch, not one in six",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_kernel: none of its tests is left out of a plain run")
    config.addinivalue_line("markers", "cuda: needs a GPU; `pytest -m cuda -n 0` is what one adds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none.

    There, leave out five of six tests that would interpret a kernel, always the same ones, unless marked.
    """
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    if torch.cuda.is_available() or config.getoption("--every-kernel"):
        return
    left_out = [
        item
        for item in items
        if getattr(item, "callspec", None)
        and item.callspec.params.get("backend") == "triton"  # type: ignore[attr-defined]
        and not item.get_closest_marker("every_kernel")
        and zlib.crc32(item.nodeid.encode()) % 6
    ]
    config.hook.pytest_deselected(items=left_out)
    unseen = set(left_out)
    items[:] = [item for item in items if item not in unseen]
