"""Attention as a Pallas kernel for TPUs, for sequences whose scores fit into a core's fast memory whole.

The vision towers have 197 to 1025 tokens, so all scores of a head are at most 4 MB: no blocks, no running softmax, no
padding. A program of the grid works on the 128 / c heads that fill the lanes of (batch, tokens, heads x c), the layout
that dense layers write and read, or on all heads where these are fewer: nothing is transposed. A head's lanes are
selected by zeros in the others, for a product over 64 lanes takes as long as one over 128.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

LANES = 128
FORBIDDEN = float(-0.7 * jnp.finfo(jnp.float32).max)  # a score that is masked, as jax's own attention has it
MOST_TOKENS = 1088  # of which the gradient's five arrays of scores fit into VMEM
VMEM = 64 << 20  # bytes that the compiler may use of a core's 128 MB; it would stop at 16


def fits(heads: int, width: int) -> bool:
    """Whether heads fill lanes of 128, or there are fewer."""
    return LANES % width == 0 and (heads * width % LANES == 0 or heads * width < LANES)


def pallas_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s h c"],
    value: Float[Array, "b s h c"],
    mask: Bool[Array, "b 1 1 s"] | None,
    is_causal: bool,
    kept: Bool[Array, "b h t s"] | None = None,
    dropout: float = 0.0,
) -> Float[Array, "b t h c"]:
    """Attention; each device works on its rows of the batch.

    Args:
        query: of each head; see `fits`.
        key: likewise.
        value: likewise.
        mask: true where a key may be read.
        is_causal: whether a query reads none but the keys up to its own position.
        kept: true where a weight is not dropped.
        dropout: the rate at which weights are dropped.
    """
    batch, tokens, heads, width = query.shape
    keys = key.shape[1]
    bias = jnp.zeros((batch, 1, keys), jnp.float32)
    if mask is not None:
        bias = jnp.where(mask[:, 0], 0.0, FORBIDDEN)
    joined = [x.reshape(batch, -1, heads * width) for x in (query, key, value)]
    run = functools.partial(joined_attention, Kind(width, is_causal, dropout))
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        by_rows = jax.P(mesh.axis_names)
        run = jax.shard_map(run, in_specs=by_rows, out_specs=by_rows, check_vma=False)
    kept = None if kept is None else kept.astype(jnp.int8)  # of bits a kernel cannot take a block
    return run(*joined, bias, kept).reshape(batch, tokens, heads, width)


class Kind(NamedTuple):
    """What one kernel is compiled for, besides shapes."""

    width: int  # of a head
    is_causal: bool
    dropout: float


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def joined_attention(kind: Kind, query: Array, key: Array, value: Array, bias: Array, kept: Array | None) -> Array:
    """Attention of heads that lie side by side in the last axis; `bias` is added to the scores."""
    return call(forward_kernel, 2, kind, [query], query, key, value, bias, kept)[0]


def forward(
    kind: Kind, query: Array, key: Array, value: Array, bias: Array, kept: Array | None
) -> tuple[Any, tuple[Any, ...]]:
    """The output, and what its gradient needs."""
    return joined_attention(kind, query, key, value, bias, kept), (query, key, value, bias, kept)


def backward(kind: Kind, stored: tuple[Any, ...], gradient: Array) -> tuple[Array | None, ...]:
    """The gradients of query, key and value."""
    query, key, value, bias, kept = stored
    of_inputs = call(backward_kernel, 5, kind, [query, key, value], query, key, value, bias, gradient, kept)
    return *of_inputs, jnp.zeros_like(bias), None


joined_attention.defvjp(forward, backward)


def cost(products: int, results: list[Array], operands: tuple[Array, ...], width: int) -> pl.CostEstimate:
    """What XLA counts for a call: every product of (tokens, keys) and 128 lanes, keys padded to lanes as well."""
    batch, tokens, joined = results[0].shape
    scores = batch * (joined // width) * tokens * -(-operands[1].shape[1] // LANES) * LANES
    moved = sum(x.size * x.dtype.itemsize for x in (*results, *operands))
    return pl.CostEstimate(flops=2 * products * scores * LANES, transcendentals=scores, bytes_accessed=moved)


def call(kernel: Any, products: int, kind: Kind, results: list[Array], *given: Array | None) -> Sequence[Array]:
    """Runs a kernel of so many matrix products for each row of the batch and each 128 lanes.

    Its results have the shapes of `results`.
    """
    operands = tuple(x for x in given if x is not None)
    lanes = min(LANES, results[0].shape[2])

    def spec(x: Array) -> pl.BlockSpec:
        if x.ndim == 4:  # what is kept, (batch, heads, tokens, keys)
            return pl.BlockSpec((1, lanes // kind.width, *x.shape[2:]), lambda row, group: (row, group, 0, 0))
        if x.shape[1] == 1:  # the bias
            return pl.BlockSpec((1, *x.shape[1:]), lambda row, group: (row, 0, 0))
        return pl.BlockSpec((1, x.shape[1], lanes), lambda row, group: (row, 0, group))

    return pl.pallas_call(
        functools.partial(kernel, kind),
        grid=(results[0].shape[0], results[0].shape[2] // lanes),
        in_specs=[spec(x) for x in operands],
        out_specs=[spec(x) for x in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM),
        cost_estimate=cost(products, results, operands, kind.width),
        name=f"attention_{kernel.__name__}",
    )(*operands)


# --- Kernels ----------------------------------------------------------------------------------------------------------


def product(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    """A matrix product in float32 over an axis of each."""
    return jax.lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)


def exponentials(kind: Kind, query: Array, key: Array, bias: Array) -> tuple[Array, Array]:
    """Exp(scores - their maximum) of the head that `query` keeps, and the inverse of their sums."""
    scores = product(query, key, 1, 1) * (1 / kind.width**0.5) + bias
    if kind.is_causal:
        rows, columns = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
        scores = jnp.where(columns <= rows, scores, FORBIDDEN)
    powers = jnp.exp(scores - scores.max(1, keepdims=True))
    return powers, 1 / powers.sum(1, keepdims=True)


def of_head(x: Array, head: int, width: int) -> Array:
    """Zeros in the lanes of the other heads."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where(lanes // width == head, x, jnp.zeros_like(x))


