"""Splits that share no patient, no sequence and no image, and what is said about those that do."""

import dataclasses
from collections import Counter

import pytest

from medvlsm_jax.data.preparing.splits import Leak, RecordLine, assign_splits, drop_leaks, find_leaks

IMAGES = [f"{i}.png" for i in range(100)]


def row(image: str, split: str, group: str = "", digest: str = "") -> RecordLine:
    return RecordLine(image, image, split, group or image, "polyp", digest=digest or image)


def test_single_images_give_the_exact_counts():
    splits = assign_splits(IMAGES, {"train": 81, "val": 8, "test": 11}, seed=42)
    assert Counter(splits.values()) == {"train": 81, "val": 8, "test": 11}
    assert list(splits) == IMAGES


def test_another_number_of_images_has_the_same_shares():
    splits = assign_splits(IMAGES, {"train": 800, "val": 100, "test": 100}, seed=42)
    assert Counter(splits.values()) == {"train": 80, "val": 10, "test": 10}
    assert Counter(assign_splits(IMAGES, {}, seed=42).values()) == {"train": 80, "val": 10, "test": 10}


def test_a_split_without_a_count_stays_empty():
    assert set(assign_splits(IMAGES, {"train": 0, "val": 0, "test": 60}, seed=42).values()) == {"test"}
    assert Counter(assign_splits(IMAGES, {"train": 5, "val": 0, "test": 95}, seed=42).values()) == {
        "train": 5,
        "test": 95,
    }


def test_splits_depend_on_the_seed_and_not_on_the_order():
    splits = assign_splits(IMAGES, {}, seed=1)
    assert assign_splits(IMAGES[::-1], {}, seed=1) == splits
    assert assign_splits(IMAGES, {}, seed=2) != splits


def test_a_patient_is_in_one_split_and_its_records_count():
    groups = [f"patient{i}" for i in range(50) for _ in range(12)]
    splits = assign_splits(groups, {"train": 480, "val": 60, "test": 60}, seed=42)
    assert Counter(splits.values()) == {"train": 40, "val": 5, "test": 5}


def test_patients_of_many_records_are_in_every_split():
    sizes = [1 + i % 9 for i in range(200)]
    groups = [f"patient{i}" for i, size in enumerate(sizes) for _ in range(size)]
    splits = assign_splits(groups, {"train": 600, "val": 200, "test": 200}, seed=42)
    records = Counter(splits[group] for group in groups)
    for split, share in {"train": 0.6, "val": 0.2, "test": 0.2}.items():
        assert records[split] == pytest.approx(share * len(groups), abs=9)
    means = [
        sum(sizes[int(g[7:])] for g, s in splits.items() if s == split) / Counter(splits.values())[split]
        for split in ("train", "test")
    ]
    assert means[0] == pytest.approx(means[1], rel=0.3)


def test_identical_images_stay_together():
    digests = ["same" if i in (3, 40, 77) else str(i) for i in range(100)]
    for seed in range(20):
        splits = assign_splits(IMAGES, {}, seed, images=digests)
        assert len({splits[IMAGES[i]] for i in (3, 40, 77)}) == 1


def test_identical_images_tie_patients_together():
    groups = ["a", "a", "b", "b", "c", *IMAGES]
    digests = ["1", "2", "2", "3", "3", *IMAGES]
    for seed in range(20):
        splits = assign_splits(groups, {}, seed, images=digests)
        assert splits["a"] == splits["b"] == splits["c"]


def test_a_split_that_the_download_fixes_takes_no_others():
    fixed = ["test" if i < 30 else "" for i in range(100)]
    splits = assign_splits(IMAGES, {"train": 63, "val": 7, "test": 30}, seed=42, fixed=fixed)
    assert [splits[image] for image in IMAGES[:30]] == ["test"] * 30
    assert Counter(splits[image] for image in IMAGES[30:]) == {"train": 63, "val": 7}


def test_a_copy_of_a_fixed_test_image_follows_it():
    fixed = ["test" if i < 30 else "" for i in range(100)]
    digests = ["same" if i in (3, 40) else str(i) for i in range(100)]
    assert assign_splits(IMAGES, {}, seed=42, fixed=fixed, images=digests)["40.png"] == "test"


def test_splits_that_are_apart_have_no_leaks():
    rows = [row(f"{i}.png", split, f"patient{split}") for i, split in enumerate(("train", "val", "test") * 3)]
    assert find_leaks([*rows, rows[0], dataclasses.replace(rows[0], split="")]) == []


def test_one_image_in_two_splits_is_found():
    rows = [row("a.png", "train", digest="x"), row("b.png", "test", digest="x"), row("c.png", "val")]
    assert find_leaks(rows) == [Leak("one image", {"train": ("a.png",), "test": ("b.png",)})]
    assert str(find_leaks(rows)[0]) == "one image is in train (a.png) and test (b.png)"
    assert len(find_leaks([row("a.png", "train"), row("a.png", "val")])) == 1


def test_one_patient_in_two_splits_is_found():
    rows = [row("a.png", "train", "patient1"), row("b.png", "val", "patient1"), row("c.png", "val", "patient2")]
    assert find_leaks(rows) == [Leak("patient1", {"train": ("a.png",), "val": ("b.png",)})]
    assert not find_leaks(rows)[0].is_sequence


def test_what_is_measured_on_is_kept():
    rows = [
        row("a.png", "train", digest="x"),
        row("b.png", "val", digest="x"),
        row("c.png", "test", digest="x"),
        row("d.png", "train", "patient1"),
        row("e.png", "val", "patient1"),
        row("f.png", "train"),
    ]
    kept = drop_leaks(rows, find_leaks(rows))
    assert [row.image for row in kept] == ["c.png", "e.png", "f.png"]
    assert find_leaks(kept) == []


def test_a_published_image_in_two_splits_stays_in_the_later_one():
    rows = [row("a.png", "train"), row("a.png", "train"), row("a.png", "test"), row("b.png", "train")]
    assert [(row.image, row.split) for row in drop_leaks(rows, find_leaks(rows))] == [
        ("a.png", "test"),
        ("b.png", "train"),
    ]
