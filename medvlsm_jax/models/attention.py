"""Attention softmax(q k^T / sqrt(c)) v in several implementations, and the one that suits a device.

    xla      plain XLA, everywhere, with a gradient of our own. In bfloat16 that keeps exponentials of two bytes, where
             jax's keeps float32 scores, which for 485 tokens are most of a block's memory traffic. In float32 the
             output is jax's own bit for bit, and the gradient looks once less through the scores.
    pallas   a kernel for TPUs: all scores of two heads lie in fast memory and are never written.
    cudnn    NVIDIA's fused kernel, by jax.nn.dot_product_attention.

A kernel that cannot serve a call (type, length, mask) leaves it to xla: `choose` has the rules.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medvlsm_jax.errors import UserError
from medvlsm_jax.models.pallas_attention import FORBIDDEN, MOST_TOKENS, fits, pallas_attention

Shaped = Array | jax.ShapeDtypeStruct
IMPLEMENTATIONS = ("auto", "xla", "pallas", "cudnn")
PLATFORMS = {"pallas": "tpu", "cudnn": "gpu"}  # where a kernel runs, as jax calls it


def check_attention(name: str) -> None:
    """Raises a UserError when there is no such implementation."""
    if name not in IMPLEMENTATIONS:
        raise UserError(f"config.attention={name!r}: choose {', '.join(IMPLEMENTATIONS)}")


def check_device_has(name: str) -> None:
    """Raises a UserError when an implementation is not one of this machine's devices."""
    check_attention(name)
    platform = jax.default_backend()
    if PLATFORMS.get(name, platform) != platform:
        raise UserError(f"config.attention={name} needs a {PLATFORMS[name]}, but jax runs on {platform}: choose auto")


CHOSEN: contextvars.ContextVar[dict[int, str] | None] = contextvars.ContextVar("chosen", default=None)


@contextlib.contextmanager
def chosen_attention() -> Iterator[dict[int, str]]:
    """Number of keys -> the implementation that calls with so many got, of what is traced in the block."""
    token = CHOSEN.set(chosen := {})
    try:
        yield chosen
    finally:
        CHOSEN.reset(token)


def choose(name: str, query: Shaped, key: Shaped, mask: Shaped | None = None, *, has_dropout: bool = False) -> str:
    """The implementation that a call gets: `name`, or for auto the platform's, where it can serve; else xla."""
    if name == "auto":
        name = next((kernel for kernel, platform in PLATFORMS.items() if platform == jax.default_backend()), "xla")
    return name if can_serve(name, query, key, mask, has_dropout) else "xla"


def can_serve(name: str, query: Shaped, key: Shaped, mask: Shaped | None, has_dropout: bool) -> bool:
    """Whether a kernel computes such a call, and is worth it.

    In short sequences it is not: what it saves is the traffic of the scores, which 77 x 77 hardly have.
    """
    lengths, (heads, width) = (query.shape[1], key.shape[1]), query.shape[2:]
    if query.dtype != jnp.bfloat16 or max(lengths) < 128:
        return False
    if name == "pallas":
        # XLA cannot split a kernel over several devices: it splits itself where it knows the mesh (sharding.with_mesh).
        is_whole = jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty
        is_by_key = mask is None or mask.shape[2] == 1
        return is_whole and is_by_key and max(lengths) <= MOST_TOKENS and fits(heads, width)
    # cuDNN: masks of even lengths alone in training; gradients that are not finite were seen where a length modulo 128
    # is 64 (pytorch#196678, cudnn-frontend#1072). What it drops it draws itself.
    is_even = not any(length % 2 for length in lengths)
    is_served = width % 8 == 0 and (mask is None or is_even) and not has_dropout
    return is_served and all(length % 128 != 64 for length in lengths)


def attend(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s h c"],
    value: Float[Array, "b s h c"],
    *,
    mask: Bool[Array, "b 1 #t s"] | None = None,
    is_causal: bool = False,
    kept: Bool[Array, "b h t s"] | None = None,
    dropout: float = 0.0,
    implementation: str = "auto",
) -> Float[Array, "b t h c"]:
    """Multi-head attention; the softmax is in float32 whatever the type of the inputs.

    Args:
        query: of each head.
        key: likewise.
        value: likewise.
        mask: true where a key may be read.
        is_causal: whether a query reads none but the keys up to its own position.
        kept: true where a weight is not dropped; nothing is when it is not given.
        dropout: the rate at which weights are dropped; those that are kept count for 1 / (1 - dropout).
        implementation: one of IMPLEMENTATIONS.
    """
    rate = 0.0 if kept is None else dropout
    chosen = choose(implementation, query, key, mask, has_dropout=kept is not None)
    if (told := CHOSEN.get()) is not None:
        told[key.shape[1]] = chosen
    if chosen == "pallas":
        return pallas_attention(query, key, value, mask, is_causal, kept, rate)
    if chosen == "cudnn":
        if mask is not None:
            mask = jnp.broadcast_to(mask, (mask.shape[0], 1, query.shape[1], key.shape[1]))  # jax#28974
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal, implementation="cudnn")
    mask = allowed(mask, is_causal, query.shape[1], key.shape[1])
    return xla_attention(matmul_precision(), rate, query, key, value, mask, kept)


