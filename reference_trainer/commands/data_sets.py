"""The commands about datasets: `data check` and `data write`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ..errors import UserError
from ..files import not_there
from .arguments import Command, choose, read

DATA_DESCRIPTION = """\
usage: reference_trainer data check|write

  reference_trainer data check PATH     list all that is wrong with a dataset: YOLO, COCO or Pascal VOC
  reference_trainer data write FOLDER   write the toy images as a YOLO folder

data check --help and data write --help list their options.
"""


@dataclass(frozen=True)
class CheckOptions:
    """List all that is wrong with a dataset; every image is decoded. Ends with 1 if anything is."""

    path: tyro.conf.Positional[Path]
    """YOLO (a folder with data.yaml), COCO (a JSON file or its folder) or Pascal VOC (a folder)."""


@dataclass(frozen=True)
class WriteOptions:
    """Write the toy images as a YOLO folder with a data.yaml."""

    path: tyro.conf.Positional[Path]
    """Folder to make."""
    images: int = 1200
    """Images to draw: four fifths to train on, the rest to validate."""
    size: int = 128
    """Side of an image in pixels."""
    seed: int = 0
    """Decides the images."""
    objects: int = 1
    """Most objects in an image; above 1, one image in twenty has none."""


def check(arguments: list[str]) -> int:
    """The command `data check`."""
    options = read(CheckOptions, arguments, "data check")

    if not options.path.exists():
        raise UserError(not_there(options.path))

    from ..data.checking import check_data
    from ..report import print_result

    result, lines = check_data(options.path)
    for line in lines:
        print(line)
    print_result(result)
    return 1 if result["problems"] else 0


def write(arguments: list[str]) -> int:
    """The command `data write`."""
    options = read(WriteOptions, arguments, "data write")

    from ..data import toy_splits, write_yolo_folder
    from ..data.toy import MIN_SIDE
    from ..report import print_result

    for name, least in (("images", 5), ("size", MIN_SIDE), ("objects", 1)):
        if getattr(options, name) < least:
            raise UserError(f"{name}: got {getattr(options, name)}, expected at least {least}")
    try:
        splits = toy_splits(options.images, options.size, options.seed, options.objects)
        write_yolo_folder(splits, options.path)
    except (FileExistsError, ValueError) as error:
        raise UserError(str(error)) from error
    print_result({"data": str(options.path)} | {name: len(split) for name, split in splits.items()})
    return 0


DATA_COMMANDS: dict[str, Command] = {"check": check, "write": write}


def data(arguments: list[str]) -> int:
    """The command `data`: its first argument says what about it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(DATA_DESCRIPTION, end="")
        return 0
    return choose(arguments[0], DATA_COMMANDS, "data ")(arguments[1:])
