"""Addresses in what is written or printed, without the user and the password that they may hold."""

import re

# user:password before the host. A password may hold "@" or, against the rules, "/"; host:port/path@version is neither.
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/?#]*|[^\s:/@]*:(?!\d+/)[^\s@]*)@")


def without_passwords(text: str) -> str:
    """A text whose addresses have ``***`` in place of user and password.

    >>> without_passwords("MLflow at https://me:secret@host:5000/x, sqlite:///mlflow.db")
    'MLflow at https://***@host:5000/x, sqlite:///mlflow.db'
    """
    return _USER_INFO.sub("***@", text)
