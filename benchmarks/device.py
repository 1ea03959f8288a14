"""`benchmark.py device`: everything that is worth knowing of one accelerator, in one command of a few minutes.

Of clipseg and biomedclipseg in bfloat16, at the largest batch that fits: training steps of all parameters and of the
decoder alone (its encoders' outputs kept or not), by each implementation of attention that the device has, against
PyTorch eager and torch.compile (which has fused attention); and what the whole loop makes of the step. First of all,
outputs and gradients of each attention against float32 at the lengths that networks have.
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks.runs import largest_batch
from benchmarks.timing import machine, peak_flops, settings, warn_of_load
from benchmarks.train import RECIPES, input_wait, measure, steps_table
from medvlsm_jax import atomic
from medvlsm_jax.models.attention import PLATFORMS, attend
from medvlsm_jax.text import table

LENGTHS = (77, 192, 197, 256, 485, 489, 512, 676)  # tokens of sentences and images
MODELS = ("clipseg", "biomedclipseg")


def implementations() -> list[str]:
    """Those of attention that run on the device, plain XLA first."""
    return ["xla", *(name for name, platform in PLATFORMS.items() if platform == jax.default_backend())]


def run(args: flags.FlagValues) -> None:
    """Measures and prints tables; figures are written after each network, for the machine may not be there again."""
    warn_of_load()
    names, most, (peak, origin) = args.model or MODELS, args.batch_size, peak_flops()
    print(f"{machine()}; {settings(args.dtype)}; utilisation {origin}")
    errors = {name: {tokens: attention_errors(name, tokens) for tokens in LENGTHS} for name in implementations()}
    print(errors_table(errors))
    content: dict[str, Any] = {"machine": machine(), "peak_flops": peak, "attention": errors, "networks": {}}
    with tqdm(unit="turn", disable=None) as bar:
        for name in names:
            args.batch_size = largest_batch(name, args.dtype, most)
            steps = {recipe: measure(name, recipe, args, peak, bar, implementations()) for recipe in RECIPES}
            bar.write(f"{name}, batch {args.batch_size}\n{steps_table({name: steps})}")
            content["networks"][name] = {"batch_size": args.batch_size, "steps": steps}
            if args.input_wait:
                content["networks"][name]["loop"] = loop = input_wait(name, args)
                bar.write(f"{name}: the loop makes {loop['images_per_second']:.1f} images/s")
            if args.output:
                atomic.write_text(Path(args.output), json.dumps(content, indent=1) + "\n")


# --- Attention --------------------------------------------------------------------------------------------------------


def attention_errors(name: str, tokens: int) -> list[float]:
    """Mean differences of the output and the gradients of query, key and value from float32's, as shares of the mean.

    Of two rows, 12 heads of 64; the last row reads the first half of its keys. NaN where a gradient is not finite.
    """
    rng = np.random.default_rng(tokens)
    arrays = [jnp.asarray(rng.standard_normal((2, tokens, 12, 64)), jnp.bfloat16) for _ in range(4)]
    mask = jnp.arange(tokens)[None, None, None] < jnp.array([tokens, (tokens + 1) // 2])[:, None, None, None]

    @functools.partial(jax.jit, static_argnames="implementation")
    def both(query: Any, key: Any, value: Any, gradient: Any, implementation: str) -> Any:
        run = functools.partial(attend, mask=mask, implementation=implementation)
        out, pull = jax.vjp(run, query, key, value)
        return out, *pull(gradient)

    with jax.default_matmul_precision("highest"):
        exact = both(*(array.astype(jnp.float32) for array in arrays), implementation="xla")
    found = both(*arrays, implementation=name)
    return [
        float(jnp.abs(a.astype(jnp.float32) - b).mean() / jnp.abs(b).mean()) for a, b in zip(found, exact, strict=True)
    ]


def errors_table(errors: dict[str, dict[int, list[float]]]) -> str:
    """A row for each implementation and length."""
    rows = [["attention, tokens", "output", "gradient of query", "of key", "of value"]]
    for name, lengths in errors.items():
        for tokens, values in lengths.items():
            rows.append([f"{name}, {tokens}", *("NOT FINITE" if math.isnan(x) else f"{x:.1e}" for x in values)])
    return table(rows)
