"""The command line of programs that read no configuration, and what they print."""

import argparse
import os
import sys


def command_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser whose help shows both texts as they are, and which takes no option for another that it begins.

    Example:
        >>> command_parser("python -m evaluation", "Rank.", "examples:").prog
        'python -m evaluation'
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


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
