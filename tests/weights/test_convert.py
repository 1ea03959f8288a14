"""PyTorch's state dicts to models and back, and what is said when they do not fit."""

import json

import numpy as np
import pytest
from closeness import assert_identical
from originals import FOLDER
from seeded_weights import seeded_state_dict, seeded_tensor

from medvlsm_jax.errors import UserError
from medvlsm_jax.weights import from_torch, to_torch

HEADS = {"text": {"heads": 4}, "vision": {"heads": 4}, "extract_layers": (1, 2, 3)}


@pytest.fixture(scope="module")
def seeded() -> dict[str, np.ndarray]:
    return seeded_state_dict(FOLDER / "clipseg_tiny")


@pytest.fixture
def state_dict(seeded) -> dict[str, np.ndarray]:
    """The tiny stand-in checkpoint, of which tests may replace arrays."""
    return dict(seeded)


@pytest.mark.parametrize("seed", [0, 7])
def test_what_goes_in_comes_out_bit_for_bit(parity, seed):
    """For the full size see tests/parity/test_clipseg.py."""
    state_dict = seeded_state_dict(parity / "clipseg_tiny", seed)
    assert_identical(to_torch(from_torch("clipseg", state_dict, **HEADS)), state_dict)


def test_simple_upsampling_is_read_from_the_names(state_dict):
    kept = {name: array for name, array in state_dict.items() if "transposed_convolution" not in name}
    for name, shape in {"weight": (32, 1, 16, 16), "bias": (1,)}.items():
        name = f"decoder.transposed_convolution.{name}"
        kept[name] = seeded_tensor(name, shape, "float32")
    model = from_torch("clipseg", kept, **HEADS)
    assert not model.config.complex_upsampling
    assert_identical(to_torch(model), kept)


@pytest.mark.parametrize("wrapper", ["module.", "net.", "clipseg.", "net.clipseg.", "module.net.clipseg."])
def test_wrappers_around_all_names_are_understood(state_dict, wrapper):
    wrapped = {wrapper + name: array for name, array in state_dict.items()}
    assert_identical(to_torch(from_torch("clipseg", wrapped, **HEADS)), state_dict)


def test_position_ids_are_no_parameters(state_dict):
    buffers = {
        f"clip.{tower}_model.embeddings.position_ids": np.arange(n)[None] for tower, n in (("text", 77), ("vision", 17))
    }
    assert_identical(to_torch(from_torch("clipseg", state_dict | buffers, **HEADS)), state_dict)


def test_half_precision_is_widened(state_dict):
    halves = {name: array.astype(np.float16) for name, array in state_dict.items()}
    widened = {name: array.astype(np.float32) for name, array in halves.items()}
    assert_identical(to_torch(from_torch("clipseg", halves, **HEADS)), widened)


def test_sizes_are_read_from_the_arrays(parity, state_dict):
    expected = json.loads((parity / "clipseg_tiny" / "meta.json").read_text())["config"]
    config = from_torch("clipseg", state_dict, **HEADS).config
    for ours, theirs in ((config.text, expected["text_config"]), (config.vision, expected["vision_config"])):
        read = (ours.width, ours.depth, ours.mlp_width)
        assert read == tuple(theirs[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    assert (config.text.vocab_size, config.text.context_length) == (1000, 77)
    assert (config.vision.patch_size, config.vision.grid) == (16, 4)
    assert (config.projection_dim, config.reduce_dim, config.decoder_mlp_width) == (32, 32, 64)


def test_one_error_lists_every_name_that_differs(state_dict):
    del state_dict["clip.logit_scale"], state_dict["decoder.film_add.bias"]
    state_dict |= {"decoder.extra.weight": np.zeros((2, 3), np.float32), "epoch": np.zeros((), np.float32)}
    state_dict["decoder.film_mul.bias"] = np.zeros(31, np.float32)
    with pytest.raises(UserError, match="not a checkpoint of clipseg, 5 names differ") as error:
        from_torch("clipseg", state_dict, **HEADS)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert sorted(lines) == [
        "misshaped decoder.film_mul.bias: (31,) where (32,) is expected",
        "missing clip.logit_scale ()",
        "missing decoder.film_add.bias (32,)",
        "unexpected decoder.extra.weight (2, 3)",
        "unexpected epoch ()",
    ]


def test_shapes_in_errors_are_pytorchs(state_dict):
    state_dict["decoder.reduces.0.weight"] = state_dict["decoder.reduces.0.weight"].T
    with pytest.raises(UserError, match=r"decoder.reduces.0.weight: \(64, 32\) where \(32, 64\) is expected"):
        from_torch("clipseg", state_dict, **HEADS)


def test_taps_that_the_checkpoint_cannot_have_are_a_users_error(state_dict):
    with pytest.raises(UserError, match=r"extract_layers \(3, 6, 9\) reach beyond the 4 vision blocks"):
        from_torch("clipseg", state_dict)


def test_unknown_models_and_options_are_errors(state_dict):
    with pytest.raises(UserError, match="unknown model 'clip'"):
        from_torch("clip", state_dict)
    with pytest.raises(UserError, match="unknown model option hedas"):
        from_torch("clipseg", state_dict, text={"hedas": 4})


@pytest.mark.parametrize(
    ("content", "looks_like"),
    [
        ({}, ""),
        ({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, r"; unexpected 1 \(conv1.weight\)\. .* a unet's"),
    ],
)
def test_another_networks_checkpoint_is_refused_in_one_line(content, looks_like):
    with pytest.raises(UserError, match=rf"^not a checkpoint of clipseg, .* missing 190 \(\S+, .*\){looks_like}$"):
        from_torch("clipseg_tiny", content)
