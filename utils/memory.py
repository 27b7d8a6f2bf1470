"""How much memory this machine lets the program have."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def memory_limit(membership: Path = _MEMBERSHIP, groups: Path = _CONTROL_GROUPS) -> int:
    """Bytes of the machine's memory, or of the least limit that a container or a job scheduler sets (Linux).

    What is in use at the moment does not count, so that a program decides alike each time.

    Args:
        membership: the file that tells the control groups of this process, ``/proc/self/cgroup``.
        groups: the folder of the control groups.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _limit_files(membership, groups):
        with suppress(OSError, ValueError):  # no such file; or "max", which is no limit
            limits.append(int(file.read_text()))
    return min(limits)


def _limit_files(membership: Path, groups: Path) -> Iterator[Path]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # NUMBER:CONTROLLERS:/PATH; version 2 names no controllers
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        group = root / path.strip("/")
        # A limit of a group holds for those in it too. A container may see its own group as the root only.
        yield from (folder / name for folder in (group, *group.parents) if folder.is_relative_to(root))
