"""What CRIS promises; for outputs and training of its authors' code see tests/parity/test_cris.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
from closeness import assert_close, relative_error
from flax import nnx

from medvlsm_jax.models import PRESETS, abstract_model, override
from medvlsm_jax.models.cris import CRIS
from medvlsm_jax.models.cris_decoder import convolve_each, grid_positions, sine_positions
from medvlsm_jax.models.cris_neck import add_coordinates
from medvlsm_jax.models.parameters import merge_model, split_model, undotted
from medvlsm_jax.parallel.sharding import batch_sharding, make_mesh, replicated

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOLERANCE = 2e-5  # of the largest absolute value


@functools.partial(jax.jit, static_argnums=0)
def apply(graphdef, arrays, *args, rngs=None):
    """Logits, and the running statistics after them."""
    model = merge_model(graphdef, arrays)
    return model(*args, rngs=rngs), split_model(model)[2]


def run(model, *args, rngs=None):
    graphdef, params, stats = split_model(model)
    return apply(graphdef, {**params, **stats}, *args, rngs=rngs)[0]


def training_graph(model: CRIS) -> nnx.GraphDef:
    model.train()
    graphdef = split_model(model)[0]
    model.eval()
    return graphdef


@pytest.fixture(scope="module")
def tiny():
    """The tiny stand-in with config fields replaced: `tiny(zero_prompt=True)`."""
    return originals.small("cris_tiny")


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    """What the original made of the tiny stand-in."""
    return originals.recorded("cris_tiny")


@pytest.fixture(scope="module")
def inputs(recorded) -> tuple[jax.Array, jax.Array]:
    """Pixels and tokens."""
    return jnp.asarray(recorded["pixel_values"]), jnp.asarray(recorded["input_ids"])


@pytest.fixture(scope="module")
def logits(tiny, inputs) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(tiny(), *inputs))


def test_padding_has_no_influence(tiny, inputs, logits):
    pixels, ids = inputs
    assert not ids[:, 40:].any()
    assert_close(run(tiny(), pixels, ids[:, :40]), logits, TOLERANCE)
    ones, zeros = jnp.ones_like(ids), jnp.zeros_like(ids)
    found = [run(tiny(), pixels, ids, mask) for mask in ((ids != 0).astype(jnp.int32), ones, zeros)]
    assert_close(found[0], logits, TOLERANCE)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_padding_by_another_token_is_read(tiny, inputs, logits):
    """As in the original of medvlsm: where id 0 does not pad, the decoder attends to all of the context."""
    pixels, ids = inputs
    padded = jnp.where(ids == 0, tiny().config.text.eos_token_id, ids)
    assert relative_error(run(tiny(), pixels, padded), logits) > 1e-3


def test_the_sentence_changes_the_mask(tiny, inputs, logits):
    pixels, ids = inputs
    assert relative_error(run(tiny(), pixels, ids[::-1]), logits) > 1e-2


@pytest.mark.parametrize("zero_prompt", [False, True])
def test_parameters_called_unused_do_not_change_the_logits(tiny, inputs, zero_prompt):
    model = tiny(zero_prompt=zero_prompt)
    graphdef, params, stats = split_model(model)
    unused = {name for name in params if model.unused(undotted(name))}
    assert ("logit_scale" in unused, "text.final_norm.scale" in unused) == (True, zero_prompt)
    changed = {name: array + 1 if name in unused else array for name, array in params.items()}
    np.testing.assert_array_equal(run(merge_model(graphdef, {**changed, **stats}), *inputs), run(model, *inputs))


def test_zero_prompt_ignores_the_sentence_and_needs_none(tiny, inputs, logits):
    pixels, ids = inputs
    model = tiny(zero_prompt=True)
    found = run(model, pixels, ids)
    np.testing.assert_array_equal(run(model, pixels, ids[::-1]), found)
    assert relative_error(logits, found) > 1e-2
    assert nnx.eval_shape(CRIS.__call__, model, pixels).shape == found.shape


def test_one_device_and_eight_train_alike(tiny, inputs):
    """Statistics are the global batch's: 8 rows, one a device."""
    pixels = jax.random.normal(jax.random.key(0), (8, *inputs[0].shape[1:]))
    words = jax.random.randint(jax.random.key(1), (8, 77), 1, 900)
    ids = jnp.where(jnp.tile(inputs[1], (4, 1)) % 998 > 1, words, jnp.tile(inputs[1], (4, 1)))
    graphdef, (_, params, stats) = training_graph(tiny()), split_model(tiny())
    logits, new = apply(graphdef, {**params, **stats}, pixels, ids)
    mesh = make_mesh()
    arrays = jax.device_put({**params, **stats}, replicated(mesh))
    sharded_logits, sharded = apply(graphdef, arrays, *jax.device_put((pixels, ids), batch_sharding(mesh)))
    assert len(sharded_logits.sharding.device_set) == 8
    assert relative_error(sharded_logits, logits) < 1e-4
    for name, array in new.items():
        assert np.any(array != stats[name])
        assert relative_error(sharded[name], array) < 1e-5


