"""Where a run's model comes from: its own newest checkpoint, then `config.init`, then random weights."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import abstract_model, check_image_size, initial_arrays, override, preset
from medvlsm_jax.models.network import NetworkConfig
from medvlsm_jax.models.parameters import Arrays, split_model
from medvlsm_jax.training.checkpoints import (
    Checkpoints,
    abstract_arrays,
    load_pretrained,
    read_description,
    tokenizer_of,
)
from medvlsm_jax.training.optimizer import EarlyStopping, ReduceOnPlateau, set_training_mode, split_trained
from medvlsm_jax.training.sharding import tree_shardings
from medvlsm_jax.training.state import TrainState, new_state


@dataclasses.dataclass(frozen=True)
class Source:
    """What a run trains, before any array is read."""

    kind: str  # "checkpoint", "init" or "random"
    folder: Path | None  # of the first two
    config: NetworkConfig
    tokenizer: str  # a folder or a hub id


def find_source(
    config: ml_collections.ConfigDict, workdir: Path, latest: int | None, targets: tuple[str, ...] = ()
) -> Source:
    """Follows the start-up precedence.

    Args:
        config: of the run.
        workdir: of the run.
        latest: the newest step that was saved there.
        targets: the classes that the training records name. A network that reads no sentence cannot know which of
            several is meant, so it gets one output for each.

    Raises:
        UserError: a checkpoint is of another network than `config.model` or has no output for a class, or the network
            cannot work at `config.image_size`.
    """
    network, model_config = preset(config.model)
    kind, folder = "random", None
    if latest is not None:
        kind, folder = "checkpoint", workdir
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
    if model_config.text is None and len(targets) > 1 and not model_config.classes:
        if folder is not None:
            raise UserError(
                f"{folder} has one output, but the training data name {len(targets)} classes and a {network} reads "
                f"no sentence: convert its weights with --classes={','.join(targets)!r}, or choose one by config.target"
            )
        model_config = override(model_config, {"classes": targets})
    return Source(kind, folder, model_config, config.tokenizer or tokenizer)


def model_overrides(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The model's fields that a run or an evaluation may set."""
    try:
        overrides: dict[str, Any] = json.loads(config.model_options or "{}") | {"dtype": resolve_dtype(config.dtype)}
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"config.model_options={config.model_options!r} is no json object: {error}") from error
    if config.image_size:
        overrides["image_size"] = config.image_size
    if config.zero_prompt:
        overrides["zero_prompt"] = True
    return overrides


def resolve_dtype(dtype: str) -> str:
    """`auto` is bfloat16 on accelerators and float32 on CPU; raises UserError for an unknown name."""
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype={dtype!r}: choose float32, bfloat16 or auto")
    return dtype


@dataclasses.dataclass
class RunProgress:
    """What a run remembers besides its arrays: the learning-rate rule, the stopping rule and the best score."""

    plateau: ReduceOnPlateau
    early_stopping: EarlyStopping
    best_score: float | None = None

    def update(self, loss: float, score: float) -> None:
        """Takes the results of one validation."""
        self.plateau.update(loss)
        self.early_stopping.update(score)
        self.best_score = score if self.best_score is None else max(self.best_score, score)

    def to_json(self) -> dict[str, Any]:
        """The counters as json values; infinities, which json lacks, are left out."""

        def finite(rule: Any, *names: str) -> dict[str, float]:
            return {name: getattr(rule, name) for name in names if math.isfinite(getattr(rule, name))}

        return {
            "plateau": finite(self.plateau, "scale", "best", "bad"),
            "early_stopping": finite(self.early_stopping, "best", "bad"),
            "best_score": self.best_score,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Takes the counters back."""
        self.plateau = dataclasses.replace(self.plateau, **content["plateau"])
        self.early_stopping = dataclasses.replace(self.early_stopping, **content["early_stopping"])
        self.best_score = content["best_score"]


def new_progress(config: ml_collections.ConfigDict) -> RunProgress:
    """The counters of a run that has not started."""
    return RunProgress(ReduceOnPlateau(config.learning_rate, **config.plateau), EarlyStopping(**config.early_stopping))


def freezing(config: ml_collections.ConfigDict) -> dict[str, bool]:
    """What is frozen: the encoder where `config.init` brings pretrained weights, unless the config says otherwise."""
    frozen_encoder = config.freeze_encoder if config.freeze_encoder is not None else bool(config.init)
    return {"freeze_encoder": frozen_encoder, "freeze_decoder": config.freeze_decoder}


def training_graph(config: ml_collections.ConfigDict, source: Source) -> nnx.GraphDef:
    """The model's graph with what is trained in training mode."""
    model = abstract_model(source.config)
    set_training_mode(model, **freezing(config))
    return nnx.graphdef(model)


def start_state(
    config: ml_collections.ConfigDict,
    source: Source,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> tuple[TrainState, RunProgress]:
    """The state that training goes on from, every array made or restored in its sharding, and the counters."""
    model = abstract_model(source.config)
    _, params, stats = split_model(model)
    progress = new_progress(config)

    def assemble(arrays: Arrays, opt_state: Any = None, step: int = 0) -> TrainState:
        trained, frozen = split_trained(model, {name: arrays[name] for name in params}, **freezing(config))
        if not trained:
            raise UserError("nothing is left to train: config.freeze_encoder and config.freeze_decoder are both set")
        return new_state(trained, frozen, {name: arrays[name] for name in stats}, optimizer, mesh, opt_state, step)

    if source.kind == "checkpoint":
        step = checkpoints.latest() or 0
        shapes = jax.eval_shape(lambda: assemble({**params, **stats}))
        abstract = abstract_arrays({**params, **stats}, mesh)
        arrays, opt_state, counters = checkpoints.load(step, abstract, abstract_arrays(shapes.opt_state, mesh))
        progress.restore(counters)
        return assemble(arrays, opt_state, step), progress
    if source.folder is not None:
        return assemble(load_pretrained(source.folder, mesh, **model_overrides(config)).arrays), progress
    arrays = initial_arrays(source.config, config.seed, shardings=lambda shapes: tree_shardings(shapes, mesh))
    return assemble(arrays), progress
