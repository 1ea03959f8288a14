"""Files that are whole or not there at all."""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a text file through a temporary one beside it, so that a killed run leaves the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Writes rows of cells, the header first, as `write_text` does; makes the folder."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())
