"""CLIPSeg against outputs and training of Hugging Face's, in its full size and in a tiny one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import originals
import pytest
from closeness import assert_identical, relative_error
from flax import nnx
from jax.sharding import Mesh

from medvlsm_jax.losses import LOSSES
from medvlsm_jax.models import apply
from medvlsm_jax.models.parameters import split_model, undotted
from medvlsm_jax.parallel.sharding import put_batch, tree_shardings
from medvlsm_jax.training.freezing import split_trained
from medvlsm_jax.training.step import adamw, make_train_step, new_state
from medvlsm_jax.weights import to_torch
from medvlsm_jax.weights.convert import torch_leaf
from medvlsm_jax.weights.tables import TABLES

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOLERANCE = 5e-5  # of the largest absolute value


@pytest.fixture(scope="module", params=["clipseg_tiny", "clipseg"])
def original(request) -> originals.Original:
    return originals.load(request.param)


@pytest.fixture(scope="module")
def encoded(original) -> tuple[Any, jax.Array]:
    """What the encoders make of the images and of the sentences, once for all tests: most of a forward pass."""

    @nnx.jit
    def encode(model, pixel_values, input_ids, attention_mask):
        return model.encode_image(pixel_values), model.encode_text(input_ids, attention_mask)

    with jax.default_matmul_precision("highest"):
        return encode(original.model, *originals.inputs(original.arrays))


def test_logits_and_text_embeddings_are_the_originals(original, encoded):
    size = original.arrays["pixel_values"].shape[1:3]
    logits = nnx.jit(lambda model, *features: model.decode(*features, size))(original.model, *encoded)
    assert relative_error(encoded[1], original.arrays["conditional_embeddings"]) < TOLERANCE
    assert original.error("logits", logits) < TOLERANCE


def test_the_checkpoint_comes_back_bit_for_bit(original):
    assert_identical(to_torch(original.model), original.state_dict)


def test_the_published_size():
    spec = originals.spec("clipseg")
    decoder = sum(size for name, size in spec.items() if name.startswith("decoder."))
    assert (round(sum(spec.values()) / 1e6, 1), round(decoder / 1e6, 2)) == (150.7, 1.13)


def keep_gradients() -> optax.GradientTransformation:
    """Passes gradients on, and keeps them as its state."""
    return optax.GradientTransformation(lambda params: params, lambda grads, state, params: (grads, grads))


def assert_training_follows(original: originals.Original, batch: dict[str, Any], mesh: Mesh) -> None:
    """Hugging Face runs its encoders without gradients, so its "all parameters" are the decoder's."""
    model, expected = original.model, original.meta["train"]
    graphdef, params, stats = split_model(model)
    params = jax.device_put(params, tree_shardings(params, mesh))
    trained, frozen = split_trained(model, params, freeze_encoder=True, freeze_decoder=False)
    optimizer = optax.chain(keep_gradients(), adamw(weight_decay=1e-3, max_grad_norm=0.5))
    copies = jax.tree.map(jnp.copy, trained)  # the step consumes them, and other tests read the model
    state = new_state(copies, frozen, stats, optimizer, mesh)
    batch = put_batch(jax.tree.map(np.asarray, batch), mesh)
    step = make_train_step(graphdef, optimizer, LOSSES["dice"], mesh, state)

    losses, norms = [], {}
    for _ in expected["losses"]:
        state, values = step(state, batch, jnp.float32(2e-4))
        losses.append(float(values["loss"]))
        norms = norms or {
            torch_leaf(TABLES["clipseg"], undotted(name))[0]: np.linalg.norm(grad)
            for name, grad in state.opt_state[0].items()
        }
    np.testing.assert_allclose(losses, expected["losses"], atol=1e-4)
    assert set(norms) == set(expected["first_step_grad_norms"])
    for name, norm in expected["first_step_grad_norms"].items():
        # Keys' biases have no influence: their gradients are rounding errors of 1e-10.
        np.testing.assert_allclose(norms[name], norm, rtol=0.01, atol=1e-9, err_msg=name)


def test_training_of_the_decoder_on_what_the_encoders_made_follows_the_originals(original, encoded, mesh_of):
    batch = {"mask": original.arrays["mask"], "image_features": encoded[0], "text_features": encoded[1]}
    assert_training_follows(original, batch, mesh_of(2))


@pytest.mark.parametrize("original", ["clipseg_tiny"], indirect=True, scope="module")
def test_training_of_the_decoder_on_images_and_sentences_follows_the_originals(original, mesh_of, monkeypatch):
    monkeypatch.setattr(apply, "normalize_pixels", lambda image, mean, std: image)  # they are, in the fixture
    pixels, ids, mask = originals.inputs(original.arrays)
    batch = {"image": pixels, "mask": original.arrays["mask"], "input_ids": ids, "attention_mask": mask}
    assert_training_follows(original, batch, mesh_of(2))
