"""Where weights are: a file, the shards of one, a folder that holds either, or a repository of the hub."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from medvlsm_jax import hub
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import local_folder

SINGLE = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
INDEX = ".index.json"
# Looked for in this order; an index names the shards of weights that were too large for one file.
WEIGHT_FILES = tuple(name for single in SINGLE for name in (single, single + INDEX))
CONFIG_FILES = ("config.json", "open_clip_config.json", "preprocessor_config.json")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.[a-z]+)")
DISTRIBUTED = (".metadata", "latest", "zero_to_fp32.py")  # of torch.distributed.checkpoint, and DeepSpeed
MAX_JSON = 64 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights on this machine.

    Attributes:
        files: one, or all its shards.
        expected: of sharded weights, in which file each tensor lies; None where nothing says so.
    """

    files: tuple[Path, ...]
    expected: dict[str, str] | None = None

    @property
    def folder(self) -> Path:
        """Where the files lie, and beside them what describes them."""
        return self.files[0].parent

    @property
    def name(self) -> str:
        """What a message calls them."""
        return str(self.files[0]) if len(self.files) == 1 else f"{self.folder} ({len(self.files)} shards)"


def locate(source: str) -> Source:
    """The weights that a path, a folder or a hub id means; a hub id is downloaded on first use.

    Raises:
        UserError: nothing is there, a shard is missing, or the hub cannot be reached.
    """
    path = local_folder("--source", source)
    if path.is_file():
        return with_shards(path)
    if path.is_dir():
        for name in WEIGHT_FILES:
            if (path / name).is_file():
                return with_shards(path / name)
        if any((path / name).exists() for name in DISTRIBUTED):
            raise UserError(
                f"{path} is a checkpoint in parts, one for each process of its training: join them first, with "
                "python -m torch.distributed.checkpoint.format_utils dcp_to_torch, or DeepSpeed's zero_to_fp32.py"
            )
        raise UserError(f"{path} holds none of {', '.join(WEIGHT_FILES)}: give the weight file itself")
    if source.count("/") != 1 or path.suffix or source.startswith((".", "/", "~")):
        raise UserError(
            f"{source} does not exist: give a weight file, a folder that holds one, or a hub id (owner/name)"
        )
    return download(source)


def with_shards(path: Path) -> Source:
    """A file; where it is an index, or one of several shards, all of them."""
    if path.name.endswith(INDEX):
        return read_index(path)
    shard = SHARD.fullmatch(path.name)
    if shard is None:
        return Source((path,))
    index = path.with_name(f"{shard['stem']}{shard['ending']}{INDEX}")
    if index.is_file():
        return read_index(index)
    count = int(shard["count"])
    if not 0 < count <= 10_000:
        raise UserError(f"{path} is one of {count} shards: give them beside their index {index.name}")
    names = [f"{shard['stem']}-{i:05d}-of-{shard['count']}{shard['ending']}" for i in range(1, count + 1)]
    return shards(path, names)


def shards(path: Path, names: list[str], expected: dict[str, str] | None = None) -> Source:
    """The shards that `path` is one of, or the index of; raises UserError when one is missing."""
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise UserError(
            f"{path} belongs to weights in {len(names)} shards, of which {len(missing)} are missing beside it, the "
            f"first {missing[0]}: put all of them into one folder"
        )
    return Source(tuple(path.with_name(name) for name in names), expected)


def read_index(path: Path) -> Source:
    """The shards that an index names."""
    names, weight_map = index_of(path)
    return shards(path, names, weight_map)


def index_of(path: Path) -> tuple[list[str], dict[str, str]]:
    """The files that an index names, and which of them holds which tensor; raises UserError when it is no index."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(is_plain_name, weight_map.values())):
        raise UserError(f"{path} is no index of shards: it needs a weight_map from tensors to files beside it")
    return sorted(set(weight_map.values())), weight_map


def is_plain_name(name: Any) -> bool:
    """Whether this is the name of a file, and no path that leads elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def read_json(path: Path) -> dict[str, Any]:
    """A table in a json file; raises UserError when it is none."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError("it is too large")
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as json ({error}): download it again, or remove it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no json table: download it again, or remove it")
    return content


def download(hub_id: str) -> Source:
    """The first of the known weight files that a repository holds, with its shards and what describes it."""
    try:
        for name in WEIGHT_FILES:
            path = hub.fetch(hub_id, name)
            if path is not None:
                if name.endswith(INDEX):
                    for shard in index_of(path)[0]:
                        hub.fetch(hub_id, shard)
                for config in CONFIG_FILES:
                    with contextlib.suppress(FileNotFoundError):  # the hub is not reached, and the cache has it not
                        hub.fetch(hub_id, config)
                return with_shards(path)
    except OSError as error:
        raise UserError(
            f"cannot fetch {hub_id} from the Hugging Face hub (no network, or no such repository): download one of "
            f"{', '.join(SINGLE)}, and config.json if there is one, from huggingface.co/{hub_id} elsewhere, put "
            "them into a folder and pass its path with --source=FILE"
        ) from error
    raise UserError(f"hub repository {hub_id} holds none of {', '.join(WEIGHT_FILES)}")
