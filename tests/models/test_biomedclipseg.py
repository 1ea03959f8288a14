"""BiomedCLIPSeg against outputs of the paper's code, and its own promises."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from seeded_weights import seeded_pixels, seeded_state_dict

from medvlsm_jax.models import PRESETS, create_model, network_of
from medvlsm_jax.models.parameters import merge_model, split_model, undotted
from medvlsm_jax.weights import from_torch, to_torch

pytestmark = pytest.mark.usefixtures("exact_matmul")
TOLERANCE = 1e-5  # of the largest absolute value
FIXTURES = Path(__file__).parents[1] / "data" / "parity"
# What the arrays of the tiny checkpoint do not tell.
OVERRIDES = {
    "biomedclipseg": {},
    "biomedclipseg_tiny": {"text": {"heads": 4}, "vision": {"heads": 4}, "extract_layers": (2, 3, 4), "image_size": 64},
}

run = nnx.jit(lambda model, *args, **kwargs: model(*args, **kwargs))


@nnx.jit
def run_all(model, pixel_values, input_ids, attention_mask):
    """Logits, text embedding and image embedding."""
    text, image = model.encode_text(input_ids, attention_mask), model.vision.embedding(pixel_values)
    return model(pixel_values, input_ids, attention_mask), text, image


def golden(name: str) -> dict:
    """Inputs and outputs of the original: channels last, tokens as int32."""
    arrays = dict(np.load(FIXTURES / name / "golden.npz"))
    pixels = seeded_pixels(json.loads((FIXTURES / name / "meta.json").read_text())["image_size"])
    arrays |= {key: arrays[key].astype(np.int32) for key in ("input_ids", "attention_mask")}
    arrays |= {key: arrays[key].transpose(0, 2, 3, 1) for key in arrays if key.startswith("logits")}
    return arrays | {"pixel_values": pixels.transpose(0, 2, 3, 1)}


def inputs(arrays: dict) -> tuple:
    return arrays["pixel_values"], arrays["input_ids"], arrays["attention_mask"]


def relative_error(ours, theirs) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.fixture(scope="module", params=OVERRIDES)
def original(request):
    """A stand-in checkpoint, the model that is made of it, and what the original made of it."""
    state_dict = seeded_state_dict(FIXTURES / request.param)
    return state_dict, from_torch("biomedclipseg", state_dict, **OVERRIDES[request.param]), golden(request.param)


@pytest.fixture(scope="module")
def tiny():
    """The tiny stand-in with config fields replaced."""
    state_dict = seeded_state_dict(FIXTURES / "biomedclipseg_tiny")

    def build(**replaced):
        return from_torch("biomedclipseg", state_dict, **OVERRIDES["biomedclipseg_tiny"] | replaced)

    return build


@pytest.fixture(scope="module")
def tiny_golden():
    return golden("biomedclipseg_tiny")


def test_masks_and_both_embeddings_are_the_originals(original):
    _, model, arrays = original
    logits, text_embedding, image_embedding = run_all(model, *inputs(arrays))
    assert relative_error(text_embedding, arrays["conditional_embeddings"]) < TOLERANCE
    assert relative_error(image_embedding, arrays["pooled_image"]) < TOLERANCE
    if "logits" in arrays:
        assert relative_error(logits, arrays["logits"]) < TOLERANCE
    else:
        assert relative_error(logits[:, ::3, ::3], arrays["logits_stride3"]) < TOLERANCE


def test_the_checkpoint_comes_back_bit_for_bit(original):
    expected, model, _ = original
    state_dict = to_torch(model)
    assert set(state_dict) == set(expected)
    for name, array in expected.items():
        assert (state_dict[name].dtype, state_dict[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(state_dict[name].view(np.int32), array.view(np.int32), err_msg=name)


@pytest.mark.parametrize("name", ["biomedclipseg", "biomedclipseg_d"])
def test_the_presets_are_the_papers(name):
    network, config = PRESETS[name]
    meta = json.loads((FIXTURES / "biomedclipseg" / "meta.json").read_text())
    assert network == network_of(config) == "biomedclipseg"
    assert list(config.extract_layers) == meta["extract_blocks_actually_used"]
    assert (config.image_size, config.text.context_length, config.threshold) == (meta["image_size"], 256, 0.5)
    assert config.pixel_mean == (0.48145466, 0.4578275, 0.40821073)


def test_tapping_another_block_shows(tiny, tiny_golden):
    """The original's configured layers, had it counted them as CLIPSeg does, would give other masks."""
    logits = run(tiny(extract_layers=(1, 2, 3)), *inputs(tiny_golden))
    assert relative_error(logits, tiny_golden["logits"]) > 0.01


