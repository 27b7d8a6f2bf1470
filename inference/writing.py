"""Files that appear whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import UserError


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``, to be written inside the block; moved to ``path`` when the block ends well.

    Makes the folder. Nothing is left when the block raises; what was at ``path`` before then stays.

    Raises:
        UserError: the folder cannot be written to; the message names the file.
    """
    path = Path(path)
    # The ending stays, for programs that go by it.
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, UserError):  # of what the block read
            raise
        raise UserError(f"{path} cannot be written ({error}); choose another output folder.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
