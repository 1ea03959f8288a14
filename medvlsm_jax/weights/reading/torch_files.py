"""Files of `torch.save`: the zip format, the one before PyTorch 1.6, and TorchScript's archives."""

import io
import mmap
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from medvlsm_jax.weights.reading.archives import Archive
from medvlsm_jax.weights.reading.pickles import Inert, Unpickler
from medvlsm_jax.weights.reading.rebuilding import RULES, storage_kind
from medvlsm_jax.weights.reading.tensors import DTYPES, AnyTensor, Damaged, Refused, Storage
from medvlsm_jax.weights.reading.torchscript import module_classes, module_tensors

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
MAX_STORAGES = 1_000_000


def load_pickle(stream: Any, find_storage: Callable[[tuple[Any, ...]], Any]) -> Any:
    """What a pickle describes; `find_storage` is given the persistent ids of storages."""

    def persistent(saved_id: Any) -> Any:
        if not isinstance(saved_id, tuple) or len(saved_id) < 2 or saved_id[0] not in ("storage", "module"):
            raise Damaged("its pickle refers to what is no storage")
        return saved_id[1] if saved_id[0] == "module" else find_storage(saved_id[1:])

    return Unpickler(stream, RULES, persistent).load()


def load_zip(archive: Archive) -> Any:
    """What `torch.save` was given, tensors and plain containers; everything else is inert."""
    return load_record(archive, "data.pkl")


def load_record(archive: Archive, name: str) -> Any:
    """What a pickle of the archive describes."""
    is_swapped = "byteorder" in archive and archive.read("byteorder").tobytes() == b"big"
    storages: dict[str, Storage] = {}

    def find_storage(saved: tuple[Any, ...]) -> Storage:
        if len(saved) != 4 or not isinstance(saved[1], str):
            raise Damaged("its pickle refers to what is no storage")
        kind, key = storage_kind(saved[0]), saved[1]
        if key not in storages:

            def read() -> np.ndarray:
                data = archive.read(f"data/{key}")
                return swapped(data, kind) if is_swapped else data

            storages[key] = Storage(kind, read)
        return storages[key]

    return load_pickle(io.BytesIO(archive.read(name).data), find_storage)


def swapped(data: np.ndarray, kind: str) -> np.ndarray:
    """The bytes of a storage that a big-endian machine wrote."""
    if kind not in DTYPES:
        return data
    dtype = DTYPES[kind]
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    if data.nbytes % width:
        raise Damaged("has a storage of no whole numbers")
    return data.view(f"u{width}").byteswap().view(np.uint8)


def load_legacy(stream: mmap.mmap, data: np.ndarray) -> Any:
    """The same of a file from before PyTorch 1.6: pickles one after the other, then the storages."""
    roots: dict[str, Storage] = {}

    def nothing(_: Any) -> Any:
        raise Damaged("its first pickles refer to storages")

    def find_storage(saved: tuple[Any, ...]) -> Storage:
        if len(saved) not in (4, 5) or not isinstance(saved[1], str):
            raise Damaged("its pickle refers to what is no storage")
        root = roots.setdefault(saved[1], Storage(storage_kind(saved[0])))
        return part_of(root, saved[4]) if len(saved) == 5 and saved[4] is not None else root

    if load_pickle(stream, nothing) != MAGIC_NUMBER:
        raise Damaged("it is no file of torch.save")
    if load_pickle(stream, nothing) != PROTOCOL_VERSION:
        raise Damaged("it is of a version of torch.save that is not known")
    load_pickle(stream, nothing)  # the machine that wrote it; numbers are little-endian whatever it was
    content = load_pickle(stream, find_storage)
    keys = load_pickle(stream, nothing)
    if not isinstance(keys, list) or len(keys) > MAX_STORAGES:
        raise Damaged("it has no list of storages")
    place_storages(roots, keys, data, stream.tell())
    return content


def part_of(root: Storage, view: Any) -> Storage:
    """A storage that is a part of another one, as PyTorch had them before 0.4."""
    if not isinstance(view, tuple) or len(view) != 3 or root.kind not in DTYPES:
        raise Damaged("its pickle refers to what is no storage")
    _, offset, size = view
    if type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
        raise Damaged("a storage begins before the one that it is a part of")
    width = DTYPES[root.kind].itemsize
    return Storage(root.kind, lambda: root.bytes()[offset * width : (offset + size) * width])


def place_storages(roots: dict[str, Storage], keys: list[Any], data: np.ndarray, position: int) -> None:
    """Tells the storages where in the file they lie, each behind its length."""
    for key in keys:
        root = roots.get(key) if isinstance(key, str) else None
        if root is None:
            raise Damaged("it holds a storage that its pickle does not name")
        if root.kind not in DTYPES:
            raise Refused(f"it holds a storage of type {root.kind}, which is not read")
        header = data[position : position + 8].tobytes()
        if len(header) < 8:
            raise Damaged("it is cut short")
        (count,) = struct.unpack("<q", header)
        start, position = position + 8, position + 8 + count * DTYPES[root.kind].itemsize
        if count < 0 or position > data.nbytes:
            raise Damaged("it is cut short")
        root.read = read_slice(data, start, position)


def read_slice(data: np.ndarray, start: int, stop: int) -> Callable[[], np.ndarray]:
    """Gives the bytes from start to stop."""
    return lambda: data[start:stop]


def load_torchscript(archive: Archive) -> dict[str, AnyTensor]:
    """The tensors of an archive of `torch.jit.save`, named as by its `state_dict`; its program is not run."""
    root = load_record(archive, "data.pkl")
    if not isinstance(root, Inert):
        raise Damaged("it holds no module")
    return module_tensors(root, module_classes(archive))
