"""One patient in two splits is found, before a run too, and it is the records that are not to be measured on."""

import dataclasses
import json
from pathlib import Path

import pytest
from checked_records import make_record

from medvlsm_jax.data.apart import find_shared_groups, groups_of_later_splits, named_groups
from medvlsm_jax.data.integrity import inspect_dataset


def grouped(folder: Path, *groups: str) -> list:
    return [dataclasses.replace(make_record(folder, i), group=group) for i, group in enumerate(groups)]


def test_the_record_before_the_last_split_is_at_fault(tmp_path):
    splits = {
        "train": grouped(tmp_path, "ann", "bob", ""),
        "val": grouped(tmp_path, "bob", ""),
        "test": grouped(tmp_path, "ann", ""),
    }
    groups = {split: named_groups(records) for split, records in splits.items()}
    found = {split: list(find_shared_groups(records, split, groups)) for split, records in splits.items()}
    assert [(finding.level, finding.indices) for finding in found["train"]] == [("error", (0,)), ("error", (1,))]
    assert "is of ann, who is in the split test as well (0.png)" in found["train"][0].text
    assert found["val"] == found["test"] == []


def test_frames_of_a_sequence_are_a_warning(tmp_path):
    train, test = grouped(tmp_path, "sequence 3"), grouped(tmp_path, "sequence 3")
    (finding,) = find_shared_groups(train, "train", {"test": named_groups(test)})
    assert finding.level == "warning"


def test_patients_of_two_datasets_may_have_one_name(tmp_path):
    others = [dataclasses.replace(make_record(tmp_path, 0, "other"), group="1")]
    assert list(find_shared_groups(grouped(tmp_path, "1"), "train", {"test": named_groups(others)})) == []


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """A dataset with a patient in train and test."""
    (tmp_path / "mine" / "anns").mkdir(parents=True)
    for split, numbers in {"train": (0, 1), "val": (2,), "test": (3,)}.items():
        entries = []
        for i in numbers:
            record = make_record(tmp_path, i)
            group = "patient 1" if i in (0, 3) else f"patient {i + 4}"
            names = {"img_name": record.image.name, "mask_name": record.mask.name}
            entries.append(names | {"prompts": {"p0": "", "p1": "polyp"}, "group": group})
        (tmp_path / "mine" / "anns" / f"{split}.json").write_text(json.dumps(entries))
    return tmp_path


def test_a_dataset_is_looked_through_for_patients(data_dir):
    findings, _ = inspect_dataset(data_dir, "mine")
    (error,) = [finding for finding in findings if finding.level == "error"]
    assert error.file.endswith("0.png")
    assert "patient 1" in error.text


def test_the_groups_of_other_splits_are_read_without_their_images(data_dir):
    for image in (data_dir / "mine" / "images").iterdir():
        image.unlink()
    groups = groups_of_later_splits(data_dir, "mine", "train")
    assert groups == {"val": {("mine", "patient 6"): "2.png"}, "test": {("mine", "patient 1"): "3.png"}}
