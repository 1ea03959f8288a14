"""BiomedCLIP's and BiomedCLIPSeg's checkpoints, and the network layer by layer against transformers' parts."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_identical
from flax import nnx
from seeded_weights import seeded_state_dict, seeded_tensor

from medvlsm_jax.errors import UserError
from medvlsm_jax.models import PRESETS
from medvlsm_jax.weights import from_torch, to_torch
from medvlsm_jax.weights.convert import is_encoder_alone, with_decoder
from medvlsm_jax.weights.tables.biomedclipseg import biomedclipseg_sizes

HEADS = {"text": {"heads": 4}, "vision": {"heads": 4}, "extract_layers": (2, 3, 4), "image_size": 64}
SIZE_96 = HEADS | {"image_size": 96}
TOLERANCE = 5e-5  # of a layer's largest absolute value


@pytest.fixture(scope="module")
def seeded(request):
    """The tiny stand-in checkpoint; nobody changes it."""
    return seeded_state_dict(request.config.rootpath / "tests" / "data" / "parity" / "biomedclipseg_tiny", seed=7)


def encoders(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in state_dict.items() if not name.startswith("decoder.")}


def own_names(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As BiomedCLIP's own file has them."""
    return {name.removeprefix("biomedclip."): array for name, array in encoders(state_dict).items()}


@pytest.mark.parametrize("wrapper", ["", "module.", "net.", "module.net."])
def test_what_goes_in_comes_out_bit_for_bit(seeded, wrapper):
    wrapped = {wrapper + name: array for name, array in seeded.items()}
    assert_identical(to_torch(from_torch("biomedclipseg", wrapped, **HEADS)), seeded)


def test_position_ids_are_no_parameters(seeded):
    buffers = {"text.transformer.embeddings.position_ids": np.arange(64)[None]}
    decoder = {name: array for name, array in seeded.items() if name.startswith("decoder.")}
    assert_identical(to_torch(from_torch("biomedclipseg", own_names(seeded) | decoder | buffers, **HEADS)), seeded)


def test_half_precision_is_widened(seeded):
    halves = {name: array.astype(np.float16) for name, array in seeded.items()}
    widened = {name: array.astype(np.float32) for name, array in halves.items()}
    assert_identical(to_torch(from_torch("biomedclipseg", halves, **HEADS)), widened)


def test_a_checkpoint_without_pooler_is_complete(seeded):
    kept = {name: array for name, array in seeded.items() if ".pooler." not in name}
    model = from_torch("biomedclipseg", kept, **HEADS)
    assert len(kept) == len(seeded) - 2
    assert not model.config.text.has_pooler
    assert_identical(to_torch(model), kept)


def test_biomedclips_own_file_gives_a_random_decoder(seeded):
    """Random means the seed's: another seed gives other values, and the encoders are the file's in any case."""
    own = own_names(seeded)
    assert is_encoder_alone("biomedclipseg", own)
    assert not is_encoder_alone("biomedclipseg", seeded)
    sizes = HEADS | {"reduce_dim": 32, "decoder_mlp_width": 64}
    zero, one = (to_torch(from_torch("biomedclipseg", own, seed=seed, **sizes)) for seed in (0, 1))
    assert {name: array.shape for name, array in zero.items()} == {name: array.shape for name, array in seeded.items()}
    assert_identical(encoders(one), encoders(seeded))
    drawn = [name for name in zero if name.startswith("decoder.") and name.endswith(("_proj.weight", ".0.weight"))]
    assert len(drawn) > 9
    for name in drawn:
        assert np.std(zero[name]) > 1e-3
        assert np.abs(zero[name] - one[name]).max() > 1e-3


def test_with_clipsegs_decoder_it_is_biomedclipseg_d(seeded, parity):
    clipseg = seeded_state_dict(parity / "clipseg_tiny")
    wrapped = {f"clipseg.{name}": array for name, array in clipseg.items()}
    expected = encoders(seeded) | {name: x for name, x in clipseg.items() if name.startswith("decoder.")}
    for source in (own_names(seeded), seeded):  # a decoder that is there already is replaced
        model = from_torch("biomedclipseg_d", with_decoder(source, wrapped), **HEADS)
        assert_identical(to_torch(model), expected)


def test_a_decoder_is_not_taken_from_a_file_that_has_none(seeded):
    with pytest.raises(UserError, match=r"holds no decoder\.\*: give CLIPSeg's"):
        with_decoder(seeded, own_names(seeded))


def test_the_published_names_give_the_presets_sizes(parity):
    spec = json.loads((parity / "biomedclipseg" / "spec.json").read_text())
    config = PRESETS["biomedclipseg"][1]
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, (shape, _) in spec.items()}
    for name, value in biomedclipseg_sizes(arrays, config).items():
        if isinstance(value, dict):
            assert value.items() <= vars(getattr(config, name)).items()
        else:
            assert value == getattr(config, name)


