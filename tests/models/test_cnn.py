"""What U-Net, U-Net++ and DeepLabV3+ promise.

For outputs of segmentation_models_pytorch's see tests/parity/test_cnn.py and tests/weights/test_cnn_weights.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_close, relative_error
from flax import nnx
from jax.sharding import Mesh

from medvlsm_jax.models import PRESETS, abstract_model, create_model, override
from medvlsm_jax.models.cnn import DepthwiseConv, upsample
from medvlsm_jax.models.parameters import merge_model, split_model
from medvlsm_jax.parallel.sharding import AXES, batch_sharding, replicated
from medvlsm_jax.training.freezing import set_training_mode

pytestmark = pytest.mark.usefixtures("exact_matmul")
CNNS = ["unet", "unetplusplus", "deeplabv3plus"]
FLOAT32 = jnp.dtype("float32")

run = nnx.jit(lambda model, *args, **kwargs: model(*args, **kwargs))


@jax.jit(static_argnums=0)
def forward(graphdef, arrays, pixels):
    """Logits, and the running statistics after them."""
    model = merge_model(graphdef, arrays)
    logits = model(pixels)
    return logits, split_model(model)[2]


def random_pixels(batch: int, height: int = 64, width: int = 64) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, height, width, 3))


@pytest.fixture(params=CNNS)
def name(request) -> str:
    return request.param


def make_tiny(name: str, **overrides):
    """A tiny preset with three classes and numpy's He initialisation: jax would compile one for every shape."""
    config = override(PRESETS[f"{name}_tiny"][1], {"classes": ("a", "b", "c")} | overrides)
    graphdef, params, stats = split_model(abstract_model(config))
    rng = np.random.default_rng(0)

    def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("kernel"):
            return rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        return np.full(shape, name.endswith(("scale", "var")))

    arrays = {name: jnp.asarray(fill(name, x.shape).astype(x.dtype)) for name, x in (params | stats).items()}
    return merge_model(graphdef, arrays)


@pytest.fixture(scope="module")
def tiny():
    """One of each network; nobody changes their arrays."""
    return {name: make_tiny(name) for name in CNNS}


@pytest.fixture
def trained(name, tiny):
    """A copy in training mode."""
    model = nnx.clone(tiny[name])
    model.train()
    return model


def test_the_published_sizes(name):
    model = abstract_model(PRESETS[name][1])
    millions = {"unet": 32_521_105, "unetplusplus": 48_985_745, "deeplabv3plus": 26_677_585}
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == millions[name]
    config = PRESETS[name][1]
    assert (config.image_size, config.threshold, config.text) == (256, 0.5, None)
    assert config.pixel_std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("classes", [(), ("polyp",), ("polyp", "foot ulcer", "tumor")])
def test_logits_have_the_images_size_and_a_channel_a_class(name, classes):
    model = abstract_model(override(PRESETS[f"{name}_tiny"][1], {"classes": classes, "dtype": "bfloat16"}))
    logits = nnx.eval_shape(run, model, jax.ShapeDtypeStruct((2, 64, 160, 3), FLOAT32))
    assert (logits.shape, logits.dtype) == ((2, 64, 160, max(1, len(classes))), FLOAT32)


def test_a_rectangular_image_is_read_row_by_row(name, tiny):
    """What a pixel changes lies around it: rows and columns are not mixed up."""
    pixels = random_pixels(1, 64, 256)
    model = tiny[name]
    change = np.abs(run(model, pixels.at[0, 48:, 208:].add(1.0)) - run(model, pixels))[0].max(-1)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert row >= 32
    assert column >= 192


