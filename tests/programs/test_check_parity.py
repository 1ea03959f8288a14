"""The parity tool finds agreement where there is some, and a difference where there is one."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medvlsm_jax import create_model
from medvlsm_jax.weights.reference import clipseg as reference

pytest.importorskip("torch")

check_parity = pytest.importorskip("check_parity")


@pytest.fixture(scope="module")
def model():
    vision = {"patch_size": 16, "grid": 2, "width": 64, "depth": 1, "heads": 1, "mlp_width": 64}
    text = {"width": 64, "depth": 1, "heads": 1, "mlp_width": 64, "context_length": 16}
    sizes = {"extract_layers": (0,), "conditional_layer": 0, "image_size": 48, "reduce_dim": 16}
    return create_model("clipseg_tiny", rngs=nnx.Rngs(0), vision=vision, text=text, **sizes)


def test_random_weights_agree_layer_by_layer(model, exact_matmul):
    differences = check_parity.compare(model, seed=1)
    assert set(differences) == {"text.0", "vision.0", "decoder.0", "text_embedding", "logits"}
    assert max(differences.values()) < 5e-5


def test_a_wrong_layer_shows_in_it_and_in_what_follows(model, exact_matmul, monkeypatch):
    run = reference.our_outputs

    def wrong(model, *inputs) -> dict[str, np.ndarray]:
        outputs = run(model, *inputs)
        return outputs | {"logits": outputs["logits"] + jnp.float32(1e-2)}

    monkeypatch.setattr(reference, "our_outputs", wrong)
    differences = check_parity.compare(model, seed=1)
    assert differences.pop("logits") > 5e-5
    assert max(differences.values()) < 5e-5
