"""The command line: the only place that parses arguments.

torch is imported once a command is chosen and its arguments are understood, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .arguments import Command, choose, read, read_known
from .config import AUGMENTATIONS, PRESETS, Device, Output, Task, TrainConfig, load_config
from .errors import ConfigError, ElsewhereError, LostRankError, UserError

DESCRIPTION = """\
Train a box regressor and show what came of it.

  reference_trainer train                      the toy task, nothing needed
  reference_trainer train --task grid          the same with up to six objects a picture, of three classes
  reference_trainer train --data PATH          your pictures: YOLO, COCO or Pascal VOC
  reference_trainer train --preset baseline    the set-up that got stuck
  reference_trainer resume RUN                 go on with a run that was stopped, exactly where it was
  reference_trainer resume RUN --epochs N      train further
  reference_trainer replay RUN                 see again what was not finite
  reference_trainer audit [RUN]                what is wrong with a configuration or a run
  reference_trainer overfit [1..8]             can so few pictures be learnt by heart?
  reference_trainer ablate                     which recommendation helps, each one added and removed alone
  reference_trainer evaluate RUN
  reference_trainer predict RUN PICTURE ...    pictures, or folders of them
  reference_trainer export RUN                 as ONNX and torch.export programs, with weights and a card
  reference_trainer data check PATH            list all that is wrong with your pictures and labels
  reference_trainer data write FOLDER          write the toy pictures as a YOLO folder

COMMAND --help lists a command's options. The last line on standard output is one JSON object.
"""

DATA_DESCRIPTION = """\
usage: reference_trainer data check|write

  reference_trainer data check PATH     list all that is wrong with a data set: YOLO, COCO or Pascal VOC
  reference_trainer data write FOLDER   write the toy pictures as a YOLO folder

data check --help and data write --help list their options.
"""

MOST_OVERFITTED = 8
"""Pictures that `overfit` may be asked to learn."""

STOPPED = {"SIGINT": 130, "SIGTERM": 143}
"""Exit codes of a run that a signal stopped."""

LOST = 1
"""Exit code of a run that could not save all that it should, or that has lost one of its processes."""


@dataclass(frozen=True)
class BaseOptions:
    """Where a training's settings come from, before single options change them."""

    preset: Literal["reference", "baseline", "grid", "photos"] | None = None
    """reference: one box a picture, the whole recipe; baseline: the set-up that got stuck, with its faults;
    grid: any number of boxes; photos: the same for pictures of your own."""
    config: Path | None = None
    """A configuration file to start from instead, such as the config.yaml of a run."""
    augmentation: Literal["off", "light", "default", "heavy"] | None = None
    """How strongly training pictures vary: sets all --augment options, before single ones change them."""
    task: Task | None = None
    """See TrainConfig; without a preset it decides which."""
    data: Annotated[Path | None, tyro.conf.arg(aliases=["--data.path"])] = None
    """See DataConfig; its boxes decide the task if nobody does."""


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a run exactly where it was last saved; what comes of it is as if it had never stopped."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    epochs: int | None = None
    """Train for so many epochs in all: a finished run goes on, its learning rate that of a run of so many."""
    workers: int | None = None
    """Processes that augment pictures from here on; they change no result."""
    device: Device | None = None
    """Where to train from here on; by default where the run was."""


@dataclass(frozen=True)
class ReplayOptions:
    """Meet the batch again whose loss or gradient was not finite, and name what is not; ends with 1 then."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""


@dataclass(frozen=True)
class AuditOptions(BaseOptions):
    """Find out what keeps a set-up from learning: a preset, a file or a run, and settings changed in it.

    Ends with 0 if nothing above info was found, with 3 after warnings and with 4 after errors.
    """

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all findings as one JSON object, with their severity, evidence and fix."""


@dataclass(frozen=True)
class OverfitOptions(BaseOptions):
    """Learn a few pictures by heart, and say what is to blame if that fails; other options change settings.

    Ends with 0 if every box came to an IoU of 0.99, with 1 otherwise.
    """

    pictures: int = 8
    """Pictures to learn, 1 to 8; the first argument says it too."""
    seconds: float = 60.0
    """Time after which it has failed."""


