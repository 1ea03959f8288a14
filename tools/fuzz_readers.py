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

<<<<<<< HEAD
from fuzz_images import IMAGES
from fuzz_volumes import VOLUMES
from fuzz_weights import WEIGHTS
from fuzzing import Reader, flip
=======
from drawn_checkpoints import archive, legacy_checkpoint, torchscript_checkpoint, zip_checkpoint
from fuzz_dicom import DICOM
from safetensors.numpy import save
>>>>>>> 081fca6 (Lossless and 12-bit JPEG are decoded here: GDCM ends the process on broken files, and reads some of them without a word)

from medvlsm_jax.command_line import run_program
from medvlsm_jax.errors import UserError

READERS = {reader.name: reader for reader in (*WEIGHTS, *IMAGES, *VOLUMES)}
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
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


WATCH = Watch()


<<<<<<< HEAD
=======
def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four places changed: bits, bytes, spans taken out, doubled or put elsewhere, the end cut off."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(0, len(content) + 1)), int(rng.integers(1, 17))
        span = bytes(content[at : at + length])
        match rng.integers(0, 7):
            case 0 if span:
                content[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                content[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
            case 2:
                content[at : at + length] = bytes(rng.choice([0, 255, 127, 128], length).astype(np.uint8))
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = span * int(rng.integers(1, 100))
            case 5:
                to = int(rng.integers(0, len(content) + 1))
                content[to : to + length] = span
            case 6 if rng.random() < 0.2:
                del content[at:]
    return bytes(content)


def mutate_pickle(data: bytes, rng: np.random.Generator) -> bytes:
    """The same with whole opcodes: taken out, doubled, exchanged, put in, or changed in their argument."""
    positions = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    opcodes = [data[start:stop] for start, stop in itertools.pairwise(positions)]
    for _ in range(rng.integers(1, 4)):
        at, other = (int(x) for x in rng.integers(0, len(opcodes), 2))
        match rng.integers(0, 5):
            case 0:
                opcodes[at] = b""
            case 1:
                opcodes[at] *= int(rng.integers(2, 200))
            case 2:
                opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
            case 3:
                opcodes[at] += HOSTILE[int(rng.integers(0, len(HOSTILE)))]
            case 4 if len(opcodes[at]) > 1:
                opcodes[at] = opcodes[at][:1] + flip(opcodes[at][1:], rng)
    return b"".join(opcodes)


def mutate_archive(data: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive of which one record is another, with a new directory and right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        records = {name.removeprefix("archive/"): read.read(name) for name in read.namelist()}
    name = "data.pkl" if rng.random() < 0.8 else str(rng.choice(sorted(records)))
    if rng.random() < 0.05:
        del records[name]
    elif name == "data.pkl":
        records[name] = mutate_pickle(records[name], rng)
    else:
        records[name] = flip(records[name], rng)
    return archive(records, zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED)


def first_pickles(data: bytes) -> int:
    """Where the first three pickles of torch.save's old format end, which are its header."""
    stream = io.BytesIO(data)
    for _ in range(3):
        for _ in pickletools.genops(stream):
            pass
    return stream.tell()


def mutate_legacy(data: bytes, rng: np.random.Generator) -> bytes:
    """The pickle of the content, or what comes behind it."""
    start = first_pickles(data)
    stream = io.BytesIO(data[start:])
    list(pickletools.genops(stream))
    stop = start + stream.tell()
    if rng.random() < 0.8:
        return data[:start] + mutate_pickle(data[start:stop], rng) + data[stop:]
    return data[:stop] + flip(data[stop:], rng)


def mutate_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """A header with other values, or other bytes behind it."""
    stop = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:stop])
    values = (None, -1, 3, 1 << 62, 1 << 70, 1.5, "F32", "F8_E4M3", [], [2, 3], [1 << 40, 1 << 40], {}, [0, 24], "\n")
    for _ in range(rng.integers(1, 4)):
        name = str(rng.choice(sorted(header)))
        value = values[int(rng.integers(0, len(values)))]
        if rng.random() < 0.2 or not isinstance(header[name], dict):
            header[name] = value
        else:
            field = str(rng.choice(["dtype", "shape", "data_offsets"]))
            header[name] = header[name] | {field: value}
    text = json.dumps(header).encode()
    numbers = data[stop:] if rng.random() < 0.8 else flip(data[stop:], rng)
    return len(text).to_bytes(8, "little") + text + numbers


def opens_as_archive(data: bytes) -> bool:
    """Whether a zip directory can be read and has the main record."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as read:
            return any(name.endswith("/data.pkl") for name in read.namelist())
    except Exception:  # whatever zipfile raises
        return False


def opens_as_legacy(data: bytes) -> bool:
    """Whether the first three pickles are those of a whole file."""
    return data[: len(LEGACY_HEADER)] == LEGACY_HEADER


def opens_as_safetensors(data: bytes) -> bool:
    """Whether the header is a table in json."""
    try:
        return isinstance(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]), dict)
    except (ValueError, RecursionError):
        return False


def read_weights(path: Path) -> Any:
    """What a program would read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # which of several state dicts was taken
        return read_state_dict(path)


def lightning(state_dict: Any) -> Any:
    """What a trainer puts around the weights."""
    return {"state_dict": state_dict, "epoch": 3, "optimizer_states": [{"state": {0: state_dict}}], "lr": [0.1, 2]}


LEGACY = legacy_checkpoint(ARRAYS, lightning)
LEGACY_HEADER = LEGACY[: first_pickles(LEGACY)]
TORCHSCRIPT = torchscript_checkpoint({name.replace(".", "_"): array for name, array in ARRAYS.items()})
READERS = {
    reader.name: reader
    for reader in (
        Reader("torch_zip", ".pt", zip_checkpoint(ARRAYS, lightning), read_weights, mutate_archive, opens_as_archive),
        Reader("torch_legacy", ".pth", LEGACY, read_weights, mutate_legacy, opens_as_legacy),
        Reader("torchscript", ".pt", TORCHSCRIPT, read_weights, mutate_archive, opens_as_archive),
        Reader("safetensors", ".safetensors", save(ARRAYS), read_weights, mutate_safetensors, opens_as_safetensors),
        *(Reader(*dicom) for dicom in DICOM),
    )
}


>>>>>>> 081fca6 (Lossless and 12-bit JPEG are decoded here: GDCM ends the process on broken files, and reads some of them without a word)
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
