"""The towers of OpenAI's CLIP (Radford et al. 2021, arXiv 2103.00020) as Hugging Face's CLIPSeg holds them."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medvlsm_jax.models.layers import AnyArray, Block, Linear, PatchEmbedding, embedding_init, layer_norm, resize


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of CLIP's text transformer; the defaults are ViT-B/16's."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_width: int = 2048
    eos_token_id: int = 49407


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of CLIP's vision transformer; `grid` is the side of the pretrained grid of positions."""

    patch_size: int = 16
    grid: int = 14
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072


class CLIPText(nnx.Module):
    """A causal transformer whose state at the first [EOT] token, projected, is the text embedding."""

    def __init__(self, config: CLIPTextConfig, projection_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.token_embedding = nnx.Param(embedding_init(rngs.params(), (config.vocab_size, config.width)))
        self.position_embedding = nnx.Param(embedding_init(rngs.params(), (config.context_length, config.width)))
        self.blocks = nnx.List(
            Block(config.width, config.heads, config.mlp_width, activation="quick_gelu", dtype=dtype, rngs=rngs)
            for _ in range(config.depth)
        )
        self.final_norm = layer_norm(config.width, 1e-5, dtype, rngs)
        self.projection = Linear(config.width, projection_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def hidden_states(
        self, input_ids: Int[AnyArray, "b t"], attention_mask: Int[AnyArray, "b t"] | None = None
    ) -> list[Float[Array, "b t d"]]:
        """The embedded tokens and the output of every block; raises ValueError when there are too many tokens."""
        input_ids, tokens = jnp.asarray(input_ids), input_ids.shape[1]
        if tokens > self.config.context_length:
            raise ValueError(f"{tokens} tokens, but the text encoder has {self.config.context_length} positions")
        x = self.token_embedding.astype(self.dtype)[input_ids] + self.position_embedding.astype(self.dtype)[:tokens]
        mask = None if attention_mask is None else jnp.asarray(attention_mask, bool)[:, None, None, :]
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], mask, is_causal=True))
        return states

    def __call__(
        self, input_ids: Int[AnyArray, "b t"], attention_mask: Int[AnyArray, "b t"] | None = None
    ) -> Float[Array, "b projection"]:
        x = self.final_norm(self.hidden_states(input_ids, attention_mask)[-1])
        end = jnp.argmax(jnp.asarray(input_ids) == self.config.eos_token_id, axis=1)
        return self.projection(jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])


class CLIPVision(nnx.Module):
    """A pre-normalised ViT; positions are interpolated to any input size that is a multiple of the patch."""

    def __init__(self, config: CLIPVisionConfig, projection_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.class_embedding = nnx.Param(embedding_init(rngs.params(), (config.width,)))
        self.patch_embedding = PatchEmbedding(config.patch_size, config.width, use_bias=False, dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Param(embedding_init(rngs.params(), (config.grid**2 + 1, config.width)))
        self.pre_norm = layer_norm(config.width, 1e-5, dtype, rngs)
        self.blocks = nnx.List(
            Block(config.width, config.heads, config.mlp_width, activation="quick_gelu", dtype=dtype, rngs=rngs)
            for _ in range(config.depth)
        )
        # CLIP's image embedding: CLIPSeg's text path never reads these two, a checkpoint holds them.
        self.post_norm = layer_norm(config.width, 1e-5, dtype, rngs)
        self.projection = Linear(config.width, projection_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def positions(self, rows: int, columns: int) -> Float[Array, "tokens d"]:
        """Position embeddings of the class token and a rows x columns grid, interpolated as Hugging Face does."""
        table, grid = self.position_embedding[...], self.config.grid
        if (rows, columns) == (grid, grid):
            return table
        patches = table[1:].reshape(1, grid, grid, -1)
        patches = resize(patches, (rows, columns), "bicubic").reshape(rows * columns, -1)
        return jnp.concatenate([table[:1], patches])

    def hidden_states(
        self, pixel_values: Float[AnyArray, "b height width 3"], num_blocks: int
    ) -> list[Float[Array, "b tokens d"]]:
        """The normalised embeddings and the outputs of the first `num_blocks` blocks."""
        patches = self.patch_embedding(jnp.asarray(pixel_values))
        batch, rows, columns, width = patches.shape
        class_token = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (batch, 1, width))
        x = jnp.concatenate([class_token, patches.reshape(batch, rows * columns, width)], axis=1)
        states = [self.pre_norm(x + self.positions(rows, columns).astype(self.dtype))]
        for block in list(self.blocks)[:num_blocks]:
            states.append(block(states[-1]))
        return states