@dataclass(frozen=True)
class FolderOption:
    """Where an ablation is kept."""

    out: Path = Path("ablation")
    """Folder for its lines, its table and its picture; one that has lines goes on with its own settings."""


@dataclass(frozen=True)
class AblateOptions(FolderOption):
    """Train each recommendation added alone to baseline and removed alone from reference.

    Rows are compared seed by seed. A run that is there already is not trained again: the same command goes
    on, and at the end it makes the table and the picture anew.
    """

    rows: tuple[str, ...] = ()
    """Only rows of these names, such as 'reference - *', and those that they are compared with."""
    seeds: int = 5
    """Runs of each row."""
    epochs: int = 12
    """Passes of each run."""
    size: int = 64
    """Side of the pictures in pixels."""
    pictures: int | None = 300
    """Toy pictures; not with data."""
    width: int = 8
    """Channels of the first stage."""
    data: Path | None = None
    """Your own pictures, with one box each, instead."""
    device: Device = "cpu"
    """Where to train."""
    threads: int = 1
    """Threads of each run; another number changes the order of sums, and with it the results."""
    jobs: int | None = None
    """Runs side by side; by default as many as the cores allow."""
    table_only: tyro.conf.FlagCreatePairsOff[bool] = False
    """Train nothing: make table and picture of what is there."""
    keep_runs: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave each run's folder, with its weights, in OUT/runs."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Score a run's weights on its validation pictures."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: Path | None = None
    """Another data set to score on, instead of the one trained on."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""


@dataclass(frozen=True)
class PredictOptions:
    """Find the boxes in pictures; draw them, and write them as JSON in the pictures' own pixels."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or an ONNX file that export wrote."""
    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files, or folders: their pictures at any depth."""
    out: Path | None = None
    """Folder for the drawings and predictions.json; by default RUN/predictions, or beside the
    ONNX file."""
    confidence: float | None = None
    """Task grid: of the least sure box; by default the one with the best F1 in validation."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA where there is one."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's network as ONNX and torch.export programs, with its weights and a model card.

    The programs are compared with the network on validation pictures; if one differs by more than 1e-4,
    nothing is written. Takes the extra onnx.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    output: Output = "boxes"
    """boxes: decoded, with scores, overlapping ones left in; detections: those that NMS leaves of them, from
    the confidence on that had the best F1 in validation; raw: the numbers before the decoder."""
    out: Path | None = None
    """Folder for the files; by default RUN/export."""
    data: Path | None = None
    """Another data set to compare on, where the run's own is not at hand."""


@dataclass(frozen=True)
class CheckOptions:
    """List all that is wrong with a data set; every picture is decoded. Ends with 1 if anything is."""

    path: tyro.conf.Positional[Path]
    """YOLO (a folder with data.yaml), COCO (a JSON file or its folder) or Pascal VOC (a folder)."""


@dataclass(frozen=True)
class WriteOptions:
    """Write the toy pictures as a YOLO folder with a data.yaml."""

    path: tyro.conf.Positional[Path]
    """Folder to make."""
    pictures: int = 1200
    """Pictures to draw: four fifths to train on, the rest to validate."""
    size: int = 128
    """Side of a picture in pixels."""
    seed: int = 0
    """Decides the pictures."""
    objects: int = 1
    """Most objects in a picture; above 1, one picture in twenty has none."""


def starting_point(base: BaseOptions, looks_at_data: bool) -> TrainConfig:
    """The settings to start from; the data may be looked at to choose the task.

    Raises:
        ConfigError: if the options contradict each other.
        DataError: if nothing is said of the task, and the data cannot be read to see.
    """
    if base.preset and base.config:
        raise ConfigError("--preset and --config both say where to start; give one of them")
    if base.config or base.preset:
        start = load_config(base.config) if base.config else PRESETS[base.preset or ""]
        if base.task not in (None, start.task):
            where = base.config or f"preset {base.preset!r}"
            raise ConfigError(f"task: got {base.task!r}, but {where} is of task {start.task!r}")
        return start
    task = base.task
    # That there is no such file is said once the other options are understood.
    if task is None and base.data and base.data.exists() and looks_at_data:
        from .data.opening import task_for
        from .report import say

        task, why = task_for(base.data)
        if first_here():
            say(f"task {task}: {why}")
    if task == "grid":
        return PRESETS["photos" if base.data else "grid"]
    return PRESETS["reference"]


