"""Files that are whole or not there at all."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a text file through a temporary one beside it, so that a killed run leaves the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)
