"""CLIP's towers: where a sentence's embedding is read, what padding may do, and positions of other image sizes."""

import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from medvlsm_jax.models.clip import CLIPText, CLIPTextConfig
from medvlsm_jax.models.vit import ViT, ViTConfig

FLOAT32 = jnp.dtype("float32")
END = 9
SENTENCE = [1, 5, 3, END]

run = nnx.jit(lambda text, *args: text(*args))


@pytest.fixture(scope="module")
def text():
    config = CLIPTextConfig(vocab_size=10, context_length=8, width=8, depth=1, heads=2, mlp_width=16, eos_token_id=END)
    return CLIPText(config, 4, dtype=FLOAT32, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def vision():
    config = ViTConfig(patch_size=4, grid=3, width=8, depth=2, heads=2, mlp_width=16)
    return ViT(config, 4, dtype=FLOAT32, rngs=nnx.Rngs(0))


def embed(text, tokens: list[int], length: int | None = None) -> np.ndarray:
    mask = None if length is None else jnp.arange(len(tokens))[None] < length
    return np.asarray(run(text, jnp.array([tokens]), None if mask is None else mask.astype(jnp.int32)))


@pytest.mark.parametrize("padding", [[END, END, END], [0, 0], [7, 2, END, 4]])
def test_what_follows_the_first_end_token_does_not_matter(text, padding):
    expected = embed(text, SENTENCE)
    assert_close(embed(text, SENTENCE + padding, len(SENTENCE)), expected)
    assert_close(embed(text, SENTENCE + padding), expected)


def test_every_token_before_the_end_matters(text):
    expected = embed(text, SENTENCE)
    for i in range(3):
        changed = [*SENTENCE]
        changed[i] = 8
        assert np.abs(embed(text, changed) - expected).max() > 1e-4


def test_masked_tokens_are_not_attended_to(text):
    masked = jnp.array([[1, 0, 1, 1]])
    one, other = (np.asarray(run(text, jnp.array([[1, token, 3, END]]), masked)) for token in (5, 6))
    assert_close(one, other)


def test_too_many_tokens_are_refused(text):
    with pytest.raises(ValueError, match="9 tokens, but the text encoder has 8 positions"):
        embed(text, [*range(9)])


def test_positions_of_the_pretrained_grid_are_the_table(vision):
    np.testing.assert_array_equal(vision.positions(3, 3), vision.position_embedding[...])


@pytest.mark.parametrize("grid", [(2, 2), (5, 5), (2, 6)])
def test_positions_of_another_grid_keep_the_class_token(vision, grid):
    positions = vision.positions(*grid)
    assert positions.shape == (1 + grid[0] * grid[1], 8)
    np.testing.assert_array_equal(positions[0], vision.position_embedding[0])


def test_only_the_blocks_that_are_asked_for_are_run(vision):
    image = jnp.ones((1, 12, 12, 3))
    assert [state.shape for state in vision.hidden_states(image, 1)] == [(1, 10, 8)] * 2
    assert len(vision.hidden_states(image, 2)) == 3
