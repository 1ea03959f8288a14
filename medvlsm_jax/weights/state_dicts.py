"""Checkpoint files of any format, or a hub id, to numpy arrays, and back.

No Python code in a file is ever executed.
"""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from medvlsm_jax import atomic
from medvlsm_jax.errors import UserError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TORCH_ENDINGS = (".bin", ".pt", ".pth")
# What torch and zipfile raise for files that are cut short or of another kind.
BROKEN = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    struct.error,
    zipfile.BadZipFile,
)
NESTED_KEYS = ("state_dict", "model_state_dict", "model")


def locate(source: str) -> Path:
    """The weight file that a path, a folder or a hub id means; a hub id is downloaded on first use.

    Raises:
        UserError: nothing is there, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in WEIGHT_FILES:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path} holds none of {', '.join(WEIGHT_FILES)}: give the weight file itself")
    if source.count("/") != 1 or path.suffix or source.startswith((".", "/", "~")):
        raise UserError(
            f"{source} does not exist: give a weight file, a folder that holds one, or a hub id (owner/name)"
        )
    return download(source)


def download(hub_id: str) -> Path:
    """The first of the known weight files that a Hugging Face repository holds, through the local cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for name in WEIGHT_FILES:
        try:
            return Path(hf_hub_download(hub_id, name, etag_timeout=10))
        except LocalEntryNotFoundError as error:
            raise unreachable(hub_id) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise unreachable(hub_id) from error
    raise UserError(f"hub repository {hub_id} holds none of {', '.join(WEIGHT_FILES)}")


def unreachable(hub_id: str) -> UserError:
    """What to do where the hub cannot be reached."""
    return UserError(
        f"cannot fetch {hub_id} from the Hugging Face hub (no network, or no such repository): download one of "
        f"{', '.join(WEIGHT_FILES)} from huggingface.co/{hub_id} elsewhere and pass its path with --source=FILE"
    )


def read_state_dict(source: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint by name.

    Args:
        source: a `.safetensors`, `.bin`, `.pt`, `.pth` or Lightning `.ckpt` file, a folder that holds one, or a hub id.

    Raises:
        UserError: the file is missing, truncated, holds no tensors, or is a pickle that would run code.
    """
    path = locate(str(source))
    state_dict = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if not state_dict:
        raise UserError(f"{path} holds no tensors")
    return state_dict


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file; needs no PyTorch."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: as_float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}): download it again") from error


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """A file written by `torch.save`, read without running any code that it carries."""
    torch = import_torch(f"reading {path.name}")
    try:
        if is_torchscript(path):
            return floats(read_torchscript(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as error:
        # torch reports what is no pickle at all, a web page for example, as an unknown operand.
        if isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in str(error):
            raise UserError(
                f"{path} is refused: it holds more than tensors, and loading it could run code. If you trust it, save "
                "its state_dict alone with torch.save, or convert it to .safetensors"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as a PyTorch file ({reason}): it may be truncated or of another kind"
        ) from error
    return floats({name: value for name, value in find_state_dict(content).items() if isinstance(value, torch.Tensor)})


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of torch.jit.save, as OpenAI's CLIP files are."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Any]:
    """The tensors of a TorchScript archive; its program is loaded and not run."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the format is retired, the files are not
        return torch.jit.load(path, map_location="cpu").state_dict()


def floats(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tensors as arrays, half precision widened exactly."""
    return {
        name: value.float().numpy() if value.is_floating_point() else value.numpy() for name, value in tensors.items()
    }


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
        if path.suffix == ".safetensors":
            save_file(dict(state_dict), temporary, metadata={"format": "pt"})  # transformers asks for the format
        else:
            torch = import_torch(f"writing {path.name}")
            torch.save({name: torch.from_numpy(np.array(array)) for name, array in state_dict.items()}, temporary)


def import_torch(purpose: str) -> Any:
    """The torch module; raises UserError when it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{purpose} needs PyTorch: pip install 'medvlsm-jax[torch]' (files that end in .safetensors do without)"
        ) from error
    return torch


def find_state_dict(content: Any) -> dict[str, Any]:
    """The dictionary of tensors inside what a training framework saved around it."""
    while isinstance(content, dict):
        nested = next((content[key] for key in NESTED_KEYS if isinstance(content.get(key), dict)), None)
        if nested is None:
            return content
        content = nested
    return {}


def as_float32(array: np.ndarray) -> np.ndarray:
    """Half precision widened exactly; other types as they are."""
    return array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array
