"""Layer by layer against Hugging Face's implementation on the same weights."""

import jax.numpy as jnp
import numpy as np
import pytest
from originals import FOLDER
from seeded_weights import seeded_state_dict, seeded_tensor

from medvlsm_jax.errors import UserError
from medvlsm_jax.weights import from_torch
from medvlsm_jax.weights.reference import clipseg as reference
from medvlsm_jax.weights.reference.pytorch import require_torch

HEADS = {"text": {"heads": 4, "eos_token_id": 999}, "vision": {"heads": 4}, "extract_layers": (1, 2, 3)}
TOLERANCE = 5e-5  # of a layer's largest absolute value


@pytest.fixture(scope="module")
def seeded() -> dict[str, np.ndarray]:
    return seeded_state_dict(FOLDER / "clipseg_tiny", seed=7)


@pytest.fixture
def state_dict(seeded) -> dict[str, np.ndarray]:
    """A tiny checkpoint, of which tests may replace arrays."""
    return dict(seeded)


def compare(model) -> dict[str, float]:
    pytest.importorskip("torch", reason="compares with PyTorch")
    from check_parity import compare

    return compare(model, seed=3)


@pytest.mark.parametrize("image_size", [48, 80, 96])  # the pretrained grid is of 64
def test_every_layer_is_hugging_faces_at_any_image_size(exact_matmul, state_dict, image_size):
    differences = compare(from_torch("clipseg", state_dict, image_size=image_size, **HEADS))
    layers = {"text": 2, "vision": 4, "decoder": 3}
    assert set(differences) == {
        "text_embedding",
        "logits",
        *(f"{tower}.{i}" for tower, depth in layers.items() for i in range(depth)),
    }
    assert max(differences.values()) < TOLERANCE, differences


@pytest.mark.parametrize("changes", [{"conditional_layer": 2, "decoder_heads": 2}, {"extract_layers": (0, 3)}])
def test_options_mean_what_they_mean_to_hugging_face(exact_matmul, state_dict, changes):
    if "extract_layers" in changes:
        state_dict = {
            name: x for name, x in state_dict.items() if not name.startswith(("decoder.reduces.2", "decoder.layers.2"))
        }
    differences = compare(from_torch("clipseg", state_dict, image_size=48, **HEADS | changes))
    assert max(differences.values()) < TOLERANCE, differences


def test_simple_upsampling_is_hugging_faces(exact_matmul, state_dict):
    state_dict = {name: x for name, x in state_dict.items() if "transposed_convolution" not in name}
    for name, shape in {"weight": (32, 1, 16, 16), "bias": (1,)}.items():
        name = f"decoder.transposed_convolution.{name}"
        state_dict[name] = seeded_tensor(name, shape, "float32")
    differences = compare(from_torch("clipseg", state_dict, image_size=48, **HEADS))
    assert max(differences.values()) < TOLERANCE, differences


def test_a_wrong_weight_shows_from_its_layer_on(exact_matmul, state_dict, monkeypatch):
    """The comparison can fail: ours is changed after the reference took its weights."""
    pytest.importorskip("torch", reason="compares with PyTorch")
    import check_parity

    model = from_torch("clipseg", state_dict, image_size=48, **HEADS)
    build = reference.build

    def build_then_change(ours):
        theirs = build(ours)
        kernel = ours.vision.blocks[1].mlp.expand.kernel
        kernel[...] = kernel[...] + 0.01 * jnp.sign(kernel[...])
        return theirs

    monkeypatch.setattr(reference, "build", build_then_change)
    differences = check_parity.compare(model)
    assert {name for name, value in differences.items() if value < TOLERANCE} == {
        "text.0",
        "text.1",
        "text_embedding",
        "vision.0",
    }


def test_without_torch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'medvlsm-jax\[torch\]'"):
        require_torch()
