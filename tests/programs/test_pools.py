"""Training and evaluation on pools, on stores and on spoilt data, through the programs."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from check_continuation import CLOCKED

from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluate import default_config, evaluate
from medvlsm_jax.train import train
from medvlsm_jax.training.run import read_split

POOL = "one+two"


@pytest.fixture
def pool(sample, tmp_path) -> Path:
    """A data folder with the drawn sample under two names, one of them smaller."""
    for name in ("one", "two"):
        shutil.copytree(sample / "sample", tmp_path / "data" / name)
    anns = tmp_path / "data" / "two" / "anns"
    for split in ("train", "val"):
        entries = json.loads((anns / f"{split}.json").read_text())
        (anns / f"{split}.json").write_text(json.dumps(entries[: len(entries) // 2]))
    return tmp_path / "data"


def count(data_dir: Path, dataset: str, split: str) -> int:
    return len(json.loads((data_dir / dataset / "anns" / f"{split}.json").read_text()))


def values(workdir: Path) -> dict[tuple[int, str], float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], row["name"]): row["value"] for row in rows if row["name"] not in CLOCKED}


@pytest.fixture(scope="module")
def kept() -> dict[tuple[int, str], float]:
    """What `whole` found, for the other test that compares with it."""
    return {}


@pytest.fixture
def whole(kept, config, pool, tmp_path) -> dict[tuple[int, str], float]:
    """The values of a run of one epoch on the pool; `config` is that run's."""
    config.data_dir, config.dataset, config.num_epochs = str(pool), POOL, 1
    if not kept:
        train(config, tmp_path / "whole")
        kept |= values(tmp_path / "whole")
    return kept


def test_a_pool_is_validated_as_a_whole_and_by_dataset(config, pool, whole):
    steps = (count(pool, "one", "train") + count(pool, "two", "train")) // config.batch_size
    found = whole
    assert max(step for step, _ in found) == steps  # an epoch of a pool has every record of its datasets
    sizes = np.array([count(pool, name, "val") for name in ("one", "two")])
    parts = [found[steps, f"val/{name}/dice"] for name in ("one", "two")]
    assert found[steps, "val/dice"] == pytest.approx((sizes * parts).sum() / sizes.sum(), rel=1e-6)


def test_a_part_of_the_images_makes_the_epochs_shorter_and_the_validation_is_whole(config, pool, tmp_path, capsys):
    config.data_dir, config.dataset, config.num_epochs = str(pool), POOL, 1
    config.data_num, config.pool.temperature = "0.5", 4.0
    train(config, tmp_path / "run")
    printed = capsys.readouterr().out
    whole = count(pool, "one", "train") + count(pool, "two", "train")
    part = int(printed.split(" training, ")[0].split()[-1])
    assert whole / 3 < part < 2 * whole / 3
    assert f"{count(pool, 'one', 'val') + count(pool, 'two', 'val')} validation records" in printed


@pytest.fixture
def colours(pool) -> str:
    """The same pool by cards of a user's: each dataset is of one class."""
    for name, target in (("one", "red"), ("two", "blue")):
        (pool / f"{name}.toml").write_text(f'name = "{name}"\ntargets = ["{target}"]\n')
    return f"{pool / 'one.toml'}+{pool / 'two.toml'}"


def test_a_number_of_images_is_one_of_images_of_the_class_asked_for(config, pool, tmp_path):
    path = pool / "one" / "anns" / "train.json"
    entries = json.loads(path.read_text())
    images = sorted({entry["img_name"] for entry in entries})
    for entry in entries:  # every second image is of one class
        entry["prompts"]["p1"] = ("red", "blue")[images.index(entry["img_name"]) % 2]
    path.write_text(json.dumps(entries))
    card = pool / "one.toml"
    card.write_text('name = "one"\ntargets = ["red", "blue"]\n')
    config.data_dir, config.dataset, config.target = str(pool), str(card), "red"
    whole = read_split(config, "train", tmp_path)
    config.data_num = str(len({record.image for record in whole}))  # as many as there are
    assert read_split(config, "train", tmp_path) == whole
    config.data_num = "5"
    assert len({record.image for record in read_split(config, "train", tmp_path)}) == 5


