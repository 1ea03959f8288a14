"""What a model is, as a table: its modules, their parameters, and what an image costs."""

from collections.abc import Container
from typing import Any

import jax

from medvlsm_jax.evaluation.report import table
from medvlsm_jax.models import abstract_model, input_shapes, network_of
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.models.parameters import Arrays, count, merge_model, split_model, undotted
from medvlsm_jax.training.features import encode, encoder_inputs


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


def encoder_flops(model: Network, kind: str) -> float:
    """The same for the encoder of one kind, `image` or `text`."""
    graphdef, params, stats = split_model(model)

    def outputs(arrays: Arrays, *inputs: jax.Array) -> Any:
        return encode(merge_model(graphdef, arrays), kind, *inputs)

    costs = jax.jit(outputs).lower({**params, **stats}, *encoder_inputs(model)[kind]).cost_analysis()
    return float((costs or {}).get("flops", float("nan")))


def training_flops(config: NetworkConfig, *, freeze_encoder: bool, freeze_decoder: bool, is_cached: bool) -> float:
    """Floating-point operations that a training step needs for one image; what is recomputed does not count.

    A gradient costs twice the forward pass: once for what comes before, once for the parameters. A frozen encoder needs
    neither, and one whose outputs are cached no forward pass; a frozen decoder needs the first.
    """
    model = abstract_model(config)
    encoder = sum(encoder_flops(model, kind) for kind in encoder_inputs(model))
    decoder = flops_per_image(model) - encoder
    times_encoder = 0 if is_cached else 1 if freeze_encoder else 3
    return times_encoder * encoder + (2 if freeze_decoder else 3) * decoder
