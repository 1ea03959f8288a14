"""Every network through the same programs: trained, stopped, continued, evaluated, prompted."""

import json
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from convert_weights import convert, network_text, write_back
from safetensors.numpy import load_file, save_file
from seeded_weights import seeded_state_dict

import medvlsm_jax as mv
from medvlsm_jax import models
from medvlsm_jax.checkpoints.model_folder import load_pretrained, save_model
from medvlsm_jax.config import base_config
from medvlsm_jax.data.cards import CARDS
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluate import default_config, evaluate
from medvlsm_jax.evaluation.cases import read_cases
from medvlsm_jax.models import PRESETS
from medvlsm_jax.models.parameters import split_model
from medvlsm_jax.predict import predict
from medvlsm_jax.train import train

# Of the others, biomedclipseg_d_tiny has the sizes of biomedclipseg_tiny; a U-Net and a DeepLabV3+ go through the same
# programs in the tests below, and all other tests here train a CLIPSeg.
TINY = ["biomedclipseg_tiny", "cris_tiny", "unetplusplus_tiny"]


@pytest.fixture(autouse=True)
def one_device(use_devices) -> None:
    """Compiling is most of the work here; other tests show that the mesh does not matter."""
    use_devices(1)


CLASSES = ("edema", "lung lesion")


def config_of(model: str, data_dir: Path, **fields) -> ml_collections.ConfigDict:
    """Two steps of four small images."""
    config = base_config()
    config.update({"data_dir": str(data_dir), "dataset": "sample", "model": model, "batch_size": 4, "image_size": 64})
    config.update({"max_steps": 2, "log_every_steps": 1, "num_overlays": 0, "writers": "", **fields})
    return config


def options_of(data_dir: Path) -> ml_collections.ConfigDict:
    options = default_config()
    options.update({"data_dir": str(data_dir), "batch_size": 4})
    return options


def logged(workdir: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["name"] == name]


def an_image(data_dir: Path) -> Path:
    return sorted((data_dir / "sample" / "images").iterdir())[0]


