"""Pretrained weights: files of any PyTorch format to arrays, arrays to models and back."""

from medvlsm_jax.weights.convert import from_torch, to_torch
from medvlsm_jax.weights.state_dicts import Checkpoint, read_checkpoint, read_state_dict, write_state_dict
from medvlsm_jax.weights.tables import TABLES

__all__ = [
    "TABLES",
    "Checkpoint",
    "from_torch",
    "read_checkpoint",
    "read_state_dict",
    "to_torch",
    "write_state_dict",
]