def allowed(mask: Array | None, is_causal: bool, queries: int, keys: int) -> Array | None:
    """True where a key may be read, both rules taken together; None where that is everywhere."""
    if not is_causal:
        return mask
    causal = jnp.tril(jnp.ones((queries, keys), bool))[None, None]
    return causal if mask is None else causal & mask


def matmul_precision() -> str | None:
    """What products of float32 arrays are computed in where this is called; see `network.in_full_precision`."""
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def xla_attention(
    precision: str | None,
    dropout: float,
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s h c"],
    value: Float[Array, "b s h c"],
    mask: Bool[Array, "#b 1 #t s"] | None,
    kept: Bool[Array, "b h t s"] | None,
) -> Float[Array, "b t h c"]:
    """Attention in plain XLA; the gradient is computed outside the caller's block, so `precision` is handed to it."""
    if query.dtype == jnp.float32 and kept is None:  # the numbers of `forward`, some percent sooner on a CPU
        return jax.nn.dot_product_attention(query, key, value, mask=mask)
    return forward(precision, dropout, query, key, value, mask, kept)[0]


def forward(
    _: str | None, dropout: float, query: Array, key: Array, value: Array, mask: Array | None, kept: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    """The output, and what its gradient needs: exponentials, the inverse of what they sum to, what rounding took away.

    In float32 these are the weights themselves, 1 and nothing. In two bytes what the exponentials sum to divides the
    output, not them: XLA then makes them, adds them up and writes them in one go. Those that are dropped are negative.
    """
    scores = scores_of(query, key, mask)
    if query.dtype == jnp.float32:
        powers, inverse = jax.nn.softmax(scores), jnp.ones((1, 1, 1, 1))
    else:
        powers = jnp.exp(scores - scores.max(-1, keepdims=True))
        inverse = (1 / powers.sum(-1)).swapaxes(1, 2)[..., None]
    if kept is not None:
        powers = jnp.where(kept, powers, -powers)
    powers = powers.astype(query.dtype)
    weights = powers if kept is None else jnp.maximum(powers, 0)
    out = jnp.einsum("bhgts,bshc->btghc", weights[:, :, None], value, preferred_element_type=jnp.float32)[:, :, 0]
    out, lost = halves(out * (inverse / (1 - dropout)), query.dtype)
    return out, (query, key, value, powers, inverse, out, lost)


def halves(x: Array, dtype: jnp.dtype) -> tuple[Array, Array | None]:
    """A float32 array in `dtype`, and what rounding took away, in `dtype` too: None for float32 itself.

    By reduce_precision, for XLA may leave out a conversion that is undone at once.
    """
    if dtype == jnp.float32:
        return x, None
    kind = jnp.finfo(dtype)
    rounded = jax.lax.reduce_precision(x, exponent_bits=kind.nexp, mantissa_bits=kind.nmant)
    return rounded.astype(dtype), (x - rounded).astype(dtype)


def scores_of(query: Array, key: Array, mask: Array | None) -> Array:
    """What the softmax is taken of, (B, heads, T, S) in float32.

    The axis of one is that of jax.nn.dot_product_attention for heads that share keys: products on a CPU round otherwise
    without it.
    """
    scores = jnp.einsum("gbthc,bshc->bhgts", query[None], key, preferred_element_type=jnp.float32)[:, :, 0]
    scores *= jnp.float32(1 / query.shape[-1] ** 0.5)
    return scores if mask is None else jnp.where(mask, scores, FORBIDDEN)


def backward(
    precision: str | None, dropout: float, stored: tuple[Any, ...], gradient: Array
) -> tuple[Array, Array, Array, None, None]:
    """The gradients of query, key and value (Dao et al. 2022, arXiv 2205.14135, algorithm 4).

    The softmax's needs sum_s p dp for each query: the product of the output and its gradient, with dropout as without.
    In two bytes the output alone is too coarse for that: where a query looks at few keys, dp and the sum cancel.
    """
    query, key, value, powers, inverse, out, lost = stored
    with jax.default_matmul_precision(precision):
        of_weights = jnp.einsum("bthc,bshc->bhts", gradient, value, preferred_element_type=jnp.float32)
        whole = out if lost is None else out.astype(jnp.float32) + lost
        rows = jnp.einsum("bthc,bthc->bht", gradient, whole, preferred_element_type=jnp.float32)
        scaled, weights = (gradient * (inverse / (1 - dropout))).astype(query.dtype), powers
        if dropout:
            of_weights = jnp.where(powers > 0, of_weights / (1 - dropout), 0)
            weights, powers = jnp.maximum(powers, 0), jnp.abs(powers)
        of_value = jnp.einsum("bhts,bthc->bshc", weights, scaled)
        scales = inverse.swapaxes(1, 2) * jnp.float32(1 / query.shape[-1] ** 0.5)
        of_scores = (powers.astype(jnp.float32) * (of_weights - rows[..., None]) * scales).astype(query.dtype)
        of_query = jnp.einsum("bhts,bshc->bthc", of_scores, key)
        of_key = jnp.einsum("bhts,bthc->bshc", of_scores, query)
    return of_query, of_key, of_value, None, None


xla_attention.defvjp(forward, backward)
