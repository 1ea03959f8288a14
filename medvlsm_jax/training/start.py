"""Where a run starts: its own newest checkpoint, then `config.resume`'s, then `config.init`, then random weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from medvlsm_jax.checkpoints.arrays import abstract_arrays
from medvlsm_jax.checkpoints.checkpoints import Checkpoints, Saved
from medvlsm_jax.checkpoints.model_folder import load_pretrained, read_description, tokenizer_of
from medvlsm_jax.config import as_json, model_overrides
from medvlsm_jax.data.annotations import Record, check_classes, targets_of
from medvlsm_jax.data.arrayrecord import check_stored_size
from medvlsm_jax.data.reading import order
from medvlsm_jax.errors import UserError
from medvlsm_jax.models import abstract_model, check_image_size, initial_arrays, override, preset
from medvlsm_jax.models.network import NetworkConfig
from medvlsm_jax.models.parameters import Arrays, split_model
from medvlsm_jax.parallel.sharding import tree_shardings
from medvlsm_jax.training.freezing import freezing, set_training_mode, split_trained
from medvlsm_jax.training.progress import RunProgress, new_progress
from medvlsm_jax.training.step import TrainState, make_optimizer, new_state

# What decides which example is read at which step, or which arrays there are: it must not change within a run.
FIXED = ("dataset", "prompt", "model", "model_options", "image_size", "zero_prompt", "tokenizer", "target")
FIXED += ("data_num", "pool", "seed", "batch_size")
ORDER = "order"  # beside the config in a checkpoint: the `order.VERSION` that its run reads by
UNTOLD = ("resume", "init", "data_dir", "num_epochs", "max_steps", "distributed", "mesh", "data", "features")


@dataclasses.dataclass(frozen=True)
class Source:
    """What a run trains, before any array is read."""

    kind: str  # "checkpoint", "resume", "init" or "random"
    folder: Path | None  # of all but the last
    config: NetworkConfig
    tokenizer: str  # a folder or a hub id


def find_source(
    config: ml_collections.ConfigDict, workdir: Path, latest: int | None, sets: Sequence[list[Record]] = ()
) -> Source:
    """Follows the start-up precedence.

    Args:
        config: of the run.
        workdir: of the run.
        latest: the newest step that was saved there.
        sets: the records of the training, and of what else it reads. A network that reads no sentence cannot know which
            of several classes is meant, so it gets one output for each that the training records name.

    Raises:
        UserError: a checkpoint is of another network than `config.model` or has no output for a class, the network
            cannot work at `config.image_size`, or the records are stored at another size than it reads.
    """
    network, model_config = preset(config.model)
    kind, folder = "random", None
    if latest is not None:
        kind, folder = "checkpoint", workdir
    elif config.resume:
        kind, folder = "resume", Path(config.resume)
    elif config.init:
        kind, folder = "init", Path(config.init)
    tokenizer = model_config.tokenizer
    if folder is not None:
        found, model_config = read_description(folder)
        if found != network:
            raise UserError(f"{folder} holds a {found}, but config.model is {config.model!r}: choose a {found} preset")
        tokenizer = tokenizer_of(folder, model_config)
    model_config = override(model_config, model_overrides(config))
    if config.image_size:
        check_image_size(model_config)
    targets = targets_of(sets[0]) if sets else ()
    if model_config.text is None and len(targets) > 1 and not model_config.classes:
        if folder is not None:
            raise UserError(
                f"{folder} has one output, but the training data name {len(targets)} classes and a {network} reads "
                f"no sentence: convert its weights with --classes={','.join(targets)!r}, or choose one by config.target"
            )
        model_config = override(model_config, {"classes": targets})
    for records in sets:
        check_classes(records, model_config.classes)
        check_stored_size(records, model_config.image_size)
    return Source(kind, folder, model_config, config.tokenizer or tokenizer)


def training_graph(config: ml_collections.ConfigDict, source: Source) -> nnx.GraphDef:
    """The model's graph with what is trained in training mode."""
    model = abstract_model(source.config)
    set_training_mode(model, **freezing(config))
    return nnx.graphdef(model)