def test_sides_must_be_multiples_of_the_encoders_stride(name, tiny):
    stride = 16 if name == "deeplabv3plus" else 32
    model = tiny[name]
    jax.eval_shape(model, jnp.zeros((1, 3 * stride, stride, 3)))
    for height, width in ((64, 64 + stride // 2), (64 - stride // 2, 64)):
        with pytest.raises(ValueError, match=f"image size {height}x{width} is not a multiple of {stride}"):
            model(jnp.zeros((1, height, width, 3)))


def test_unknown_strides_and_missing_widths_are_refused():
    with pytest.raises(ValueError, match="output_stride 4 is neither 8 nor 16"):
        create_model("deeplabv3plus_tiny", rngs=nnx.Rngs(0), output_stride=4)
    for network in ("unet_tiny", "unetplusplus_tiny"):
        with pytest.raises(ValueError, match=r"decoder_channels \(8, 8, 8\) are not 5 widths"):
            create_model(network, rngs=nnx.Rngs(0), decoder_channels=(8, 8, 8))


def test_an_output_stride_of_8_keeps_the_size():
    model = abstract_model(override(PRESETS["deeplabv3plus_tiny"][1], {"output_stride": 8}))
    pixels = jax.ShapeDtypeStruct((1, 72, 64, 3), FLOAT32)
    features, logits = nnx.eval_shape(lambda model, x: (model.resnet(x), model(x)), model, pixels)
    assert features[-1].shape == (1, 9, 8, 512)
    assert logits.shape == (1, 72, 64, 1)


def test_bfloat16_computes_near_float32_and_keeps_its_parameters(name, tiny):
    half, pixels = make_tiny(name, dtype="bfloat16"), random_pixels(2)
    logits = run(half, pixels)
    graphdef, params, stats = split_model(tiny[name])
    assert logits.dtype == jnp.float32
    assert 1e-4 < relative_error(logits, forward(graphdef, params | stats, pixels)[0]) < 0.1
    _, params, stats = split_model(half)
    assert {array.dtype for array in (params | stats).values()} == {FLOAT32}
    states = nnx.eval_shape(lambda model, x: model.decoder.hidden_states(model.resnet(x)), half, pixels)
    assert {state.dtype for state in states.values()} == {jnp.dtype(jnp.bfloat16)}


def test_training_is_the_same_on_8_devices_as_on_1(trained):
    """BatchNorm's statistics are the whole batch's, whatever devices it lies on."""
    graphdef, params, stats = split_model(trained)
    pixels, results = random_pixels(8), []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = Mesh(np.array(devices).reshape(-1, 1), AXES)
        arrays = jax.device_put(params | stats, replicated(mesh))
        logits, new_stats = forward(graphdef, arrays, jax.device_put(pixels, batch_sharding(mesh)))
        results.append((np.asarray(logits), jax.tree.map(np.asarray, new_stats)))
    assert len(logits.sharding.device_set) == 8
    assert relative_error(results[1][0], results[0][0]) < 1e-4
    for key, array in results[0][1].items():
        assert relative_error(results[1][1][key], array) < 1e-4, key
        assert not np.array_equal(array, stats[key]), key


def test_a_frozen_encoder_keeps_its_statistics(name, tiny):
    model = nnx.clone(tiny[name])
    set_training_mode(model, freeze_encoder=True, freeze_decoder=False)
    graphdef, params, stats = split_model(model)
    _, new_stats = forward(graphdef, params | stats, random_pixels(2))
    kept = {key for key, array in new_stats.items() if np.array_equal(array, stats[key])}
    assert kept == {key for key in stats if key.startswith("resnet.")}
    assert kept


def test_evaluation_reads_no_sentence_drops_nothing_and_changes_no_statistics(name, tiny):
    graphdef, params, stats = split_model(tiny[name])
    pixels, ids = random_pixels(2), jnp.ones((2, 5), jnp.int32)
    logits, new_stats = forward(graphdef, params | stats, pixels)
    for key, array in stats.items():
        np.testing.assert_array_equal(new_stats[key], array)
    assert_close(run(tiny[name], pixels, ids, ids, rngs=nnx.Rngs(0)), logits)


def test_the_pyramids_dropout_is_a_function_of_its_key(tiny):
    features = [jax.random.normal(jax.random.key(0), (2, 4, 4, 512))]
    aspp = nnx.clone(tiny["deeplabv3plus"].decoder.aspp)
    aspp.train()
    kept = run(aspp, features[0])
    dropped = run(aspp, features[0], rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(run(aspp, features[0], rngs=nnx.Rngs(1)), dropped)
    assert not np.array_equal(run(aspp, features[0], rngs=nnx.Rngs(2)), dropped)
    zeros = np.asarray(dropped == 0)[np.asarray(kept) > 0]
    assert 0.4 < zeros.mean() < 0.6
    assert_close(np.asarray(dropped)[dropped != 0], 2 * np.asarray(kept)[dropped != 0])


@pytest.mark.parametrize("name", ["deeplabv3plus"], indirect=True)  # one, for the time it takes to compile
def test_a_tiny_network_learns_from_random_weights(trained):
    """One batch of bright squares is learnt by heart."""
    pixels = random_pixels(4)
    target = jnp.zeros((4, 64, 64, 3)).at[:, 16:40, 24:56].set(1.0)
    pixels = pixels + 2 * target
    graphdef, params, stats = split_model(trained)
    optimizer = optax.adam(1e-2)

    def loss_of(params, stats):
        model = merge_model(graphdef, params | stats)
        return optax.sigmoid_binary_cross_entropy(model(pixels), target).mean(), split_model(model)[2]

    @jax.jit
    def step(params, stats, moments):
        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params, stats)
        updates, moments = optimizer.update(grads, moments)
        return optax.apply_updates(params, updates), stats, moments, loss

    moments, losses = jax.jit(optimizer.init)(params), []
    for _ in range(15):
        params, stats, moments, loss = step(params, stats, moments)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("dilation", [1, 5, 9])
def test_a_depthwise_convolution_is_a_grouped_one(dilation):
    """Also where the kernel's outer points lie outside an image of 6 x 8."""
    layer = DepthwiseConv(4, dilation=dilation, dtype=FLOAT32, rngs=nnx.Rngs(0))
    options = {"padding": dilation, "kernel_dilation": dilation, "feature_group_count": 4, "use_bias": False}
    grouped = nnx.Conv(4, 4, (3, 3), **options, rngs=nnx.Rngs(1))
    grouped.kernel[...] = layer.kernel[...]
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 4))

    @nnx.jit
    def value_and_gradients(layer, x):
        return nnx.value_and_grad(lambda layer, x: (layer(x) ** 2).sum(), argnums=(0, 1))(layer, x)

    for ours, theirs in zip(*(jax.tree.leaves(value_and_gradients(each, x)) for each in (layer, grouped)), strict=True):
        assert_close(ours, theirs)


def test_upsampling_is_nearest():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(upsample(x), x.repeat(2, axis=1).repeat(2, axis=2))
