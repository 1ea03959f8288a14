"""A PyTorch checkpoint becomes a model folder with the same numbers, and its tokenizer comes along."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from convert_weights import convert, write_back
from drawn_checkpoints import zip_checkpoint
from flax import nnx
from safetensors.numpy import save_file
from seeded_weights import seeded_state_dict

import medvlsm_jax as mv
from medvlsm_jax import models
from medvlsm_jax.checkpoints.model_folder import load_pretrained, save_model
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.errors import UserError
from medvlsm_jax.models.parameters import split_model

MODEL = "seeded"
PARITY = Path(__file__).parents[1] / "data" / "parity" / "clipseg_tiny"


@pytest.fixture(autouse=True)
def preset(monkeypatch) -> None:
    """A preset that fits the stand-in checkpoint, whose tokenizer is the built-in one."""
    taps = tuple(json.loads((PARITY / "meta.json").read_text())["config"]["extract_layers"])
    sizes = {"extract_layers": taps, "conditional_layer": 0, "text": {"vocab_size": 1000}}
    config = models.override(models.PRESETS["clipseg_tiny"][1], sizes)
    monkeypatch.setitem(models.PRESETS, MODEL, ("clipseg", config))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder with a stand-in checkpoint, without a tokenizer."""
    folder = tmp_path_factory.mktemp("source")
    save_file(seeded_state_dict(PARITY), folder / "model.safetensors")
    return folder


@pytest.fixture
def with_tokenizer(source, tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    load_tokenizer("builtin", 77).save(folder)
    return folder


def test_a_converted_folder_holds_the_model_of_from_torch_bit_for_bit(source, tmp_path):
    message = convert(MODEL, str(source / "model.safetensors"), str(tmp_path / "out"))
    model, expected = mv.load(tmp_path / "out"), mv.from_torch(MODEL, seeded_state_dict(PARITY))
    assert model.config == expected.config
    (graph, arrays, _), (expected_graph, expected_arrays, _) = split_model(model), split_model(expected)
    assert graph == expected_graph
    assert arrays.keys() == expected_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected_arrays[name], err_msg=name)
    assert f"written to {tmp_path / 'out'}" in message
    assert "no tokenizer lay beside the weights" in message


@pytest.mark.parametrize("name", ["", "model.safetensors"], ids=["folder", "file"])
def test_a_tokenizer_beside_the_weights_is_taken_along(with_tokenizer, tmp_path, name):
    message = convert(MODEL, str(with_tokenizer / name), str(tmp_path / "out"))
    assert "no tokenizer" not in message
    packed = load_pretrained(tmp_path / "out").tokenizer
    assert packed == str(tmp_path / "out" / "tokenizer")
    ours, theirs = (load_tokenizer(name, 20)("one small polyp")[0] for name in (packed, "builtin"))
    np.testing.assert_array_equal(ours, theirs)


def test_a_tokenizer_can_be_named(source, tmp_path):
    convert(MODEL, str(source), str(tmp_path / "out"), tokenizer="builtin")
    assert load_pretrained(tmp_path / "out").tokenizer == str(tmp_path / "out" / "tokenizer")


def test_a_tokenizer_of_another_model_is_refused(source, shared, tmp_path):
    with pytest.raises(UserError, match=r"the tokenizer \(vocabulary 49408, end token 49407\) does not fit"):
        convert(MODEL, str(source), str(tmp_path / "out"), tokenizer=str(shared / "tokenizers" / "clip"))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_network_says_how_much_differs_and_writes_nothing(tmp_path):
    save_file({"encoder.conv1.weight": np.zeros((8, 3, 3, 3), np.float32)}, tmp_path / "unet.safetensors")
    with pytest.raises(UserError, match=r"not a checkpoint of clipseg, \d+ names differ") as error:
        convert(MODEL, str(tmp_path / "unet.safetensors"), str(tmp_path / "out"))
    assert "unexpected 1 (encoder.conv1.weight)" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_it_is_said_what_was_read_and_what_of_it_was_taken(tmp_path):
    weights = seeded_state_dict(PARITY)
    average = {f"{name}+": array for name, array in weights.items()}

    def wrap(described):
        plain = {f"module.net.{name}": described[name] for name in weights}
        plain["module.loss.weight"] = described["clip.logit_scale"]
        return {"state_dict": plain, "state_dict_ema": {name: described[f"{name}+"] for name in weights}}

    (tmp_path / "best.ckpt").write_bytes(zip_checkpoint({**weights, **average}, wrap))
    message = convert(MODEL, str(tmp_path / "best.ckpt"), str(tmp_path / "out"))
    assert (
        f"read {len(weights) + 1} tensors from {tmp_path / 'best.ckpt'}, its state_dict; it holds state_dict_ema"
        in message
    )
    assert "leaves out 1 (module.loss.weight), which lie outside module.net." in message
    message = convert(MODEL, str(tmp_path / "best.ckpt"), str(tmp_path / "out"), entry="state_dict_ema")
    assert "its state_dict_ema; it holds state_dict as well" in message


