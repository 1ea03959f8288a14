"""What a model is, as a table: its modules, their parameters, and what an image costs."""

import dataclasses
import functools
from collections.abc import Container
from typing import Any

import jax

from medvlsm_jax.models import abstract_model, input_shapes, network_of
from medvlsm_jax.models.apply import encode, encoder_inputs
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.models.parameters import Arrays, count, merge_model, split_model, undotted
from medvlsm_jax.text import table


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
        rows.append(["  " * group.count(".") + group, *count_cells(inside, trained)])
    rows.append(["all", *count_cells(params, trained)])
    statistics = f", {count(stats):,} running statistics" if stats else ""
    return (
        f"{table(rows)}\n{network_of(model.config)} computes in {model.config.dtype}{statistics}; "
        f"{flops_per_image(model) / 1e9:.1f} GFLOP for the forward pass of one image at {model.config.image_size} px"
    )


def modules_of(name: str) -> list[str]:
    """What a parameter lies in, two levels deep: `text` and `text.blocks`."""
    parts = [str(part) for part in undotted(name)]
    return [".".join(parts[:depth]) for depth in (1, 2) if depth <= len(parts)]


def count_cells(params: Arrays, trained: Container[str]) -> list[str]:
    """How many numbers, how many of them trained and frozen, and their type."""
    total, updated = count(params), count({name: array for name, array in params.items() if name in trained})
    types = ", ".join(sorted({str(array.dtype) for array in params.values()}))
    return [*(f"{number:,}" for number in (total, updated, total - updated)), types]


def flops_per_image(model: Network, kind: str = "") -> float:
    """Floating-point operations for one image, as XLA counts them before it optimises.

    Of the forward pass, or of the encoder of one kind, `image` or `text`.
    """
    return count_flops(model.config, kind)


@functools.lru_cache(maxsize=16)
def count_flops(config: NetworkConfig, kind: str) -> float:
    """Tracing a network takes seconds, so it is counted once for a config."""
    model = abstract_model(dataclasses.replace(config, attention="xla"))  # a kernel counts what it pads, too
    graphdef, params, stats = split_model(model)

    def run(arrays: Arrays, *inputs: jax.Array) -> Any:
        model = merge_model(graphdef, arrays)
        return encode(model, kind, *inputs) if kind else model(*inputs)

    inputs = encoder_inputs(model)[kind] if kind else input_shapes(config)
    costs = jax.jit(run).lower({**params, **stats}, *inputs).cost_analysis()
    return float((costs or {}).get("flops", float("nan")))


def training_flops(config: NetworkConfig, *, freeze_encoder: bool, freeze_decoder: bool, is_cached: bool) -> float:
    """Floating-point operations that a training step needs for one image; what is recomputed does not count.

    A gradient costs twice the forward pass: once for what comes before, once for the parameters. A frozen encoder needs
    neither, and one whose outputs are cached no forward pass; a frozen decoder needs the first.
    """
    model = abstract_model(config)
    encoder = sum(flops_per_image(model, kind) for kind in encoder_inputs(model))
    decoder = flops_per_image(model) - encoder
    times_encoder = 0 if is_cached else 1 if freeze_encoder else 3
    return times_encoder * encoder + (2 if freeze_decoder else 3) * decoder
