"""Frozen encoders, run apart from the training step: once for each image and each sentence."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from medvlsm_jax.data.reading.entries import Entries
from medvlsm_jax.data.reading.feature_cache import FeatureCache, size_of
from medvlsm_jax.models import abstract_model
from medvlsm_jax.models.apply import encode, encoder_inputs, encoder_outputs
from medvlsm_jax.models.network import NetworkConfig
from medvlsm_jax.models.parameters import Arrays, merge_model, split_model, undotted
from medvlsm_jax.parallel.sharding import REPLACED, replicated, with_mesh

ROWS = "rows"


def output_sizes(outputs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Bytes of each array of one image and of one sentence."""
    return {kind: tuple(size_of(x.shape, x.dtype) for x in jax.tree.leaves(tree)) for kind, tree in outputs.items()}


def num_bytes(outputs: dict[str, Any], num_images: int, num_sentences: int) -> int:
    """What the outputs for so many images and sentences take."""
    counts = {"image": num_images, "text": num_sentences}
    return sum(counts[kind] * sum(sizes) for kind, sizes in output_sizes(outputs).items())


class FrozenEncoder:
    """Completes batches by what the encoders make of their images and sentences.

    Every process runs it on its own devices alone: what it lacks is not what others lack.

    Attributes:
        cache: for the `Loader` that makes the batches.
    """

    def __init__(self, config: NetworkConfig, arrays: Arrays, mesh: Mesh, entries: Entries, rows: int):
        """Compiles the encoders.

        Args:
            config: of the network.
            arrays: of all of it, on the mesh.
            mesh: the devices.
            entries: keep what is made.
            rows: of a batch that this process has.
        """
        model = abstract_model(config)
        self.graphdef, params, stats = split_model(model)
        shapes = {**params, **stats}
        own = {name: arrays[name] for name in shapes if undotted(name)[0] in model.encoder}
        self.rest = {name: shape for name, shape in shapes.items() if name not in own}
        self.mesh = Mesh(np.array(mesh.local_devices), (ROWS,))
        self.arrays = local_copies(own, mesh, self.mesh)
        # A batch often lacks a few rows only, so they are encoded a quarter of a batch at a time.
        self.at_once = -(-max(1, rows // 4) // self.mesh.size) * self.mesh.size
        self.outputs = encoder_outputs(config)
        self.cache = FeatureCache(entries, encoder_key(config, self.arrays), output_sizes(self.outputs))
        self.steps = {kind: self.compile(kind, shapes) for kind, shapes in encoder_inputs(model).items()}

    def compile(self, kind: str, shapes: list[jax.ShapeDtypeStruct]) -> Callable[..., Any]:
        """The encoder of one kind, for `at_once` rows."""
        inputs = [jax.ShapeDtypeStruct((self.at_once, *x.shape[1:]), x.dtype, sharding=self.by_rows) for x in shapes]

        def step(arrays: Arrays, *inputs: jax.Array) -> Any:
            return encode(merge_model(self.graphdef, {**arrays, **self.rest}), kind, *inputs)

        return jax.jit(with_mesh(self.mesh, step), out_shardings=self.by_rows).lower(self.arrays, *inputs).compile()

    @property
    def by_rows(self) -> NamedSharding:
        """Rows over this process's devices."""
        return NamedSharding(self.mesh, P(ROWS))

    def complete(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encodes and keeps what a batch lacks, each image and sentence once, and gives the outputs their shapes."""
        batch = dict(batch)
        for kind, shapes in self.outputs.items():
            names, found = batch.pop(f"{kind}_entries"), batch.pop(f"{kind}_found")
            features = batch[f"{kind}_features"]
            missing: dict[str, list[int]] = {}
            for row in np.flatnonzero(~found).tolist():
                # Since it was looked up, a batch before may have brought it.
                if not self.cache.entries.read(str(names[row]), *(array[row] for array in features)):
                    missing.setdefault(str(names[row]), []).append(row)
            self.fill(kind, [batch[name] for name in REPLACED[f"{kind}_features"]], features, missing)
            leaves, nesting = jax.tree.flatten(shapes)
            shaped = [x.view(leaf.dtype).reshape(-1, *leaf.shape[1:]) for x, leaf in zip(features, leaves, strict=True)]
            batch[f"{kind}_features"] = jax.tree.unflatten(nesting, shaped)
        return batch

    def fill(
        self, kind: str, inputs: list[np.ndarray], features: tuple[np.ndarray, ...], missing: dict[str, list[int]]
    ) -> None:
        """Encodes the rows that are missing, by the name of their entry, into `features`, and keeps them."""
        names = list(missing)
        for start in range(0, len(names), self.at_once):
            part = names[start : start + self.at_once]
            rows = [missing[name][0] for name in part]
            padded = rows + rows[-1:] * (self.at_once - len(rows))
            outputs = self.steps[kind](self.arrays, *(jax.device_put(x[padded], self.by_rows) for x in inputs))
            made = [as_bytes(leaf) for leaf in jax.tree.leaves(outputs)]
            for i, name in enumerate(part):
                for array, values in zip(features, made, strict=True):
                    array[missing[name]] = values[i]
                self.cache.entries.write(name, *(values[i] for values in made))


def as_bytes(array: jax.Array) -> np.ndarray:
    """(rows, ...) of any type as (rows, bytes)."""
    rows = np.ascontiguousarray(array)
    return rows.reshape(len(rows), -1).view(np.uint8)


def local_copies(arrays: Arrays, mesh: Mesh, local: Mesh) -> Arrays:
    """The arrays whole on each of this process's devices, in buffers that no training step consumes."""
    gathered = jax.jit(lambda x: x, out_shardings=replicated(mesh))(arrays)

    def copy(array: jax.Array) -> jax.Array:
        shards = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, replicated(local), shards)

    return jax.tree.map(copy, gathered)


def encoder_key(config: NetworkConfig, arrays: Arrays) -> str:
    """What the outputs depend on besides the input: weights, the model's settings, and the kind of device."""
    digest = hashlib.blake2b(repr((dataclasses.asdict(config), jax.devices()[0].device_kind)).encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(as_bytes(arrays[name][None]).data)
    return digest.hexdigest()
