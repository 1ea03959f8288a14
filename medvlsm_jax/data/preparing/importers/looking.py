"""What a folder looks like: names and json files that tell its format, and its splits."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from medvlsm_jax.data.preparing.importers.layout import DEPTH, is_junk, walk
from medvlsm_jax.data.preparing.own_splits import NAMES

HEAD = 1 << 20  # bytes of a json file in which its first keys are looked for
KEY = re.compile(rb'"(\w+)"\s*:')
SPLIT = re.compile(rf"(?<![a-z])({'|'.join(NAMES)})(?![a-z])")


def json_files(raw: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The json files of a folder and of those in it, the nearest first."""
    for folder in walk(raw, depth):
        with os.scandir(folder) as entries:
            names = sorted(x.name for x in entries if x.name.lower().endswith(".json") and not is_junk(x.name))
        yield from (folder / name for name in names)


def json_keys(path: Path) -> set[str]:
    """The keys at the two ends of a json file, of all levels; a large one is not read for it."""
    with path.open("rb") as file:
        found = file.read(HEAD)
        if file.seek(0, os.SEEK_END) > HEAD:
            file.seek(-HEAD, os.SEEK_END)
            found += file.read()
    return {key.decode() for key in KEY.findall(found)}


def split_of(path: Path, raw: Path) -> str:
    """The split that the name of a file or of its folders below `raw` tells, the nearest first; else empty."""
    parts = path.relative_to(raw).with_suffix("").parts if path.is_relative_to(raw) else (path.stem,)
    for part in reversed(parts):
        if match := SPLIT.search(part.lower()):
            return NAMES[match[1]]
    return ""
