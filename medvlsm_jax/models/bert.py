"""BERT (Devlin et al. 2019, arXiv 1810.04805) as a text tower: BiomedCLIP's is PubMedBERT."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from medvlsm_jax.models.layers import AnyArray, Block, Dropout, Linear, Rngs, embedding_init, rematerialized
from medvlsm_jax.models.network import TextConfig
from medvlsm_jax.models.normalization import LayerNorm

EPSILON = 1e-12  # of BERT's normalisations
TOKEN_TYPES = 2  # first and second sentence of a pair


@dataclasses.dataclass(frozen=True)
class BertConfig(TextConfig):
    """Sizes of a BERT and of the projection on it; the defaults are those of BiomedCLIP's PubMedBERT."""

    vocab_size: int = 30522
    context_length: int = 256
    pad_token_id: int = 0
    max_positions: int = 512  # of the checkpoint; a sentence has at most as many tokens
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    projection_width: int = 640  # between the two layers of the projection
    dropout: float = 0.1
    has_pooler: bool = True  # whether the checkpoint holds BERT's own pooler, which nothing reads


class Bert(nnx.Module):
    """A bidirectional transformer; its last state of the first token, [CLS], through an MLP is the text embedding.

    As open_clip's `HFTextEncoder` with the pooler "cls_last_hidden_state_pooler" and the projection "mlp".
    """

    def __init__(
        self,
        config: BertConfig,
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
        width = config.width
        self.token_embedding = nnx.Param(embedding_init(rngs.params(), (config.vocab_size, width)))
        self.position_embedding = nnx.Param(embedding_init(rngs.params(), (config.max_positions, width)))
        self.token_type_embedding = nnx.Param(embedding_init(rngs.params(), (TOKEN_TYPES, width)))
        self.embedding_norm = LayerNorm(width, EPSILON, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(config.dropout)
        self.blocks = nnx.List(
            Block(
                width,
                config.heads,
                config.mlp_width,
                activation="gelu",
                norm_first=False,
                epsilon=EPSILON,
                dropout=config.dropout,
                attention=attention,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(config.depth)
        )
        self.pooler = Linear(width, width, dtype=dtype, rngs=rngs) if config.has_pooler else None
        sizes = ((width, config.projection_width), (config.projection_width, projection_dim))
        self.projection = nnx.List(Linear(d_in, d_out, use_bias=False, dtype=dtype, rngs=rngs) for d_in, d_out in sizes)

    def hidden_states(
        self,
        input_ids: Int[AnyArray, "b t"],
        attention_mask: Int[AnyArray, "b t"] | None = None,
        *,
        rngs: Rngs = None,
    ) -> list[Float[Array, "b t d"]]:
        """The embedded tokens and the output of every block; raises ValueError when there are too many tokens."""
        input_ids, tokens = jnp.asarray(input_ids), input_ids.shape[1]
        if tokens > self.config.max_positions:
            raise ValueError(f"{tokens} tokens, but the text encoder has {self.config.max_positions} positions")
        # Rows are taken before they are rounded: the table is not copied, and its gradient is summed in float32.
        x = self.token_embedding[...][input_ids].astype(self.dtype) + self.token_type_embedding.astype(self.dtype)[0]
        x = x + self.position_embedding.astype(self.dtype)[:tokens]
        allowed = input_ids != self.config.pad_token_id if attention_mask is None else jnp.asarray(attention_mask, bool)
        states = [self.dropout(self.embedding_norm(x), rngs=rngs)]
        mask = allowed[:, None, None, :]
        run = rematerialized(lambda block, x, rngs: block(x, mask, rngs=rngs), self.remat)
        for block in self.blocks:
            states.append(run(block, states[-1], rngs))
        return states

    def __call__(
        self,
        input_ids: Int[AnyArray, "b t"],
        attention_mask: Int[AnyArray, "b t"] | None = None,
        *,
        rngs: Rngs = None,
    ) -> Float[Array, "b projection"]:
        """The text embedding; without `attention_mask`, padding is where `input_ids` say so."""
        x = self.hidden_states(input_ids, attention_mask, rngs=rngs)[-1][:, 0]
        hidden, out = self.projection
        return out(jax.nn.gelu(hidden(x), approximate=False))