def test_sizes_are_read_from_the_arrays(seeded, parity):
    meta = json.loads((parity / "biomedclipseg_tiny" / "meta.json").read_text())
    config = from_torch("biomedclipseg", seeded, **HEADS).config
    text, vision = config.text, config.vision
    theirs = [meta["bert"][name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")]
    assert [text.vocab_size, text.width, text.depth, text.mlp_width] == theirs
    assert (text.max_positions, text.context_length, text.projection_width) == (64, 64, 40)
    theirs = [meta["vit"]["kw"][name] for name in ("patch_size", "embed_dim", "depth")]
    assert [vision.patch_size, vision.width, vision.depth] == theirs
    assert (vision.grid, vision.mlp_width) == (4, 128)
    assert (config.projection_dim, config.reduce_dim, config.decoder_mlp_width) == (32, 32, 64)


def test_one_error_lists_every_name_that_differs(seeded):
    state_dict = dict(seeded)
    del state_dict["biomedclip.logit_scale"], state_dict["decoder.film_add.bias"]
    del state_dict["biomedclip.visual.trunk.blocks.1.attn.qkv.bias"]
    state_dict["visual.trunk.fc.weight"] = np.zeros((2, 3), np.float32)
    qkv = "biomedclip.visual.trunk.blocks.0.attn.qkv.weight"
    state_dict[qkv] = state_dict[qkv][:64]
    with pytest.raises(UserError, match="not a checkpoint of biomedclipseg, 5 names differ") as error:
        from_torch("biomedclipseg", state_dict, **HEADS)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert sorted(lines) == [
        "misshaped biomedclip.visual.trunk.blocks.0.attn.qkv.weight: (64, 64) where (192, 64) is expected",
        "missing biomedclip.logit_scale ()",
        "missing biomedclip.visual.trunk.blocks.1.attn.qkv.bias (192,)",
        "missing decoder.film_add.bias (32,)",
        "unexpected biomedclip.visual.trunk.fc.weight (2, 3)",
    ]


def test_another_networks_checkpoint_is_refused(parity):
    with pytest.raises(UserError, match=r"^not a checkpoint of biomedclipseg, .* It looks like a clipseg's$"):
        from_torch("biomedclipseg_tiny", seeded_state_dict(parity / "clipseg_tiny"))


def compare(model) -> dict[str, float]:
    pytest.importorskip("torch", reason="compares with PyTorch")
    from check_parity import compare

    return compare(model, seed=3)


def test_every_layer_is_that_of_transformers_parts(exact_matmul, seeded):
    """On images of 96, for which the positions, pretrained on 64, are interpolated."""
    differences = compare(from_torch("biomedclipseg", seeded, **SIZE_96))
    layers = {"text": 2, "vision": 5, "decoder": 3}
    assert set(differences) == {
        "text_embedding",
        "logits",
        *(f"{tower}.{i}" for tower, depth in layers.items() for i in range(depth)),
    }
    assert max(differences.values()) < TOLERANCE, differences


def test_options_mean_what_they_mean_to_transformers(exact_matmul, seeded):
    """Simple upsampling, no pooler, and other taps, heads and conditional layer at once."""
    state_dict = {name: x for name, x in seeded.items() if "transposed_conv" not in name and "pooler" not in name}
    for name, shape in {"weight": (32, 1, 16, 16), "bias": (1,)}.items():
        name = f"decoder.transposed_convolution.{name}"
        state_dict[name] = seeded_tensor(name, shape, "float32")
    changes = {"extract_layers": (0, 1, 3), "conditional_layer": 1, "decoder_heads": 2, "vision": {"heads": 2}}
    differences = compare(from_torch("biomedclipseg", state_dict, **SIZE_96 | changes))
    assert max(differences.values()) < TOLERANCE, differences


def test_a_patch_of_8_is_upsampled_to_the_images_size(exact_matmul, seeded):
    shapes = {
        "biomedclip.visual.trunk.patch_embed.proj.weight": (64, 3, 8, 8),
        "decoder.transposed_convolution.2.weight": (32, 16, 2, 2),
        "decoder.transposed_convolution.4.weight": (16, 1, 4, 4),
    }
    smaller = {name: seeded_tensor(name, shape, "float32") for name, shape in shapes.items()}
    differences = compare(from_torch("biomedclipseg", seeded | smaller, **SIZE_96 | {"image_size": 48}))
    assert max(differences.values()) < TOLERANCE, differences


def test_a_wrong_weight_shows_from_its_layer_on(exact_matmul, seeded, monkeypatch):
    """The comparison can fail: ours is changed after the reference took its weights."""
    pytest.importorskip("torch", reason="compares with PyTorch")
    from medvlsm_jax.weights.reference import biomedclipseg

    build = biomedclipseg.build

    def build_then_change(ours):
        reference = build(ours)
        kernel = ours.text.blocks[1].mlp.expand.kernel
        kernel[...] = kernel[...] + 0.01 * jnp.sign(kernel[...])
        return reference

    monkeypatch.setattr(biomedclipseg, "build", build_then_change)
    differences = compare(from_torch("biomedclipseg", seeded, **SIZE_96))
    wrong = {name for name, value in differences.items() if value > TOLERANCE}
    assert wrong == {"text.1", "text_embedding", "logits", "decoder.0", "decoder.1", "decoder.2"}


def test_gradients_reach_every_part_and_are_pytorchs(exact_matmul, seeded):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    from check_parity import random_tokens

    from medvlsm_jax.weights.reference import biomedclipseg

    model = from_torch("biomedclipseg", seeded, **HEADS)
    rng = np.random.default_rng(0)
    inputs = (rng.standard_normal((2, 64, 64, 3)).astype(np.float32), *random_tokens(rng, model.config.text))
    grads = nnx.jit(nnx.grad(lambda model: jnp.square(model(*inputs)).mean()))(model)
    ours = biomedclipseg.huggingface_names(to_torch(nnx.merge(nnx.graphdef(model), grads)))

    reference = biomedclipseg.build(model)
    biomedclipseg.logits(reference, *biomedclipseg.tensors(*inputs)).square().mean().backward()
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    unread = {name for name, grad in theirs.items() if grad is None}
    assert {name.rsplit(".", 1)[0] for name in unread} == {"vision.layernorm", "text.pooler.dense"}
    for name in set(theirs) - unread:
        if not name.endswith(("k_proj.bias", "key.bias")):  # without influence: rounding errors
            assert torch.linalg.norm(theirs[name]) > 0
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4 * float(theirs[name].abs().max()))
