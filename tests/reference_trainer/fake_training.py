"""Trainings that take no time, for processes that tests start."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from reference_trainer.errors import UserError

MACHINE = {"python": "3", "torch": "2", "threads": 1, "cuda": None, "cores": 2, "capability": "AVX2"}


def fake(config: Any, folder: Path) -> dict[str, Any]:
    """A score that tells seeds and batch sizes apart; some fail, in their own ways."""
    if config.batch_size == 8:
        raise UserError("loss not finite\nat step 3")
    if config.batch_size == 64:
        print("no memory left", file=sys.stderr, flush=True)
        os._exit(9)
    (folder / "state").write_bytes(bytes(1000))
    final = 0.01 * config.batch_size + 0.1 * config.seed
    return {"final": final, "best": final, "best_epoch": 1, "epochs": 1, "machine": MACHINE}


def endless(config: Any, folder: Path) -> dict[str, Any]:
    """Says its number, and never ends."""
    (folder.parent / f"pid-{os.getpid()}").touch()
    time.sleep(600)
    return {}
