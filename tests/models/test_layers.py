"""Layers against PyTorch's, and what holds of them without it."""

import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from medvlsm_jax.models.layers import (
    Attention,
    Linear,
    PatchEmbedding,
    PatchTransposedConv,
    normalize_pixels,
    quick_gelu,
    resize,
)

FLOAT32 = jnp.dtype("float32")
METHODS = ["bilinear", "bicubic"]


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch")


@pytest.mark.parametrize("size", [(7, 5), (14, 14), (22, 22), (31, 3), (5, 40), (1, 1)])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_resize_is_torchs_interpolate(torch, exact_matmul, method, align_corners, size):
    x = random_array(2, 14, 9, 3)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), size, mode=method, align_corners=align_corners
    )
    ours = resize(jnp.asarray(x), size, method, align_corners=align_corners)
    assert_close(ours, theirs.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("method", METHODS)
class TestResize:
    def test_keeps_a_constant_image(self, method, align_corners):
        resized = resize(jnp.full((1, 6, 9, 1), 0.7), (17, 4), method, align_corners=align_corners)
        assert_close(resized, np.full((1, 17, 4, 1), 0.7))

    def test_to_its_own_size_changes_nothing(self, exact_matmul, method, align_corners):
        x = random_array(1, 6, 9, 2)
        assert_close(resize(jnp.asarray(x), (6, 9), method, align_corners=align_corners), x)

    def test_turns_with_a_flipped_image(self, exact_matmul, method, align_corners):
        x = jnp.asarray(random_array(1, 6, 9, 2))
        flipped = resize(x[:, ::-1, ::-1], (11, 5), method, align_corners=align_corners)
        resized = resize(x, (11, 5), method, align_corners=align_corners)
        assert_close(flipped, resized[:, ::-1, ::-1])

    def test_keeps_the_dtype(self, method, align_corners):
        x = jnp.zeros((1, 4, 4, 1), jnp.bfloat16)
        assert resize(x, (8, 8), method, align_corners=align_corners).dtype == jnp.bfloat16


def test_bilinear_resize_doubles_as_worked_by_hand():
    x = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    assert_close(resize(x, (1, 4), "bilinear").ravel(), [0, 0.25, 0.75, 1], 1e-6)
    aligned = resize(x, (1, 4), "bilinear", align_corners=True).ravel()
    assert_close(aligned, [0, 1 / 3, 2 / 3, 1], 1e-6)


def test_patch_embedding_is_a_strided_convolution(torch, exact_matmul):
    layer = PatchEmbedding(4, 6, use_bias=True, dtype=FLOAT32, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(6.0)
    image = random_array(2, 12, 8, 3)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(image.transpose(0, 3, 1, 2)),
        torch.from_numpy(np.asarray(layer.kernel[...]).transpose(3, 2, 0, 1).copy()),
        torch.arange(6.0),
        stride=4,
    )
    assert_close(layer(jnp.asarray(image)), theirs.numpy().transpose(0, 2, 3, 1))


def test_patch_embedding_refuses_a_cut_patch():
    layer = PatchEmbedding(4, 6, use_bias=False, dtype=FLOAT32, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="image size 12x9 is not a multiple of the patch size 4"):
        layer(jnp.zeros((1, 12, 9, 3)))


@pytest.mark.parametrize("patch", [2, 4, 16])
def test_patch_transposed_conv_is_torchs(torch, exact_matmul, patch):
    layer = PatchTransposedConv(5, 3, patch, dtype=FLOAT32, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(3.0)
    x = random_array(2, 3, 4, 5)
    theirs = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2)),
        torch.from_numpy(np.asarray(layer.kernel[...]).transpose(0, 3, 1, 2).copy()),
        torch.arange(3.0),
        stride=patch,
    )
    assert_close(layer(jnp.asarray(x)), theirs.numpy().transpose(0, 2, 3, 1))


def test_attention_is_torchs(torch, exact_matmul):
    layer = Attention(8, 2, dtype=FLOAT32, rngs=nnx.Rngs(0))
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    projections = [np.asarray(each.kernel[...]).T for each in (layer.query, layer.key, layer.value)]
    weights = {"in_proj_weight": np.concatenate(projections), "out_proj.weight": np.asarray(layer.out.kernel[...]).T}
    reference.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=False)
    torch.nn.init.zeros_(reference.in_proj_bias)
    x = random_array(2, 5, 8)
    with torch.no_grad():
        theirs, _ = reference(*[torch.from_numpy(x)] * 3)
    assert_close(layer(jnp.asarray(x)), theirs)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 10 is not a multiple of the number of heads 4"):
        Attention(10, 4, dtype=FLOAT32, rngs=nnx.Rngs(0))


def test_linear_takes_any_leading_axes(exact_matmul):
    layer = Linear(4, 3, rngs=nnx.Rngs(0))
    x = jnp.asarray(random_array(2, 5, 6, 4))
    assert_close(layer(x), x @ layer.kernel[...] + layer.bias[...])


def test_quick_gelu_is_clips():
    x = random_array(64)
    assert_close(quick_gelu(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)))


def test_pixels_are_normalised_per_channel():
    image = np.array([0, 128, 255], np.uint8).reshape(1, 1, 1, 3)
    pixels = normalize_pixels(jnp.asarray(image), (0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    assert_close(pixels.ravel(), [-1, 128 / 255 - 0.25, 0.5], 1e-6)
