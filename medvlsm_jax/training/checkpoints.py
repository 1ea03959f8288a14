"""Models and train states on disk; the only file that imports orbax.

A model folder (written by `tools/convert_weights.py`) and a workdir (written by `medvlsm_jax.train`) both hold

    model.json     the network and its config
    tokenizer/     the tokenizer's files, where they were at hand

and arrays under dotted names, in `arrays/` (model folder) or in `checkpoints/STEP/arrays/` (workdir).
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import v1 as orbax_v1

from medvlsm_jax import atomic
from medvlsm_jax.data.tokenizers import Tokenizer, load_tokenizer
from medvlsm_jax.errors import UserError
from medvlsm_jax.models import NETWORKS, abstract_model, network_of, override
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.models.parameters import Arrays, merge_model, split_model
from medvlsm_jax.training.sharding import make_mesh, tree_shardings

ocp: Any = orbax_v1  # its published types lag behind what it accepts

MODEL_FILE = "model.json"
TOKENIZER_FOLDER = "tokenizer"
ARRAYS = "arrays"
OPTIMIZER = "optimizer"
CHECKPOINTS = "checkpoints"
SCORE = "dice"  # by which the best checkpoint is chosen


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model from disk: its description and its arrays, sharded over a mesh."""

    config: NetworkConfig
    graphdef: nnx.GraphDef
    arrays: Arrays
    tokenizer: str  # a folder or a hub id

    def model(self) -> Network:
        """The model itself."""
        return merge_model(self.graphdef, self.arrays)


def write_description(folder: Path, config: NetworkConfig, tokenizer: Tokenizer | None) -> None:
    """Writes model.json and, where given, the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER_FOLDER)
    content = {"network": network_of(config), "config": dataclasses.asdict(config)}
    atomic.write_text(folder / MODEL_FILE, json.dumps(content, indent=1) + "\n")


def read_description(folder: Path) -> tuple[str, NetworkConfig]:
    """The network and the config of a model folder or a workdir; raises UserError when it is neither."""
    path = folder / MODEL_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        network = content["network"]
        return network, override(NETWORKS[network].config_class(), content["config"])
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is no checkpoint: {path} is missing. Give a folder written by tools/convert_weights.py or the "
            "--workdir of a training run"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} describes no model of this version ({error!r})") from error


def tokenizer_of(folder: Path, config: NetworkConfig) -> str:
    """Where a model's tokenizer is: in its folder, else what its config names."""
    packed = folder / TOKENIZER_FOLDER
    return str(packed) if packed.is_dir() else config.tokenizer


def load_model_tokenizer(name: str, config: NetworkConfig) -> Tokenizer | None:
    """The tokenizer called `name`, a folder or a hub id; None for a network that reads no sentence.

    Raises:
        UserError: it cannot be loaded, or is not the one of the model.
    """
    if config.text is None:
        return None
    tokenizer = load_tokenizer(name, config.text.context_length, config.text.pad_token_id)
    tokenizer.check(config.text.vocab_size, config.text.eos_token_id)
    return tokenizer


def save_model(folder: str | Path, model: Network, tokenizer: Tokenizer | None = None) -> None:
    """Writes a model folder, whole or not at all; an older model folder of that name is replaced.

    Raises:
        UserError: the folder exists and is something else.
    """
    target = Path(folder).absolute()
    # A workdir has a model.json too, but its arrays elsewhere: it must not be replaced.
    is_model_folder = (target / MODEL_FILE).is_file() and (target / ARRAYS).is_dir()
    if target.exists() and not is_model_folder and any(target.iterdir()):
        raise UserError(f"{target} exists and is no model folder: choose another --output")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _, params, stats = split_model(model)
    try:
        write_description(temporary, model.config, tokenizer)
        ocp.save(temporary / ARRAYS, {**params, **stats})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_pretrained(folder: str | Path, mesh: Mesh | None = None, **overrides: Any) -> Pretrained:
    """Reads a model folder, or the best checkpoint of a workdir, straight onto the devices of a mesh.

    Args:
        folder: either of them.
        mesh: the devices; all on `data` when it is not given.
        **overrides: config fields to replace that leave the arrays' shapes alone (`dtype`, `image_size`, …).

    Raises:
        UserError: nothing of that kind is there.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(
            f"checkpoint folder {folder} does not exist; tools/convert_weights.py makes one of a PyTorch file or hub id"
        )
    _, config = read_description(folder)
    config = override(config, overrides)
    graphdef, params, stats = split_model(abstract_model(config))
    abstract = abstract_arrays({**params, **stats}, mesh or make_mesh())
    if (folder / ARRAYS).is_dir():
        check_fit(folder / ARRAYS, ocp.metadata(folder / ARRAYS).metadata, abstract)
        arrays = ocp.load(folder / ARRAYS, abstract)
    else:
        with Checkpoints(folder) as checkpoints:
            arrays = checkpoints.load_arrays(checkpoints.best(), abstract)
    return Pretrained(config, graphdef, arrays, tokenizer_of(folder, config))


def load(path: str | Path, **overrides: Any) -> Network:
    """A converted or finetuned model from its folder; of a workdir, the checkpoint with the best validation Dice."""
    return load_pretrained(path, **overrides).model()


def abstract_arrays(tree: Any, mesh: Mesh) -> Any:
    """Shapes with the shardings that the arrays are to be restored with."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        tree_shardings(tree, mesh),
    )


