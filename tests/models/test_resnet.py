"""The convolutional layers and residual networks against PyTorch's, and what holds of them without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from medvlsm_jax.models.layers import Conv, ConvNorm
from medvlsm_jax.models.normalization import BatchNorm
from medvlsm_jax.models.resnet import Bottleneck, CLIPResNet, ResNet, ResNetConfig, average_pool

pytestmark = pytest.mark.usefixtures("exact_matmul")
FLOAT32 = jnp.dtype("float32")
SMALL = ResNetConfig(layers=(1, 1, 1, 2), width=4)

run = nnx.jit(lambda model, x: model(x))


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch")


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def nchw(torch, x):
    return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def nhwc(tensor) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def torch_conv(torch, layer: Conv):
    """torch.nn.Conv2d with the options and the weights of ours."""
    kernel = torch.from_numpy(np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1).copy())
    theirs = torch.nn.Conv2d(
        layer.in_features,
        layer.out_features,
        kernel.shape[2:],
        stride=layer.strides,
        padding=layer.padding,
        dilation=layer.kernel_dilation,
        bias=layer.bias is not None,
    )
    weights = {"weight": kernel}
    if layer.bias is not None:
        weights["bias"] = torch.tensor(np.asarray(layer.bias[...]))
    theirs.load_state_dict(weights)
    return theirs


def torch_norm(torch, layer: BatchNorm):
    """torch.nn.BatchNorm2d with the weights and the statistics of ours, in training mode."""
    theirs = torch.nn.BatchNorm2d(layer.scale.shape[0])
    names = {"weight": layer.scale, "bias": layer.bias, "running_mean": layer.mean, "running_var": layer.var}
    theirs.load_state_dict({name: torch.tensor(np.asarray(x[...])) for name, x in names.items()}, strict=False)
    return theirs


def torch_conv_norm(torch, layer: ConvNorm):
    parts = [torch_conv(torch, layer.conv), torch_norm(torch, layer.norm)]
    return torch.nn.Sequential(*parts, *[torch.nn.ReLU()] * layer.has_relu)


def fill(module: nnx.Module) -> nnx.Module:
    """The module with scales, biases and statistics that are neither 0 nor 1."""
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, BatchNorm):
            for i, variable in enumerate((layer.scale, layer.bias, layer.mean, layer.var)):
                noise = random_array(*variable.shape, seed=len(path) + i)
                variable[...] = jnp.asarray(1 + 0.1 * np.abs(noise) if i in (0, 3) else 0.1 * noise)
    return module


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        (1, {}),
        (1, {"use_bias": True}),
        (1, {"stride": 2}),
        (3, {}),
        (3, {"stride": 2, "use_bias": True}),
        (3, {"dilation": 2}),
        (7, {"stride": 2}),
    ],
)
def test_conv_is_torchs(torch, kernel_size, options):
    layer = Conv(4, 8, kernel_size, **options, dtype=FLOAT32, rngs=nnx.Rngs(0))
    if layer.bias is not None:
        layer.bias[...] = jnp.arange(8.0)
    x = random_array(2, 10, 7, 4)
    ours = layer(jnp.asarray(x))
    assert_close(ours, nhwc(torch_conv(torch, layer)(nchw(torch, x))))


def test_batch_norm_follows_torchs_through_training(torch):
    """Batch statistics in the output; the running ones take 0.1 of the mean and of the unbiased variance."""
    layer = fill(BatchNorm(5, dtype=FLOAT32))
    theirs = torch_norm(torch, layer)
    layer.train()
    for step in range(4):
        x = (step + 1) * random_array(3, 2, 2, 5, seed=step) + step  # 12 values: 9 % between the two variances
        assert_close(run(layer, x), nhwc(theirs(nchw(torch, x))))
        assert_close(layer.mean[...], theirs.running_mean.numpy())
        assert_close(layer.var[...], theirs.running_var.numpy())
    layer.eval()
    statistics = np.asarray(layer.mean[...]), np.asarray(layer.var[...])
    assert_close(run(layer, x), nhwc(theirs.eval()(nchw(torch, x))))
    np.testing.assert_array_equal((layer.mean[...], layer.var[...]), statistics)


def test_batch_norms_gradients_are_torchs(torch):
    layer = fill(BatchNorm(3, dtype=FLOAT32))
    theirs = torch_norm(torch, layer)
    layer.train()
    x, weights = random_array(2, 3, 4, 3), random_array(2, 3, 4, 3, seed=1)
    pixels = nchw(torch, x).requires_grad_()
    (theirs(pixels) * nchw(torch, weights)).sum().backward()
    to_input = nnx.grad(lambda layer, x: (layer(x) * weights).sum(), argnums=(0, 1))
    of_layer, of_input = to_input(layer, jnp.asarray(x))
    assert_close(of_input, nhwc(pixels.grad))
    assert_close(of_layer["scale"][...], theirs.weight.grad.numpy())
    assert_close(of_layer["bias"][...], theirs.bias.grad.numpy())


def test_batch_norm_is_exact_far_from_zero():
    """A variance as the mean of squares less the square of the mean would lose all digits."""
    layer = BatchNorm(1, dtype=FLOAT32)
    layer.train()
    x = 1000 + random_array(64, 1)
    expected = (x - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    assert_close(layer(jnp.asarray(x)), expected, 1e-3)


def test_batch_norm_of_one_value_stays_finite():
    layer = BatchNorm(2, dtype=FLOAT32)
    layer.train()
    np.testing.assert_array_equal(layer(jnp.ones((1, 1, 1, 2))), np.zeros((1, 1, 1, 2)))
    assert_close(layer.var[...], [0.9, 0.9], 1e-6)


def test_batch_norm_takes_statistics_in_float32():
    layer = BatchNorm(1, dtype=jnp.dtype("bfloat16"))
    layer.train()
    x = jnp.asarray(100 + random_array(256, 1), jnp.bfloat16)
    assert layer(x).dtype == jnp.bfloat16
    assert layer.mean[...].dtype == jnp.float32
    assert_close(layer.mean[...], [0.1 * np.asarray(x, np.float64).mean()], 1e-6)


@pytest.mark.parametrize("has_relu", [True, False])
def test_conv_norm_is_torchs(torch, has_relu):
    layer = fill(ConvNorm(3, 6, 3, stride=2, has_relu=has_relu, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    theirs = torch_conv_norm(torch, layer)
    x = random_array(2, 8, 6, 3)
    assert_close(run(layer, x), nhwc(theirs.eval()(nchw(torch, x))))
    assert (np.asarray(run(layer, x)).min() >= 0) == has_relu


@pytest.mark.parametrize(
    ("d_in", "stride", "options", "is_training"),
    [
        (16, 1, {}, False),
        (8, 1, {}, False),
        (8, 2, {}, True),
        (8, 1, {"dilation": 2}, False),
        (8, 1, {"is_pooled": True}, False),
        (8, 2, {"is_pooled": True}, True),
    ],
)
def test_bottleneck_is_torchs(torch, d_in, stride, options, is_training):
    """Torchvision's block strides in its 3x3; CLIP's averages behind it, and before the shortcut's convolution."""
    block = fill(Bottleneck(d_in, 4, stride=stride, **options, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    if is_training:
        block.train()
    convs = [torch_conv_norm(torch, conv).train(is_training) for conv in (block.conv1, block.conv2, block.conv3)]
    pool = torch.nn.AvgPool2d(stride if options.get("is_pooled") else 1)
    x = random_array(2, 6, 8, d_in)
    pixels = nchw(torch, x)
    shortcut = pixels
    assert (block.shortcut is None) == (d_in == 16)
    if block.shortcut is not None:
        shortcut = torch_conv_norm(torch, block.shortcut).train(is_training)(pool(pixels))
    expected = torch.relu(convs[2](pool(convs[1](convs[0](pixels)))) + shortcut)
    assert_close(run(block, x), nhwc(expected))


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [(32, (4, 8, 16, 32), (1, 1, 1, 1)), (16, (4, 8, 16, 16), (1, 1, 1, 2)), (8, (4, 8, 8, 8), (1, 1, 2, 4))],
)
def test_an_output_stride_dilates_whole_stages(output_stride, strides, dilations):
    model = nnx.eval_shape(lambda: ResNet(SMALL, output_stride=output_stride, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    shapes = [x.shape for x in nnx.eval_shape(run, model, jax.ShapeDtypeStruct((2, 64, 96, 3), FLOAT32))]
    expected = [(2, 32, 48, 4)]
    expected += [(2, 64 // s, 96 // s, d) for s, d in zip(strides, SMALL.channels, strict=True)]
    assert shapes == expected
    for blocks, dilation in zip(model.stages, dilations, strict=True):
        assert [block.conv2.conv.kernel_dilation for block in blocks] == [dilation] * len(blocks)


def test_resnet_50_has_its_published_size():
    model = nnx.eval_shape(lambda: ResNet(ResNetConfig(), dtype=FLOAT32, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 25_557_032 - (2048 + 1) * 1000


def test_max_pooling_is_padded_with_nothing_not_zeros():
    """A stem whose output is negative at the edge keeps it: zeros would win."""
    model = ResNet(ResNetConfig(layers=(1, 0, 0, 0), width=4), dtype=FLOAT32, rngs=nnx.Rngs(0))
    model.stem.has_relu = False
    model.stem.conv.kernel[...] = jnp.zeros_like(model.stem.conv.kernel[...])
    model.stem.norm.bias[...] = jnp.full(4, -1.0)
    seen = []
    model.stages[0][0].conv1 = lambda x: seen.append(x) or jnp.zeros((*x.shape[:-1], 4))
    model(jnp.zeros((1, 32, 32, 3)))
    np.testing.assert_array_equal(seen[0], np.full((1, 8, 8, 4), -1.0))


def test_clips_stem_and_pools_give_strides_4_to_32():
    model = nnx.eval_shape(lambda: CLIPResNet(SMALL, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    features = nnx.eval_shape(run, model, jax.ShapeDtypeStruct((1, 64, 96, 3), FLOAT32))
    assert [x.shape for x in features] == [(1, 16, 24, 16), (1, 8, 12, 32), (1, 4, 6, 64), (1, 2, 3, 128)]


def test_average_pool_drops_a_rest():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(average_pool(x)[0, :, :, 0], [[3.0, 5.0]])
