"""How much may be kept in shared memory or on a disk: what its file system has free, and the job's memory leaves."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

SHARED_MEMORY = Path("/dev/shm")  # of Linux; elsewhere the folder for temporary files stands in
RUN_SHARE = 0.5  # of the memory that is left, for what a run comes to need besides
ROOT = Path("/")  # of the file system in which the kernel tells of memory


class Room(NamedTuple):
    """Bytes that may be taken, and what it is that has no more: a folder, or a limit."""

    free: int
    of: str


class Groups(NamedTuple):
    """Control groups of one version.

    Attributes:
        mount: where they lie.
        line: a pattern of the line of /proc/self/cgroup that names the one of this process.
        limit: the file with the largest number of bytes.
        use: the file with the present one.
        dropped: what of the use, in memory.stat, are files that the kernel can drop.
    """

    mount: str
    line: str
    limit: str
    use: str
    dropped: tuple[str, ...]


VERSIONS = (
    Groups("sys/fs/cgroup", "^0::(.*)$", "memory.max", "memory.current", ("inactive_file", "active_file")),
    Groups(
        "sys/fs/cgroup/memory",
        r"^\d+:(?:.*,)?memory(?:,.*)?:(.*)$",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def memory() -> Path:
    """Where shared memory appears as files."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def find_room(folder: Path) -> Room:
    """The room for files in a folder.

    What lies in shared memory counts towards the memory of the job that wrote it, and a job that takes more than its
    limit is killed without a message; so it may take a part of what is left below that.
    """
    rooms = [Room(shutil.disk_usage(folder).free, str(folder))]
    if folder.is_relative_to(SHARED_MEMORY):
        rooms += [room._replace(free=int(RUN_SHARE * room.free)) for room in memory_left()]
        rooms[0] = rooms[0]._replace(of=str(SHARED_MEMORY))
    return min(rooms)


def memory_left() -> list[Room]:
    """What the machine's memory leaves, and each control group that this process is in, versions 1 and 2."""
    found = []
    if number := re.search(r"MemAvailable: +(\d+) kB", read(ROOT / "proc/meminfo")):
        found.append(Room(int(number[1]) * 1024, "this machine's memory"))
    for groups in VERSIONS:
        if place := re.search(groups.line, read(ROOT / "proc/self/cgroup"), re.MULTILINE):
            # In a container the place may be that outside of it, and what is mounted its own group.
            top = ROOT / groups.mount
            inner = top / place[1].lstrip("/")
            folders = [folder for folder in (inner, *inner.parents) if folder.is_relative_to(top)]
            left = [free for folder in folders if (free := group_left(folder, groups)) is not None]
            found += [Room(free, "this job's memory limit") for free in left]
    return found


def group_left(folder: Path, groups: Groups) -> int | None:
    """What one control group leaves of its memory; None where it has no limit."""
    limit, use = (read(folder / name).strip() for name in (groups.limit, groups.use))
    if not limit.isdecimal() or not use.isdecimal():  # `max`, or no such file
        return None
    counts = dict(re.findall(r"^(\w+) (\d+)$", read(folder / "memory.stat"), re.MULTILINE))
    return max(0, int(limit) - int(use) + sum(int(counts.get(name, 0)) for name in groups.dropped))


def read(path: Path) -> str:
    """A file of the kernel's; empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
