"""The command line: what the program says of itself, which command is meant, and how it ends."""

from __future__ import annotations

import os
import sys

from .commands import COMMANDS
from .commands.arguments import choose
from .commands.training import LOST, STOPPED
from .errors import ElsewhereError, LostRankError, UserError

DESCRIPTION = """\
Train a box regressor and show what came of it.

  reference_trainer train                      the toy task, nothing needed
  reference_trainer train --task grid          the same with up to six objects an image, of three classes
  reference_trainer train --data PATH          your images: YOLO, COCO or Pascal VOC
  reference_trainer train --preset baseline    the set-up that got stuck
  reference_trainer resume RUN                 go on with a run that was stopped, exactly where it was
  reference_trainer resume RUN --epochs N      train further
  reference_trainer replay RUN                 see again what was not finite
  reference_trainer audit [RUN]                what is wrong with a configuration or a run
  reference_trainer overfit [1..8]             can so few images be learnt by heart?
  reference_trainer ablate                     which recommendation helps, each one added and removed alone
  reference_trainer evaluate RUN
  reference_trainer predict RUN IMAGE ...      images, or folders of them
  reference_trainer export RUN                 as ONNX and torch.export programs, with weights and a card
  reference_trainer data check PATH            list all that is wrong with your images and labels
  reference_trainer data write FOLDER          write the toy images as a YOLO folder

COMMAND --help lists a command's options. The last line on standard output is one JSON object.
"""


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
        rank = f" rank {os.environ['RANK']}:" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        print(f"reference_trainer{known}:{rank} {_said(error)}", file=sys.stderr)
        return LOST if isinstance(error, LostRankError) else 2


def _said(error: UserError | OSError) -> str:
    """An error in words: those of the system come with a number first."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
