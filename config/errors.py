"""The error of a configuration that cannot be used."""


class ConfigError(ValueError):
    """A bad key, value or configuration file. The message names it, what was expected, and the way out."""
