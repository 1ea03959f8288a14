"""U-Net, U-Net++ and DeepLabV3+ in their full sizes against outputs of segmentation_models_pytorch's.

A live comparison, where segmentation_models_pytorch is installed, is in tests/weights/test_cnn_weights.py.
"""

import numpy as np
import originals
import pytest
from closeness import assert_identical, relative_error
from flax import nnx

from medvlsm_jax.weights import to_torch
from medvlsm_jax.weights.reference import find_reference

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOLERANCE = 1e-5  # of the largest absolute value


@pytest.fixture(scope="module", params=["unet", "unetplusplus", "deeplabv3plus"])
def original(request) -> originals.Original:
    return originals.load(request.param)


def test_logits_are_the_originals(original):
    logits = nnx.jit(lambda model, pixels: model(pixels))(original.model, *originals.inputs(original.arrays))
    assert original.error("logits", logits) < TOLERANCE


def test_the_checkpoint_comes_back_bit_for_bit(original):
    assert_identical(to_torch(original.model), original.state_dict)


def test_every_layer_is_the_installed_originals_on_an_image_of_another_size(original):
    pytest.importorskip("segmentation_models_pytorch", reason="compares with segmentation-models-pytorch")
    pixels = np.random.default_rng(3).standard_normal((1, 96, 160, 3)).astype(np.float32)
    reference = find_reference(original.model)
    theirs = reference.their_outputs(reference.build(original.model), pixels)
    ours = reference.our_outputs(original.model, pixels)
    assert set(ours) == set(theirs)
    assert len(ours) > 8
    differences = {name: relative_error(ours[name], theirs[name]) for name in theirs}
    assert max(differences.values()) < TOLERANCE, differences
