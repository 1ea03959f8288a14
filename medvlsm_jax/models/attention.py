"""Attention softmax(q k^T / sqrt(c)) v in several implementations, and the one that suits a device.

    xla      plain XLA, everywhere. In bfloat16 its gradient is our own: it keeps exponentials of two bytes, where jax's
             keeps float32 scores, which for 485 tokens are most of a block's memory traffic. In float32 it is jax's.
    pallas   a kernel for TPUs: all scores of two heads lie in fast memory and are never written.
    cudnn    NVIDIA's fused kernel, by jax.nn.dot_product_attention.

A kernel that cannot serve a call (type, length, mask) leaves it to xla: `choose` has the rules.
"""

import contextlib
import contextvars
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
    """Raises a UserError when there is no such implementation, or not on this machine's devices."""
    if name not in IMPLEMENTATIONS:
        raise UserError(f"config.attention={name!r}: choose {', '.join(IMPLEMENTATIONS)}")
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


def choose(name: str, query: Shaped, key: Shaped, mask: Shaped | None = None) -> str:
    """The implementation that a call gets: `name`, or for auto the platform's, where it can serve; else xla."""
    if name == "auto":
        name = next((kernel for kernel, platform in PLATFORMS.items() if platform == jax.default_backend()), "xla")
    return name if can_serve(name, query, key, mask) else "xla"


def can_serve(name: str, query: Shaped, key: Shaped, mask: Shaped | None) -> bool:
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
    # is 64 (pytorch#196678, cudnn-frontend#1072).
    is_even = not any(length % 2 for length in lengths)
    return width % 8 == 0 and (mask is None or is_even) and all(length % 128 != 64 for length in lengths)


def attend(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s h c"],
    value: Float[Array, "b s h c"],
    *,
    mask: Bool[Array, "b 1 #t s"] | None = None,
    is_causal: bool = False,
    implementation: str = "auto",
) -> Float[Array, "b t h c"]:
    """Multi-head attention; the softmax is in float32 whatever the type of the inputs.

    Args:
        query: of each head.
        key: likewise.
        value: likewise.
        mask: true where a key may be read.
        is_causal: whether a query reads none but the keys up to its own position.
        implementation: one of IMPLEMENTATIONS.
    """
    chosen = choose(implementation, query, key, mask)
    if (told := CHOSEN.get()) is not None:
        told[key.shape[1]] = chosen
    if chosen == "pallas":
        return pallas_attention(query, key, value, mask, is_causal)
    if chosen == "cudnn":
        if mask is not None:
            mask = jnp.broadcast_to(mask, (mask.shape[0], 1, query.shape[1], key.shape[1]))  # jax#28974
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal, implementation="cudnn")
    if query.dtype == jnp.float32:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal)
    return xla_attention(query, key, value, allowed(mask, is_causal, query.shape[1], key.shape[1]))


def allowed(mask: Array | None, is_causal: bool, queries: int, keys: int) -> Array | None:
    """True where a key may be read, both rules taken together; None where that is everywhere."""
    if not is_causal:
        return mask
    causal = jnp.tril(jnp.ones((queries, keys), bool))[None, None]
    return causal if mask is None else causal & mask


@jax.custom_vjp
def xla_attention(
    query: Float[Array, "b t h c"],
    key: Float[Array, "b s h c"],
    value: Float[Array, "b s h c"],
    mask: Bool[Array, "#b 1 #t s"] | None,
) -> Float[Array, "b t h c"]:
    """Attention in plain XLA, for types of two bytes."""
    return forward(query, key, value, mask)[0]


def forward(query: Array, key: Array, value: Array, mask: Array | None) -> tuple[Array, tuple[Any, ...]]:
    """The output, and what its gradient needs.

    What the exponentials sum to divides the output, not them: XLA then makes them, adds them up and writes them in two
    bytes in one go.
    """
    scores = jnp.einsum("bthc,bshc->bhts", query, key, preferred_element_type=jnp.float32)
    scores *= jnp.float32(1 / query.shape[-1] ** 0.5)
    if mask is not None:
        scores = jnp.where(mask, scores, FORBIDDEN)
    powers = jnp.exp(scores - scores.max(-1, keepdims=True))
    inverse = (1 / powers.sum(-1)).swapaxes(1, 2)[..., None]
    powers = powers.astype(query.dtype)
    out = jnp.einsum("bhts,bshc->bthc", powers, value, preferred_element_type=jnp.float32) * inverse
    out = out.astype(query.dtype)
    return out, (query, key, value, powers, inverse, out)


def backward(kept: tuple[Any, ...], gradient: Array) -> tuple[Array, Array, Array, None]:
    """The gradients of query, key and value (Dao et al. 2022, arXiv 2205.14135, algorithm 4).

    The softmax's needs sum_s p dp for each query, which is the product of the output and its gradient.
    """
    query, key, value, powers, inverse, out = kept
    of_value = jnp.einsum("bhts,bthc->bshc", powers, (gradient * inverse).astype(query.dtype))
    of_weights = jnp.einsum("bthc,bshc->bhts", gradient, value, preferred_element_type=jnp.float32)
    rows = jnp.einsum("bthc,bthc->bht", gradient, out, preferred_element_type=jnp.float32)
    scales = inverse.swapaxes(1, 2) * jnp.float32(1 / query.shape[-1] ** 0.5)
    of_scores = (powers.astype(jnp.float32) * (of_weights - rows[..., None]) * scales).astype(query.dtype)
    of_query = jnp.einsum("bhts,bshc->bthc", of_scores, key)
    of_key = jnp.einsum("bhts,bthc->bshc", of_scores, query)
    return of_query, of_key, of_value, None


xla_attention.defvjp(forward, backward)
