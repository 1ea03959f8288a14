"""Files that are whole or not there at all."""

import csv
import io
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` for a file or a folder, which becomes `path` when the block ends well and is else removed.

    Its name is drawn, for a process id is not enough: programs on two hosts, or in two containers, have the same ones.
    A folder can take the place of a file or of an empty folder only; what else is there has to go within the block.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short, for `path` may have the longest name there is
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder in another one, which is gone with the block."""
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(folder: Path, age: float = 3600.0) -> None:
    """Removes what `replacing` had begun in a folder, or below it, when a run was killed.

    Only files that nobody has written to for `age` seconds: another program may be at work in the folder.
    """
    for path in folder.rglob(".*.tmp"):
        with suppress(OSError):  # it was another program's, which is done with it
            if TEMPORARY.fullmatch(path.name) and path.is_file() and time.time() - path.stat().st_mtime > age:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file through a temporary one beside it, so that a killed run leaves the old content or the new.

    Makes its folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Writes rows of cells, the header first, as `write_text` does."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
