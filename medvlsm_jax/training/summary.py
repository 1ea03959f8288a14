"""What a model is, as a table: its modules, their parameters, and what an image costs."""

from collections.abc import Container

import jax

from medvlsm_jax.evaluation.report import table
from medvlsm_jax.models import input_shapes, network_of
from medvlsm_jax.models.network import Network
from medvlsm_jax.models.parameters import Arrays, count, merge_model, split_model, undotted


def model_table(model: Network, trained: Container[str]) -> str:
    """Parameters of every module, two levels deep, and how many of them are trained.

    Args:
        model: its arrays or their shapes.
        trained: the dotted names of the parameters that are updated.
    """
    _, params, stats = split_model(model)
    rows = [["module", "parameters", "trained", "frozen", "dtype"]]
    for group in dict.fromkeys(group for name in params for group in modules_of(name)):
        inside = {name: array for name, array in params.items() if group in modules_of(name)}
        rows.append(["  " * group.count(".") + group, *describe(inside, trained)])
    rows.append(["all", *describe(params, trained)])
    statistics = f", {count(stats):,} running statistics" if stats else ""
    return (
        f"{table(rows)}\n{network_of(model.config)} computes in {model.config.dtype}{statistics}; "
        f"{flops_per_image(model) / 1e9:.1f} GFLOP for the forward pass of one image at {model.config.image_size} px"
    )


def modules_of(name: str) -> list[str]:
    """What a parameter lies in, two levels deep: `text` and `text.blocks`."""
    parts = [str(part) for part in undotted(name)]
    return [".".join(parts[:depth]) for depth in (1, 2) if depth <= len(parts)]


def describe(params: Arrays, trained: Container[str]) -> list[str]:
    """How many numbers, how many of them trained and frozen, and their type."""
    total, updated = count(params), count({name: array for name, array in params.items() if name in trained})
    types = ", ".join(sorted({str(array.dtype) for array in params.values()}))
    return [*(f"{number:,}" for number in (total, updated, total - updated)), types]


def flops_per_image(model: Network) -> float:
    """Floating-point operations of one image's forward pass, as XLA counts them before it optimises."""
    graphdef, params, stats = split_model(model)

    def logits(arrays: Arrays, *inputs: jax.Array) -> jax.Array:
        return merge_model(graphdef, arrays)(*inputs)

    costs = jax.jit(logits).lower({**params, **stats}, *input_shapes(model.config)).cost_analysis()
    return float((costs or {}).get("flops", float("nan")))