def test_of_a_pool_those_datasets_are_scored_that_have_the_class(run, pool, colours, tmp_path):
    options = default_config()
    options.data_dir, options.target = str(pool), "blue"
    assert set(evaluate(options, run, [colours], ["p6"], tmp_path / "out")) == {"two"}
    options.target = "green"
    with pytest.raises(UserError, match="no record is of that class; there are red, blue"):
        evaluate(options, run, [colours], ["p6"], tmp_path / "none")


def test_a_pool_without_the_split_is_not_scored_as_nothing(run, pool, tmp_path):
    (pool / "pool.toml").write_text('name = "mine"\n[members]\ntrain = ["one", "two"]\n')
    options = default_config()
    options.data_dir = str(pool)
    with pytest.raises(UserError, match=r"--dataset=.*pool\.toml has no dataset for --split=test"):
        evaluate(options, run, [str(pool / "pool.toml")], ["p6"], tmp_path / "out")


def test_two_cards_of_one_name_are_not_scored_as_one(run, pool, colours, tmp_path):
    options = default_config()
    options.data_dir = str(pool)
    with pytest.raises(UserError, match="two cards have the name 'one'"):
        evaluate(options, run, ["one", str(pool / "one.toml")], ["p6"], tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "config.seed=-1: give a number from 0 to 2147483647"),
        ("data.num_workers", -1, "config.data.num_workers=-1: give a number from 0 on"),
        ("data_num", '{"three": 1}', "config.data_num names 'three', but the training data are one, two"),
        ("pool.weights", '{"one": 1}', "needs a positive number for each of one, two"),
        ("data.on_bad", "ignore", "config.data.on_bad=ignore: choose error or skip"),
        ("data.cache", "/dev/null/x", "config.data.cache=/dev/null/x cannot be made"),
    ],
)
def test_a_field_that_does_not_fit_is_named(config, pool, tmp_path, field, value, message):
    config.data_dir, config.dataset = str(pool), POOL
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_store_gives_the_run_that_its_folder_gives(config, pool, whole, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from medvlsm_jax.data.cards import Card
    from medvlsm_jax.data.preparing.arrayrecord_writer import write_store

    for name in ("one", "two"):
        write_store(pool, Card(name), tmp_path / "stores", num_shards=2)
    config.data_dir = str(tmp_path / "stores")
    train(config, tmp_path / "store")
    assert values(tmp_path / "store") == whole


def test_bad_records_are_left_out_when_asked_for_and_listed(config, pool, tmp_path, capsys):
    bad = sorted((pool / "two" / "masks").iterdir())[0]
    bad.write_bytes(b"no mask")
    config.data_dir, config.dataset, config.num_epochs = str(pool), POOL, 1
    with pytest.raises(UserError, match=f"{bad} cannot be decoded as an image"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.data.on_bad = "skip"
    train(config, tmp_path / "run")
    total = count(pool, "one", "train") + count(pool, "two", "train")
    report = tmp_path / "run" / "findings" / "train.csv"
    printed = capsys.readouterr().out
    assert f"skipped 1 of {total} records with errors, see {report}" in printed
    assert f"{total - 1} training" in printed
    with report.open(newline="") as file:
        assert [(row["level"], row["file"]) for row in csv.DictReader(file)] == [("error", str(bad))]


def test_a_pool_is_evaluated_dataset_by_dataset(run, pool, tmp_path):
    options = default_config()
    options.data_dir = str(pool)
    summary = evaluate(options, run, [POOL], ["p6", "attributes:size,class"], tmp_path / "out")
    assert set(summary) == {"one", "two"}
    assert {prompt: found["n"] for prompt, found in summary["two"].items()} == {
        "p6": count(pool, "two", "test"),
        "attributes:size,class": count(pool, "two", "test"),
    }
    with (tmp_path / "out" / "cases.csv").open(newline="") as file:
        sentences = {row["sentence"] for row in csv.DictReader(file) if row["prompt"] == "attributes:size,class"}
    assert all(sentence.split()[0] in ("small", "medium") for sentence in sentences)
