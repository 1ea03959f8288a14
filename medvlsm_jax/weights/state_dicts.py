"""Checkpoint files of any format, or a hub id, to numpy arrays, and back.

PyTorch is needed for writing its own formats alone. No Python code in a file is ever executed.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from medvlsm_jax import atomic
from medvlsm_jax.errors import UserError
from medvlsm_jax.weights.reading.files import explain, load_content
from medvlsm_jax.weights.reading.tensors import Damaged, Refused, printable, to_arrays
from medvlsm_jax.weights.reading.trainers import choose, find_state_dicts
from medvlsm_jax.weights.sources import Source, locate

TORCH_ENDINGS = (".bin", ".pt", ".pth")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was read.

    Attributes:
        state_dict: arrays by PyTorch's names.
        source: the files that it came from.
        taken: a line that says which part of them it is.
        others: what else of that kind the file holds, by the names that `entry` takes.
    """

    state_dict: dict[str, np.ndarray]
    source: Source
    taken: str
    others: tuple[str, ...] = ()


def read_state_dict(source: str | Path, entry: str = "") -> dict[str, np.ndarray]:
    """All tensors of a checkpoint by name, half precision widened to float32.

    What else of that kind lies in the file (an average of the weights, say) is told in a warning.

    Args:
        source: a file of safetensors or torch.save (`.safetensors`, `.bin`, `.pt`, `.pth`, Lightning's `.ckpt`) or of
            torch.jit.save, an index of shards, a folder that holds one of these, or a hub id.
        entry: which state dict of several, by its key in the file: `state_dict_ema`.

    Raises:
        UserError: the file is missing, truncated, or holds no tensors that can be read.
    """
    checkpoint = read_checkpoint(source, entry)
    if checkpoint.others and not entry:
        warnings.warn(checkpoint.taken, stacklevel=2)
    return checkpoint.state_dict


def read_checkpoint(source: str | Path, entry: str = "") -> Checkpoint:
    """The same with what is known of it."""
    found = locate(str(source))
    parts = [read_file(path, entry) for path in found.files]
    state_dict = {name: array for part in parts for name, array in part.state_dict.items()}
    check_shards(found, parts)
    if len(parts) == 1:
        return dataclasses.replace(parts[0], source=found)
    return Checkpoint(state_dict, found, f"read {len(state_dict)} tensors from {found.name}")


def read_file(path: Path, entry: str = "") -> Checkpoint:
    """The state dict of one file; raises UserError as `read_state_dict`."""
    try:
        found = find_state_dicts(load_content(path))
        if not found:
            raise Refused("it holds no tensors")
        chosen = choose(found, entry)
        arrays = to_arrays(chosen.tensors, path.stat().st_size)
    except (Damaged, OSError, MemoryError) as error:
        raise explain(path, error) from error
    others = tuple(other.path for other in found if other.path not in (chosen.path, ""))
    return Checkpoint(arrays, Source((path,)), describe(path, chosen.path, arrays, others), others)


def describe(path: Path, taken: str, arrays: Mapping[str, np.ndarray], others: tuple[str, ...]) -> str:
    """The line that says what was taken."""
    line = f"read {len(arrays)} tensors from {path}"
    if taken:
        line += f", its {printable(taken)}"
    if others:
        line += f"; it holds {', '.join(map(printable, others))} as well: --entry={printable(others[0])} takes that"
    return line


def check_shards(source: Source, parts: list[Checkpoint]) -> None:
    """Raises UserError when shards hold other tensors than their index says, or one twice."""
    owners: dict[str, str] = {}
    for path, part in zip(source.files, parts, strict=True):
        for name in part.state_dict:
            if name in owners:
                raise UserError(
                    f"{path} and {owners[name]} hold both {printable(name)}: they are no shards of one model"
                )
            owners[name] = path.name
    wrong = [name for name, owner in (source.expected or owners).items() if owners.get(name) != owner]
    unexpected = [name for name in owners if name not in (source.expected or owners)]
    if wrong or unexpected:
        raise UserError(
            f"{source.name} is not what its index says, {len(wrong) + len(unexpected)} tensors are missing, unexpected "
            f"or in another shard, the first {printable((wrong + unexpected)[0])}: download all shards again"
        )


def write_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a `.safetensors` file, or with torch.save a `.bin`, `.pt` or `.pth` file, whole or not at all.

    Raises:
        UserError: the ending is another one, or PyTorch is needed and not installed.
    """
    path = Path(path).absolute()
    if path.suffix not in (".safetensors", *TORCH_ENDINGS):
        raise UserError(f"{path}: give a file that ends in .safetensors, {', '.join(TORCH_ENDINGS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        temporary.touch()  # with the permissions of any new file: safetensors makes its own for the owner alone
        mode = temporary.stat().st_mode
        if path.suffix == ".safetensors":
            save_file(dict(state_dict), temporary, metadata={"format": "pt"})  # transformers asks for the format
        else:
            torch = import_torch(f"writing {path.name}")
            torch.save({name: torch.from_numpy(np.array(array)) for name, array in state_dict.items()}, temporary)
        temporary.chmod(mode)


def import_torch(purpose: str) -> Any:
    """The torch module; raises UserError when it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{purpose} needs PyTorch: pip install 'medvlsm-jax[torch]' (files that end in .safetensors do without)"
        ) from error
    return torch
