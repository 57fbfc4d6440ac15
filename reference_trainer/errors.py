"""What the person at the keyboard can mend: shown as a message, without a traceback."""


class UserError(ValueError):
    """Something given to the program cannot be used; the message says what, and what was expected."""


class ConfigError(UserError):
    """A configuration that contradicts itself, or that this machine cannot meet."""


class CheckpointError(UserError):
    """A run folder that cannot be used."""


class LostRankError(UserError):
    """One of the ranks is gone."""


class ElsewhereError(UserError):
    """An error that another rank has found, too, and says."""
