"""Pretrained weights: files of any PyTorch format to arrays, arrays to models and back."""

from medvlsm_jax.weights.convert import from_torch, to_torch
from medvlsm_jax.weights.files import read_state_dict

__all__ = ["from_torch", "read_state_dict", "to_torch"]
