"""Runs PyTorch's implementation and ours on the same weights and inputs, and compares them layer by layer.

    python tools/check_parity.py --model=clipseg --source=model.safetensors

Without --source both get the same random weights. Exits with 1 when a layer differs by more than --tolerance, which is
a share of its largest absolute value.
"""

import sys

import jax
import numpy as np
from absl import flags
from flax import nnx

from medvlsm_jax import create_model, from_torch
from medvlsm_jax.errors import run_program
from medvlsm_jax.evaluation.report import table
from medvlsm_jax.models.clip import CLIPTextConfig
from medvlsm_jax.models.clipseg import CLIPSeg
from medvlsm_jax.weights import read_state_dict
from medvlsm_jax.weights.reference import clipseg_outputs, huggingface_clipseg, huggingface_outputs


def compare(model: CLIPSeg, seed: int = 0) -> dict[str, float]:
    """Layer -> largest difference over the largest absolute value, on random images and tokens."""
    config, rng = model.config, np.random.default_rng(seed)
    pixel_values = rng.standard_normal((2, config.image_size, config.image_size, 3)).astype(np.float32)
    input_ids, attention_mask = random_tokens(rng, config.text)
    theirs = huggingface_outputs(huggingface_clipseg(model), pixel_values, input_ids, attention_mask)
    ours = clipseg_outputs(model, pixel_values, input_ids, attention_mask)
    return {
        name: float(np.abs(values[valid(name)] - theirs[name][valid(name)]).max() / np.abs(theirs[name]).max())
        for name, values in ours.items()
        for valid in [lambda name: attention_mask.astype(bool) if name.startswith("text.") else ...]
    }


def random_tokens(rng: np.random.Generator, text: CLIPTextConfig) -> tuple[np.ndarray, np.ndarray]:
    """Two sentences of random tokens with an end token, of different lengths, padded with it."""
    input_ids = rng.integers(3, text.vocab_size - 2, (2, text.context_length)).astype(np.int32)
    attention_mask = np.ones_like(input_ids)
    for row, length in enumerate((text.context_length // 3, text.context_length)):
        input_ids[row, length - 1 :] = text.eos_token_id
        attention_mask[row, length:] = 0
    return input_ids, attention_mask


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    jax.config.update("jax_default_matmul_precision", "highest")
    if args.source:
        model = from_torch(args.model, read_state_dict(args.source))
    else:
        model = create_model(args.model, rngs=nnx.Rngs(args.seed))
    differences = compare(model, args.seed)
    rows = [["layer", "difference", ""]]
    rows += [[name, f"{value:.1e}", "" if value <= args.tolerance else "FAILS"] for name, value in differences.items()]
    print(table(rows))
    worst = max(differences.values())
    print(f"largest difference {worst:.1e} of the layer's largest value, tolerance {args.tolerance:.0e}")
    if worst > args.tolerance or not np.isfinite(worst):
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "A preset: clipseg or clipseg_tiny.")
    flags.DEFINE_string(
        "source", "", "A checkpoint file, a folder that holds one, or a hub id; empty for random weights."
    )
    flags.DEFINE_integer("seed", 0, "Of the random weights and inputs.")
    flags.DEFINE_float("tolerance", 5e-5, "Largest difference allowed, as a share of a layer's largest absolute value.")
    flags.mark_flags_as_required(["model"])
    run_program(main)