def start_state(
    config: ml_collections.ConfigDict,
    source: Source,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> tuple[TrainState, RunProgress]:
    """The state that training goes on from, every array made or restored in its sharding, and the counters.

    Raises:
        UserError: nothing is left to train, a checkpoint cannot be read, or the config is not the one of its run.
    """
    optimizer, model = make_optimizer(config), abstract_model(source.config)
    _, params, stats = split_model(model)
    trained, frozen = split_trained(model, params, **freezing(config))
    if not trained:
        raise UserError("nothing is left to train: config.freeze_encoder and config.freeze_decoder are both set")
    if source.kind == "checkpoint":
        return continue_state(config, mesh, checkpoints, (trained, frozen, stats))
    if source.kind == "resume":
        with Checkpoints(config.resume) as others:
            state, progress = continue_state(config, mesh, others, (trained, frozen, stats))
        return state, dataclasses.replace(progress, best_score=None)  # that is of the checkpoints in this workdir
    if source.folder is not None:
        arrays = load_pretrained(source.folder, mesh, **model_overrides(config)).arrays
    else:
        arrays = initial_arrays(source.config, config.seed, shardings=lambda shapes: tree_shardings(shapes, mesh))
    trained, frozen, stats = ({name: arrays[name] for name in group} for group in (trained, frozen, stats))
    averages = copies(trained) if config.ema else None
    return new_state(trained, frozen, stats, optimizer, mesh, ema=averages), new_progress(config)


def continue_state(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    checkpoints: Checkpoints,
    shapes: tuple[Arrays, Arrays, Arrays],
) -> tuple[TrainState, RunProgress]:
    """State and counters of the newest checkpoint that can be read; `shapes` are of trained, frozen and statistics."""
    trained, frozen, stats = shapes
    optimizer = make_optimizer(config)

    def abstract(old_config: dict[str, Any]) -> Saved:
        check_unchanged(config, old_config, checkpoints.workdir)
        ema = trained if old_config["ema"] else {}
        trees = ({**trained, **stats}, jax.eval_shape(optimizer.init, trained), ema)
        arrays, opt_state, ema = (abstract_arrays(tree, mesh) for tree in trees)
        return Saved(arrays, opt_state, ema)

    step, saved, frozen = checkpoints.load_newest(abstract, abstract_arrays(frozen, mesh))
    trained, stats = ({name: saved.arrays[name] for name in group} for group in (trained, stats))
    averages = (saved.ema or copies(trained)) if config.ema else None
    progress = new_progress(config)
    progress.restore(saved.progress)
    return new_state(trained, frozen, stats, optimizer, mesh, saved.opt_state, step, averages), progress


def to_save(state: TrainState, progress: RunProgress, config: ml_collections.ConfigDict) -> Saved:
    """What a checkpoint holds."""
    about = {**as_json(config), ORDER: order.VERSION}
    return Saved({**state.trained, **state.stats}, state.opt_state, state.ema, progress.to_json(), about)


def copies(arrays: Arrays) -> Arrays:
    """Arrays of their own with the same values, for a step consumes its state."""
    return jax.tree.map(jnp.copy, arrays)


def check_unchanged(config: ml_collections.ConfigDict, old: dict[str, Any], folder: Path) -> None:
    """Says which fields differ from those that a checkpoint was written with.

    Raises:
        UserError: one of them says which example is read at which step, or what the arrays are; or the checkpoint is of
            a version that read the records in another order.
    """
    if old.get(ORDER) != order.VERSION:
        raise UserError(
            f"{folder} holds a run of another version of this program, which read the records in another order: go on "
            "with that one, or give another --workdir, where --config.init may name this one to start from its weights"
        )
    new = as_json(config)
    changed = {name: (old.get(name), value) for name, value in new.items() if name in old and old[name] != value}
    wrong = {name: values for name, values in changed.items() if name in FIXED}
    if freezing(ml_collections.ConfigDict(old)) != freezing(config):
        wrong |= {name: changed[name] for name in ("init", "freeze_encoder", "freeze_decoder") if name in changed}
    if wrong:
        listed = ", ".join(f"{name} was {before!r} and is {after!r}" for name, (before, after) in wrong.items())
        raise UserError(
            f"{folder} holds a run of another config: {listed}. Give the old values (they are in its config.json), or "
            "another --workdir, where --config.init may name this one to start from its weights"
        )
    told = {name: values for name, values in changed.items() if name not in UNTOLD}
    if told and jax.process_index() == 0:
        listed = ", ".join(f"{name} {before!r} -> {after!r}" for name, (before, after) in told.items())
        print(f"continues with a changed config: {listed}")
