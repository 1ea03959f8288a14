"""Models on disk, as folders that are converted, finetuned and loaded (`arrays.py` says what they hold)."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from medvlsm_jax import atomic
from medvlsm_jax.checkpoints.arrays import ARRAYS, CONTEXT, MODEL_FILE, abstract_arrays, check_fit, ocp
from medvlsm_jax.checkpoints.checkpoints import FROZEN, Checkpoints
from medvlsm_jax.data.language.tokenizers import Tokenizer, load_tokenizer
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import output_folder
from medvlsm_jax.models import NETWORKS, abstract_model, network_of, override
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.models.parameters import Arrays, check_finite, merge_model, split_model
from medvlsm_jax.parallel.sharding import from_first_process, make_mesh

TOKENIZER_FOLDER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model from disk: its description and its arrays, sharded over a mesh.

    Attributes:
        config: of the network.
        graphdef: its structure.
        arrays: by dotted names.
        tokenizer: a folder or a hub id.
        step: of the checkpoint that was read; None for a model folder.
        fingerprint: changes with the files that were read, by their names, sizes and times.
    """

    config: NetworkConfig
    graphdef: nnx.GraphDef
    arrays: Arrays
    tokenizer: str
    step: int | None
    fingerprint: str

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
        UserError: the folder exists and is something else, or holds something else besides.
    """
    target = output_folder("--output", folder).absolute()
    # A workdir has a model.json too, but its arrays elsewhere: it must not be replaced.
    is_model_folder = (target / MODEL_FILE).is_file() and (target / ARRAYS).is_dir()
    if target.exists() and not is_model_folder and any(target.iterdir()):
        raise UserError(f"{target} exists and is no model folder: choose another --output")
    parts = {MODEL_FILE, ARRAYS, TOKENIZER_FOLDER}
    if others := sorted(path.name for path in target.glob("[!.]*") if path.name not in parts):
        raise UserError(f"{target} holds {others[0]}, which is not part of a model: move it away before it is replaced")
    _, params, stats = split_model(model)
    with atomic.replacing(target) as temporary:
        write_description(temporary, model.config, tokenizer)
        with CONTEXT:
            ocp.save(temporary / ARRAYS, {**params, **stats})
        shutil.rmtree(target, ignore_errors=True)


def load_pretrained(folder: str | Path, mesh: Mesh | None = None, **overrides: Any) -> Pretrained:
    """Reads a model folder, or the best checkpoint of a workdir, straight onto the devices of a mesh.

    A training may go on meanwhile: the best checkpoint is chosen once, by the first process for all of them.

    Args:
        folder: either of them.
        mesh: the devices; all on `data` when it is not given.
        **overrides: config fields to replace that leave the arrays' shapes alone (`dtype`, `image_size`, …).

    Raises:
        UserError: nothing of that kind is there, it was replaced while it was read, or it holds values that are not
            finite.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(
            f"checkpoint folder {folder} does not exist; tools/convert_weights.py makes one of a PyTorch file or hub id"
        )
    _, config = read_description(folder)
    config = override(config, {"attention": "auto"} | overrides)  # whatever the machine had that it was trained on
    graphdef, params, stats = split_model(abstract_model(config))
    abstract = abstract_arrays({**params, **stats}, mesh or make_mesh())
    step = None
    if (folder / ARRAYS).is_dir():
        with unchanged(folder, folder / ARRAYS) as fingerprint:
            check_fit(folder / ARRAYS, ocp.metadata(folder / ARRAYS).metadata, abstract)
            arrays = ocp.load(folder / ARRAYS, abstract)
    else:
        with Checkpoints(folder) as checkpoints:
            step = from_first_process(checkpoints.best())
            with unchanged(folder, checkpoints.folder / str(step), folder / FROZEN) as fingerprint:
                arrays = checkpoints.load_arrays(step, abstract)
    check_finite(arrays, str(folder))
    return Pretrained(config, graphdef, arrays, tokenizer_of(folder, config), step, fingerprint)


@contextlib.contextmanager
def unchanged(folder: Path, *parts: Path) -> Iterator[str]:
    """The fingerprint of what is read in the block, so that it is of nothing else.

    Args:
        folder: of the model.
        *parts: files and folders in it.

    Raises:
        UserError: they were changed meanwhile, or are gone.
    """
    found = take_fingerprint(folder, parts)
    message = f"{parts[0]} was replaced while it was read (a training goes on?): give the same command again"
    try:
        yield found
    except Exception as error:
        if take_fingerprint(folder, parts) != found:
            raise UserError(message) from error
        raise
    if not found or take_fingerprint(folder, parts) != found:
        raise UserError(message)


def take_fingerprint(folder: Path, parts: Sequence[Path]) -> str:
    """Of names, sizes and times of all files in parts of a folder; empty where one goes away meanwhile."""
    files = sorted(path for part in parts for path in part.rglob("*") if path.is_file())
    try:
        stats = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except FileNotFoundError:
        return ""
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def load(path: str | Path, *, dtype: str = "float32", **overrides: Any) -> Network:
    """A converted or finetuned model from its folder; of a workdir, the checkpoint with the best validation Dice.

    Args:
        path: of either.
        dtype: of the computation, "float32" or "bfloat16", whatever the training computed in.
        **overrides: other fields of the config to replace, as of `load_pretrained`.

    Raises:
        UserError: nothing of that kind is there.
    """
    return load_pretrained(path, dtype=dtype, **overrides).model()
