"""The commands that find out what helps and what hinders: `audit`, `overfit` and `ablate`."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import tyro

from ..config import Device, TrainConfig
from ..errors import ConfigError, UserError
from .arguments import read, read_known
from .settings import BaseOptions, settings

MOST_OVERFITTED = 8
"""Images that `overfit` may be asked to learn."""

TOYS = 300
"""Toy images that `ablate` trains on."""


@dataclass(frozen=True)
class AuditOptions(BaseOptions):
    """Find out what keeps a set-up from learning: a preset, a file or a run, and settings changed in it.

    Ends with 0 if nothing above info was found, with 3 after warnings and with 4 after errors.
    """

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all findings as one JSON object, with their severity, evidence and fix."""


@dataclass(frozen=True)
class OverfitOptions(BaseOptions):
    """Learn a few images by heart, and say what is to blame if that fails; other options change settings.

    Ends with 0 if every box came to an IoU of 0.99, with 1 otherwise.
    """

    images: int = 8
    """Images to learn, 1 to 8; the first argument says it too."""
    seconds: float = 60.0
    """Time after which it has failed."""


@dataclass(frozen=True)
class FolderOption:
    """Where an ablation is kept."""

    out: Path = Path("ablation")
    """Folder for its lines, its table and its figure; one that has lines goes on with its own settings."""


@dataclass(frozen=True)
class AblateOptions(FolderOption):
    """Train each recommendation added alone to baseline and removed alone from reference.

    Rows are compared seed by seed. A run that is there already is not trained again: the same command goes
    on, and at the end it makes the table and the figure anew.
    """

    rows: tuple[str, ...] = ()
    """Only rows of these names, such as 'reference - *', and those that they are compared with."""
    seeds: int = 5
    """Runs of each row."""
    epochs: int = 12
    """Passes of each run."""
    size: int = 64
    """Side of the images in pixels."""
    images: int | None = None
    """Toy images; 300 if there is no data."""
    width: int = 8
    """Channels of the first stage."""
    data: Path | None = None
    """Your own images, with one box each, instead."""
    device: Device = "cpu"
    """Where to train."""
    threads: int = 1
    """Threads of each run; another number changes the order of sums, and with it the results."""
    jobs: int | None = None
    """Runs side by side; by default as many as the cores allow."""
    table_only: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train nothing: make table and figure of what is there."""
    keep_runs: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave each run's folder, with its weights, in OUT/runs."""


def audit(arguments: list[str]) -> int:
    """The command `audit`: its first argument may be the folder of a run."""
    folder = Path(arguments[0]) if arguments and not arguments[0].startswith("-") else None
    options, rest = read_known(
        AuditOptions, arguments[1:] if folder else arguments, "audit", prog="reference_trainer audit [RUN]"
    )
    if folder and (rest or options.preset or options.config or options.task or options.data):
        raise ConfigError("a run has its own configuration: give RUN, or --preset, --config and settings")
    config = TrainConfig() if folder else settings(options, rest, "audit")

    from ..audit import EXIT_CODES, audit_config, audit_run
    from ..report import print_result

    report = audit_run(folder) if folder else audit_config(config)
    if options.json:
        print_result(report.as_dict())
    else:
        print(report)
        print_result({"worst": report.worst, "findings": [finding.check for finding in report.findings]})
    return EXIT_CODES[report.worst]


def overfit(arguments: list[str]) -> int:
    """The command `overfit`: its first argument may be the number of images."""
    # A bare number; the settings that follow are not this command's own.
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--images", *arguments]
    options, rest = read_known(OverfitOptions, arguments, "overfit")
    if not 1 <= options.images <= MOST_OVERFITTED:
        raise UserError(f"IMAGES: got {options.images}, expected 1 to {MOST_OVERFITTED}")
    config = settings(options, rest, "overfit")

    from ..overfit import overfit_config
    from ..report import print_result

    report = overfit_config(config, options.images, options.seconds)
    print(report)
    print_result(report.as_dict())
    return 0 if report.reached else 1


def ablate(arguments: list[str]) -> int:
    """The command `ablate`."""
    default = AblateOptions()
    if {"-h", "--help"}.isdisjoint(arguments):
        folder = read_known(FolderOption, arguments, "ablate", add_help=False)[0]

        from ..ablation.lines import Lines

        before = Lines(folder.out).common
        default = AblateOptions(**asdict(before)) if before else default
    options = read(AblateOptions, arguments, "ablate", default=default)
    for name in ("seeds", "threads", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name}: got {value}, expected at least 1")

    from ..ablation import ablate as run
    from ..ablation.plan import Common
    from ..report import print_result

    common = Common(**{field.name: getattr(options, field.name) for field in fields(Common)})
    if common.data is None and common.images is None:
        common = replace(common, images=TOYS)
    side_by_side = options.jobs or max((os.cpu_count() or 1) // options.threads, 1)
    print_result(run(options.out, common, side_by_side, options.table_only, options.keep_runs))
    return 0
