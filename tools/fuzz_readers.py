"""Gives mutated files to the readers: a result or one line each, no other exception, no hang, no file and no process.

    python tools/fuzz_readers.py --count=2000                   every reader
    python tools/fuzz_readers.py --reader=safetensors,png --seed=7

Every second mutant has a sound header (a zip directory with right checksums, json of the right length, chunks, segments
and tables of images), so that it gets to what lies behind; the share that does is printed. A mutant that fails is kept
and named. A reader of another kind is one more `Reader`, in a file beside this one. Exit status: 0, 1 with the first
failure, 2 an error.
"""

import dataclasses
import faulthandler
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from fuzz_datasets import DATASETS
from fuzz_dicom import DICOM
from fuzz_images import IMAGES
from fuzz_volumes import VOLUMES
from fuzz_weights import WEIGHTS
from fuzzing import Reader, flip

from medvlsm_jax.command_line import run_program
from medvlsm_jax.errors import UserError

READERS = {reader.name: reader for reader in (*WEIGHTS, *IMAGES, *VOLUMES, *DICOM, *DATASETS)}
MAX_SECONDS = 10.0
MAX_BYTES = 2 << 30
FORBIDDEN = ("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "pty.", "tempfile.")  # audit events
READING = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")


class Watch:
    """What happens while a reader is at work; audit hooks cannot be taken away, so there is one."""

    def __init__(self) -> None:
        self.is_on = False
        self.events: list[str] = []
        sys.addaudithook(self.see)

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        """Keeps events that make files or processes, or run code."""
        if not self.is_on:
            return
        is_writing = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if is_writing or (event.startswith(FORBIDDEN) and event not in READING):
            self.events.append(f"{event} {args!r:.200}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While a reader is at work."""
        self.events.clear()
        self.is_on, sys.dont_write_bytecode = True, True  # of what a reader imports only now
        try:
            yield
        finally:
            self.is_on, sys.dont_write_bytecode = False, False


WATCH = Watch()


@dataclasses.dataclass
class Outcome:
    """Of a reader's mutants: how many were read, and how many had a sound header; the slowest."""

    read: int = 0
    behind_header: int = 0
    seconds: float = 0.0


def fuzz(reader: Reader, count: int, seed: int, folder: Path) -> Outcome:
    """Gives a reader mutants of its file.

    Raises:
        AssertionError: one of them had another outcome than a result or one line; it lies in the folder.
    """
    rng, outcome = np.random.default_rng(seed), Outcome()
    path = folder / f"mutant{reader.ending}"
    path.write_bytes(reader.whole)
    reader.read(path)  # what is imported at first is
    memory = peak_memory()
    for i in range(count):
        data = (reader.behind_header if i % 2 else flip)(reader.whole, rng)
        outcome.behind_header += reader.has_header(data)
        path.write_bytes(data)
        start = time.monotonic()
        with WATCH.watching():
            try:
                reader.read(path)
                outcome.read += 1
            except UserError as error:
                line = str(error)
                assert line.isprintable(), f"{path}: its error is not one line: {line!r}"
            except BaseException as error:
                raise AssertionError(f"{path}: mutant {i} of seed {seed} ends with {error!r}") from error
        seconds = time.monotonic() - start
        outcome.seconds = max(outcome.seconds, seconds)
        assert not WATCH.events, f"{path}: mutant {i} of seed {seed} has effects: {WATCH.events[:3]}"
        assert seconds < MAX_SECONDS, f"{path}: mutant {i} of seed {seed} takes {seconds:.0f} s"
        assert peak_memory() - memory < MAX_BYTES, f"{path}: mutant {i} of seed {seed} takes over 2 GiB"
    path.unlink()
    return outcome


def peak_memory() -> int:
    """The most memory that this process had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    if unknown := set(args.reader) - set(READERS):
        raise UserError(f"--reader={','.join(unknown)} is unknown: choose from {', '.join(READERS)}")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in args.reader or READERS:
        faulthandler.dump_traceback_later(args.count * 0.5 + 60, exit=True)  # for what never comes back
        try:
            outcome = fuzz(READERS[name], args.count, args.seed, folder)
        except AssertionError as error:
            print(f"{name}: {error}")
            sys.exit(1)
        print(
            f"{name}: {args.count} mutants, {outcome.behind_header / args.count:.0%} with a sound header, "
            f"{outcome.read / args.count:.0%} read, the others refused in one line, the slowest {outcome.seconds:.2f} s"
        )
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    flags.DEFINE_list("reader", [], f"Of {', '.join(READERS)}; all when none is given.")
    flags.DEFINE_integer("count", 2000, "Mutants for each reader.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the mutations.")
    run_program(main)