def settings(base: BaseOptions, rest: list[str], command: str) -> TrainConfig:
    """The settings of a command: where they come from, changed by the arguments that are left.

    Raises:
        ConfigError: if it is not clear where to start.
        DataError: see `starting_point`.
    """
    looks = command == "train" and {"-h", "--help"}.isdisjoint(rest)
    default = starting_point(base, looks_at_data=looks)
    if base.augmentation:
        default = default.model_copy(update={"augment": AUGMENTATIONS[base.augmentation]})
    return read(
        TrainConfig,
        [*rest, *(["--data", str(base.data)] if base.data else [])],
        command,
        beside=type(base),
        default=default,
        prog=f"reference_trainer {command} [--preset NAME | --config FILE] [--augmentation NAME]",
        description="Train a box regressor. Options change the preset's settings, shown as defaults below.",
    )


def first_here() -> bool:
    """Whether this is the only process, or the first of those that torchrun starts on this machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


@contextmanager
def said_once() -> Iterator[None]:
    """What is wrong with arguments, all processes that torchrun starts here find; the first one says it."""
    try:
        yield
    except (UserError, OSError) as error:
        if first_here():
            raise
        raise ElsewhereError from error


def train(arguments: list[str]) -> int:
    """The command `train`."""
    with said_once():
        base, rest = read_known(BaseOptions, arguments, "train", add_help=False)
        config = settings(base, rest, "train")

    from .train import train as run

    return report_end(run(config))


def resume(arguments: list[str]) -> int:
    """The command `resume`."""
    with said_once():
        options = read(ResumeOptions, arguments, "resume")

    from .train import resume as run

    return report_end(run(options.run, options.epochs, options.workers, options.device))


def report_end(summary: dict[str, Any]) -> int:
    """Print what came of a training run; returns the exit code. Nothing came of it if rank 0 says it."""
    if not summary:
        return 0
    from .report import print_result

    lost = ["lost"] if summary["lost"] else []
    print_result({key: summary[key] for key in ("run", "task", *summary["shown"], "seconds", *lost)})
    if lost:
        return LOST
    return STOPPED[summary["stopped_by"]] if summary["stopped_by"] else 0


def replay(arguments: list[str]) -> int:
    """The command `replay`."""
    options = read(ReplayOptions, arguments, "replay")

    from .nonfinite import replay as run
    from .report import print_result

    result, lines = run(options.run, options.device)
    print("\n".join(lines))
    print_result(result)
    return 0 if result["finite"] else 1


def audit(arguments: list[str]) -> int:
    """The command `audit`: its first argument may be the folder of a run."""
    folder = Path(arguments[0]) if arguments and not arguments[0].startswith("-") else None
    options, rest = read_known(
        AuditOptions, arguments[1:] if folder else arguments, "audit", prog="reference_trainer audit [RUN]"
    )
    if folder and (rest or options.preset or options.config or options.task or options.data):
        raise ConfigError("a run has its own configuration: give RUN, or --preset, --config and settings")
    config = TrainConfig() if folder else settings(options, rest, "audit")

    from .audit import EXIT_CODES, audit_config, audit_run
    from .report import print_result

    report = audit_run(folder) if folder else audit_config(config)
    if options.json:
        print_result(report.as_dict())
    else:
        print(report)
        print_result({"worst": report.worst, "findings": [finding.check for finding in report.findings]})
    return EXIT_CODES[report.worst]


def overfit(arguments: list[str]) -> int:
    """The command `overfit`: its first argument may be the number of pictures."""
    if arguments and not arguments[0].startswith(
        "-"
    ):  # a bare number; the settings that follow are not this command's own
        arguments = ["--pictures", *arguments]
    options, rest = read_known(OverfitOptions, arguments, "overfit")
    if not 1 <= options.pictures <= MOST_OVERFITTED:
        raise UserError(f"PICTURES: got {options.pictures}, expected 1 to {MOST_OVERFITTED}")
    config = settings(options, rest, "overfit")

    from .overfit import overfit_config
    from .report import print_result

    report = overfit_config(config, options.pictures, options.seconds)
    print(report)
    print_result(report.as_dict())
    return 0 if report.reached else 1


def ablate(arguments: list[str]) -> int:
    """The command `ablate`."""
    default = AblateOptions()
    if {"-h", "--help"}.isdisjoint(arguments):
        folder = read_known(FolderOption, arguments, "ablate", add_help=False)[0]

        from .ablation.lines import Lines

        before = Lines(folder.out).common
        default = AblateOptions(**asdict(before)) if before else default
    options = read(AblateOptions, arguments, "ablate", default=default)
    for name in ("seeds", "threads", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name}: got {value}, expected at least 1")

    from .ablation import ablate as run
    from .ablation.plan import Common
    from .report import print_result

    common = Common(**{field.name: getattr(options, field.name) for field in fields(Common)})
    side_by_side = options.jobs or max((os.cpu_count() or 1) // options.threads, 1)
    print_result(run(options.out, common, side_by_side, options.table_only, options.keep_runs))
    return 0


def evaluate(arguments: list[str]) -> int:
    """The command `evaluate`."""
    options = read(EvaluateOptions, arguments, "evaluate")

    from .evaluate import evaluate_run
    from .report import print_result

    print_result(evaluate_run(options.run, options.data, options.device))
    return 0


def predict(arguments: list[str]) -> int:
    """The command `predict`."""
    options = read(PredictOptions, arguments, "predict")
    if not options.pictures:
        raise UserError("PICTURES: got none, expected at least one picture file")

    from .predict import predict_run
    from .report import print_result

    print_result(predict_run(options.run, options.pictures, options.out, options.device, options.confidence))
    return 0


def export(arguments: list[str]) -> int:
    """The command `export`."""
    options = read(ExportOptions, arguments, "export")

    from .export import export_run
    from .report import print_result

    print_result(export_run(options.run, options.out, options.output, options.data))
    return 0


def data(arguments: list[str]) -> int:
    """The command `data`: its first argument says what about it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(DATA_DESCRIPTION, end="")
        return 0
    return choose(arguments[0], DATA_COMMANDS, "data ")(arguments[1:])


