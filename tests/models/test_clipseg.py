"""CLIPSeg against outputs and training of Hugging Face's, and its own promises."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh
from seeded_weights import seeded_pixels, seeded_state_dict, seeded_tensor

from medvlsm_jax.losses import LOSSES
from medvlsm_jax.models import apply, create_model
from medvlsm_jax.models.parameters import merge_model, split_model, undotted
from medvlsm_jax.parallel.sharding import AXES, put_batch, tree_shardings
from medvlsm_jax.training.freezing import split_trained
from medvlsm_jax.training.step import adamw, make_train_step, new_state
from medvlsm_jax.weights import from_torch, to_torch
from medvlsm_jax.weights.convert import torch_leaf
from medvlsm_jax.weights.tables import TABLES

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOLERANCE = 5e-5  # of the largest absolute value
FIXTURES = ["clipseg_tiny", "clipseg"]

run = nnx.jit(lambda model, *args, **kwargs: model(*args, **kwargs))
embed = nnx.jit(lambda model, *args: model.encode_text(*args))


def golden(folder: Path) -> dict:
    """Inputs and outputs of the original: channels last, tokens as int32."""
    arrays = dict(np.load(folder / "golden.npz"))
    size = json.loads((folder / "meta.json").read_text())["image_size"]
    arrays["pixel_values"] = seeded_pixels(size).transpose(0, 2, 3, 1)
    if arrays["mask"].ndim == 1:  # packed bits
        arrays["mask"] = np.unpackbits(arrays["mask"]).reshape(2, 1, size, size)
    arrays["mask"] = arrays["mask"].transpose(0, 2, 3, 1)
    arrays |= {name: jnp.asarray(arrays[name], jnp.int32) for name in ("input_ids", "attention_mask")}
    return arrays | {"pixel_values": jnp.asarray(arrays["pixel_values"])}


def tokens_of(arrays: dict) -> tuple[jax.Array, jax.Array]:
    return arrays["input_ids"], arrays["attention_mask"]


def relative_error(ours, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.fixture(scope="module", params=FIXTURES)
def original(request, overrides):
    """A stand-in checkpoint as a model, what the original made of it, and how the original trained it."""
    folder = Path(__file__).parents[1] / "data" / "parity" / request.param
    model = from_torch("clipseg", seeded_state_dict(folder), **overrides(folder))
    return model, golden(folder) | {"folder": folder}, json.loads((folder / "meta.json").read_text())["train"]


@pytest.fixture(scope="module")
def tiny_golden():
    return golden(Path(__file__).parents[1] / "data" / "parity" / "clipseg_tiny")


def test_logits_and_text_embeddings_are_the_originals(original):
    model, arrays, _ = original
    assert relative_error(embed(model, *tokens_of(arrays)), arrays["conditional_embeddings"]) < TOLERANCE
    logits = np.asarray(run(model, arrays["pixel_values"], *tokens_of(arrays))).transpose(0, 3, 1, 2)
    if "logits" in arrays:
        assert relative_error(logits, arrays["logits"]) < TOLERANCE
    else:
        assert relative_error(logits[:, :, ::3, ::3], arrays["logits_stride3"]) < TOLERANCE


def test_the_checkpoint_comes_back_bit_for_bit(original):
    model, arrays, _ = original
    state_dict = to_torch(model)
    spec = json.loads((arrays["folder"] / "spec.json").read_text())
    assert set(state_dict) == set(spec)
    for name, array in state_dict.items():
        expected = seeded_tensor(name, tuple(spec[name][0]), spec[name][1])
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(array.view(np.int32), expected.view(np.int32), err_msg=name)
    if arrays["folder"].name == "clipseg":
        sizes = {name: array.size for name, array in state_dict.items()}
        decoder = sum(size for name, size in sizes.items() if name.startswith("decoder."))
        assert (round(sum(sizes.values()) / 1e6, 1), round(decoder / 1e6, 2)) == (150.7, 1.13)


def keep_gradients() -> optax.GradientTransformation:
    """Passes gradients on, and keeps them as its state."""
    return optax.GradientTransformation(lambda params: params, lambda grads, state, params: (grads, grads))


def test_training_of_the_decoder_follows_the_originals(original, monkeypatch):
    """Hugging Face runs its encoders without gradients, so its "all parameters" are the decoder's."""
    monkeypatch.setattr(apply, "normalize_pixels", lambda image, mean, std: image)  # they are, in the fixture
    model, arrays, expected = original
    mesh = Mesh(np.array(jax.devices()[:2]).reshape(2, 1), AXES)
    graphdef, params, stats = split_model(model)
    params = jax.device_put(params, tree_shardings(params, mesh))
    trained, frozen = split_trained(model, params, freeze_encoder=True, freeze_decoder=False)
    optimizer = optax.chain(keep_gradients(), adamw(weight_decay=1e-3, max_grad_norm=0.5))
    state = new_state(trained, frozen, stats, optimizer, mesh)
    batch = {"image": arrays["pixel_values"], "mask": arrays["mask"]}
    batch |= dict(zip(("input_ids", "attention_mask"), tokens_of(arrays), strict=True))
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


