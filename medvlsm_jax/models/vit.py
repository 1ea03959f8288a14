"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929): OpenAI CLIP's, and timm's, as BiomedCLIP has."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from medvlsm_jax.models.layers import (
    Activation,
    AnyArray,
    Block,
    Linear,
    PatchEmbedding,
    embedding_init,
    rematerialized,
    resize,
)
from medvlsm_jax.models.normalization import LayerNorm


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer; the defaults are those of CLIP's ViT-B/16.

    `grid` is the side of the pretrained grid of positions.
    """

    patch_size: int = 16
    grid: int = 14
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5  # of the normalisations
    has_pre_norm: bool = True  # one before the first block
    has_patch_bias: bool = False


class ViT(nnx.Module):
    """Pre-normalised blocks; positions are interpolated to any input size that is a multiple of the patch."""

    def __init__(
        self,
        config: ViTConfig,
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
        self.class_embedding = nnx.Param(embedding_init(rngs.params(), (config.width,)))
        self.patch_embedding = PatchEmbedding(
            config.patch_size, config.width, use_bias=config.has_patch_bias, dtype=dtype, rngs=rngs
        )
        self.position_embedding = nnx.Param(embedding_init(rngs.params(), (config.grid**2 + 1, config.width)))
        self.pre_norm = LayerNorm(config.width, config.epsilon, dtype=dtype, rngs=rngs) if config.has_pre_norm else None
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
        # The image embedding: segmentation never reads these two, a checkpoint holds them.
        self.post_norm = LayerNorm(config.width, config.epsilon, dtype=dtype, rngs=rngs)
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
        """The embeddings that enter the first block and the outputs of the first `num_blocks` blocks."""
        patches = self.patch_embedding(jnp.asarray(pixel_values))
        batch, rows, columns, width = patches.shape
        class_token = jnp.broadcast_to(self.class_embedding.astype(self.dtype), (batch, 1, width))
        x = jnp.concatenate([class_token, patches.reshape(batch, rows * columns, width)], axis=1)
        x = x + self.positions(rows, columns).astype(self.dtype)
        states = [x if self.pre_norm is None else self.pre_norm(x)]
        run = rematerialized(lambda block, x: block(x), self.remat)
        for block in list(self.blocks)[:num_blocks]:
            states.append(run(block, states[-1]))
        return states

    def embedding(self, pixel_values: Float[AnyArray, "b height width 3"]) -> Float[Array, "b projection"]:
        """The image embedding that contrastive pretraining compared with sentences, not normalised."""
        states = self.hidden_states(pixel_values, self.config.depth)
        return self.projection(self.post_norm(states[-1])[:, 0])
