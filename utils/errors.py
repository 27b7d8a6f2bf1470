"""Errors that the user can fix: entry points print the message and exit with status 2, without a traceback."""


class UserError(ValueError):
    """Bad input. The message names the offending file, key or value, what was expected, and how to fix it."""

    def __str__(self) -> str:
        # KeyError and FileNotFoundError, which classes below inherit from, would quote or reformat the message.
        return " ".join(str(arg) for arg in self.args)


class NoValidQueryError(UserError):
    """No query of an evaluation has a relevant gallery item."""


class MissingPathError(UserError, FileNotFoundError):
    """A file or folder that the configuration names does not exist."""


class MissingFolderError(MissingPathError, RuntimeError):
    """A folder of a data set does not exist; a RuntimeError too, as programs that check their folders expect."""


class UnknownNameError(UserError, KeyError):
    """A name that is not one of a fixed list; the message lists the valid ones."""


class ConfigError(UserError):
    """A bad key, value or configuration file. The message names it, what was expected, and how to fix it."""


class CheckpointError(UserError):
    """A file that is not the expected kind of checkpoint; the message says what it is and what was expected."""


class NotACtlCheckpointError(CheckpointError):
    """A readable file that holds something else than a whole trained model, such as the weights of a backbone."""
