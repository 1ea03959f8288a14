"""What a program has written into a folder that may hold files of others: it replaces and removes that alone."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from medvlsm_jax import atomic
from medvlsm_jax.errors import UserError

RECORD = ".written.jsonl"  # in the folder: an object a line, with the file's name below it and its sha256


class Written:
    """The record of what programs of ours wrote into a folder.

    A name is recorded before its file takes its place, so that a killed program finds its own files again.

    Attributes:
        flag: that names the folder.
        folder: need not exist.
        digests: name below the folder -> of each content that was written under it.
    """

    def __init__(self, flag: str, folder: Path):
        self.flag, self.folder = flag, folder
        self._lock = threading.Lock()
        self.digests: dict[str, set[str]] = {}
        for line in read_lines(folder / RECORD):
            self.digests.setdefault(line["name"], set()).add(line["sha256"])

    def is_ours(self, name: str) -> bool:
        """Whether a file is there as it was written: neither another's nor changed since."""
        path = self.folder / name
        return name in self.digests and path.is_file() and digest_of(path) in self.digests[name]

    def check(self, names: Iterable[str]) -> None:
        """Raises a UserError for the first of some names that is of a file of others."""
        for name in names:
            if os.path.lexists(self.folder / name) and not self.is_ours(name):
                raise UserError(
                    f"{self.flag}={self.folder} holds {name}, which this program has not written, or which was changed "
                    "since: choose another folder, or move the file away"
                )

    def adopt(self, names: Iterable[str]) -> None:
        """Takes files that are there for ours, of which another sign says so, unless they are recorded already."""
        found = [name for name in names if name not in self.digests and (self.folder / name).is_file()]
        self._record(self.folder, found)

    @contextlib.contextmanager
    def adding(self) -> Iterator[Path]:
        """A folder whose files take their places when the block ends well; raises UserError as `check`, or for a disk.

        Nothing of others is replaced, and nothing at all when one file would. Threads may be in blocks at once.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic.temporary_folder(self.folder) as staged:
                yield staged
                names = sorted(str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file())
                with self._lock:
                    self.check(names)
                    self._record(staged, names)
                    for name in names:
                        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                        os.replace(staged / name, self.folder / name)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(
                f"{self.flag}={self.folder} cannot be written ({reason}): choose another folder, or make room"
            ) from error

    def _record(self, folder: Path, names: Iterable[str]) -> None:
        with (self.folder / RECORD).open("a", encoding="utf-8") as record:
            for name in names:
                digest = digest_of(folder / name)
                if digest not in self.digests.setdefault(name, set()):
                    self.digests[name].add(digest)
                    record.write(json.dumps({"name": name, "sha256": digest}) + "\n")

    def remove_others(self, kept: Collection[Path]) -> None:
        """Removes what was written here, but for some files below the folder, and for what was changed since."""
        for name in self.digests:
            if self.folder / name not in kept and self.is_ours(name):
                (self.folder / name).unlink()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a record; of a killed program, the last one may be a half."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def digest_of(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
