"""The text tower of OpenAI's CLIP (Radford et al. 2021, arXiv 2103.00020)."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medvlsm_jax.models.layers import (
    Activation,
    AnyArray,
    Block,
    Linear,
    Rngs,
    embedding_init,
    rematerialized,
)
from medvlsm_jax.models.network import TextConfig
from medvlsm_jax.models.normalization import LayerNorm


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(TextConfig):
    """Sizes of CLIP's text transformer; the defaults are ViT-B/16's."""

    eos_token_id: int = 49407
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_width: int = 2048
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5  # of the normalisations


class CLIPText(nnx.Module):
    """A causal transformer whose state at the first [EOT] token, projected, is the text embedding."""

    def __init__(
        self,
        config: CLIPTextConfig,
        projection_dim: int,
        *,
        remat: str = "none",
        attention: str = "auto",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.remat = remat
        self.dtype = dtype
        self.token_embedding = nnx.Param(embedding_init(rngs.params(), (config.vocab_size, config.width)))
        self.position_embedding = nnx.Param(embedding_init(rngs.params(), (config.context_length, config.width)))
        self.blocks = nnx.List(
            Block(
                config.width,
                config.heads,
                config.mlp_width,
                activation=config.activation,
                epsilon=config.epsilon,
                attention=attention,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(config.depth)
        )
        self.final_norm = LayerNorm(config.width, config.epsilon, dtype=dtype, rngs=rngs)
        self.projection = Linear(config.width, projection_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def hidden_states(
        self, input_ids: Int[AnyArray, "b t"], attention_mask: Int[AnyArray, "b t"] | None = None
    ) -> list[Float[Array, "b t d"]]:
        """The embedded tokens and the output of every block; raises ValueError when there are too many tokens."""
        input_ids, tokens = jnp.asarray(input_ids), input_ids.shape[1]
        if tokens > self.config.context_length:
            raise ValueError(f"{tokens} tokens, but the text encoder has {self.config.context_length} positions")
        # Rows are taken before they are rounded: the table is not copied, and its gradient is summed in float32.
        x = self.token_embedding[...][input_ids].astype(self.dtype)
        x = x + self.position_embedding.astype(self.dtype)[:tokens]
        mask = None if attention_mask is None else jnp.asarray(attention_mask, bool)[:, None, None, :]
        states = [x]
        run = rematerialized(lambda block, x: block(x, mask, is_causal=True), self.remat)
        for block in self.blocks:
            states.append(run(block, states[-1]))
        return states

    def encode(
        self, input_ids: Int[AnyArray, "b t"], attention_mask: Int[AnyArray, "b t"] | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b projection"]]:
        """The normalised state of every token, and the text embedding."""
        tokens = self.final_norm(self.hidden_states(input_ids, attention_mask)[-1])
        end = jnp.argmax(jnp.asarray(input_ids) == self.config.eos_token_id, axis=1)
        return tokens, self.projection(jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0])

    def __call__(
        self,
        input_ids: Int[AnyArray, "b t"],
        attention_mask: Int[AnyArray, "b t"] | None = None,
        *,
        rngs: Rngs = None,
    ) -> Float[Array, "b projection"]:
        """The text embedding; there is no dropout in it."""
        return self.encode(input_ids, attention_mask)[1]
