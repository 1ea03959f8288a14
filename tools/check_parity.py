"""Runs PyTorch's implementation and ours on the same weights and inputs, and compares them layer by layer.

    python tools/check_parity.py --model=clipseg --source=model.safetensors

Without --source both get the same random weights. Exits with 1 when a layer differs by more than --tolerance, which is
a share of its largest absolute value.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx

from medvlsm_jax import create_model, from_torch
from medvlsm_jax.command_line import run_program
from medvlsm_jax.models import network_of
from medvlsm_jax.models.network import Network, TextConfig
from medvlsm_jax.text import table
from medvlsm_jax.weights import read_checkpoint
from medvlsm_jax.weights.reference import find_reference
from medvlsm_jax.weights.source_configs import CONFIG, clipseg_config, source_overrides

PADDED = "text."  # layers of the text tower, whose rows after the end of a sentence mean nothing


def compare(model: Network, seed: int = 0, source_config: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Layer -> largest difference over the largest absolute value, on random images and tokens.

    Args:
        model: ours.
        seed: of images and tokens.
        source_config: Hugging Face's config of a CLIPSeg, as it lay beside the weights; else theirs is built from ours.
    """
    reference, rng = find_reference(model), np.random.default_rng(seed)
    options = {} if source_config is None else {"source_config": source_config}
    pixel_values = rng.standard_normal((2, model.config.image_size, model.config.image_size, 3)).astype(np.float32)
    input_ids, attention_mask = random_tokens(rng, model.config.text or TextConfig())
    theirs = reference.their_outputs(reference.build(model, **options), pixel_values, input_ids, attention_mask)
    ours = reference.our_outputs(model, pixel_values, input_ids, attention_mask)
    differences = {}
    for name, values in ours.items():
        valid = attention_mask.astype(bool) if name.startswith(PADDED) else ...
        difference = np.abs(values[valid] - theirs[name][valid]).max()
        differences[name] = float(difference / np.abs(theirs[name]).max())
    return differences


def random_tokens(rng: np.random.Generator, text: TextConfig) -> tuple[np.ndarray, np.ndarray]:
    """Two sentences of random tokens and an end token, of different lengths, padded."""
    end = text.vocab_size - 1 if text.eos_token_id is None else text.eos_token_id
    padding = end if text.pad_token_id is None else text.pad_token_id
    input_ids = rng.integers(3, text.vocab_size - 2, (2, text.context_length)).astype(np.int32)
    attention_mask = np.ones_like(input_ids)
    for row, length in enumerate((text.context_length // 3, text.context_length)):
        input_ids[row, length - 1 :] = end
        input_ids[row, length:] = padding
        attention_mask[row, length:] = 0
    return input_ids, attention_mask


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    jax.config.update("jax_default_matmul_precision", "highest")
    source_config = None
    if args.source:
        checkpoint = read_checkpoint(args.source)
        folder = checkpoint.source.folder
        model = from_torch(
            args.model, checkpoint.state_dict, **source_overrides(args.model, folder, checkpoint.state_dict)
        )
        source_config = clipseg_config(folder) if network_of(model.config) == "clipseg" else None
        print(checkpoint.taken + ("" if source_config is None else f", and {folder / CONFIG} for PyTorch's network"))
    else:
        model = create_model(args.model, rngs=nnx.Rngs(args.seed))
    differences = compare(model, args.seed, source_config)
    rows = [["layer", "difference", ""]]
    rows += [[name, f"{value:.1e}", "" if value <= args.tolerance else "FAILS"] for name, value in differences.items()]
    print(table(rows))
    worst = max(differences.values())
    print(f"largest difference {worst:.1e} of the layer's largest value, tolerance {args.tolerance:.0e}")
    if worst > args.tolerance or not np.isfinite(worst):
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "A preset: clipseg, biomedclipseg, unet, … or a tiny one.")
    flags.DEFINE_string(
        "source", "", "A checkpoint file, a folder that holds one, or a hub id; empty for random weights."
    )
    flags.DEFINE_integer("seed", 0, "Of the random weights and inputs.")
    flags.DEFINE_float("tolerance", 5e-5, "Largest difference allowed, as a share of a layer's largest absolute value.")
    flags.mark_flags_as_required(["model"])
    run_program(main)
