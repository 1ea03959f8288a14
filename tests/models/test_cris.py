"""CRIS against outputs and training of its authors' code, and its own promises."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from seeded_weights import seeded_pixels, seeded_state_dict

from medvlsm_jax.losses import soft_dice
from medvlsm_jax.models import create_model
from medvlsm_jax.models.cris import CRIS
from medvlsm_jax.models.cris_decoder import convolve_each, grid_positions, sine_positions
from medvlsm_jax.models.cris_neck import add_coordinates
from medvlsm_jax.models.parameters import count, merge_model, split_model, undotted
from medvlsm_jax.parallel.sharding import batch_sharding, make_mesh, replicated
from medvlsm_jax.training.step import adamw
from medvlsm_jax.weights import from_torch, to_torch
from medvlsm_jax.weights.convert import torch_leaf
from medvlsm_jax.weights.tables import TABLES

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOLERANCE = 2e-5  # of the largest absolute value
FIXTURES = Path(__file__).parents[1] / "data" / "parity"


@functools.partial(jax.jit, static_argnums=0)
def apply(graphdef, arrays, *args, rngs=None):
    """Logits, and the running statistics after them."""
    model = merge_model(graphdef, arrays)
    return model(*args, rngs=rngs), split_model(model)[2]


def run(model, *args, rngs=None):
    graphdef, params, stats = split_model(model)
    return apply(graphdef, {**params, **stats}, *args, rngs=rngs)[0]


def read(folder: Path) -> tuple[dict, dict]:
    """Inputs and outputs of the original, channels last, and its meta.json."""
    meta = json.loads((folder / "meta.json").read_text())
    size, arrays = meta["image_size"], dict(np.load(folder / "golden.npz"))
    if arrays["mask"].ndim == 1:  # packed bits
        arrays["mask"] = np.unpackbits(arrays["mask"]).reshape(2, 1, size, size)
    arrays["pixel_values"] = seeded_pixels(size)
    arrays = {name: array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for name, array in arrays.items()}
    arrays |= {name: jnp.asarray(arrays[name]) for name in ("pixel_values", "mask")}
    return arrays | {"input_ids": jnp.asarray(arrays["input_ids"], jnp.int32)}, meta


def overrides(meta: dict) -> dict:
    """What a checkpoint's arrays do not tell."""
    heads = {"text": {"heads": meta["clip"]["transformer_heads"]}, "decoder_heads": meta["num_head"]}
    return heads | {"image_size": meta["image_size"]}


def relative_error(ours, theirs) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max())


def error_of(arrays: dict, name: str, ours) -> float:
    """Against an output that is recorded whole, or every third row and column of it."""
    if name in arrays:
        return relative_error(ours, arrays[name])
    return relative_error(ours[:, ::3, ::3], arrays[f"{name}_stride3"])


def training_graph(model: CRIS) -> nnx.GraphDef:
    model.train()
    graphdef = split_model(model)[0]
    model.eval()
    return graphdef


def differentiate(graphdef: nnx.GraphDef, arrays: dict):
    """Compiles (params, stats) -> ((loss, (stats after it, logits)), gradients)."""

    def loss(params, stats):
        model = merge_model(graphdef, {**params, **stats})
        logits = model(arrays["pixel_values"], arrays["input_ids"])
        target = arrays["mask"].astype(jnp.float32)
        return soft_dice(logits, target).mean(), (split_model(model)[2], logits)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


class Original:
    """A stand-in checkpoint as a model, what the original made of it, and our first step of training."""

    def __init__(self, folder: Path):
        self.is_tiny = folder.name.endswith("_tiny")
        self.arrays, self.meta = read(folder)
        self.state_dict = seeded_state_dict(folder)
        self.model = from_torch("cris", self.state_dict, **overrides(self.meta), dropout=0.0)
        graphdef = training_graph(self.model)
        _, self.params, self.stats = split_model(self.model)
        with jax.default_matmul_precision("highest"):
            self.gradients = differentiate(graphdef, self.arrays)
            (loss, (self.new_stats, self.logits)), self.first = self.gradients(self.params, self.stats)
        self.loss = float(loss)


@pytest.fixture(scope="module")
def tiny_original() -> Original:
    return Original(FIXTURES / "cris_tiny")


