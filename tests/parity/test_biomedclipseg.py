"""BiomedCLIPSeg against outputs of the paper's code, in its full size and in a tiny one."""

import originals
import pytest
from closeness import assert_identical, relative_error
from flax import nnx

from medvlsm_jax.weights import to_torch

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOLERANCE = 1e-5  # of the largest absolute value


@pytest.fixture(scope="module", params=["biomedclipseg_tiny", "biomedclipseg"])
def original(request) -> originals.Original:
    return originals.load(request.param)


def test_masks_and_both_embeddings_are_the_originals(original):
    @nnx.jit
    def outputs(model, pixel_values, input_ids, attention_mask):
        text, image = model.encode_text(input_ids, attention_mask), model.vision.embedding(pixel_values)
        return model(pixel_values, text_embedding=text), text, image

    logits, text, image = outputs(original.model, *originals.inputs(original.arrays))
    assert relative_error(text, original.arrays["conditional_embeddings"]) < TOLERANCE
    assert relative_error(image, original.arrays["pooled_image"]) < TOLERANCE
    assert original.error("logits", logits) < TOLERANCE


def test_the_checkpoint_comes_back_bit_for_bit(original):
    assert_identical(to_torch(original.model), original.state_dict)