def test_dropout_needs_training_mode_and_random_numbers(tiny, inputs, recorded, logits):
    model = tiny(dropout=0.5)
    graphdef, (_, params, stats) = training_graph(model), split_model(model)
    train_mode = functools.partial(apply, graphdef, {**params, **stats}, *inputs)
    dropped, whole = train_mode(rngs=nnx.Rngs(0))[0], recorded["logits_train_mode"]
    np.testing.assert_array_equal(train_mode(rngs=nnx.Rngs(0))[0], dropped)
    assert relative_error(train_mode(rngs=nnx.Rngs(1))[0], dropped) > 1e-2
    assert relative_error(dropped, whole) > 1e-2
    assert relative_error(train_mode()[0], whole) < 3e-3  # the state's statistics are those of two rows
    assert_close(run(model, *inputs, rngs=nnx.Rngs(0)), logits, TOLERANCE)


def test_bfloat16_computes_near_float32_and_keeps_its_parameters(tiny, inputs, logits):
    model = tiny(dtype="bfloat16")
    half = run(model, *inputs)
    assert half.dtype == jnp.float32
    assert 1e-6 < relative_error(half, logits) < 0.1
    assert {array.dtype for array in split_model(model)[1].values()} == {np.dtype(np.float32)}
    features = nnx.eval_shape(CRIS.encode_image, model, inputs[0])
    assert {feature.dtype for feature in features} == {jnp.dtype(jnp.bfloat16)}


def test_logits_have_the_images_size_when_it_is_not_square(tiny, inputs):
    logits = nnx.eval_shape(CRIS.__call__, tiny(), jnp.zeros((2, 64, 96, 3)), inputs[1])
    assert logits.shape == (2, 64, 96, 1)


def test_images_must_be_multiples_of_the_stride(tiny, inputs):
    with pytest.raises(ValueError, match="image size 60x64 is not a multiple of 32"):
        tiny().encode_image(inputs[0][:, :60])


def test_a_sentence_is_needed(tiny, inputs):
    with pytest.raises(ValueError, match="CRIS needs input_ids"):
        tiny()(inputs[0])


@pytest.mark.parametrize("overrides", [{"fpn_channels": (32, 128, 128)}, {"text": {"width": 128}}])
def test_the_decoder_must_have_the_texts_width(overrides):
    with pytest.raises(ValueError, match="the decoder wants the text encoder's width"):
        abstract_model(override(PRESETS["cris_tiny"][1], overrides))


def test_coordinates_are_x_then_y():
    coordinates = add_coordinates(jnp.zeros((1, 2, 3, 1)))[0, :, :, 1:]
    assert np.asarray(coordinates[..., 0]).tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert np.asarray(coordinates[..., 1]).tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_grid_positions_are_the_columns_then_the_rows():
    positions = grid_positions(3, 5, 8).reshape(3, 5, 8)
    for row in range(3):
        for column in range(5):
            np.testing.assert_array_equal(positions[row, column, :4], sine_positions(5, 4)[column])
            np.testing.assert_array_equal(positions[row, column, 4:], sine_positions(3, 4)[row])
    expected = [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)]  # frequencies 1 and 10000^(-2/4)
    assert_close(sine_positions(3, 4)[2], expected, 1e-6)


def test_each_image_is_convolved_with_its_own_kernel():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 7, 4), (2, 4, 9), (2,)))
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).reshape(1, 8, 5, 7)),
        torch.from_numpy(kernel.reshape(2, 4, 3, 3)),
        torch.from_numpy(bias),
        padding=1,
        groups=2,
    )
    ours = convolve_each(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(bias))
    assert_close(ours[..., 0], theirs.numpy()[0])
