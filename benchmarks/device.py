"""`benchmark.py device`: everything that is worth knowing of one accelerator, in one command of a few minutes.

Of clipseg and biomedclipseg in bfloat16, at the largest batch that fits: training steps of all parameters and of the
decoder alone (its encoders' outputs kept or not), by each implementation of attention that the device has, against
PyTorch eager and torch.compile (which has fused attention); and what the whole loop makes of the step. First of all,
outputs and gradients of each attention against float32 at the lengths that networks have.
"""

import functools
import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks.runs import largest_batch
from benchmarks.timing import first_line, machine, peak_flops, settings, warn_of_load
from benchmarks.train import RECIPES, input_wait, measure, steps_table
from medvlsm_jax import atomic
from medvlsm_jax.models.attention import PLATFORMS, attend, choose
from medvlsm_jax.text import table

LENGTHS = (77, 192, 197, 256, 485, 489, 512, 676)  # tokens of sentences and images
MODELS = ("clipseg", "biomedclipseg")
OF_NO_USE = {"nan": "NOT FINITE", "inf": "FAILED"}
OUR_SHARE = 0.4  # of a GPU's memory: PyTorch, which needs more for the same batch, is in the same process


def implementations() -> list[str]:
    """Those of attention that run on the device, plain XLA first."""
    return ["xla", *(name for name, platform in PLATFORMS.items() if platform == jax.default_backend())]


def run(args: flags.FlagValues) -> None:
    """Measures and prints tables; figures are written after each network, for the machine may not be there again."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(OUR_SHARE))
    warn_of_load()
    names, most, (peak, origin) = args.model or MODELS, args.batch_size, peak_flops()
    print(f"{machine()}; {settings(args.dtype)}; utilisation {origin}")
    errors = {name: attention_errors(name) for name in implementations()}
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


def attention_errors(name: str) -> dict[str, list[float]]:
    """`485` or `485, masked` -> mean differences from float32's, of the calls that an implementation serves.

    Of the output and the gradients of query, key and value, as shares of the mean. NaN where one is not finite,
    infinity where the implementation fails, which is a line. Two rows, 12 heads of 64; of a mask the last row reads the
    first half of its keys.
    """
    errors = {}
    for tokens, is_masked in itertools.product(LENGTHS, (False, True)):
        rng = np.random.default_rng(tokens)
        arrays = [jnp.asarray(rng.standard_normal((2, tokens, 12, 64)), jnp.bfloat16) for _ in range(4)]
        ends = jnp.array([tokens, (tokens + 1) // 2])[:, None, None, None]
        mask = jnp.arange(tokens)[None, None, None] < ends if is_masked else None
        if choose(name, arrays[0], arrays[1], mask) == name:
            errors[f"{tokens}, masked" if is_masked else str(tokens)] = call_errors(name, arrays, mask)
    return errors


def call_errors(name: str, arrays: list[jax.Array], mask: jax.Array | None) -> list[float]:
    """The same of one call: query, key, value and the gradient of the output in bfloat16."""

    @functools.partial(jax.jit, static_argnames="implementation")
    def both(query: Any, key: Any, value: Any, gradient: Any, implementation: str) -> Any:
        run = functools.partial(attend, mask=mask, implementation=implementation)
        out, pull = jax.vjp(run, query, key, value)
        return out, *pull(gradient)

    with jax.default_matmul_precision("highest"):
        exact = both(*(array.astype(jnp.float32) for array in arrays), implementation="xla")
    try:
        found = both(*arrays, implementation=name)
    except Exception as error:  # of the compiler or of the kernel
        print(f"{name}, {arrays[0].shape[1]} tokens: {first_line(error)}", file=sys.stderr)
        return [math.inf] * len(exact)
    return [
        float(jnp.abs(a.astype(jnp.float32) - b).mean() / jnp.abs(b).mean()) for a, b in zip(found, exact, strict=True)
    ]


def errors_table(errors: dict[str, dict[str, list[float]]]) -> str:
    """A row for each implementation and length."""
    rows = [["attention, tokens", "output", "gradient of query", "of key", "of value"]]
    for name, calls in errors.items():
        for call, values in calls.items():
            rows.append([f"{name}, {call}", *(OF_NO_USE.get(str(x), f"{x:.1e}") for x in values)])
    return table(rows)
