from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from reference_trainer.checkpoint import pack_state, pack_weights, unpack_state
from reference_trainer.errors import CheckpointError

STATE = {"weights": torch.arange(3.0), "step": 7, "scores": [0.5, float("-inf")], "name": "é", "none": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state.pt").write_bytes(pack_state(STATE))
    return tmp_path / "state.pt"


def test_a_state_comes_back_and_torch_reads_it_too(path: Path) -> None:
    for found in (unpack_state(path), torch.load(path, weights_only=True)):
        torch.testing.assert_close(found.pop("weights"), STATE["weights"], rtol=0, atol=0)
        assert found == {name: value for name, value in STATE.items() if name != "weights"}


def test_a_flipped_bit_is_noticed_anywhere(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for bit in range(0, 8 * len(content), 31):
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.pt: damaged"):
            unpack_state(path)
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    unpack_state(path)


def test_a_truncation_is_noticed_anywhere(path: Path) -> None:
    content = path.read_bytes()
    for length in [*range(0, len(content), 13), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"state\.pt: damaged"):
            unpack_state(path)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_something_is_refused(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was run"
    path.write_bytes(pack_state({"weights": Malicious(marker)}))
    with pytest.raises(CheckpointError, match=r"refused: it asks for posix\.system, which might run code"):
        unpack_state(path)
    assert not marker.exists()


def test_nothing_is_read_but_tensors_and_plain_values() -> None:
    """`weights_only` is spelled out wherever the project reads a pickle."""
    root = Path(__file__).parents[2]
    for folder in ("boxreg", "reference_trainer", "benchmarks"):
        for file in (root / folder).rglob("*.py"):
            for line in file.read_text().splitlines():
                assert "torch.load(" not in line or "weights_only=True" in line, f"{file}: {line}"
                # There it is the answer of a process that this one has forked.
                assert "pickle.load" not in line or file.name == "shares.py", f"{file}: {line}"


def test_the_same_weights_are_the_same_bytes() -> None:
    weights, scores = {"weight": torch.arange(3.0)}, {"ap": 0.5, "confidence": 0.25}
    assert len({pack_weights(weights, ["a cat", "a\ndog"], scores) for _ in range(20)}) == 1
