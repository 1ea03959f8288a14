"""The PyTorch implementations that our networks are held against. Used by parity checks and benchmarks.

Each module here has `build(model)`, the PyTorch model with our weights in evaluation mode; `logits(reference, …)` for
tensors, with gradients; and `their_outputs` and `our_outputs`, the activations of the same layers by name.
"""

import importlib
from typing import Any

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import network_of
from medvlsm_jax.models.network import Network
from medvlsm_jax.weights.reference.pytorch import Outputs, require_torch

__all__ = ["Outputs", "find_reference", "require_torch"]

MODULES = {
    "clipseg": "clipseg",
    "biomedclipseg": "biomedclipseg",
    "unet": "cnn",
    "unetplusplus": "cnn",
    "deeplabv3plus": "cnn",
}  # network -> module of this folder


def find_reference(model: Network) -> Any:
    """The module of this folder for a network; raises UserError when no PyTorch implementation of it is installed."""
    require_torch()
    network = network_of(model.config)
    if network not in MODULES:
        raise UserError(f"no PyTorch implementation of {network} is on PyPI: its parity is tested on recorded outputs")
    return importlib.import_module(f"{__name__}.{MODULES[network]}")