def check(arguments: list[str]) -> int:
    """The command `data check`."""
    options = read(CheckOptions, arguments, "data check")

    from .data.checking import check_data
    from .report import print_result

    result, lines = check_data(options.path)
    for line in lines:
        print(line)
    print_result(result)
    return 1 if result["problems"] else 0


def write(arguments: list[str]) -> int:
    """The command `data write`."""
    options = read(WriteOptions, arguments, "data write")

    from .data import toy_splits, write_yolo_folder
    from .data.toy import MIN_SIDE
    from .report import print_result

    for name, least in (("pictures", 5), ("size", MIN_SIDE), ("objects", 1)):
        if getattr(options, name) < least:
            raise UserError(f"{name}: got {getattr(options, name)}, expected at least {least}")
    try:
        splits = toy_splits(options.pictures, options.size, options.seed, options.objects)
        write_yolo_folder(splits, options.path)
    except (FileExistsError, ValueError) as error:
        raise UserError(str(error)) from error
    print_result({"data": str(options.path)} | {name: len(split) for name, split in splits.items()})
    return 0


DATA_COMMANDS: dict[str, Command] = {"check": check, "write": write}

COMMANDS: dict[str, Command] = {
    "train": train,
    "resume": resume,
    "replay": replay,
    "audit": audit,
    "overfit": overfit,
    "ablate": ablate,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "data": data,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(DESCRIPTION, end="")
        return 0
    # A wrong value is named with what was expected; pydantic's web page about it says no more.
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    try:
        return choose(command, COMMANDS)(arguments[1:])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED["SIGINT"]
    except ElsewhereError:
        # torchrun would end the process that has found it, too, if this one failed before.
        return 0
    except (UserError, OSError) as error:
        known = f" {command}" if command in COMMANDS else ""
        process = f" rank {os.environ['RANK']}:" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        print(f"reference_trainer{known}:{process} {error}", file=sys.stderr)
        return LOST if isinstance(error, LostRankError) else 2


if __name__ == "__main__":
    sys.exit(main())
