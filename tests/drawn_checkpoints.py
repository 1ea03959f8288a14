"""Files as torch.save and torch.jit.save write them, made without PyTorch: whole ones, and hostile ones.

What they hold is written as plain Python: `Global`, `Call`, `Built` and `Persistent` stand for what a pickle says of a
global, of a call, of an object with attributes and of a storage.
"""

import dataclasses
import io
import itertools
import operator
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

CLASSES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}  # numpy's type -> PyTorch's
MAGIC_NUMBER, PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclasses.dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    function: Any
    args: tuple = ()


@dataclasses.dataclass(frozen=True)
class Built:
    """An object of a class, given its attributes."""

    cls: Any
    state: Any


@dataclasses.dataclass(frozen=True)
class Persistent:
    id: Any


def encode(value: Any) -> bytes:
    """The opcodes of protocol 2 that make a value."""
    match value:
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return encode(value.function) + encode(value.args) + b"R"
        case Built():
            return encode(value.cls) + b")\x81" + encode(value.state) + b"b"
        case Persistent():
            return encode(value.id) + b"Q"
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encode(key) + encode(x) for key, x in value.items()) + b"u"
    return pickle.dumps(value, 2)[2:-1]


def pickled(value: Any) -> bytes:
    """A whole pickle."""
    return b"\x80\x02" + encode(value) + b"."


def tensor(array: np.ndarray, key: str) -> Call:
    """A tensor of the storage `key`, contiguous."""
    strides = tuple(itertools.accumulate(array.shape[:0:-1], operator.mul, initial=1))[: array.ndim][::-1]
    return view(key, array.size, array.shape, strides, CLASSES[array.dtype.name])


def view(key: Any, numel: Any, shape: Any, strides: Any, storage: str = "FloatStorage", offset: Any = 0) -> Call:
    """A tensor with any description, sound or not."""
    saved = Persistent(("storage", Global("torch", storage), key, "cpu", numel))
    hooks = Call(Global("collections", "OrderedDict"))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (saved, offset, shape, strides, False, hooks))


def records(pickle_bytes: bytes, arrays: Mapping[str, np.ndarray], **others: bytes) -> dict[str, bytes]:
    """The records of an archive by name."""
    storages = {f"data/{i}": array.tobytes() for i, array in enumerate(arrays.values())}
    return {"data.pkl": pickle_bytes, **storages, "version": b"3\n", **others}


def archive(content: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of records, under one folder."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, data in content.items():
            written.writestr(f"archive/{name}", data)
    return file.getvalue()


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Call]:
    """A state dict of arrays whose storages are numbered in their order."""
    return {name: tensor(array, str(i)) for i, (name, array) in enumerate(arrays.items())}


def zip_checkpoint(arrays: Mapping[str, np.ndarray], wrap: Any = lambda state_dict: state_dict) -> bytes:
    """A file of torch.save; `wrap` puts around the state dict what a trainer does."""
    return archive(records(pickled(wrap(tensors(arrays))), arrays))


def legacy_checkpoint(arrays: Mapping[str, np.ndarray], wrap: Any = lambda state_dict: state_dict) -> bytes:
    """The same as PyTorch wrote it before 1.6."""
    machine = {"protocol_version": PROTOCOL_VERSION, "little_endian": True}
    content = {
        name: Call(call.function, (Persistent((*call.args[0].id, None)), *call.args[1:]))
        for name, call in tensors(arrays).items()
    }
    pickles = (MAGIC_NUMBER, PROTOCOL_VERSION, machine, wrap(content), [str(i) for i in range(len(arrays))])
    storages = (struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())
    return b"".join([*map(pickled, pickles), *storages])


def torchscript_checkpoint(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An archive of torch.jit.save: a module with one child, whose last array is a buffer."""
    *parameters, buffer = arrays
    child = Built(
        Global("__torch__.layers", "Child"),
        {**tensors(arrays), "training": False, "scale": tensor(np.ones(1, np.float32), "0")},
    )
    root = Built(Global("__torch__", "Net"), {"training": False, "child": child})
    listed = "".join(f'"{name}", ' for name in parameters)
    code = {
        "code/__torch__.py": b"class Net(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n",
        "code/__torch__/layers.py": (
            f'class Child(Module):\n  __parameters__ = [{listed}]\n  __buffers__ = ["{buffer}", ]\n'
        ).encode(),
        "constants.pkl": pickled(()),
    }
    return archive(records(pickled(root), arrays, **code))
