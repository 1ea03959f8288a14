"""What XLA's compiler is told."""

import os

import numpy as np

from medvlsm_jax.parallel.chips import V5E, find_chip

# By itself the compiler for v5e joins gradients to 120 MB and has all chips wait for them. So each array of more than
# 1 MB is summed alone, beside the products that the scheduler finds for it; small ones are still joined. The compiler
# refuses the second option on v5p and v6e. Figures: benchmarks/README.md, "Many chips by the TPU's compiler".
OVERLAP = {
    "xla_enable_async_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_jf_crs_combiner_threshold_in_bytes": "1000000",
}
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # where the user has a say


def compiler_options(devices: np.ndarray) -> dict[str, str]:
    """With which gradients are exchanged while others are computed: `compiler_options` of jax.jit for a training step.

    Empty but for several v5e chips, the devices of a mesh. What the user's flags set is not among them, for options
    come before flags.
    """
    if devices.size == 1 or find_chip(devices.flat[0].device_kind) is not V5E:
        return {}
    words = " ".join(os.environ.get(variable, "") for variable in FLAGS).split()
    names = {word.lstrip("-").partition("=")[0] for word in words}
    return {name: value for name, value in OVERLAP.items() if not names & {name, f"no{name}"}}
