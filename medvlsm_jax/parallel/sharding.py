"""The mesh, and where arrays live on it.

Axes ("data", "fsdp"): a batch is split over both, parameters and optimizer state over "fsdp" on their largest
divisible axis.
"""

import functools
import json
import socket
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from medvlsm_jax.errors import UserError

AXES = ("data", "fsdp")
# What a batch may hold in place of inputs.
REPLACED = {"image_features": ("image",), "text_features": ("input_ids", "attention_mask")}


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A mesh over all devices; -1 takes what the other axis leaves.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = np.array(jax.devices())
    sizes = [data, fsdp]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = devices.size // max(1, -data * fsdp)
    if min(sizes) < 1 or sizes[0] * sizes[1] != devices.size:
        raise UserError(f"mesh.data={data} x mesh.fsdp={fsdp} does not cover {devices.size} devices: leave one at -1")
    return Mesh(devices.reshape(sizes), AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all devices."""
    return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def parameter_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """The largest axis that "fsdp" divides is split over it; an array without one is replicated."""
    fsdp = mesh.shape["fsdp"]
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0 and size > 0]
    if fsdp == 1 or not divisible:
        return replicated(mesh)
    split = max(divisible, key=lambda axis: shape[axis])
    return NamedSharding(mesh, P(*(("fsdp" if axis == split else None) for axis in range(len(shape)))))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every array (or shape) of a tree."""
    return jax.tree.map(lambda leaf: parameter_sharding(leaf.shape, mesh), tree)


def with_mesh(mesh: Mesh, run: Callable[..., Any]) -> Callable[..., Any]:
    """A function for jit, traced with the mesh at hand: kernels, which XLA cannot split, split their rows over it."""

    @functools.wraps(run)
    def traced(*args: Any, **options: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return run(*args, **options)

    return traced


def gather_whole(arrays: Any, mesh: Mesh) -> Any:
    """Whole copies of arrays that are split over "fsdp", for a computation; their gradients come back split.

    Said outright, an array is gathered once a step, for forward and backward pass and all parts of a batch, and its
    gradient reduce-scattered. Left to itself, XLA for TPUs gathers most of them twice, and again for each part.
    """
    if mesh.shape["fsdp"] == 1:
        return arrays

    @jax.custom_vjp
    def whole(arrays: Any) -> Any:
        return jax.lax.with_sharding_constraint(arrays, replicated(mesh))

    def backward(_: None, gradients: Any) -> tuple[Any]:
        if mesh.shape["data"] == 1:  # else XLA makes rings of the products: 25 % more cycles
            gradients = jax.lax.with_sharding_constraint(gradients, replicated(mesh))
        return (jax.lax.with_sharding_constraint(gradients, tree_shardings(gradients, mesh)),)

    whole.defvjp(lambda arrays: (whole(arrays), None), backward)
    return whole(arrays)


def put_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """This process's rows as its part of global arrays; what frozen encoders made of an input stands for it."""
    names = set(batch)
    for features, inputs in REPLACED.items():
        names -= set(inputs) if features in batch else set()
    put = functools.partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
    return {name: jax.tree.map(put, batch[name]) for name in batch if name in names}


def prefetch(
    batches: Iterator[dict[str, Any]], mesh: Mesh, ahead: int = 2
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each batch on the host and on the devices; the copies of the next `ahead` are already under way."""
    waiting: deque[tuple[dict[str, Any], dict[str, Any]]] = deque()
    for batch in batches:
        waiting.append((batch, put_batch(batch, mesh)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a batch, in order: the inverse of `put_batch`."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def check_batch_size(batch_size: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Raises a UserError when devices cannot share a batch, or the parts that it is cut into, evenly."""
    if batch_size < 1 or accumulation < 1 or batch_size % (mesh.size * accumulation):
        parts = f" x config.accumulation={accumulation}" if accumulation != 1 else ""
        raise UserError(f"config.batch_size={batch_size} is not a multiple of the {mesh.size} devices{parts}")


def from_first_process(value: Any) -> Any:
    """What the first process says, on all of them; it has to be json."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, len(text))] = text[:size]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def processes_on_this_host() -> int:
    """How many processes of the run share this machine's memory."""
    if jax.process_count() == 1:
        return 1
    own = np.int32(zlib.crc32(socket.gethostname().encode()) & 0x7FFFFFFF)
    return int((multihost_utils.process_allgather(own) == own).sum())
