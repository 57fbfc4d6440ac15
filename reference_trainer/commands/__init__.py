"""What the program can do: each command with its options, and the settings that they start from.

torch is imported once a command is chosen and its arguments are understood, so that `--help` answers at once.
"""

from .arguments import Command
from .data_sets import data
from .diagnosis import ablate, audit, overfit
from .training import replay, resume, train
from .using import evaluate, export, predict

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
