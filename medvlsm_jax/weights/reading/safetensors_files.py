"""Safetensors: a header in json, then the tensors' bytes (https://huggingface.co/docs/safetensors, "Format")."""

import json
from typing import Any

import numpy as np

from medvlsm_jax.weights.reading.tensors import DTYPES, Damaged, Storage, Tensor, contiguous_strides, natural_numbers

MAX_HEADER = 100_000_000  # bytes, the format's own limit
# Safetensors' names of types -> PyTorch's.
KINDS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def load_safetensors(data: np.ndarray) -> dict[str, Tensor]:
    """The tensors that the header of the file's bytes, uint8 (N,), describes.

    Raises:
        Damaged: the header is none, or describes other tensors than the file holds.
    """
    size = int.from_bytes(data[:8].tobytes(), "little")
    if data.nbytes < 8 or size > min(MAX_HEADER, data.nbytes - 8):
        raise Damaged("it is cut short")
    try:
        header = json.loads(data[8 : 8 + size].tobytes())
    except (ValueError, RecursionError) as error:
        raise Damaged("its header is no json") from error
    if not isinstance(header, dict):
        raise Damaged("its header is no table")
    numbers = data[8 + size :]
    return {name: describe(entry, numbers) for name, entry in header.items() if name != "__metadata__"}


def describe(entry: Any, numbers: np.ndarray) -> Tensor:
    """One tensor of the header."""
    try:
        kind, shape, (start, stop) = entry["dtype"], natural_numbers(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("its header describes no tensors") from error
    if not isinstance(kind, str) or not type(start) is type(stop) is int or not 0 <= start <= stop <= numbers.nbytes:
        raise Damaged("its header describes tensors that it does not hold: it may be cut short")
    kind = KINDS.get(kind, kind)
    tensor = Tensor(Storage(kind, lambda: numbers[start:stop]), 0, shape, contiguous_strides(shape), kind)
    if kind in DTYPES and tensor.size * DTYPES[kind].itemsize != stop - start:
        raise Damaged("its header gives a tensor another size than its shape has")
    return tensor
