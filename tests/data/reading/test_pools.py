"""Pools: how much of each dataset is used, how often each is drawn, and what an epoch is."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.arrayrecord import StoredFile
from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.pools import mixing_weights, select_amount
from medvlsm_jax.errors import UserError


def make_records(**sizes: int) -> list[Record]:
    """So many images of each dataset, with two records each."""
    return [
        Record(Card(dataset), Path(dataset, f"{i}.png"), Path(dataset, f"{i}_{mask}.png"), {"p1": "polyp"})
        for dataset, size in sizes.items()
        for i in range(size)
        for mask in range(2)
    ]


def images(records: list[Record]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault(record.dataset, set()).add(record.image.name)
    return found


@pytest.fixture
def pool() -> list[Record]:
    return make_records(isic=20, busi=6)


@pytest.mark.parametrize(
    ("data_num", "isic", "busi"),
    [
        ("", 20, 6),
        ("0.5", 10, 3),
        ("1.0", 20, 6),
        ("4", 4, 4),
        ('{"isic": 0.1}', 2, 6),
        ('{"busi": 1, "isic": 7}', 7, 1),
    ],
)
def test_a_part_of_each_datasets_images(pool, data_num, isic, busi):
    selected = select_amount(pool, data_num, seed=0)
    assert {name: len(found) for name, found in images(selected).items()} == {"isic": isic, "busi": busi}
    assert len(selected) == 2 * (isic + busi)  # the records of an image stay together
    assert selected == [record for record in pool if record in selected]


def test_a_smaller_part_is_contained_in_a_larger_one(pool):
    parts = [images(select_amount(pool, text, seed=0)) for text in ("0.2", "0.5", "0.9")]
    assert all(a["isic"] < b["isic"] for a, b in itertools.pairwise(parts))


def test_a_store_gives_the_part_that_its_folder_gives(pool):
    stored = [
        dataclasses.replace(r, image=StoredFile(Path("store"), "train", i, "image", r.image.name))
        for i, r in enumerate(pool)
    ]
    assert images(select_amount(stored, "0.5", seed=0)) == images(select_amount(pool, "0.5", seed=0))
    assert len(select_amount(stored, "4", seed=0)) == 2 * (4 + 4)


def test_the_part_depends_on_the_seed(pool):
    assert images(select_amount(pool, "0.5", seed=0)) != images(select_amount(pool, "0.5", seed=1))


@pytest.mark.parametrize(
    ("data_num", "message"),
    [
        ("half", "config.data_num=half is neither a number nor json"),
        ('{"isci": 0.5}', "names 'isci', but the training data are busi, isic"),
        ("[1]", "is no number"),
        ("true", "True for busi is no number"),
        ("NaN", "nan for busi is no number"),
        ('{"isic": Infinity}', "inf for isic is no number"),
        ("21", "21 of the 6 training images of busi is not possible"),
        ("1.5", "is not possible"),
        ("0", "is not possible"),
        ("-0.5", "is not possible"),
        ("0.01", "is not possible"),
    ],
)
def test_an_amount_that_cannot_be_is_named(pool, data_num, message):
    with pytest.raises(UserError) as error:
        select_amount(pool, data_num, seed=0)
    assert message in str(error.value)


def test_a_temperature_flattens_the_shares():
    pool = make_records(isic=32, busi=2)
    assert mixing_weights(pool, "", 1.0) == {}
    assert mixing_weights(pool, "", 2.0) == {"isic": 8.0, "busi": 2.0}
    assert mixing_weights(make_records(isic=32), "", 2.0) == {}
    assert mixing_weights(pool, '{"busi": 1, "isic": 3}', 1.0) == {"isic": 3.0, "busi": 1.0}


@pytest.mark.parametrize(
    ("weights", "temperature", "message"),
    [
        ('{"isic": 1}', 1.0, "needs a positive number for each of isic, busi"),
        ('{"isic": 1, "busi": 0}', 1.0, "needs a positive number"),
        ('{"isic": 1, "dfu": 1}', 1.0, "config.pool.weights names 'dfu'"),
        ('{"isic": 1, "busi": NaN}', 1.0, "nan for busi is no number"),
        ("", 0.0, "config.pool.temperature=0.0 must be 1"),
        ("", 1e-3, "config.pool.temperature=0.001 must be 1"),
        ("", float("nan"), "config.pool.temperature=nan must be 1"),
    ],
)
def test_weights_that_do_not_fit_are_named(pool, weights, temperature, message):
    with pytest.raises(UserError) as error:
        mixing_weights(pool, weights, temperature)
    assert message in str(error.value)


def test_a_pool_is_its_datasets_one_after_another(sample, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(sample / "sample")
    records = load_records(tmp_path, "two+one", "train")
    count = len(load_records(sample, "sample", "train"))
    assert [record.dataset for record in records] == ["two"] * count + ["one"] * count
    with pytest.raises(UserError, match="dataset 'three' is not a dataset that the package knows"):
        load_records(tmp_path, "one+three", "train")
