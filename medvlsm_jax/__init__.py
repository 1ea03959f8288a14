"""Vision-language segmentation of medical images in JAX: finetune, evaluate and prompt at scale."""

from medvlsm_jax.checkpoints.model_folder import load
from medvlsm_jax.models import create_model
from medvlsm_jax.weights import from_torch, to_torch

__version__ = "0.1.0"

__all__ = ["create_model", "from_torch", "load", "to_torch"]
