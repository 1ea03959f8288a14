"""What CLIPSeg promises; for outputs and training of Hugging Face's see tests/parity/test_clipseg.py."""

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
from closeness import assert_close, relative_error
from flax import nnx

from medvlsm_jax.models import PRESETS, abstract_model, override
from medvlsm_jax.models.parameters import merge_model, split_model, undotted

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOLERANCE = 5e-5  # of the largest absolute value

run = nnx.jit(lambda model, *args, **kwargs: model(*args, **kwargs))
embed = nnx.jit(lambda model, *args: model.encode_text(*args))


@pytest.fixture(scope="module")
def tiny():
    """The tiny stand-in with config fields replaced: `tiny(zero_prompt=True)`."""
    return originals.small("clipseg_tiny")


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, tokens and their mask."""
    return originals.inputs(originals.recorded("clipseg_tiny"))


@pytest.fixture(scope="module")
def logits(tiny, inputs) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(tiny(), *inputs))


def test_zero_prompt_ignores_the_sentence(tiny, inputs):
    model, (pixels, ids, mask) = tiny(zero_prompt=True), inputs
    found = run(model, pixels, ids, mask)
    np.testing.assert_array_equal(run(model, pixels, ids[::-1], mask[::-1]), found)
    zeros = jnp.zeros((2, model.config.projection_dim))
    assert_close(run(tiny(), pixels, text_embedding=zeros), found, TOLERANCE)


def test_the_sentence_changes_the_mask(tiny, inputs, logits):
    pixels, ids, mask = inputs
    assert relative_error(run(tiny(), pixels, ids[::-1], mask[::-1]), logits) > 1e-2


def test_a_text_embedding_stands_for_its_sentence(tiny, inputs, logits):
    pixels, *tokens = inputs
    assert_close(run(tiny(), pixels, text_embedding=embed(tiny(), *tokens)), logits, TOLERANCE)


def test_bfloat16_computes_near_float32_and_keeps_its_parameters(tiny, inputs, logits):
    model = tiny(dtype="bfloat16")
    half = run(model, *inputs)
    assert half.dtype == jnp.float32
    assert 1e-6 < relative_error(half, logits) < 0.1
    assert {array.dtype for array in split_model(model)[1].values()} == {np.dtype(np.float32)}
    assert {state.dtype for state in nnx.eval_shape(type(model).encode_image, model, inputs[0])} == {
        jnp.dtype(jnp.bfloat16)
    }


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("complex_upsampling", [True, False])
def test_logits_have_the_images_size_when_it_is_not_square(patch, complex_upsampling):
    sizes = {"patch_size": patch, "grid": 2, "depth": 1}
    decoder = {"extract_layers": (0,), "conditional_layer": 0, "complex_upsampling": complex_upsampling}
    model = abstract_model(override(PRESETS["clipseg_tiny"][1], {"vision": sizes, **decoder}))
    pixels, embedding = jnp.zeros((2, 32, 80, 3)), jnp.zeros((2, 64))
    found = nnx.eval_shape(lambda model: model(pixels, text_embedding=embedding), model)
    assert found.shape == (2, 32, 80, 1)


def test_a_rectangular_image_is_read_row_by_row(tiny):
    """Three patches by four: a mix-up of rows and columns would move the bright one."""
    model = tiny()
    patches = model.vision.patch_embedding(jnp.zeros((1, 48, 64, 3)).at[0, 16:32, 48:].set(1.0))
    norms = np.linalg.norm(np.asarray(patches[0]), axis=-1)
    assert norms.shape == (3, 4)
    assert np.argwhere(norms > 0).tolist() == [[1, 3]]


def test_images_must_be_whole_patches(tiny, inputs):
    with pytest.raises(ValueError, match="image size 60x64 is not a multiple of the patch size 16"):
        tiny()(inputs[0][:, :60], text_embedding=jnp.zeros((2, 32)))


def test_too_many_tokens_are_refused(tiny, inputs):
    pixels, ids, _ = inputs
    with pytest.raises(ValueError, match="input_ids have 154 tokens, but this network reads 77 at most"):
        tiny()(pixels, jnp.tile(ids, (1, 2)))


def test_a_sentence_is_needed(tiny, inputs):
    with pytest.raises(ValueError, match="CLIPSeg needs input_ids"):
        tiny()(inputs[0])


def test_parameters_called_unused_do_not_change_the_logits(tiny, inputs):
    model = tiny(extract_layers=(0, 1, 2))
    graphdef, params, _ = split_model(model)
    unused = {name for name in params if model.unused(undotted(name))}
    assert {"logit_scale", "vision.projection.kernel", "vision.blocks.3.mlp.expand.kernel"} <= unused
    changed = {name: array + 1 if name in unused else array for name, array in params.items()}
    np.testing.assert_array_equal(run(merge_model(graphdef, changed), *inputs), run(model, *inputs))
