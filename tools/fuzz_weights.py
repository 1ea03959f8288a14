"""Mutants of files of weights: every second has the right checksums, a table in json, or whole opcodes."""

import io
import itertools
import json
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from drawn_checkpoints import archive, legacy_checkpoint, torchscript_checkpoint, zip_checkpoint
from fuzzing import Reader, flip
from safetensors.numpy import save

from medvlsm_jax.weights import read_state_dict

ARRAYS = {
    "net.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "net.half": np.array([1.5, -2.0], np.float16),
    "net.count": np.arange(3),
}
# Opcodes that ask for much, or reach for what is not there.
HOSTILE = (
    b"cos\nsystem\n",
    b"cbuiltins\ngetattr\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 7 + b"\x7f",
    b"\x82\x01",
    b"]2a",
    b"(((((",
    b"0000",
    b"R",
    b"b",
    b"\x81",
    b"\x92",
    b"Q",
    b"I-99999999999999999999\n",
    b"\x8a\x08" + b"\xff" * 8,
    b"s",
    b"u",
    b"e",
    b"t",
)


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
WEIGHTS = (
    Reader("torch_zip", ".pt", zip_checkpoint(ARRAYS, lightning), read_weights, mutate_archive, opens_as_archive),
    Reader("torch_legacy", ".pth", LEGACY, read_weights, mutate_legacy, opens_as_legacy),
    Reader("torchscript", ".pt", TORCHSCRIPT, read_weights, mutate_archive, opens_as_archive),
    Reader("safetensors", ".safetensors", save(ARRAYS), read_weights, mutate_safetensors, opens_as_safetensors),
)
