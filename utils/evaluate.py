"""A door: ``python -m utils.evaluate`` is ``python -m evaluation``."""

import sys

from evaluation.__main__ import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
