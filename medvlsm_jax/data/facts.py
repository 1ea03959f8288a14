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
from typing import Any

import numpy as np
from jaxtyping import Int, UInt
from tqdm import tqdm

from medvlsm_jax import atomic
from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.decoding.decode import Decoded, decode
from medvlsm_jax.data.files import File
from medvlsm_jax.data.images import DEEP_MODES, check_side, mask_channel, picture, to_rgb, what_was_done
from medvlsm_jax.data.signatures import find_signature, to_text
from medvlsm_jax.errors import UserError

VERSION = 3  # raise it when a file's facts are found in another way
MANY_VALUES = 16  # a mask of more has soft edges, one of fewer may be a label map
ALPHA_PICTURE = "is of one colour, and shows what it shows in its alpha channel, which is dropped: save it without one"
MISSING = "is missing, but an annotation file names it: restore it or drop its record"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decoding a file once tells.

    Attributes:
        size: width and height in pixels.
        mode: Pillow's; of 16-bit colour with `;16` behind it.
        values: of a mask: `binary`, `grey`, `labels` (of few values), `faint` (none above 127), `alpha` (it has its
            object in its alpha channel) or `colour` (in another channel than the first).
        share: of a mask, how much of its pixels the object has.
        signature: of an image, what it looks like (`signatures.to_text`); empty where it shows next to nothing.
        notes: of an image, what was done to read it; a line each that follows the file's name.
        is_turned: whether its EXIF orientation is another than upright.
        error: why it cannot be used; the other facts are then not known.
    """

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    values: str = ""
    share: float = 0.0
    signature: str = ""
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
        seen = {"size": decoded.size, "mode": decoded.mode, "is_turned": decoded.is_turned}
        return Facts(**seen, **(look_at_mask(file, decoded) if is_mask else look_at_image(decoded)))
    except UserError as error:
        return Facts(error=str(error).removeprefix(f"{file} "))


def look_at_image(decoded: Decoded) -> dict[str, Any]:
    """The facts that images have."""
    shown = picture(decoded)
    notes = what_was_done(decoded)
    if is_told_by_alpha(decoded):
        notes = (*(note for note in notes if "alpha" not in note), ALPHA_PICTURE)
    return {"notes": notes, "signature": to_text(find_signature(shown))}


def look_at_mask(file: File, decoded: Decoded) -> dict[str, Any]:
    """The facts that masks have; raises a UserError for a mask of 0 and 1."""
    channel = mask_channel(file, decoded)
    counts = channel.histogram() if channel.mode == "L" else None
    values = np.flatnonzero(counts) if counts else np.unique(np.asarray(channel))
    above = sum(counts[128:]) if counts else int(np.count_nonzero(np.asarray(channel) > 127))
    share = above / (channel.width * channel.height)
    return {"values": kind_of_values(values, decoded), "share": share}


def kind_of_values(values: Int[np.ndarray, " n"] | UInt[np.ndarray, " n"], decoded: Decoded) -> str:
    """A word for the values of a mask's first channel: see `Facts.values`."""
    if len(values) == 1 and is_told_by_alpha(decoded):
        return "alpha"
    if not values.max() and is_told_by_colour(decoded):
        return "colour"
    if 0 < values.max() <= 127:
        return "faint"
    if set(values) <= {0, values.max()}:
        return "binary"
    return "labels" if 2 < len(values) <= MANY_VALUES and not decoded.is_lossy else "grey"


def is_told_by_alpha(decoded: Decoded) -> bool:
    """Whether a picture is of one colour alone, and shows something in its alpha channel."""
    image = picture(decoded)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    if "A" not in image.getbands():
        return False
    *colours, alpha = image.split()
    return alpha.getextrema()[0] != alpha.getextrema()[1] and all(
        c.getextrema()[0] == c.getextrema()[1] for c in colours
    )


def is_told_by_colour(decoded: Decoded) -> bool:
    """Whether a channel behind the first is bright somewhere."""
    image = picture(decoded)
    if image.mode in ("1", "L", "LA", *DEEP_MODES):
        return False
    return bool((np.asarray(to_rgb(image)) > 127).any())


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
            (name, is_mask): (tuple(stamp), Facts(**facts | {key: tuple(facts[key]) for key in ("size", "notes")}))
            for name, is_mask, stamp, facts in entries
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_cache(path: Path, known: Known) -> None:
    """Stores what is known; does nothing where that is not possible, for the files can be read anew."""
    entries = [(name, is_mask, stamp, dataclasses.asdict(facts)) for (name, is_mask), (stamp, facts) in known.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, json.dumps({"version": VERSION, "files": entries}))
    except OSError:
        return
