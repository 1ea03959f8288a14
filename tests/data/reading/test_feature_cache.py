"""What frozen encoders made of an image or a sentence is found again, for as long as it is the same."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading import feature_cache as module
from medvlsm_jax.data.reading.entries import Entries, Together
from medvlsm_jax.data.reading.feature_cache import FeatureCache, open_features
from medvlsm_jax.errors import UserError

SIZES = {"image": (8, 4), "text": (2,)}


@pytest.fixture
def records(sample):
    """Three with an image each."""
    return list({record.image: record for record in load_records(sample, "sample", "train")}.values())[:3]


def tokens(*rows: list[int]) -> dict[str, np.ndarray]:
    ids = np.array(rows, np.int32)
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int32)}


def look_up(cache: FeatureCache, records) -> dict:
    batch = tokens(*([i + 1, 0] for i in range(len(records))))
    cache.look_up(batch, records, lambda shape: np.zeros(shape, np.uint8))
    return batch


def test_what_is_stored_under_the_names_of_a_batch_is_found_by_the_next(records, tmp_path):
    cache = FeatureCache(Entries(tmp_path), "key", SIZES)
    batch = look_up(cache, records)
    assert not batch["image_found"].any()
    assert not batch["text_found"].any()
    cache.entries.write(str(batch["image_entries"][1]), np.full(8, 7, np.uint8), np.full(4, 9, np.uint8))
    cache.entries.write(str(batch["text_entries"][2]), np.full(2, 5, np.uint8))
    batch = look_up(FeatureCache(Entries(tmp_path), "key", SIZES), records)  # as another process would
    assert batch["image_found"].tolist() == [False, True, False]
    assert batch["text_found"].tolist() == [False, False, True]
    first, second = batch["image_features"]
    assert (first[1].tolist(), second[1].tolist(), batch["text_features"][0][2].tolist()) == ([7] * 8, [9] * 4, [5] * 2)


def test_an_entry_is_of_its_encoder_file_and_tokens(records, tmp_path):
    cache, other = (FeatureCache(Entries(tmp_path), key, SIZES) for key in ("key", "other"))
    names = {other.image_name(records[0]), *(cache.image_name(record) for record in records)}
    assert len(names) == 4
    changed = dataclasses.replace(records[0], image=Path(shutil.copy(str(records[0].image), tmp_path)))
    assert cache.image_name(changed) != cache.image_name(records[0])
    ids, mask = np.array([1, 2, 0], np.int32), np.array([1, 1, 0], np.int32)
    assert len({cache.text_name(ids, mask), cache.text_name(ids, ids), cache.text_name(ids[::-1].copy(), mask)}) == 3


def test_no_sentence_is_looked_up_for_a_network_that_reads_none(records, tmp_path):
    batch = look_up(FeatureCache(Entries(tmp_path), "key", {"image": (8,)}), records)
    assert "text_features" not in batch


def test_entries_stay_below_their_limit_and_count_what_a_folder_holds(tmp_path):
    for name, size, is_stored in [("a", 60, True), ("b", 60, False), ("c", 30, True)]:
        entries = Entries(tmp_path, 100)  # as each run would
        entries.write(name, np.zeros(size, np.uint8))
        assert entries.read(name, np.empty(size, np.uint8)) == is_stored


@pytest.mark.parametrize("where", ["memory", "auto", "folder"])
def test_the_room_is_half_of_what_is_free_or_what_the_config_says(tmp_path, monkeypatch, where):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * module.GIB))
    place = str(tmp_path / "features") if where == "folder" else where
    for limit_gib, expected in [(0.0, 2), (3.0, 3), (9.0, 4)]:
        with open_features(place, limit_gib, 400) as entries:
            assert entries.limit == expected * module.GIB
            assert entries.folder.is_dir()
        assert entries.folder.is_dir() == (where == "folder")


@pytest.mark.parametrize("where", ["memory", "auto", "folder"])
def test_what_does_not_fit_is_kept_in_part_where_it_is_asked_for_and_said(tmp_path, monkeypatch, capsys, where):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=module.GIB))
    place = str(tmp_path) if where == "folder" else where
    for needed, taken, is_whole in [(0.5, 0, True), (0.6, 0, False), (0.5, 0.1, where == "folder")]:
        size = int(needed * module.GIB)
        with open_features(place, 0.0, size, int(taken * module.GIB)) as entries:
            assert (entries is None) == (where == "auto" and not is_whole)
        line = capsys.readouterr().out
        assert line.count("\n") == 1
        assert f"({needed} GiB)" in line
        if not is_whole:
            assert "leaves 0.5 for it" in line or "leaves 0.4 for it" in line
            assert ("--config.features.cache=FOLDER" in line) == (where == "auto")


def test_no_process_keeps_what_does_not_fit_on_another_machine(capsys):
    together = Together(agree=lambda fits: False)
    with open_features("auto", 0.0, 400, 0, together) as entries:
        assert entries is None
    assert "another machine has no room for it" in capsys.readouterr().out


def test_none_is_none_and_a_negative_limit_is_refused(tmp_path):
    with open_features("none", 0.0, 1) as entries:
        assert entries is None
    with pytest.raises(UserError, match=r"config\.features\.limit_gib=-1"), open_features("memory", -1.0, 1):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"config\.features\.cache=.*file"), open_features(str(tmp_path / "file"), 0, 1):
        pass
