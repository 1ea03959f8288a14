"""What a process has kept of a record it finds again: counted as decoded files and as outputs that had to be made."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading import cache as caching
from medvlsm_jax.data.reading.cache import ExampleCache, read_mask_alone, read_pair
from medvlsm_jax.data.reading.entries import Entries
from medvlsm_jax.data.reading.feature_cache import FeatureCache
from medvlsm_jax.data.reading.pipeline import Loader, order_of, own_rows

BATCH, RECORDS = 32, 256
SIZES = {"image": (8,), "text": (4,)}


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often an image with its mask was decoded, and a mask alone."""
    counts = Counter()

    def counting(name, read):
        def run(*args):
            counts[name] += 1
            read(*args)

        return run

    monkeypatch.setattr(caching, "read_pair", counting("pair", read_pair))
    monkeypatch.setattr(caching, "read_mask_alone", counting("mask", read_mask_alone))
    return counts


@pytest.fixture
def loader(sample, tmp_path) -> Loader:
    """Of as many records, each with files of its own."""
    found, records = load_records(sample, "sample", "train"), []
    for i in range(RECORDS):
        record = found[i % len(found)]
        image, mask = (tmp_path / f"{kind}{i}.png" for kind in "im")
        image.symlink_to(record.image)
        mask.symlink_to(record.mask)
        records.append(dataclasses.replace(record, image=image, mask=mask))
    return Loader(records, load_tokenizer("builtin", 24), "p6", 16, seed=3)


def complete(batch: dict, cache: FeatureCache) -> int:
    """Keeps what a frozen encoder would have to make of a batch; returns how many images and sentences."""
    made = 0
    for kind, sizes in SIZES.items():
        for name, is_found in zip(batch[f"{kind}_entries"], batch[f"{kind}_found"], strict=True):
            if not is_found:
                cache.entries.write(str(name), *(np.ones(size, np.uint8) for size in sizes))
                made += 1
    return made


@pytest.mark.parametrize("processes", [2, 8, 32])
def test_in_the_second_epoch_nothing_is_decoded_or_encoded_anew(loader, decoded, tmp_path, processes):
    order, steps = order_of(loader.records, BATCH, seed=3), RECORDS // BATCH
    for process in range(processes):  # each on a machine of its own
        folders = [Path(tmp_path, f"{kind}-{process}") for kind in ("pixels", "features")]
        for folder in folders:
            folder.mkdir()
        cache = FeatureCache(Entries(folders[1], 10**6), "key", SIZES)
        own = dataclasses.replace(loader, cache=ExampleCache(folders[0], 16), features=cache)
        made = [0, 0]
        for step in range(2 * steps):
            rows = [(*order.draw(step, row), True) for row in own_rows(BATCH, (process, processes))]
            made[step // steps] += complete(own(rows), cache)
        assert made[0] > RECORDS // processes
        assert made[1] == 0
    assert decoded == {"pair": RECORDS}


def test_an_image_whose_features_are_found_is_not_decoded(loader, decoded, tmp_path):
    cache = FeatureCache(Entries(tmp_path), "key", SIZES)
    rows = [(i, 0, True) for i in range(4)]
    plain = loader(rows)
    decoded.clear()
    cached = dataclasses.replace(loader, features=cache)
    complete(cached(rows[:3]), cache)
    assert decoded == {"pair": 3}
    batch = cached(rows)
    assert decoded == {"pair": 4, "mask": 3}
    assert not batch["image"][:3].any()
    np.testing.assert_array_equal(batch["image"][3], plain["image"][3])
    np.testing.assert_array_equal(batch["mask"], plain["mask"])
    np.testing.assert_array_equal(cached.image(0), plain["image"][0])  # for who looks at it
