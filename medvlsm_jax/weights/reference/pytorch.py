"""What the comparisons with PyTorch share."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from medvlsm_jax.weights.state_dicts import import_torch

Outputs = dict[str, np.ndarray]  # layer -> activations, channels last


def require_torch() -> Any:
    """The torch module; raises UserError when it is not installed."""
    return import_torch("comparing with PyTorch")


def tensors(pixel_values: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray) -> tuple[Any, Any, Any]:
    """Inputs as PyTorch wants them: (B, 3, H, W), and int64 tokens."""
    torch = require_torch()
    pixels = torch.from_numpy(pixel_values.transpose(0, 3, 1, 2).copy())
    return pixels, *(torch.from_numpy(x.astype(np.int64)) for x in (input_ids, attention_mask))


def nhwc(tensor: Any) -> np.ndarray:
    """(B, C, H, W) as an array (B, H, W, C)."""
    return tensor.permute(0, 2, 3, 1).contiguous().numpy()


@contextlib.contextmanager
def record_layers(layers: Mapping[str, Any]) -> Iterator[Outputs]:
    """What the modules put out while the block runs, by name; no gradients are kept."""
    outputs: Outputs = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensor = (output[0] if isinstance(output, tuple) else output).detach()
            outputs[name] = nhwc(tensor) if tensor.ndim == 4 else tensor.numpy()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with require_torch().no_grad():
            yield outputs
    finally:
        for handle in handles:
            handle.remove()
