"""What starting costs, in fresh processes: `python -m benchmarks.startup`."""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time

import torch

from .machine import processor

IMPORT = "import time, torch; start = time.perf_counter(); import boxreg; print(time.perf_counter() - start)"
COMMANDS = {
    "reference_trainer --help": ["--help"],
    "reference_trainer train --help": ["train", "--help"],
    "reference_trainer evaluate --help": ["evaluate", "--help"],
}


def import_seconds() -> float:
    """`import boxreg` after `import torch`."""
    return float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True).stdout)


def command_seconds(arguments: list[str]) -> float:
    command = [sys.executable, "-m", "reference_trainer", *arguments]
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="fresh processes for each figure")
    repeats = range(parser.parse_args().repeats)

    print(f"{processor()}, {platform.system()} {platform.release()}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}\n")
    print("| what | median ms | fastest | slowest |\n|---|---|---|---|")
    measured = {"`import boxreg` on top of `import torch`": [import_seconds() for _ in repeats]}
    for name, arguments in COMMANDS.items():
        measured[f"`{name}`"] = [command_seconds(arguments) for _ in repeats]
    for name, seconds in measured.items():
        figures = (statistics.median(seconds), min(seconds), max(seconds))
        print(f"| {name} | " + " | ".join(f"{1e3 * figure:.0f}" for figure in figures) + " |")


if __name__ == "__main__":
    main()