def test_zero_prompt_ignores_the_sentence(tiny, tiny_golden):
    model, (ids, mask) = tiny(zero_prompt=True), tokens_of(tiny_golden)
    pixels = tiny_golden["pixel_values"]
    logits = run(model, pixels, ids, mask)
    np.testing.assert_array_equal(run(model, pixels, ids[::-1], mask[::-1]), logits)
    zeros = jnp.zeros((2, model.config.projection_dim))
    np.testing.assert_allclose(run(tiny(), pixels, text_embedding=zeros), logits, atol=1e-5)


def test_the_sentence_changes_the_mask(tiny, tiny_golden):
    ids, mask = tokens_of(tiny_golden)
    pixels = tiny_golden["pixel_values"]
    assert relative_error(run(tiny(), pixels, ids[::-1], mask[::-1]), run(tiny(), pixels, ids, mask)) > 1e-2


def test_a_text_embedding_stands_for_its_sentence(tiny, tiny_golden):
    model = tiny()
    embedding = embed(model, *tokens_of(tiny_golden))
    logits = run(model, tiny_golden["pixel_values"], text_embedding=embedding)
    expected = np.asarray(run(model, tiny_golden["pixel_values"], *tokens_of(tiny_golden)))
    assert relative_error(logits, expected) < TOLERANCE


def test_bfloat16_computes_near_float32_and_keeps_its_parameters(tiny, tiny_golden):
    args = (tiny_golden["pixel_values"], *tokens_of(tiny_golden))
    model = tiny(dtype="bfloat16")
    logits, exact = run(model, *args), np.asarray(run(tiny(), *args))
    assert logits.dtype == jnp.float32
    assert 1e-6 < relative_error(logits, exact) < 0.1
    assert {array.dtype for array in split_model(model)[1].values()} == {np.dtype(np.float32)}
    assert {state.dtype for state in nnx.eval_shape(type(model).encode_image, model, args[0])} == {
        jnp.dtype(jnp.bfloat16)
    }


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("complex_upsampling", [True, False])
def test_logits_have_the_images_size_when_it_is_not_square(patch, complex_upsampling):
    sizes = {"patch_size": patch, "grid": 2, "depth": 1}
    decoder = {"extract_layers": (0,), "conditional_layer": 0, "complex_upsampling": complex_upsampling}
    pixels, embedding = jnp.zeros((2, 32, 80, 3)), jnp.zeros((2, 64))
    logits = jax.eval_shape(
        lambda: create_model("clipseg_tiny", rngs=nnx.Rngs(0), vision=sizes, **decoder)(
            pixels, text_embedding=embedding
        )
    )
    assert logits.shape == (2, 32, 80, 1)


def test_a_rectangular_image_is_read_row_by_row(tiny):
    """Three patches by four: a mix-up of rows and columns would move the bright one."""
    model = tiny()
    patches = model.vision.patch_embedding(jnp.zeros((1, 48, 64, 3)).at[0, 16:32, 48:].set(1.0))
    norms = np.linalg.norm(np.asarray(patches[0]), axis=-1)
    assert norms.shape == (3, 4)
    assert np.argwhere(norms > 0).tolist() == [[1, 3]]


def test_images_must_be_whole_patches(tiny, tiny_golden):
    with pytest.raises(ValueError, match="image size 60x64 is not a multiple of the patch size 16"):
        tiny()(tiny_golden["pixel_values"][:, :60], text_embedding=jnp.zeros((2, 32)))


def test_too_many_tokens_are_refused(tiny, tiny_golden):
    ids = jnp.tile(tiny_golden["input_ids"], (1, 2))
    with pytest.raises(ValueError, match="154 tokens, but the text encoder has 77 positions"):
        tiny()(tiny_golden["pixel_values"], ids)


def test_a_sentence_is_needed(tiny, tiny_golden):
    with pytest.raises(ValueError, match="CLIPSeg needs input_ids"):
        tiny()(tiny_golden["pixel_values"])


def test_parameters_called_unused_do_not_change_the_logits(tiny, tiny_golden):
    model = tiny(extract_layers=(0, 1, 2))
    graphdef, params, _ = split_model(model)
    unused = {name for name in params if model.unused(undotted(name))}
    assert {"logit_scale", "vision.projection.kernel", "vision.blocks.3.mlp.expand.kernel"} <= unused
    changed = {name: array + 1 if name in unused else array for name, array in params.items()}
    args = (tiny_golden["pixel_values"], *tokens_of(tiny_golden))
    np.testing.assert_array_equal(run(merge_model(graphdef, changed), *args), run(model, *args))