@pytest.mark.parametrize("model", TINY)
def test_a_network_is_trained_evaluated_and_prompted(model, sample, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train(config_of(model, sample), workdir)["step"] == 2
    assert "parameters  trained  frozen" in " ".join(capsys.readouterr().out.split()).replace(" ", "  ")
    assert len(logged(workdir, "train/loss")) == 2
    assert np.isfinite(logged(workdir, "train/grad_norm")).all()
    summary = evaluate(options_of(sample), workdir, ["sample"], ["p6"], tmp_path / "out")
    assert 0 <= summary["sample"]["p6"]["dice_mean"] <= 1
    prompt = None if PRESETS[model][1].text is None else "one red circle"
    (mask,) = predict(workdir, [an_image(sample)], prompt, tmp_path / "masks", batch_size=2)
    assert mask.is_file()


def test_a_run_that_was_stopped_gives_the_numbers_of_one_that_was_not(sample, tmp_path):
    """Of a network with running statistics and dropout, which is then evaluated and prompted."""
    train(config_of("deeplabv3plus_tiny", sample), tmp_path / "whole")
    for steps in (1, 2):
        train(config_of("deeplabv3plus_tiny", sample, max_steps=steps), tmp_path / "parts")
    whole, parts = (mv.load(tmp_path / name) for name in ("whole", "parts"))
    for ours, theirs in zip(split_model(whole)[1:], split_model(parts)[1:], strict=True):
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert logged(tmp_path / "whole", "train/loss") == logged(tmp_path / "parts", "train/loss")
    summary = evaluate(options_of(sample), tmp_path / "parts", ["sample"], ["p6"], tmp_path / "out")
    assert 0 <= summary["sample"]["p6"]["dice_mean"] <= 1
    (mask,) = predict(tmp_path / "parts", [an_image(sample)], None, tmp_path / "masks", batch_size=2)
    assert mask.is_file()


def test_a_frozen_encoder_keeps_its_statistics_too(sample, tmp_path):
    config = config_of("unet_tiny", sample, freeze_encoder=True)
    train(config, tmp_path / "run")
    config.max_steps = 1
    train(config, tmp_path / "other")
    last, first = mv.load(tmp_path / "run"), mv.load(tmp_path / "other")
    moved = set()
    for ours, theirs in zip(split_model(last)[1:], split_model(first)[1:], strict=True):
        moved |= {name.split(".")[0] for name, array in ours.items() if not np.array_equal(array, theirs[name])}
    assert moved
    assert not moved & set(last.encoder)
    stats = split_model(last)[2]
    assert any(name.split(".")[0] in moved for name in stats)


# --- Networks without text --------------------------------------------------------------------------------------------


def test_trained_on_several_classes_it_has_one_output_for_each(two_classes):
    classes = load_pretrained(two_classes).config.classes
    assert set(CLASSES) < set(classes) == set(CARDS["chexlocalize"].targets)
    assert mv.load(two_classes).head.bias.shape == (len(classes),)


def test_each_record_is_scored_on_the_class_that_it_asks_for(two_classes, findings, tmp_path):
    """One class is predicted nowhere and the other everywhere; no prompt is needed."""
    model = mv.load(two_classes)
    nowhere = np.array(model.config.classes) == "lung lesion"
    model.head.bias[...] = jnp.where(nowhere, -1e4, 1e4)
    save_model(tmp_path / "closed", model)
    evaluate(options_of(findings), tmp_path / "closed", ["chexlocalize"], [], tmp_path / "out")
    cases = read_cases(tmp_path / "out" / "cases.csv")
    dice = {name: cases.numbers["dice"][rows] for (name,), rows in cases.by("class").items()}
    assert set(dice["lung lesion"]) == {0.0}
    assert min(dice["edema"]) > 0


def test_a_class_is_named_when_a_picture_is_segmented(two_classes, sample, tmp_path):
    predict(two_classes, [an_image(sample)], "edema", tmp_path / "out", batch_size=1)
    with pytest.raises(UserError, match=r"--prompt='a circle': this network reads no sentence; name one of"):
        predict(two_classes, [an_image(sample)], "a circle", tmp_path / "out", batch_size=1)


def test_trained_on_one_class_alone_it_has_one_output_and_cannot_go_on_with_several(findings, tmp_path):
    train(config_of("unet_tiny", findings, dataset="chexlocalize", target="edema", max_steps=1), tmp_path / "run")
    assert load_pretrained(tmp_path / "run").config.classes == ()
    config = config_of("unet_tiny", findings, dataset="chexlocalize", init=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"has one output, but the training data name 10 classes .* --classes="):
        train(config, tmp_path / "other")


def test_a_network_with_text_says_that_it_needs_a_sentence(run, sample, tmp_path):
    with pytest.raises(UserError, match="this network segments what a sentence names: give one with --prompt"):
        predict(run, [an_image(sample)], None, tmp_path / "out")
    with pytest.raises(UserError, match="--prompt=p6 stands for the sentences of a dataset's records: give a sentence"):
        predict(run, [an_image(sample)], "p6", tmp_path / "out")


# --- Conversion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clipseg_tiny", "biomedclipseg_tiny", "cris_tiny"])
def test_a_converted_checkpoint_is_written_back_bit_for_bit(name, parity, tmp_path, monkeypatch):
    state_dict = seeded_state_dict(parity / name)
    taps = {"clipseg_tiny": (1, 2, 3), "biomedclipseg_tiny": (2, 3, 4)}.get(name)
    if taps:
        network, config = PRESETS[name]
        monkeypatch.setitem(models.PRESETS, name, (network, models.override(config, {"extract_layers": taps})))
    save_file(state_dict, tmp_path / "source.safetensors")
    convert(name, str(tmp_path / "source.safetensors"), str(tmp_path / "model"))
    write_back(str(tmp_path / "model"), str(tmp_path / "back.safetensors"))
    written = load_file(tmp_path / "back.safetensors")
    assert set(written) == set(state_dict)
    for key, array in state_dict.items():
        np.testing.assert_array_equal(written[key], array, err_msg=key)


def test_a_preset_is_described_by_its_modules():
    lines = network_text("unet_tiny", "").splitlines()
    assert lines[0].split() == ["module", "parameters", "trained", "frozen", "dtype"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:] if len(line.split()) == 5}
    totals = [int(cells[0].replace(",", "")) for name, cells in rows.items() if "." not in name and name != "all"]
    assert sum(totals) == int(rows["all"][0].replace(",", ""))
    assert "GFLOP for the forward pass of one image at 64 px" in lines[-2]


@pytest.mark.parametrize(
    ("model", "message"), [("cris_tiny", "not a multiple of 32"), ("unet_tiny", "not a multiple of")]
)
def test_an_image_size_that_a_network_cannot_work_at_is_refused_at_the_door(model, message, sample, tmp_path):
    config = config_of(model, sample, image_size=100)
    with pytest.raises(UserError, match=rf"config\.image_size=100 does not suit a .*: .*{message}"):
        train(config, tmp_path / "run")
    assert not list(tmp_path.glob("run/metrics.jsonl"))
