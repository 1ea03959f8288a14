"""A run on chips that are not there: the real steps, compiled for a TPU slice with shapes in place of arrays."""

import contextlib
import copy
import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from medvlsm_jax.errors import UserError
from medvlsm_jax.losses import find_loss
from medvlsm_jax.models import abstract_model
from medvlsm_jax.models.layers import check_remat
from medvlsm_jax.models.parameters import split_model
from medvlsm_jax.models.summary import training_flops
from medvlsm_jax.parallel import sharding
from medvlsm_jax.parallel.chips import Chip, find_chip
from medvlsm_jax.scoring.batch_segmenter import BatchSegmenter, abstract_batch, make_batch_segmenter
from medvlsm_jax.training.freezing import freezing, split_trained
from medvlsm_jax.training.start import Source, find_source, training_graph
from medvlsm_jax.training.step import TrainState, make_optimizer, make_train_step

EXAMPLES = "v5e:2x2, v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:4x4x4, v6e:4x8"
GENERATIONS = ("v5e", "v5p", "v6e")
# The compiler alone is wanted: no metadata server is asked which TPU this is, and no lock is taken on one.
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of a TPU pod that are booked together.

    Attributes:
        name: as Google calls it, `v5e:4x8`.
        shape: chips along each axis of the torus.
        chip: one of them.
        devices: they, as jax describes them.
    """

    name: str
    shape: tuple[int, ...]
    chip: Chip
    devices: tuple[Any, ...]

    def bandwidth(self, chips: int) -> float:
        """Bytes a second that a chip sends when groups of `chips` exchange something, each at once.

        All links are used when all chips of the slice take part, those along one axis of the torus by fewer; an axis
        that is not closed to a ring has half of its bandwidth.
        """
        share = 1.0 if chips == len(self.devices) else 1 / self.chip.torus
        is_ring = all(size >= self.chip.wraps_from for size in self.shape if size > 1)
        return self.chip.interconnect * share * (1.0 if is_ring else 0.5)


@functools.cache
def find_slice(name: str) -> Slice:
    """The slice of that name; loads the TPU's compiler, which needs no TPU.

    Raises:
        UserError: there is no such slice, or libtpu is not installed.
    """
    generation, _, sides = name.partition(":")
    if generation not in GENERATIONS or not re.fullmatch(r"\d+(x\d+){1,2}", sides):
        raise UserError(f"--topology={name} is no TPU slice that is known here: give one like {EXAMPLES}")
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("the TPU's compiler is missing: pip install libtpu (a TPU is not needed)") from error
    for variable, value in LIBTPU.items():
        os.environ.setdefault(variable, value)
    try:
        with silence():
            devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # JaxRuntimeError, and others for a library of another version
        raise UserError(
            f"--topology={name}: the TPU's compiler refuses it ({first_line(error)}): try {EXAMPLES}"
        ) from error
    chip = find_chip(devices[0].device_kind)
    if chip is None:
        raise UserError(f"--topology={name}: nothing is known of a {devices[0].device_kind} (parallel/chips.py)")
    return Slice(name, tuple(int(side) for side in sides.split("x")), chip, tuple(devices))


def first_line(error: Exception) -> str:
    """What an error says first."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps from stderr what libtpu's C++ writes when it finds no TPU."""
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def slice_mesh(chips: Slice, config: ml_collections.ConfigDict) -> Mesh:
    """The mesh of `config.mesh` over a slice; raises UserError when the axes do not cover it."""
    data, fsdp, count = config.mesh.data, config.mesh.fsdp, len(chips.devices)
    if -1 in (data, fsdp) and data != fsdp:
        data, fsdp = (count // max(1, fsdp), fsdp) if data == -1 else (data, count // max(1, data))
    if min(data, fsdp) < 1 or data * fsdp != count:
        raise UserError(f"mesh.data={config.mesh.data} x mesh.fsdp={config.mesh.fsdp} does not cover the {count} chips")
    return Mesh(np.array(chips.devices).reshape(data, fsdp), sharding.AXES)


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """The steps of a training run and the shapes that they are called with, each with its sharding."""

    train_step: Any
    segmenter: BatchSegmenter
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]

    def lower_train(self) -> Any:
        """The training step as jax hands it to the compiler."""
        return self.train_step.lower(self.state, self.batch)

    def lower_eval(self) -> Any:
        """The evaluation step, likewise."""
        return self.segmenter.lower(self.state.arrays(), self.batch)


def abstract_run(config: ml_collections.ConfigDict, mesh: Mesh) -> AbstractRun:
    """What `medvlsm_jax.train` would compile, from the config alone: it reads neither data nor checkpoints.

    Raises:
        UserError: the config does not fit the mesh, or names what does not exist.
    """
    check_remat(config.remat)
    sharding.check_batch_size(config.batch_size, mesh, config.accumulation)
    source = source_of(config)
    model = abstract_model(source.config)
    _, params, stats = split_model(model)
    trained, frozen = split_trained(model, params, **freezing(config))
    if not trained:
        raise UserError("nothing is left to train: config.freeze_encoder and config.freeze_decoder are both set")
    optimizer = make_optimizer(config)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32)
    opt_state = jax.eval_shape(optimizer.init, trained)
    state = TrainState(step, trained, frozen, stats, opt_state, ema=dict(trained) if config.ema else {})
    state = with_shardings(state, sharding.tree_shardings(state, mesh))
    loss = find_loss(config.loss)
    graphdef = training_graph(config, source)
    options = {"accumulation": config.accumulation, "seed": config.seed, "ema": config.ema}
    train_step = make_train_step(graphdef, optimizer, loss, mesh, state, **options)
    segmenter = make_batch_segmenter(source.config, mesh, loss)
    return AbstractRun(train_step, segmenter, state, abstract_batch(source.config, config.batch_size, mesh))


def source_of(config: ml_collections.ConfigDict) -> Source:
    """The network of a run, from random weights, in the precision of an accelerator."""
    other = copy.deepcopy(config)
    other.init = other.resume = ""
    other.dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    other.attention = "pallas" if config.attention == "auto" else config.attention
    return find_source(other, Path(), None)


def model_flops(config: ml_collections.ConfigDict) -> float:
    """Floating-point operations that a training step needs for one image; what is recomputed does not count."""
    return training_flops(source_of(config).config, **freezing(config), is_cached=False)


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Shapes that know where they lie."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def bytes_per_chip(tree: Any) -> int:
    """What one chip holds of arrays with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