def test_weights_that_are_not_finite_are_neither_converted_nor_loaded(source, tmp_path):
    weights = seeded_state_dict(PARITY)
    weights["decoder.film_mul.weight"] = np.full_like(weights["decoder.film_mul.weight"], np.inf)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"its decoder\.film_mul\.weight holds \d+ values that are not finite"):
        convert(MODEL, str(tmp_path / "model.safetensors"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    model = mv.from_torch(MODEL, seeded_state_dict(PARITY))
    model.decoder.film_mul.kernel[...] = model.decoder.film_mul.kernel[...] * np.nan
    save_model(tmp_path / "diverged", model)
    with pytest.raises(UserError, match=r"diverged cannot be used: its decoder\.film_mul\.kernel holds \d+ values"):
        mv.load(tmp_path / "diverged")


def test_a_hub_id_without_a_network_says_how_to_do_without(tmp_path):
    with pytest.raises(UserError, match=r"cannot fetch some/hub-id .* pass its path with --source=FILE"):
        convert(MODEL, "some/hub-id", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_overwritten(source, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=f"{tmp_path} exists and is no model folder: choose another --output"):
        convert(MODEL, str(source), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_starts_random_is_said_and_where_it_lies_in_the_encoder(parity, tmp_path):
    whole = seeded_state_dict(parity / "cris_tiny")
    rn50 = {
        name.removeprefix("backbone."): array
        for name, array in whole.items()
        if name.startswith("backbone.") and ".connect." not in name
    }
    save_file(rn50, tmp_path / "RN50.safetensors")
    message = convert("cris_tiny", str(tmp_path / "RN50.safetensors"), str(tmp_path / "out"))
    assert "random: neck., decoder., proj., backbone.visual.attnpool.connect." in message
    assert "a part of that lies in the encoder: train with --config.freeze_encoder=false" in message


def test_biomedclipseg_d_takes_its_decoder_from_clipseg(parity, tmp_path):
    own, clipseg = (seeded_state_dict(parity / name) for name in ("biomedclipseg_tiny", "clipseg_tiny"))
    encoders = {name.removeprefix("biomedclip."): x for name, x in own.items() if name.startswith("biomedclip.")}
    save_file(encoders, tmp_path / "biomedclip.safetensors")
    with pytest.raises(UserError, match=r"biomedclipseg_d_tiny starts with CLIPSeg's decoder: .* --decoder_source"):
        convert("biomedclipseg_d_tiny", str(tmp_path / "biomedclip.safetensors"), str(tmp_path / "out"))
    save_file(clipseg, tmp_path / "clipseg.safetensors")
    sources = (str(tmp_path / "biomedclip.safetensors"), str(tmp_path / "out"))
    convert("biomedclipseg_d_tiny", *sources, decoder_source=str(tmp_path / "clipseg.safetensors"), tokenizer="builtin")
    converted = mv.to_torch(mv.load(tmp_path / "out"))
    for name, array in converted.items():
        expected = clipseg[name] if name.startswith("decoder.") else own[name]
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_a_clipseg_that_hugging_face_has_not_is_written_back_as_a_file_alone(tmp_path):
    """Its patch is 8: Hugging Face's two transposed convolutions would enlarge by 4."""
    save_model(tmp_path / "model", mv.create_model("clipseg_tiny", rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match=r"which is not its patch of 8.*give --output=FILE\.safetensors"):
        write_back(str(tmp_path / "model"), str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()
    write_back(str(tmp_path / "model"), str(tmp_path / "back.safetensors"))
    assert stat.S_IMODE((tmp_path / "back.safetensors").stat().st_mode) == 0o666 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_clipseg_is_written_back_with_tokenizer_and_image_processor(with_tokenizer, tmp_path):
    pytest.importorskip("torch", reason="Hugging Face's processors need PyTorch")
    from transformers import CLIPSegProcessor

    convert(MODEL, str(with_tokenizer), str(tmp_path / "model"))
    write_back(str(tmp_path / "model"), str(tmp_path / "back"))
    processor = CLIPSegProcessor.from_pretrained(tmp_path / "back")
    config = mv.load(tmp_path / "model").config
    assert dict(processor.image_processor.size) == {"height": config.image_size, "width": config.image_size}
    assert tuple(processor.image_processor.image_mean) == config.pixel_mean
    ids, _ = load_tokenizer("builtin", 20)("one small polyp")
    assert processor.tokenizer("one small polyp", padding="max_length", max_length=20)["input_ids"] == ids.tolist()


def test_a_clipseg_is_written_back_as_hugging_face_loads_it(source, tmp_path):
    torch = pytest.importorskip("torch", reason="loads with Hugging Face's PyTorch model")
    from transformers import CLIPSegForImageSegmentation

    convert(MODEL, str(source), str(tmp_path / "model"))
    write_back(str(tmp_path / "model"), str(tmp_path / "back"))
    theirs = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "back")
    for name, array in seeded_state_dict(PARITY).items():
        assert torch.equal(theirs.state_dict()[name], torch.from_numpy(array)), name
    ours = mv.load(tmp_path / "model")
    pixels = np.random.default_rng(0).standard_normal((1, 96, 96, 3)).astype(np.float32)
    ids = np.array([[1, 50, 60, 3]])
    with torch.no_grad():
        expected = theirs(
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), input_ids=torch.from_numpy(ids)
        ).logits
    np.testing.assert_allclose(ours(pixels, ids)[..., 0].squeeze(), expected.squeeze(), atol=1e-4)
