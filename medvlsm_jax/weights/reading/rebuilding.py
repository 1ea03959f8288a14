"""What is done in place of the functions that PyTorch's pickles call: tensors are described, plain containers made.

The rules have the arguments of the functions in `torch._utils` and `torch._tensor` that they stand for.
"""

from typing import Any

import numpy as np

from medvlsm_jax.weights.reading.pickles import Inert, Rule, Unpickler, put
from medvlsm_jax.weights.reading.tensors import (
    DTYPES,
    AnyTensor,
    Damaged,
    Storage,
    Tensor,
    Unreadable,
    contiguous_strides,
    natural_numbers,
)

# PyTorch's storage classes, whatever the device -> type. Those that are missing are of types that are not read.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
NUMPY_NAMES = {dtype.str[1:]: name for name, dtype in DTYPES.items() if dtype.kind in "fiubc"}


def storage_kind(cls: Any) -> str:
    """The type of the numbers in a storage of this class: PyTorch's name, or the class's where none is known."""
    if not isinstance(cls, Inert):
        raise Damaged("a storage is of no class")
    name = cls.name.rpartition(".")[2]
    return STORAGES.get(name, name.removesuffix("Storage"))


def rebuild_tensor(_: Unpickler, storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> Tensor:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`: a view of a storage."""
    kind = storage.kind if isinstance(storage, Storage) else ""
    return view(storage, offset, size, stride, kind, others[2] if len(others) > 2 else None)


def rebuild_typed_tensor(
    _: Unpickler, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *others: Any
) -> Tensor:
    """`_rebuild_tensor_v3`: a view that has another type than the storage."""
    kind = dtype.name.removeprefix("torch.") if isinstance(dtype, Inert) else ""
    return view(storage, offset, size, stride, kind, others[0] if others else None)


def view(storage: Any, offset: Any, size: Any, stride: Any, kind: str, metadata: Any) -> Tensor:
    """A tensor whose description is sound; whether its storage is long enough is seen when it is read."""
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise Damaged("a tensor has no storage, or begins before it")
    shape, strides = natural_numbers(size), natural_numbers(stride)
    if len(shape) != len(strides):
        raise Damaged("a tensor has not as many strides as sizes")
    if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
        kind = f"{kind} and a lazy conjugate or negative"
    return Tensor(storage, offset, shape, strides, kind)


def rebuild_parameter(_: Unpickler, data: Any, *others: Any) -> Any:
    """`_rebuild_parameter` and `_rebuild_parameter_with_state`: the tensor itself."""
    return data


def rebuild_on_device(unpickler: Unpickler, data: Any, dtype: Any, *others: Any) -> AnyTensor:
    """`_rebuild_device_tensor_from_cpu_tensor` and `…_from_numpy`: a tensor of an accelerator without storages."""
    tensor = numpy_tensor(data)
    wanted = dtype.name.removeprefix("torch.") if isinstance(dtype, Inert) else ""
    if isinstance(tensor, Tensor) and tensor.kind == wanted:
        return tensor
    return Unreadable(f"a tensor of an accelerator whose type {wanted} is not that of its numbers")


def rebuild_subclass(unpickler: Unpickler, function: Any, cls: Any, args: Any, *state: Any) -> Any:
    """`_rebuild_from_type_v2`: a tensor with a class or attributes of its own; the tensor is taken."""
    if isinstance(function, Inert) and RULES.get(function.name) is rebuild_subclass:
        raise Damaged("a tensor is rebuilt without end")
    return unpickler.call(function, args)


def unreadable(what: str) -> Rule:
    """A tensor that is described otherwise than by a storage and strides."""
    return lambda _, *args: Unreadable(what)


def ordered_dict(unpickler: Unpickler, pairs: Any = (), *others: Any) -> dict[str | int, Any]:
    """`OrderedDict`, empty or of pairs; `defaultdict` has its factory in front."""
    entries: dict[str | int, Any] = {}
    if isinstance(pairs, list | tuple):
        unpickler.charge(len(pairs))
        put(entries, ((pair[0], pair[1]) for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2))
    return entries


def encoded(unpickler: Unpickler, text: Any, encoding: Any = "") -> bytes:
    """`_codecs.encode`: how bytes stand in pickles of protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Damaged("its pickle encodes what is no text")
    unpickler.charge(len(text) // 16)
    return text.encode("latin1")


def numpy_tensor(value: Any) -> Any:
    """A pickled numpy array as a tensor; anything else as it is."""
    if not isinstance(value, Inert) or not value.name.endswith("multiarray._reconstruct"):
        return value
    state = value.state
    if not isinstance(state, tuple) or len(state) != 5:
        raise Damaged("a numpy array is not whole")
    _, shape, dtype, is_fortran, data = state
    if not isinstance(data, bytes | bytearray):  # of objects
        return value
    if not isinstance(dtype, Inert) or not dtype.args:
        raise Damaged("a numpy array is of no type")
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "|"
    kind = NUMPY_NAMES.get(dtype.args[0]) if isinstance(dtype.args[0], str) else None
    if kind is None or order == ">":
        return Unreadable("a numpy array of a type or byte order that PyTorch does not have")
    shape = natural_numbers(shape)
    strides = contiguous_strides(shape[::-1])[::-1] if is_fortran else contiguous_strides(shape)
    return Tensor(Storage(kind, lambda: np.frombuffer(data, np.uint8)), 0, shape, strides, kind)


def defaultdict(unpickler: Unpickler, *args: Any) -> dict[str | int, Any]:
    """`defaultdict`: its factory is never asked."""
    return {}


def listed(unpickler: Unpickler, items: Any = ()) -> list[Any]:
    """`set` and its kind: what is in it."""
    items = items if isinstance(items, list | tuple) else ()
    unpickler.charge(len(items))
    return list(items)


def sizes(unpickler: Unpickler, items: Any = ()) -> Any:
    """`torch.Size`: a tuple."""
    return items if isinstance(items, tuple) else ()


RULES: dict[str, Rule] = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": rebuild_typed_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": rebuild_on_device,
    "torch._utils._rebuild_device_tensor_from_numpy": rebuild_on_device,
    "torch._utils._rebuild_xla_tensor": rebuild_on_device,
    "torch._utils._rebuild_qtensor": unreadable("quantized"),
    "torch._utils._rebuild_sparse_tensor": unreadable("sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": unreadable("sparse"),
    "torch._utils._rebuild_nested_tensor": unreadable("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": unreadable("on the meta device, without numbers"),
    "torch._utils._rebuild_wrapper_subclass": unreadable("a wrapper around other tensors"),
    "torch._tensor._rebuild_from_type": rebuild_subclass,
    "torch._tensor._rebuild_from_type_v2": rebuild_subclass,
    "torch.tensor._rebuild_from_type": rebuild_subclass,
    "torch.tensor._rebuild_from_type_v2": rebuild_subclass,
    "torch.Size": sizes,
    "collections.OrderedDict": ordered_dict,
    "collections.defaultdict": defaultdict,
    "builtins.set": listed,
    "builtins.frozenset": listed,
    "__builtin__.set": listed,
    "__builtin__.frozenset": listed,
    "_codecs.encode": encoded,
}
