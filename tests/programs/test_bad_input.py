"""Bad input ends a program with one line that names the file or the flag, and leaves nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from processes import ROOT, child_environment, run_here

from medvlsm_jax.checkpoints.model_folder import load
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluate import default_config, evaluate
from medvlsm_jax.predict import predict
from medvlsm_jax.train import train
from medvlsm_jax.training.run import read_sets

HALF_WRITTEN = ("metrics.json", "cases.csv", "model.json", "checkpoints/*", "masks/*")


@pytest.fixture
def data_dir(sample, tmp_path) -> Path:
    """A copy of the sample that a test may spoil."""
    return Path(shutil.copytree(sample, tmp_path / "data"))


@pytest.fixture
def options(data_dir):
    options = default_config()
    options.data_dir = str(data_dir)
    return options


def records(data_dir: Path, split: str) -> list[dict]:
    return json.loads((data_dir / "sample" / "anns" / f"{split}.json").read_text())


def spoil(data_dir: Path, kind: str, split: str) -> str:
    """Spoils a split in one way; returns what the message has to say."""
    root, entries = data_dir / "sample", records(data_dir, split)
    last = entries[-1]
    image, mask, annotations = root / "images" / last["img_name"], root / "masks" / last["mask_name"], root / "anns"
    if kind == "missing image":
        image.unlink()
        return rf"{image}.* is missing, but an annotation file names it"
    if kind == "missing mask":
        mask.unlink()
        return rf"{mask} is missing, but an annotation file names it"
    if kind == "truncated image":
        image.write_bytes(image.read_bytes()[:-100])
        return f"{image} cannot be decoded as an image"
    if kind == "mask of another size":
        Image.new("L", (10, 20), 255).save(mask)
        return f"{mask} is 10x20 but its image {image} is 64x64: they must agree"
    if kind == "mask of 0 and 1":
        Image.new("L", (64, 64), 1).save(mask)
        return f"{mask} holds the values 0 and 1"
    if kind == "record without the prompt":
        del last["prompts"]["p6"]
        (annotations / f"{split}.json").write_text(json.dumps(entries))
        return f"the annotation of {image.name} has no prompt 'p6'"
    if kind == "record without a mask":
        del last["mask_name"]
        (annotations / f"{split}.json").write_text(json.dumps(entries))
        return rf"{split}.json, record {len(entries) - 1}: needs img_name, mask_name and prompts"
    (annotations / f"{split}.json").write_text("[{")
    return rf"{split}.json is not valid json"


KINDS = [
    "missing image",
    "missing mask",
    "truncated image",
    "mask of another size",
    "mask of 0 and 1",
    "record without the prompt",
    "record without a mask",
    "broken json",
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_of_spoilt_data_names_the_file(run, data_dir, options, tmp_path, kind):
    message = spoil(data_dir, kind, "test")
    with pytest.raises(UserError, match=message):
        evaluate(options, run, ["sample"], ["p6"], tmp_path / "out")
    assert not [path for pattern in HALF_WRITTEN for path in (tmp_path / "out").glob(pattern)]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", ["missing image", "record without the prompt", "broken json"])
def test_training_on_spoilt_data_stops_before_it_starts(config, data_dir, tmp_path, kind, split):
    message = spoil(data_dir, kind, split)
    config.data_dir = str(data_dir)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_patient_in_training_and_test_stops_a_run_or_is_skipped(config, data_dir, tmp_path, capsys):
    config.data_dir = str(data_dir)
    for split in ("train", "test"):
        entries = records(data_dir, split)
        entries[0]["group"] = "patient 7"
        (data_dir / "sample" / "anns" / f"{split}.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"is of patient 7, who is in the split test as well .*on_bad=skip"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.data.on_bad = "skip"
    sets = read_sets(config, tmp_path / "run")
    assert len(sets.train) == len(records(data_dir, "train")) - 1
    assert f"skipped 1 of {len(records(data_dir, 'train'))} records with errors" in capsys.readouterr().out


def test_masks_that_are_all_empty_stop_a_run(config, data_dir, tmp_path):
    config.data_dir = str(data_dir)
    for entry in records(data_dir, "train"):
        Image.new("L", (64, 64)).save(data_dir / "sample" / "masks" / entry["mask_name"])
    with pytest.raises(UserError, match=r"sample: all \d+ masks are empty: there is nothing to learn"):
        train(config, tmp_path / "run")


def test_training_that_meets_a_broken_file_names_it(config, data_dir, tmp_path):
    message = spoil(data_dir, "truncated image", "train")
    config.data_dir = str(data_dir)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("network", ["segnet", None, 3])
def test_a_checkpoint_of_a_network_that_is_not_known_is_refused(run_copy, options, tmp_path, network):
    (run_copy / "model.json").write_text(json.dumps({"network": network, "config": {}}))
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    message = rf"{run_copy / 'model.json'} describes no model of this version"
    with pytest.raises(UserError, match=message):
        evaluate(options, run_copy, ["sample"], ["p6"], tmp_path / "out")
    with pytest.raises(UserError, match=message):
        predict(run_copy, [tmp_path / "image.png"], "polyp", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arrays_that_do_not_fit_the_description_are_named(run_copy):
    description = json.loads((run_copy / "model.json").read_text())
    description["config"]["reduce_dim"] = 24
    (run_copy / "model.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=str(run_copy)):
        load(run_copy)


def test_a_workdir_of_another_network_is_refused(run_copy, config, monkeypatch):
    from medvlsm_jax import models

    monkeypatch.setitem(models.PRESETS, "unet", ("unet", models.PRESETS["small"][1]))
    config.model = "unet"
    before = (run_copy / "config.json").read_text()
    with pytest.raises(UserError, match=f"{run_copy} holds a clipseg, but config.model is 'unet'"):
        train(config, run_copy)
    assert (run_copy / "config.json").read_text() == before


# --- From the command line --------------------------------------------------------------------------------------------


def assert_one_line(done: subprocess.CompletedProcess[str], named: str) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert named in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (
            "medvlsm_jax/train.py --config=configs/clipseg.py:dataset=sample,colour=red --workdir={out}",
            "'colour=red' is not FIELD=VALUE",
        ),
        (
            "medvlsm_jax/evaluate.py --checkpoint={run} --config.data_dir={data} --dataset=sample --prompt=p9 "
            "--output={out}",
            "has no prompt 'p9'",
        ),
        (
            "tools/convert_weights.py --model=clipseg --source=some/hub-id --output={out}",
            "cannot fetch some/hub-id",
        ),
        (
            "medvlsm_jax/evaluate.py --config.batchsize=1 --checkpoint=a --dataset=b --prompt=p1 --output={out}",
            "--config has no field batchsize: did you mean batch_size?",
        ),
        ("medvlsm_jax/train.py --config=gone.py --workdir={out}", "--config cannot be read:"),
        ("medvlsm_jax/train.py --config=configs/clipseg.py --workdir=", "--workdir= is empty: give a folder"),
    ],
    ids=["train", "evaluate", "convert_weights", "field", "config file", "workdir"],
)
def test_a_program_ends_with_one_line_and_no_traceback(run, sample, tmp_path, command, named):
    assert_one_line(run_here(*command.format(run=run, data=sample, out=tmp_path / "out").split()), named)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("-m medvlsm_jax.train --config=configs/clipseg.py:colour=red --workdir={out}", "'colour=red' is not FIELD="),
        (
            "-m medvlsm_jax.predict --checkpoint={out} --image=a.png --prompt=polyp --output={out}",
            "--image=a.png does not exist",
        ),
        ("tools/convert_weights.py --model=clipseg", "give --source and --output"),
        ("tools/prepare_data.py --dataset=isic", "give --raw and --data_dir, or --list to see the datasets"),
        ("tools/make_prompts.py --dataset=gone --data_dir={out}", "gone does not exist"),
        ("tools/report.py --output={out}", "give the folders of runs: python tools/report.py RUNS --output=DIR"),
    ],
    ids=lambda value: value.split("--")[0].strip(),
)
def test_so_it_does_as_a_process_of_its_own(tmp_path, command, named):
    arguments = command.format(out=tmp_path / "out").split()
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False)
    assert_one_line(done, named.format(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
