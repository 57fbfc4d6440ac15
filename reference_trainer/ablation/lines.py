"""What is kept of an ablation: a line for each run, and what the lines belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import parse_config
from ..errors import ConfigError, UserError
from ..files import write_whole
from .plan import Common, Job, digest_of, identity

RUNS, ABOUT = "runs.jsonl", "ablation.json"

Line = dict[str, Any]


class Lines:
    """The lines of a folder.

    `runs.jsonl` grows by a line when a run ends; `ablation.json` holds what is common to all rows, and the
    configuration that each digest in a line stands for.

    Args:
        folder: made when the first thing is written to it.

    Raises:
        UserError: if `ablation.json` cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.runs, self.about = folder / RUNS, folder / ABOUT
        self.common: Common | None = None
        self.configurations: dict[str, Any] = {}
        if self.about.exists():
            try:
                content = json.loads(self.about.read_text())
                self.common = Common.from_json(content["common"])
                self.configurations = content["configurations"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.about}: not what an ablation wrote: {error}") from error

    def read(self) -> list[Line]:
        """All whole lines: a kill may have torn one."""
        found = []
        for text in self.runs.read_text().splitlines() if self.runs.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            found.append(line)
        return found

    def describe(self, common: Common, jobs: Sequence[Job]) -> None:
        """Write down what the lines from now on belong to; configurations that no line has are left out."""
        self.about.parent.mkdir(parents=True, exist_ok=True)
        used = {line["digest"] for line in self.read()}
        kept = {digest: tree for digest, tree in self.configurations.items() if digest in used}
        self.configurations = kept | {job.digest: identity(job.config, common.threads) for job in jobs}
        content = json.dumps(common.as_json(), indent=1)
        trees = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self._sorted())
        text = f'{{"common": {content},\n"configurations": {{\n{trees}\n}}}}\n'
        write_whole(self.about, text.encode())

    def _sorted(self) -> list[tuple[str, Any]]:
        return sorted(self.configurations.items())

    def add(self, job: Job, result: Mapping[str, Any]) -> None:
        """Append the line of a run that has ended; it is on the disk when this returns."""
        text = json.dumps({"row": job.row, "seed": job.seed, "digest": job.digest, **result}, allow_nan=False)
        torn = self.runs.exists() and not self.runs.read_bytes().endswith(b"\n") and self.runs.stat().st_size
        with self.runs.open("a") as file:
            file.write(("\n" if torn else "") + text + "\n")
            file.flush()
            os.fsync(file.fileno())

    def of_jobs(self, jobs: Sequence[Job], threads: int) -> dict[tuple[str, int], Line]:
        """The lines that are of these jobs as they are now, by row and seed; the last counts.

        A line is stale if its configuration is not the job's any more. One that was written before a setting
        was added is as if it had that setting's default.
        """
        today = {digest: self._digest_today(tree) for digest, tree in self.configurations.items()}
        done = {(today.get(line["digest"], line["digest"]), line["seed"]): line for line in self.read()}
        keys = {(job.row, job.seed): (job.digest, job.seed) for job in jobs}
        return {name: done[key] for name, key in keys.items() if key in done}

    @staticmethod
    def _digest_today(tree: Mapping[str, Any]) -> str | None:
        try:
            return digest_of(identity(parse_config(tree["config"]), tree["threads"]))
        except ConfigError:
            return None
