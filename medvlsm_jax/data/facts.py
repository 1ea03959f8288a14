"""What decoding an image or a mask once tells, remembered by its name, time and size.

A file that could not be used is tried anew each time, for the cause may have been the disk's or the permissions'.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medvlsm_jax import atomic
from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.decoding.decode import Decoded, decode
from medvlsm_jax.data.files import File
from medvlsm_jax.data.images import check_side, mask_channel, what_was_done
from medvlsm_jax.errors import UserError

VERSION = 2  # raise it when a file's facts are found in another way
MISSING = "is missing, but an annotation file names it: restore it or drop its record"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decoding a file once tells.

    Attributes:
        size: width and height in pixels.
        mode: Pillow's; of 16-bit colour with `;16` behind it.
        values: of a mask: `binary`, `grey`, or `faint` (none above 127).
        notes: of an image, what was done to read it; a line each that follows the file's name.
        is_turned: whether its EXIF orientation is another than upright.
        error: why it cannot be used; the other facts are then not known.
    """

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    values: str = ""
    notes: tuple[str, ...] = ()
    is_turned: bool = False
    error: str = ""


Key = tuple[str, bool]  # a file's name, and whether it is a mask
Stamp = tuple[int, int]  # time of the last change in ns, and size in bytes
Known = dict[Key, tuple[Stamp, Facts]]


def read_facts(records: Sequence[Record], cache: Path | None, workers: int | None = None) -> dict[Key, Facts]:
    """The facts of every image and mask of the records, each found once, in threads: Pillow decodes outside the GIL."""
    files = {(str(file), is_mask): file for r in records for file, is_mask in ((r.image, False), (r.mask, True))}
    known = read_cache(cache)
    examine = functools.partial(find_facts, known=known)
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(examine, files.values(), (is_mask for _, is_mask in files))
        bar = tqdm(results, total=len(files), desc="checking", unit="file", disable=None, delay=1)
        found = dict(zip(files, bar, strict=True))
    fresh: Known = {key: (stamp, facts) for key, (stamp, facts) in found.items() if stamp and not facts.error}
    if cache is not None and known | fresh != known:
        write_cache(cache, known | fresh)
    return {key: facts for key, (_, facts) in found.items()}


def find_facts(file: File, is_mask: bool, known: Known) -> tuple[Stamp | None, Facts]:
    """A file's stamp and facts, which are the known ones if it has not changed since."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None, Facts(error=MISSING)
    except OSError:  # opening it says what the matter is
        return None, probe(file, is_mask)
    stamp = (stat.st_mtime_ns, stat.st_size)
    old_stamp, old_facts = known.get((str(file), is_mask), (None, None))
    return stamp, old_facts if old_facts is not None and old_stamp == stamp else probe(file, is_mask)


def probe(file: File, is_mask: bool) -> Facts:
    """The facts of one file, which is decoded for it."""
    try:
        decoded = decode(file)
        check_side(file, decoded.size)
        values = mask_values(file, decoded) if is_mask else ""
    except UserError as error:
        return Facts(error=str(error).removeprefix(f"{file} "))
    notes = () if is_mask else what_was_done(decoded)
    return Facts(decoded.size, decoded.mode, values, notes, decoded.is_turned)


def mask_values(file: File, decoded: Decoded) -> str:
    """`binary`, `grey` or `faint`; raises a UserError for a mask of 0 and 1."""
    channel = mask_channel(file, decoded)
    values = np.flatnonzero(channel.histogram()) if channel.mode == "L" else np.unique(np.asarray(channel))
    if 0 < values.max() <= 127:
        return "faint"
    return "binary" if set(values) <= {0, values.max()} else "grey"


def default_cache(data_dir: str | Path) -> Path:
    """Where what is known about the files of a data folder is kept: with the user, for the folder may be read-only."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(str(Path(data_dir).resolve()).encode()).hexdigest()[:16]
    return home / "medvlsm_jax" / "checked" / f"{name}.json"


def read_cache(path: Path | None) -> Known:
    """What is known about files; nothing if there is no cache file, or one that is broken or of another version."""
    try:
        content = json.loads(path.read_text("utf-8")) if path is not None else {}
        entries = content["files"] if content.get("version") == VERSION else []
        return {
            (name, is_mask): ((time, num_bytes), Facts((width, height), mode, values, tuple(notes), is_turned))
            for name, is_mask, time, num_bytes, width, height, mode, values, notes, is_turned in entries
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_cache(path: Path, known: Known) -> None:
    """Stores what is known; does nothing where that is not possible, for the files can be read anew."""
    entries = [
        (name, is_mask, *stamp, *facts.size, facts.mode, facts.values, facts.notes, facts.is_turned)
        for (name, is_mask), (stamp, facts) in known.items()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, json.dumps({"version": VERSION, "files": entries}))
    except OSError:
        return
