"""Errors that the user can mend: entry points print their message and exit with status 2, without a traceback."""


class UserError(ValueError):
    """Bad input. The message names the offending file, key or value, what was expected, and the way out."""

    def __str__(self) -> str:
        # KeyError and FileNotFoundError, mixed in below, would quote or reformat the message.
        return " ".join(str(arg) for arg in self.args)


class NoValidQueryError(UserError):
    """No query of an evaluation has a gallery item that is relevant to it."""


class MissingPathError(UserError, FileNotFoundError):
    """A file or folder that the configuration names does not exist."""


class UnknownNameError(UserError, KeyError):
    """A name that is not one of a fixed list; the message lists the valid ones."""


class ConfigError(UserError):
    """A bad key, value or configuration file. The message names it, what was expected, and the way out."""


class CheckpointError(UserError):
    """A file that is not the checkpoint it should be; the message says what it is and what was expected."""
