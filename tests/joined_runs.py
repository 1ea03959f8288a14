"""A program that tests run as several joined processes: trains small networks, one after another.

python joined_runs.py FOLDER DATA_DIR NAME:MODEL:MAX_STEPS ...    each in FOLDER/NAME; prints their results, and
how many images and sentences its process has given to frozen encoders
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import ml_collections
from small_network import SMALLEST

from medvlsm_jax import models
from medvlsm_jax.config import base_config
from medvlsm_jax.scoring.frozen_encoder import FrozenEncoder
from medvlsm_jax.train import train

# CRIS with BatchNorm over the global batch, and dropout.
SMALL_CRIS = models.override(
    models.PRESETS["cris_tiny"][1],
    {
        "text": {"context_length": 32, "width": 32, "heads": 2, "mlp_width": 32},
        "vision": {"layers": (1, 1, 1, 1), "width": 8},
        "projection_dim": 32,
        "fpn_channels": (16, 32, 32),
        "decoder_depth": 1,
        "decoder_heads": 2,
        "decoder_mlp_width": 32,
        "image_size": 64,
    },
)
PRESETS = {"small": ("clipseg", SMALLEST), "small_cris": ("cris", SMALL_CRIS)}


def make_config(model: str, data_dir: str, max_steps: int = 0) -> ml_collections.ConfigDict:
    """An epoch of four steps; of the small network, whose encoder is frozen, two."""
    config = base_config()
    config.data_dir, config.dataset, config.prompt = data_dir, "sample", "p6"
    config.model, config.batch_size, config.num_epochs, config.max_steps = model, 16, 1, max_steps
    if model == "small":
        config.freeze_encoder, config.num_epochs = True, 2
    # Of the seed 42, some batch-normalised value is 0 but for rounding before a ReLU: its gradient is one or another.
    config.seed = 1
    config.learning_rate = 1e-5  # Adam blows gradients up that are rounding errors: they shall not move a pixel
    config.log_every_steps, config.num_overlays, config.writers = 1, 2, ""
    return config


def count_encoded(counts: Counter[str]) -> None:
    """Counts what frozen encoders are given from here on."""
    fill = FrozenEncoder.fill

    def counting(self: FrozenEncoder, kind: str, inputs: Any, features: Any, missing: dict[str, list[int]]) -> None:
        counts[kind] += len(missing)
        fill(self, kind, inputs, features, missing)

    FrozenEncoder.fill = counting


if __name__ == "__main__":
    encoded: Counter[str] = Counter()
    count_encoded(encoded)
    models.PRESETS |= PRESETS
    folder, data_dir, *runs = sys.argv[1:]
    for run in runs:
        name, model, max_steps = run.split(":")
        result = train(make_config(model, data_dir, int(max_steps)), Path(folder) / name)
        print(json.dumps({name: result}))
    print("encoded", json.dumps(encoded))