def dropped(x: Array, kind: Kind, kept: list[Any], head: int) -> Array:
    """What dropout makes of weights, or of their gradient; `kept` is empty without it."""
    if not kept:
        return x
    return jnp.where(kept[0][0, head].astype(jnp.int32) != 0, x * (1 / (1 - kind.dropout)), 0)


def forward_kernel(kind: Kind, query: Any, key: Any, value: Any, bias: Any, *kept_and_out: Any) -> None:
    """All heads of 128 lanes, one after the other."""
    *kept, out = kept_and_out
    total = jnp.zeros(out.shape[1:], jnp.float32)
    for head in range(query.shape[2] // kind.width):
        powers, inverse = exponentials(kind, of_head(query[0], head, kind.width), key[0], bias[0])
        powers = dropped(powers, kind, kept, head)
        attended = product(powers.astype(value.dtype), value[0], 1, 0) * inverse
        total += of_head(attended, head, kind.width)
    out[0] = total.astype(out.dtype)


def backward_kernel(
    kind: Kind, query: Any, key: Any, value: Any, bias: Any, gradient: Any, *kept_and_gradients: Any
) -> None:
    """The softmax is computed anew; then the products of the gradient (Dao et al. 2022, algorithm 4).

    The row sums are taken of the weights and their gradient, which are float32 here, and not of the rounded output:
    where a query looks at few keys, the two cancel.
    """
    *kept, of_query, of_key, of_value = kept_and_gradients
    totals = [jnp.zeros(ref.shape[1:], jnp.float32) for ref in (of_query, of_key, of_value)]
    for head in range(query.shape[2] // kind.width):
        masked = [of_head(ref[0], head, kind.width) for ref in (query, key, gradient)]
        powers, inverse = exponentials(kind, masked[0], key[0], bias[0])
        weights = powers * inverse
        of_weights = dropped(product(masked[2], value[0], 1, 1), kind, kept, head)
        sums = (weights * of_weights).sum(1, keepdims=True)
        of_scores = (weights * (of_weights - sums) * (1 / kind.width**0.5)).astype(query.dtype)
        totals[0] += product(of_scores, masked[1], 1, 0)
        totals[1] += product(of_scores, masked[0], 0, 0)
        totals[2] += product(dropped(weights, kind, kept, head).astype(value.dtype), masked[2], 0, 0)
    for ref, total in zip((of_query, of_key, of_value), totals, strict=True):
        ref[0] = total.astype(ref.dtype)
