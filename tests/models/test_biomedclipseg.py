"""What BiomedCLIPSeg promises; for outputs of the paper's code see tests/parity/test_biomedclipseg.py."""

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
from closeness import assert_close, relative_error
from flax import nnx

from medvlsm_jax.models import PRESETS, abstract_model, network_of
from medvlsm_jax.models.parameters import merge_model, split_model, undotted

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOLERANCE = 1e-5  # of the largest absolute value

run = nnx.jit(lambda model, *args, **kwargs: model(*args, **kwargs))


@pytest.fixture(scope="module")
def tiny():
    """The tiny stand-in with config fields replaced: `tiny(zero_prompt=True)`."""
    return originals.small("biomedclipseg_tiny")


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, tokens and their mask."""
    return originals.inputs(originals.recorded("biomedclipseg_tiny"))


@pytest.fixture(scope="module")
def logits(tiny, inputs) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(tiny(), *inputs))


@pytest.mark.parametrize("name", ["biomedclipseg", "biomedclipseg_d"])
def test_the_presets_are_the_papers(name):
    network, config = PRESETS[name]
    meta = originals.meta("biomedclipseg")
    assert network == network_of(config) == "biomedclipseg"
    assert list(config.extract_layers) == meta["extract_blocks_actually_used"]
    assert (config.image_size, config.text.context_length, config.threshold) == (meta["image_size"], 256, 0.5)
    assert config.pixel_mean == (0.48145466, 0.4578275, 0.40821073)


def test_tapping_another_block_shows(tiny, inputs, logits):
    """The original's configured layers, had it counted them as CLIPSeg does, would give other masks."""
    assert relative_error(run(tiny(extract_layers=(1, 2, 3)), *inputs), logits) > 0.01


def test_padding_does_not_change_the_mask(tiny, inputs, logits):
    pixels, ids, mask = inputs
    length = int(mask.sum(axis=1).max())
    assert length < mask.shape[1]
    assert_close(run(tiny(), pixels, np.where(mask == 1, ids, 7), mask), logits, TOLERANCE)
    assert_close(run(tiny(), pixels, ids[:, :length]), logits, TOLERANCE)


def test_the_sentence_changes_the_mask_and_zero_prompt_ignores_it(tiny, inputs, logits):
    pixels, ids, mask = inputs
    blind = tiny(zero_prompt=True)
    assert relative_error(run(tiny(), pixels, ids[::-1], mask[::-1]), logits) > 0.01
    found = run(blind, pixels, ids, mask)
    np.testing.assert_array_equal(run(blind, pixels, ids[::-1], mask[::-1]), found)
    zeros = jnp.zeros((2, blind.config.projection_dim))
    assert_close(run(tiny(), pixels, text_embedding=zeros), found, TOLERANCE)


def test_a_sentence_is_needed(tiny, inputs):
    with pytest.raises(ValueError, match="BiomedCLIPSeg needs input_ids"):
        tiny()(inputs[0])


def test_dropout_acts_in_training(tiny, inputs, logits):
    """In the text tower; that it needs random numbers and training mode, see test_bert.py."""
    model = nnx.clone(tiny())
    model.train()
    one, other = (np.asarray(run(model, *inputs, rngs=nnx.Rngs(seed))) for seed in (0, 1))
    assert relative_error(one, logits) > 1e-3
    assert relative_error(other, one) > 1e-3


def test_parameters_called_unused_do_not_change_the_logits(tiny, inputs):
    """In the network of the test above that taps lower: its last blocks are not read."""
    model = tiny(extract_layers=(1, 2, 3))
    graphdef, params, _ = split_model(model)
    unused = {name for name in params if model.unused(undotted(name))}
    assert {"logit_scale", "text.pooler.kernel", "vision.projection.kernel", "vision.blocks.4.mlp_norm.scale"} <= unused
    changed = {name: array + 1 if name in unused else array for name, array in params.items()}
    np.testing.assert_array_equal(run(merge_model(graphdef, changed), *inputs), run(model, *inputs))


@pytest.mark.parametrize("name", ["biomedclipseg_tiny", "biomedclipseg_d_tiny"])
def test_the_tiny_preset_gives_a_logit_a_pixel_and_reads_the_builtin_tokenizer(name):
    size, text = PRESETS[name][1].image_size, PRESETS[name][1].text
    ids = jnp.zeros((2, text.context_length), jnp.int32)
    model = abstract_model(PRESETS[name][1])
    logits = nnx.eval_shape(lambda model: model(jnp.zeros((2, size, size, 3)), ids), model)
    assert logits.shape == (2, size, size, 1)
    assert (PRESETS[name][1].tokenizer, text.vocab_size, text.pad_token_id) == ("builtin", 1024, 0)
