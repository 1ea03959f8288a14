"""Times runs in turn, and says what the figures were taken on."""

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel.chips import find_chip
from medvlsm_jax.weights.reference.pytorch import require_torch

PACKAGES = ("jax", "flax", "torch", "transformers", "segmentation-models-pytorch")
WARM_TURNS = 2  # not counted
MATMUL_SIZE = 4096  # of the product whose speed stands for a peak that no data sheet gives


def time_in_turn(
    runs: Mapping[str, Callable[[], Any]], repeats: int, on_turn: Callable[[], Any] = lambda: None
) -> dict[str, Float[np.ndarray, " turns"]]:
    """Seconds of each run, A B C A B C …, after a few turns that are not counted; `on_turn` is called after each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM_TURNS + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= WARM_TURNS:
                seconds[name].append(time.perf_counter() - start)
        on_turn()
    return {name: np.array(values) for name, values in seconds.items()}


def peak_flops() -> tuple[float, str]:
    """FLOP/s that utilisation is a share of, and where the number comes from."""
    if chip := find_chip(jax.devices()[0].device_kind):
        return chip.flops, f"of {chip.flops / 1e12:.0f} TFLOP/s, the peak of a {chip.name} in bfloat16"
    square, multiply = jnp.ones((MATMUL_SIZE, MATMUL_SIZE)), jax.jit(jnp.matmul)
    best = time_in_turn({"": lambda: multiply(square, square).block_until_ready()}, 5)[""].min()
    peak = 2 * MATMUL_SIZE**3 / float(best)
    return peak, f"of {peak / 1e12:.3f} TFLOP/s, the speed of a float32 {MATMUL_SIZE} x {MATMUL_SIZE} product here"


def first_line(error: Exception) -> str:
    """The type of an error, and what it says first."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def warn_of_load() -> None:
    """Says so when other work has the cores: PyTorch's threads, which spin, then take many times as long."""
    load = os.getloadavg()[0]
    if jax.default_backend() == "cpu" and load > 1:
        print(f"warning: load average {load:.1f}: figures taken beside other work mean nothing", file=sys.stderr)


def match_precision(dtype: str) -> None:
    """PyTorch multiplies float32 matrices on GPUs in full precision unless it is told otherwise; jax is told to."""
    if dtype == "float32" and jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", "highest")


def settings(dtype: str) -> str:
    """What either side was told about precision and memory."""
    precision = jax.config.jax_default_matmul_precision or "default"  # pyright: ignore[reportAttributeAccessIssue]
    jax_side = f"jax's products in {precision} precision"
    if jax.default_backend() == "gpu":
        jax_side += f", XLA_PYTHON_CLIENT_PREALLOCATE={os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE', 'true')}"
    try:
        torch = require_torch()
    except UserError:
        return jax_side
    autocast = "under autocast" if dtype == "bfloat16" else "without autocast"
    tf32 = f"TF32 {torch.backends.cuda.matmul.allow_tf32} in products, {torch.backends.cudnn.allow_tf32} in cuDNN"
    return f"{jax_side}; PyTorch {autocast}" + (f", {tf32}" if jax.default_backend() == "gpu" else "")


def machine() -> str:
    """What the figures were taken on."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    device = jax.devices()[0].device_kind
    return f"{device}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, {', '.join(found)}"
