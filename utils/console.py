"""Print the results of a command."""

import os
import sys


def say(text: str) -> None:
    """Write text to the standard output, where it is seen before what comes next, which may fail.

    Names of files that are no text have question marks. A reader that has gone away, as that of ``| head -1`` does, is
    no error: the rest of the output is dropped, and the command goes on to write its files.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # also for what Python flushes as it ends
        os.close(nowhere)