@pytest.fixture(scope="module", params=["cris_tiny", "cris"])
def original(request, tiny_original) -> Original:
    return tiny_original if request.param == "cris_tiny" else Original(FIXTURES / "cris")


@functools.cache
def tiny(**replaced) -> CRIS:
    """The tiny stand-in with config fields replaced; nobody changes its arrays."""
    folder = FIXTURES / "cris_tiny"
    return from_torch("cris", seeded_state_dict(folder), **overrides(read(folder)[1]) | replaced)


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, jax.Array]:
    """The tiny fixture's pixels and tokens."""
    arrays, _ = read(FIXTURES / "cris_tiny")
    return arrays["pixel_values"], arrays["input_ids"]


def test_outputs_are_the_originals(original):
    @jax.jit
    def outputs(params, pixels, ids):
        model = merge_model(graphdef, {**params, **original.stats})
        return model(pixels, ids), model.encode_text(ids)[1], model.encode_image(pixels)[2]

    graphdef, arrays = split_model(original.model)[0], original.arrays
    logits, state, v5 = outputs(original.params, arrays["pixel_values"], arrays["input_ids"])
    assert error_of(arrays, "logits", logits) < TOLERANCE
    assert relative_error(state, arrays["state"]) < TOLERANCE
    assert relative_error(v5[..., :32], arrays["v5"]) < TOLERANCE


def test_training_mode_normalises_by_the_batch_and_moves_the_statistics(original):
    assert error_of(original.arrays, "logits_train_mode", original.logits) < 3e-3  # the state's is that of two rows
    names = {torch_leaf(TABLES["cris"], undotted(name))[0]: array for name, array in original.new_stats.items()}
    recorded = {name: array for name, array in original.arrays.items() if name.startswith("after_train_")}
    assert len(recorded) == 3
    for name, array in recorded.items():
        assert relative_error(names[name.removeprefix("after_train_")], array) < TOLERANCE


def test_first_loss_and_gradients_are_the_originals(original):
    expected = original.meta["train"]
    assert abs(original.loss - expected["losses"][0]) < 1e-4
    squares = {}
    for name, gradient in original.first.items():
        theirs = torch_leaf(TABLES["cris"], undotted(name))[0]
        squares[theirs] = squares.get(theirs, 0.0) + float(jnp.square(gradient).sum())
    assert squares.pop("backbone.logit_scale") == 0
    assert set(squares) == set(expected["first_step_grad_norms"])
    rtol = 0.01 if original.is_tiny else 0.03
    for name, norm in expected["first_step_grad_norms"].items():
        # The pool's keys' bias has no influence: its gradient is a rounding error.
        np.testing.assert_allclose(squares[name] ** 0.5, norm, rtol=rtol, atol=1e-6, err_msg=name)


def test_training_follows_the_originals(tiny_original):
    """At full size 1e-7 of the pixels more or less make the third loss 0.49 or 0.78."""
    original = tiny_original
    optimizer = adamw(weight_decay=1e-3, max_grad_norm=0.5)

    @jax.jit
    def update(params, opt_state, gradients):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return jax.tree.map(lambda p, u: p - 2e-5 * u, params, updates), opt_state

    params, opt_state = original.params, optimizer.init(original.params)
    stats, gradients, losses = original.new_stats, original.first, [original.loss]
    for _ in range(2):
        params, opt_state = update(params, opt_state, gradients)
        (loss, (stats, _)), gradients = original.gradients(params, stats)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, original.meta["train"]["losses"], atol=1e-3)


def test_the_checkpoint_comes_back_bit_for_bit(original):
    if not original.is_tiny:
        assert round(count(original.params) / 1e6, 1) == 146.8
    ours = to_torch(original.model)
    assert set(ours) == set(original.state_dict)
    for name, array in original.state_dict.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape)
        assert ours[name].tobytes() == array.tobytes(), name


def test_padding_has_no_influence(inputs):
    pixels, ids = inputs
    logits = run(tiny(), pixels, ids)
    assert not ids[:, 40:].any()
    assert relative_error(run(tiny(), pixels, ids[:, :40]), logits) < TOLERANCE
    for attention_mask in (ids != 0, jnp.ones_like(ids), jnp.zeros_like(ids)):
        np.testing.assert_array_equal(run(tiny(), pixels, ids, attention_mask.astype(jnp.int32)), logits)


