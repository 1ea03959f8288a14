"""Any file with weights: which kind it is stands in its first bytes, whatever its ending says."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from medvlsm_jax.errors import UserError
from medvlsm_jax.weights.reading.archives import Archive
from medvlsm_jax.weights.reading.safetensors_files import load_safetensors
from medvlsm_jax.weights.reading.tensors import Damaged, Refused, printable
from medvlsm_jax.weights.reading.torch_files import load_legacy, load_torchscript, load_zip

# First bytes of files that are mistaken for weights -> what they are, and what to do.
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights: fetch them with git lfs pull",
    b"<": "a web page, not the weights: download them again, signed in where that is asked for",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"\x89HDF": "an HDF5 file, as Keras writes it: give PyTorch's weights",
    b"GGUF": "a GGUF file: give PyTorch's weights",
    b"\x93NUMPY": "a numpy array: give PyTorch's weights",
}
TAR = slice(257, 262)  # where a tar archive says that it is one


def load_content(path: Path) -> Any:
    """What a file holds, tensors still as their descriptions.

    Raises:
        Damaged, Refused: it cannot be read; the message goes on where `PATH cannot be read:` ends.
        OSError: the file cannot be opened.
    """
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    start = data[:300].tobytes()
    for first, what in OTHERS.items():
        if start.startswith(first):
            raise Refused(f"it is {what}")
    if start[TAR] == b"ustar":
        raise Refused("it is a tar archive, as PyTorch wrote before 0.2: load it with PyTorch and torch.save it again")
    if start.startswith(b"PK"):
        archive = Archive(path, data)
        return load_torchscript(archive) if "constants.pkl" in archive else load_zip(archive)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return load_safetensors(data)
    if not start:
        raise Damaged("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        return load_legacy(stream, data)


def explain(path: Path, error: Exception) -> UserError:
    """The line for the person at the terminal."""
    advice = "" if isinstance(error, Refused) else "; download or copy the file again"
    return UserError(f"{path} cannot be read: {printable(str(error), 300)}{advice}")
