"""What every test process needs to know before it starts."""

import os

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