def test_padding_by_another_token_is_read(inputs):
    """As in the original of medvlsm: where id 0 does not pad, the decoder attends to all of the context."""
    pixels, ids = inputs
    padded = jnp.where(ids == 0, tiny().config.text.eos_token_id, ids)
    assert relative_error(run(tiny(), pixels, padded), run(tiny(), pixels, ids)) > 1e-3


def test_the_sentence_changes_the_mask(inputs):
    pixels, ids = inputs
    assert relative_error(run(tiny(), pixels, ids[::-1]), run(tiny(), pixels, ids)) > 1e-2


def test_zero_prompt_ignores_the_sentence_and_needs_none(inputs):
    pixels, ids = inputs
    model = tiny(zero_prompt=True)
    logits = run(model, pixels)
    np.testing.assert_array_equal(run(model, pixels, ids), logits)
    assert relative_error(run(tiny(), pixels, ids), logits) > 1e-2


def test_one_device_and_eight_train_alike(inputs):
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


def test_dropout_needs_training_mode_and_random_numbers(inputs, tiny_original):
    model = tiny(dropout=0.5)
    graphdef, (_, params, stats) = training_graph(model), split_model(model)
    train_mode = functools.partial(apply, graphdef, {**params, **stats}, *inputs)
    dropped = train_mode(rngs=nnx.Rngs(0))[0]
    np.testing.assert_array_equal(train_mode(rngs=nnx.Rngs(0))[0], dropped)
    assert relative_error(train_mode(rngs=nnx.Rngs(1))[0], dropped) > 1e-2
    assert relative_error(dropped, tiny_original.logits) > 1e-2
    assert relative_error(train_mode()[0], tiny_original.logits) < 1e-3
    np.testing.assert_array_equal(run(model, *inputs, rngs=nnx.Rngs(0)), run(tiny(), *inputs))


def test_bfloat16_computes_near_float32_and_keeps_its_parameters(inputs):
    model = tiny(dtype="bfloat16")
    logits = run(model, *inputs)
    assert logits.dtype == jnp.float32
    assert 1e-6 < relative_error(logits, run(tiny(), *inputs)) < 0.1
    assert {array.dtype for array in split_model(model)[1].values()} == {np.dtype(np.float32)}
    features = nnx.eval_shape(CRIS.encode_image, model, inputs[0])
    assert {feature.dtype for feature in features} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("zero_prompt", [False, True])
def test_parameters_called_unused_do_not_change_the_logits(inputs, zero_prompt):
    model = tiny(zero_prompt=zero_prompt)
    graphdef, params, stats = split_model(model)
    unused = {name for name in params if model.unused(undotted(name))}
    assert ("logit_scale" in unused, "text.final_norm.scale" in unused) == (True, zero_prompt)
    changed = {name: array + 1 if name in unused else array for name, array in params.items()}
    np.testing.assert_array_equal(run(merge_model(graphdef, {**changed, **stats}), *inputs), run(model, *inputs))


def test_logits_have_the_images_size_when_it_is_not_square(inputs):
    logits = nnx.eval_shape(CRIS.__call__, tiny(), jnp.zeros((2, 64, 96, 3)), inputs[1])
    assert logits.shape == (2, 64, 96, 1)


def test_images_must_be_multiples_of_the_stride(inputs):
    with pytest.raises(ValueError, match="image size 60x64 is not a multiple of 32"):
        tiny().encode_image(inputs[0][:, :60])


def test_a_sentence_is_needed(inputs):
    with pytest.raises(ValueError, match="CRIS needs input_ids"):
        tiny()(inputs[0])


@pytest.mark.parametrize("overrides", [{"fpn_channels": (32, 128, 128)}, {"text": {"width": 128}}])
def test_the_decoder_must_have_the_texts_width(overrides):
    with pytest.raises(ValueError, match="the decoder wants the text encoder's width"):
        nnx.eval_shape(lambda: create_model("cris_tiny", rngs=nnx.Rngs(0), **overrides))


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
    np.testing.assert_allclose(sine_positions(3, 4)[2], expected, rtol=1e-6)


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
    np.testing.assert_allclose(ours[..., 0], theirs.numpy()[0], atol=1e-5)
