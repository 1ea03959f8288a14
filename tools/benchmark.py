"""Times our networks against PyTorch's on the same device, weights, inputs and cores, in turn in one process.

    python tools/benchmark.py --model=clipseg --batch_size=4

Prints seconds an image (medians) and the ratio PyTorch / ours: above 1 we are faster. `forward` is inference,
`gradient` loss and gradient of all parameters, `decoder` those with both towers frozen, the published recipe.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from medvlsm_jax import atomic, create_model
from medvlsm_jax.errors import run_program
from medvlsm_jax.evaluation.report import table
from medvlsm_jax.models.clipseg import CLIPSeg
from medvlsm_jax.models.parameters import Arrays, merge_model, split_model
from medvlsm_jax.training.losses import soft_dice
from medvlsm_jax.training.optimizer import split_trained
from medvlsm_jax.weights.reference import huggingface_clipseg, require_torch

MODES = ("forward", "gradient", "decoder")
Inputs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # pixel_values, input_ids, attention_mask, mask


def make_inputs(model: CLIPSeg, batch_size: int) -> Inputs:
    """Random images, sentences of a usual length, and masks."""
    config, rng = model.config, np.random.default_rng(0)
    pixels = rng.standard_normal((batch_size, config.image_size, config.image_size, 3)).astype(np.float32)
    input_ids = rng.integers(3, 500, (batch_size, config.text.context_length)).astype(np.int32)
    input_ids[:, 15:] = config.text.eos_token_id
    attention_mask = (np.arange(config.text.context_length) < 16).astype(np.int32)[None].repeat(batch_size, 0)
    return pixels, input_ids, attention_mask, (rng.random(pixels.shape[:3]) < 0.3).astype(np.float32)[..., None]


def our_runs(model: CLIPSeg, inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Each mode as a function that returns when its result is there."""
    graphdef, params, stats = split_model(model)
    *arguments, mask = (jnp.asarray(x) for x in inputs)

    def logits(arrays: Arrays, *arguments: jax.Array) -> jax.Array:
        return merge_model(graphdef, arrays)(*arguments)

    def loss(trained: Arrays, frozen: Arrays, *arguments: jax.Array) -> jax.Array:
        return soft_dice(logits({**trained, **frozen, **stats}, *arguments), mask).mean()

    forward, gradient = jax.jit(logits), jax.jit(jax.value_and_grad(loss))
    all_of_it = split_trained(model, params, freeze_encoder=False, freeze_decoder=False)
    decoder = split_trained(model, params, freeze_encoder=True, freeze_decoder=False)
    return {
        "forward": lambda: jax.block_until_ready(forward({**params, **stats}, *arguments)),
        "gradient": lambda: jax.block_until_ready(gradient(*all_of_it, *arguments)),
        "decoder": lambda: jax.block_until_ready(gradient(*decoder, *arguments)),
    }


def pytorch_runs(model: CLIPSeg, inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """The same for Hugging Face's model, eager."""
    torch = require_torch()
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    reference = huggingface_clipseg(model).to(device)
    pixels, input_ids, attention_mask, mask = inputs
    tensors = {
        "pixel_values": torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(device),
        "input_ids": torch.from_numpy(input_ids.astype(np.int64)).to(device),
        "attention_mask": torch.from_numpy(attention_mask.astype(np.int64)).to(device),
    }
    target = torch.from_numpy(mask[..., 0]).to(device)
    taps = [i + 1 for i in model.config.extract_layers]

    def logits_of_all(pixel_values: Any, input_ids: Any, attention_mask: Any) -> Any:
        """Hugging Face's forward pass without the no_grad that it puts around both towers."""
        states = reference.clip.vision_model(pixel_values, output_hidden_states=True).hidden_states
        text = reference.clip.get_text_features(input_ids, attention_mask=attention_mask).pooler_output
        return reference.decoder([states[i] for i in taps], text).logits

    def dice(logits: Any) -> Any:
        probability = logits.sigmoid()
        sums = [(probability * target).sum((1, 2)), probability.sum((1, 2)), target.sum((1, 2))]
        return (1 - (2 * sums[0] + 1e-5) / (sums[1] + sums[2] + 1e-5)).mean()

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        with torch.inference_mode():
            reference(**tensors)
        finish()

    def backward(logits: Callable[..., Any]) -> None:
        reference.zero_grad(set_to_none=True)
        dice(logits(**tensors)).backward()
        finish()

    return {
        "forward": forward,
        "gradient": lambda: backward(logits_of_all),
        "decoder": lambda: backward(lambda **kwargs: reference(**kwargs).logits),
    }


def time_in_turn(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of each run, A B A B …, after two of each that are not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 2):
        for kept, run in zip(seconds, (first, second), strict=True):
            start = time.perf_counter()
            run()
            if turn >= 2:
                kept.append(time.perf_counter() - start)
    return seconds


def machine() -> str:
    """What the figures were taken on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "transformers"))
    device = jax.devices()[0].device_kind
    return f"{device}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, {versions}"


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    torch = require_torch()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = create_model(args.model, rngs=nnx.Rngs(0))
    inputs = make_inputs(model, args.batch_size)
    ours, theirs = our_runs(model, inputs), pytorch_runs(model, inputs)
    results, rows = {}, [["mode", "ours s/image", "PyTorch s/image", "PyTorch / ours"]]
    for mode in args.modes:
        seconds = time_in_turn(ours[mode], theirs[mode], args.repeats)
        medians = [statistics.median(values) / args.batch_size for values in seconds]
        ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
        results[mode] = {"ours": medians[0], "pytorch": medians[1], "ratio": ratio}
        rows.append([mode, f"{medians[0]:.3f}", f"{medians[1]:.3f}", f"{ratio:.2f}"])
    print(f"{args.model} at {model.config.image_size} px, batch {args.batch_size}, float32; {machine()}")
    print(table(rows))
    if args.output:
        atomic.write_text(Path(args.output), json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("model", "clipseg", "A preset: clipseg or clipseg_tiny.")
    flags.DEFINE_integer("batch_size", 4, "Images at once.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Timed runs of each.", lower_bound=1)
    flags.DEFINE_multi_enum("modes", list(MODES), MODES, "What is timed.")
    flags.DEFINE_string("output", "", "A json file for the figures.")
    run_program(main)