def test_padding_does_not_change_the_mask(tiny, tiny_golden):
    pixels, ids, mask = inputs(tiny_golden)
    model, length = tiny(), int(mask.sum(axis=1).max())
    assert length < mask.shape[1]
    logits = np.asarray(run(model, pixels, ids, mask))
    assert relative_error(run(model, pixels, np.where(mask == 1, ids, 7), mask), logits) < TOLERANCE
    assert relative_error(run(model, pixels, ids[:, :length]), logits) < TOLERANCE


def test_the_sentence_changes_the_mask_and_zero_prompt_ignores_it(tiny, tiny_golden):
    pixels, ids, mask = inputs(tiny_golden)
    model, blind = tiny(), tiny(zero_prompt=True)
    assert relative_error(run(model, pixels, ids[::-1], mask[::-1]), np.asarray(run(model, pixels, ids, mask))) > 0.01
    logits = run(blind, pixels, ids, mask)
    np.testing.assert_array_equal(run(blind, pixels, ids[::-1], mask[::-1]), logits)
    zeros = jnp.zeros((2, model.config.projection_dim))
    np.testing.assert_allclose(run(model, pixels, text_embedding=zeros), logits, atol=1e-5)


def test_a_sentence_is_needed(tiny, tiny_golden):
    with pytest.raises(ValueError, match="BiomedCLIPSeg needs input_ids"):
        tiny()(tiny_golden["pixel_values"])


def test_dropout_acts_in_training(tiny, tiny_golden):
    """In the text tower; that it needs random numbers and training mode, see test_bert.py."""
    model = tiny()
    model.train()
    one, other = (np.asarray(run(model, *inputs(tiny_golden), rngs=nnx.Rngs(seed))) for seed in (0, 1))
    assert relative_error(one, tiny_golden["logits"]) > 1e-3
    assert relative_error(other, one) > 1e-3


def test_parameters_called_unused_do_not_change_the_logits(tiny, tiny_golden):
    model = tiny(extract_layers=(0, 1, 2))
    graphdef, params, _ = split_model(model)
    unused = {name for name in params if model.unused(undotted(name))}
    assert {"logit_scale", "text.pooler.kernel", "vision.projection.kernel", "vision.blocks.3.mlp_norm.scale"} <= unused
    changed = {name: array + 1 if name in unused else array for name, array in params.items()}
    logits = run(merge_model(graphdef, changed), *inputs(tiny_golden))
    np.testing.assert_array_equal(logits, run(model, *inputs(tiny_golden)))


@pytest.mark.parametrize("name", ["biomedclipseg_tiny", "biomedclipseg_d_tiny"])
def test_the_tiny_preset_gives_a_logit_a_pixel_and_reads_the_builtin_tokenizer(name):
    size, text = PRESETS[name][1].image_size, PRESETS[name][1].text
    ids = jnp.zeros((2, text.context_length), jnp.int32)
    logits = jax.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0))(jnp.zeros((2, size, size, 3)), ids))
    assert logits.shape == (2, size, size, 1)
    assert (PRESETS[name][1].tokenizer, text.vocab_size, text.pad_token_id) == ("builtin", 1024, 0)