def check_fit(path: Path, stored: Any, wanted: Any) -> None:
    """Raises UserError when the arrays on disk are not those asked for, before orbax tries to read them."""

    def shapes(tree: Any) -> list[tuple[int, ...]]:
        return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))

    is_renamed = isinstance(wanted, dict) and set(stored) != set(wanted)
    if is_renamed or shapes(stored) != shapes(wanted):
        raise UserError(
            f"checkpoint {path} does not fit its {MODEL_FILE} or this config (was freezing or the model changed?): "
            "continue with the config.json beside it, or choose another folder"
        )


class Checkpoints:
    """The checkpoints of a workdir: the latest, and the best by validation Dice; written in the background."""

    def __init__(self, workdir: str | Path, *, is_writer: bool = False):
        self.folder = Path(workdir).absolute() / CHECKPOINTS
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda m: m[SCORE], n=1, keep_checkpoints_without_metrics=False)
        # BestN alone would evict the newest checkpoint (orbax#526).
        self.checkpointer = ocp.training.Checkpointer(
            self.folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            cleanup_tmp_directories=is_writer,  # a reader must not take away what a running training writes
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.checkpointer.close()

    def latest(self) -> int | None:
        """The newest step that was saved."""
        newest = self.checkpointer.latest
        return None if newest is None else newest.step

    def best(self) -> int:
        """The step with the best validation Dice, else the newest; raises UserError when there is none."""
        scored = [(c.metrics[SCORE], c.step) for c in self.checkpointer.checkpoints if c.metrics]
        newest = self.latest()
        if newest is None:
            raise UserError(f"{self.folder} holds no finished checkpoint: the training run ended before its first one")
        return max(scored)[1] if scored else newest

    def save(self, step: int, arrays: Arrays, opt_state: Any, progress: dict[str, Any], score: float | None) -> None:
        """Starts to write a checkpoint; `progress` is what continues besides the arrays, as json values."""
        self.checkpointer.save_checkpointables_async(
            step,
            {ARRAYS: arrays, OPTIMIZER: opt_state},
            metrics=None if score is None else {SCORE: score},
            custom_metadata=progress,
            overwrite=True,
        )

    def load_arrays(self, step: int, abstract: Arrays) -> Arrays:
        """The arrays of a step, with the shardings of `abstract`."""
        return self._load(step, {ARRAYS: abstract})[0][ARRAYS]

    def load(self, step: int, abstract: Arrays, abstract_opt_state: Any) -> tuple[Arrays, Any, dict[str, Any]]:
        """Arrays, optimizer state and progress of a step."""
        loaded, progress = self._load(step, {ARRAYS: abstract, OPTIMIZER: abstract_opt_state})
        return loaded[ARRAYS], loaded[OPTIMIZER], progress

    def _load(self, step: int, wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        stored = self.checkpointer.checkpointables_metadata(step)
        for name, abstract in wanted.items():
            check_fit(self.folder / str(step), stored.metadata[name], abstract)
        return self.checkpointer.load_checkpointables(step, wanted), dict(stored.custom_metadata or {})

    def wait(self) -> None:
        """Returns when what was started is on disk."""
        self.checkpointer.wait()
