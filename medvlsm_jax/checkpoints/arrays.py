"""Arrays on disk; the only file that imports orbax.

A model folder (written by `tools/convert_weights.py`) and a workdir (written by `medvlsm_jax.train`) both hold

    model.json     the network and its config
    tokenizer/     the tokenizer's files, where they were at hand

and arrays under dotted names: all in `arrays/` (model folder), or what is trained in `checkpoints/STEP/arrays/`, its
moving averages if there are any in `checkpoints/STEP/ema/`, and once for all what is frozen in `frozen/` (workdir).
"""

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as orbax_v1

from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel.sharding import tree_shardings

ocp: Any = orbax_v1  # its published types lag behind what it accepts
MODEL_FILE = "model.json"
ARRAYS = "arrays"

# Orbax lets each device write a slice of what is replicated, and every shape of a slice is a program to compile: 290
# of them with 8 devices and a tiny CRIS, for which training stood still at its first checkpoint. Large arrays alone
# are worth it, and 8 devices write fast enough.
CONTEXT = ocp.Context()
CONTEXT.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
CONTEXT.array.saving.max_replicas_for_replica_parallel = 8


def abstract_arrays(tree: Any, mesh: Mesh) -> Any:
    """Shapes with the shardings that the arrays are to be restored with."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        tree_shardings(tree, mesh),
    )


def check_fit(path: Path, stored: Any, wanted: Any) -> None:
    """Raises UserError when the arrays on disk are not those asked for, before orbax tries to read them."""

    def shapes(tree: Any) -> list[tuple[int, ...]]:
        return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))

    is_renamed = isinstance(wanted, dict) and set(stored or ()) != set(wanted)
    if is_renamed or shapes(stored) != shapes(wanted):
        raise UserError(
            f"checkpoint {path} does not fit its {MODEL_FILE} or this config (was freezing or the model changed?): "
            "continue with the config.json beside it, or choose another folder"
        )
