"""BERT as a text tower: what padding may do, what every token does, and when dropout acts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from medvlsm_jax.models.bert import Bert, BertConfig
from medvlsm_jax.models.parameters import flatten

CLS, END = 2, 3
SENTENCE = [CLS, 5, 8, 6, END]
SIZES = {
    "vocab_size": 10,
    "max_positions": 12,
    "width": 8,
    "depth": 2,
    "heads": 2,
    "mlp_width": 16,
    "projection_width": 6,
}

run = nnx.jit(lambda text, *args, **kwargs: text(*args, **kwargs))


def make(dtype: str = "float32", **changes) -> Bert:
    return Bert(BertConfig(**SIZES | changes), 4, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def text():
    return make()


def embed(text, tokens: list[int], length: int | None = None) -> np.ndarray:
    mask = None if length is None else (jnp.arange(len(tokens))[None] < length).astype(jnp.int32)
    return np.asarray(run(text, jnp.array([tokens]), mask))


def test_the_embedding_is_as_wide_as_the_projection(text):
    assert embed(text, SENTENCE).shape == (1, 4)


@pytest.mark.parametrize("padding", [[0], [0, 0, 0], [7, END, 4]])
def test_masked_tokens_do_not_matter(text, padding):
    assert_close(embed(text, SENTENCE + padding, len(SENTENCE)), embed(text, SENTENCE))


def test_without_a_mask_the_padding_is_where_the_ids_say_so(text):
    assert_close(embed(text, [*SENTENCE, 0, 0]), embed(text, SENTENCE))
    assert np.abs(embed(text, [*SENTENCE, 0, 0], 7) - embed(text, SENTENCE)).max() > 1e-4


def test_another_id_can_stand_for_padding():
    text = make(pad_token_id=9)
    assert_close(embed(text, [*SENTENCE, 9, 9]), embed(text, SENTENCE))


def test_every_token_and_its_place_matter(text):
    expected = embed(text, SENTENCE)
    for i in range(len(SENTENCE)):
        changed = [*SENTENCE]
        changed[i] = 4
        assert np.abs(embed(text, changed) - expected).max() > 1e-4
    assert np.abs(embed(text, [CLS, 8, 5, 6, END]) - expected).max() > 1e-4


def test_there_are_as_many_tokens_as_positions(text):
    assert embed(text, [*range(1, 10), 4, 5, 6]).shape == (1, 4)
    with pytest.raises(ValueError, match="13 tokens, but the text encoder has 12 positions"):
        embed(text, [*range(1, 10), 4, 5, 6, 7])


def test_states_are_the_embeddings_and_every_blocks(text):
    states = nnx.eval_shape(lambda text: text.hidden_states(jnp.array([SENTENCE])), text)
    assert [state.shape for state in states] == [(1, 5, 8)] * 3


def test_dropout_acts_only_in_training_and_only_with_random_numbers():
    text, ids = make(dropout=0.5), jnp.array([SENTENCE])
    embedding = run(text, ids)
    assert_close(run(text, ids, rngs=nnx.Rngs(0)), embedding)
    text.train()
    assert_close(run(text, ids), embedding)
    one, again, other = (np.asarray(run(text, ids, rngs=nnx.Rngs(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - embedding).max() > 1e-3
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("place", ["embeddings", "blocks"])
def test_dropout_acts_on_the_embeddings_and_in_the_blocks(place):
    text, ids = make(dropout=0.5), jnp.array([SENTENCE])
    embedding = run(text, ids)
    (text.dropout if place == "embeddings" else text.blocks[-1]).train()
    assert np.abs(run(text, ids, rngs=nnx.Rngs(0)) - embedding).max() > 1e-3


def test_dropout_keeps_the_mask():
    """Padding stays unread where attention weights are dropped: a rate too small to drop any must change nothing."""
    text = make(dropout=1e-9)
    text.train()
    padded = jnp.array([[*SENTENCE, 0, 0]])
    assert_close(run(text, padded, rngs=nnx.Rngs(0)), embed(text, SENTENCE))


def test_training_reaches_every_parameter_but_the_pooler(text):
    @nnx.jit
    def gradients(text):
        return nnx.grad(lambda text: jnp.square(text(jnp.array([SENTENCE]), rngs=nnx.Rngs(0)) - 1).mean())(text)

    text.train()
    norms = {name: float(jnp.linalg.norm(grad)) for name, grad in flatten(gradients(text)).items()}
    text.eval()
    assert all(np.isfinite(norm) for norm in norms.values())
    keys = {f"blocks.{i}.attention.key.bias" for i in range(2)}  # without influence: rounding errors
    assert {name for name, norm in norms.items() if norm < 1e-7} - keys == {"pooler.kernel", "pooler.bias"}


def test_bfloat16_computes_near_float32_and_keeps_its_parameters(text):
    model = make(dtype="bfloat16")
    half, exact = run(model, jnp.array([SENTENCE])), embed(text, SENTENCE)
    assert half.dtype == jnp.bfloat16
    assert 1e-6 < np.abs(np.asarray(half, np.float32) - exact).max() / np.abs(exact).max() < 0.1
    assert {array.dtype for array in flatten(nnx.state(model)).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("has_pooler", [True, False])
def test_the_pooler_is_there_only_when_the_checkpoint_has_it(has_pooler):
    text = jax.eval_shape(lambda: nnx.state(make(has_pooler=has_pooler)))
    assert ("pooler" in text) == has_pooler
