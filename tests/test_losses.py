"""The objectives, against values worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

from medvlsm_jax.errors import UserError
from medvlsm_jax.losses import LOSSES, binary_cross_entropy, dice_bce, find_loss, soft_dice

CERTAIN = 50.0  # a logit whose probability is 1 or 0 in float32


@pytest.fixture
def half() -> jax.Array:
    """The left half of two 4 x 4 images."""
    return jnp.zeros((2, 4, 4, 1)).at[:, :, :2].set(1)


def test_dice_of_certain_and_right_probabilities_is_zero(half):
    np.testing.assert_allclose(soft_dice((2 * half - 1) * CERTAIN, half), 0, atol=1e-6)


def test_dice_of_certain_and_wrong_probabilities_is_one(half):
    np.testing.assert_allclose(soft_dice((1 - 2 * half) * CERTAIN, half), 1, atol=1e-6)


def test_dice_of_even_odds_follows_the_formula(half):
    # Of 16 pixels 8 are true and every probability is 1/2: the intersection is 4, the sums are 8 and 8.
    expected = 1 - (2 * 4 + 1e-5) / (8 + 8 + 1e-5)
    np.testing.assert_allclose(soft_dice(jnp.zeros_like(half), half), expected, rtol=1e-6)


def test_dice_of_nothing_predicted_where_nothing_is_there_is_zero(half):
    empty = jnp.zeros_like(half)
    np.testing.assert_allclose(soft_dice(empty - CERTAIN, empty), 0, atol=1e-6)


def test_cross_entropy_of_even_odds_is_ln_2(half):
    np.testing.assert_allclose(binary_cross_entropy(jnp.zeros_like(half), half), math.log(2), rtol=1e-6)


def test_dice_bce_adds_a_fifth_of_the_cross_entropy(half):
    logits = jnp.linspace(-3, 3, half.size).reshape(half.shape)
    expected = soft_dice(logits, half) + 0.2 * binary_cross_entropy(logits, half)
    assert_close(dice_bce(logits, half), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_does_not_influence_the_loss_of_another(half, name):
    loss = find_loss(name)
    logits = jnp.linspace(-3, 3, half.size).reshape(half.shape)
    together, alone = loss(logits, half), loss(logits[1:], half[1:])
    assert together.shape == (2,)
    assert_close(together[1:], alone)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("logit", [-1e4, 0.0, 1e4])
def test_the_gradient_is_finite_for_any_logit(half, name, logit):
    gradient = jax.grad(lambda logits: find_loss(name)(logits, half).sum())(jnp.full_like(half, logit))
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(("name", "counted"), [("dice", [1, 1]), ("dice_bce", [1, 1]), ("dice_nonempty", [0, 1])])
def test_only_one_loss_leaves_out_images_with_an_empty_mask(half, name, counted):
    np.testing.assert_array_equal(find_loss(name).weights(half.at[0].set(0)), counted)


def test_the_loss_of_masks_that_are_not_empty_is_the_originals(parity):
    arrays = np.load(parity / "loss_and_metrics.npz")
    logits, mask = (jnp.asarray(arrays[name].transpose(0, 2, 3, 1), jnp.float32) for name in ("logits", "mask"))
    loss = find_loss("dice_nonempty")
    weights = loss.weights(mask)
    assert np.flatnonzero(weights).tolist() == [0, 1, 2, 3, 5]
    mean = (loss(logits, mask) * weights).sum() / weights.sum()
    assert_close(mean, arrays["tuned_dice_of_images_0_1_2_3_5"])


def test_an_unknown_loss_names_the_field_and_the_choices():
    with pytest.raises(UserError, match=r"unknown loss 'focal' in config.loss: choose one of dice, dice_bce"):
        find_loss("focal")
