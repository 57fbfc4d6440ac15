"""Trains with the real command line and tabulates what came of it.

    python -m benchmarks.training --out results.md                  toy task: reference x 3, pooled, baseline
    python -m benchmarks.training --out results.md --data FOLDER -- --epochs 300      a YOLO folder x 3 seeds

Run it on a machine that does nothing else. Arguments after `--` go to every `reference_trainer train`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .machine import processor

BARS = (0.90, 0.92, 0.94)
TOY = {
    "reference": [],
    "reference, pooled head": ["--model.head", "pooled"],
    "baseline": ["--preset", "baseline"],
    "baseline, not stopped early": ["--preset", "baseline", "--patience", "1000"],
}
SEEDS = {
    "reference": (0, 1, 2),
    "reference, pooled head": (0,),
    "baseline": (0,),
    "baseline, not stopped early": (0,),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--data", type=Path, help="a YOLO folder; by default the toy task")
    parser.add_argument("--only", choices=TOY, help="one row of the toy task")
    parser.add_argument("extra", nargs="*", help="arguments for every training run")
    options = parser.parse_args()

    rows = []
    if options.data:
        for seed in SEEDS["reference"]:
            rows.append(run("reference", [*options.extra, "--seed", str(seed)], options.data))
    else:
        for name in [options.only] if options.only else TOY:
            for seed in SEEDS[name]:
                rows.append(run(name, [*TOY[name], *options.extra, "--seed", str(seed)]))
    options.out.write_text(table(rows))
    print(options.out.read_text())


def run(name: str, arguments: list[str], data: Path | None = None) -> dict[str, Any]:
    """Train once and read the run's folder."""
    command = [sys.executable, "-m", "reference_trainer", "train", *arguments]
    command += ["--data", str(data)] if data else []
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    folder = Path(json.loads(finished.stdout.splitlines()[-1])["run"])
    summary = json.loads((folder / "summary.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    reached = {
        bar: next((row["seconds"] for row in metrics if row.get("val_mean_iou", 0) >= bar), None)
        for bar in BARS
    }
    return {
        "name": name,
        "arguments": arguments,
        "summary": summary,
        "reached": reached,
        "images": sum(row["images"] for row in metrics),
        "step_share": sum(row["step_share"] for row in metrics) / len(metrics),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The runs as Markdown, with the machine they ran on."""
    machine = rows[0]["summary"]["machine"]
    where = machine["cuda"] or f"{processor()}, {machine['threads']} threads"
    lines = [
        f"{rows[0]['summary']['task']}; {where}; Python {machine['python']}, torch {machine['torch']}",
        "",
        "| run | options | best val IoU | seconds | images | to 0.90 | to 0.92 | to 0.94 | step share |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        seconds = ["-" if s is None else f"{s:.0f}" for s in row["reached"].values()]
        cells = [
            row["name"],
            f"`{' '.join(row['arguments'])}`",
            f"{row['summary']['mean_iou']:.4f}",
            f"{row['summary']['seconds']:.0f}",
            str(row["images"]),
            *seconds,
            f"{row['step_share']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
