"""Tensors as files describe them: a part of a storage, its shape and strides; arrays are made when they are wanted."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

MAX_DIMENSIONS = 32
# What a file may unfold to: half precision doubles, float8 quadruples, tied weights are kept twice. A file that asks
# for more is one whose tensors repeat the same bytes over and over.
UNFOLDING = 8
ALLOWANCE = 1 << 26  # bytes, for files of a few tensors

# PyTorch's names of types -> numpy's.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
        "complex64": np.complex64,
        "complex128": np.complex128,
    }.items()
}
WIDENED = {DTYPES[name] for name in DTYPES if name.startswith(("float16", "bfloat16", "float8"))}


class Damaged(ValueError):
    """A file, or a tensor in it, is not what its format asks for; the message says what is wrong."""


class Refused(Damaged):
    """Something whole that is not read: the message says what it is."""


@dataclasses.dataclass(eq=False)
class Storage:
    """Numbers in a row, of which tensors are views.

    Attributes:
        kind: PyTorch's name of their type.
        read: gives them as bytes, uint8 (N,), when they are first wanted; they may come after what describes them.
    """

    kind: str
    read: Callable[[], np.ndarray] | None = None
    _bytes: np.ndarray | None = None

    def bytes(self) -> np.ndarray:
        """The numbers as bytes, uint8 (N,); raises Damaged when the file does not hold them."""
        if self._bytes is None:
            if self.read is None:
                raise Damaged("has no numbers in the file")
            self._bytes = self.read()
        return self._bytes


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage; offset and strides count elements, as PyTorch's do."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def to_array(self) -> np.ndarray:
        """A contiguous array of its own, half precision widened to float32 exactly.

        Raises:
            Refused: it is of a type that numpy does not have.
            Damaged: its storage does not hold what it describes.
        """
        if self.kind not in DTYPES:
            raise Refused(f"is of type {self.kind}, which is not read")
        dtype, data = DTYPES[self.kind], self.storage.bytes()
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if self.size and (last + 1) * dtype.itemsize > data.nbytes:
            raise Damaged(f"reaches beyond its storage of {data.nbytes} bytes")
        strides = tuple(stride * dtype.itemsize for stride in self.strides)
        if self.size == 0:
            return as_float32(np.empty(self.shape, dtype))
        view = np.ndarray(self.shape, dtype, data, self.offset * dtype.itemsize, strides)
        return as_float32(np.array(view, order="C"))


@dataclasses.dataclass(eq=False)
class Unreadable:
    """A tensor that is no plain one; it is refused if it is one of the weights."""

    what: str

    @property
    def size(self) -> int:
        """None of it is read."""
        return 0

    def to_array(self) -> np.ndarray:
        """Raises Refused."""
        raise Refused(f"is {self.what}, which is not read: save it as a plain tensor")


AnyTensor = Tensor | Unreadable


def as_float32(array: np.ndarray) -> np.ndarray:
    """Half precision and float8 widened exactly; other types as they are."""
    return array.astype(np.float32) if array.dtype in WIDENED else array


def natural_numbers(values: Any) -> tuple[int, ...]:
    """Sizes or strides of a tensor; raises Damaged when they are none."""
    numbers = tuple(values) if isinstance(values, tuple | list) and len(values) <= MAX_DIMENSIONS else None
    if numbers is None or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        raise Damaged("a tensor's sizes or strides are no natural numbers")
    return numbers


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of an array that lies as C has it, the last axis fastest."""
    return tuple(itertools.accumulate(shape[:0:-1], operator.mul, initial=1))[: len(shape)][::-1]


def to_arrays(tensors: Mapping[str, AnyTensor], file_size: int) -> dict[str, np.ndarray]:
    """Tensors as arrays of their own.

    Raises:
        Refused, Damaged: one of them is not read; the message starts with its name.
    """
    if 4 * sum(tensor.size for tensor in tensors.values()) > UNFOLDING * file_size + ALLOWANCE:
        raise Refused(f"its tensors are more than {UNFOLDING} times as large as the file, and refused")
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = tensor.to_array()
        except Damaged as error:
            raise type(error)(f"tensor {printable(name)} {error}") from error
    return arrays


def printable(text: str, length: int = 100) -> str:
    """A name out of a file as it may stand in a message: in one line, and not long."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= length else text[:length] + "…"
