"""SA-Med2D-20M in its published layout."""

import json
import tomllib

import numpy as np
import pytest

from medvlsm_jax.errors import UserError

FIRST, SECOND = "ct_00--AbdomenCT1K--Case_00011--x_0040", "mr_t1--Brain_PTM--case_1--z_0007"
CLASSES = {"AbdomenCT1K": {"liver": "0001", "left_kidney": "0003"}, "Brain_PTM": {"brain": "0000"}}


@pytest.fixture
def tree(tmp_path, draw):
    """Two images, of two datasets; one class of the first has two instances."""
    raw = tmp_path / "raw" / "SAMed2Dv1"
    masks = {
        FIRST: {
            "0001_000": draw.box(1, 1, 5, 5),
            "0001_001": draw.box(9, 9, 12, 15),
            "0003_000": draw.box(15, 2, 20, 8),
        },
        SECOND: {"0000_000": draw.box(3, 3, 20, 17)},
    }
    for i, (name, objects) in enumerate(masks.items()):
        draw.write(raw / "images" / f"{name}.png", draw.picture(i))
        for code, mask in objects.items():
            draw.write(raw / "masks" / f"{name}--{code}.png", mask * np.uint8(255))
    named = {f"images/{name}.png": [f"masks/{name}--{code}.png" for code in codes] for name, codes in masks.items()}
    (raw / "SAMed2D_v1.json").write_text(json.dumps(named))
    (raw / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(CLASSES))
    return raw, masks


def test_instances_of_a_class_are_one_record_of_their_case(tree, prepared, assert_masks):
    _, masks = tree
    done = prepared()
    assert_masks(
        done.masks(),
        {
            (f"{FIRST}.png", "liver"): masks[FIRST]["0001_000"] | masks[FIRST]["0001_001"],
            (f"{FIRST}.png", "left kidney"): masks[FIRST]["0003_000"],
            (f"{SECOND}.png", "brain"): masks[SECOND]["0000_000"],
        },
    )
    assert {row["group"] for row in done.rows} == {"AbdomenCT1K Case_00011", "Brain_PTM case_1"}
    assert tomllib.loads(done.card.read_text())["targets"] == ["liver", "left kidney", "brain"]


def test_each_instance_may_be_a_record(tree, prepared):
    _, masks = tree
    done = prepared(per_object=True)
    np.testing.assert_array_equal(done.mask(f"liver/{FIRST}_2.png"), masks[FIRST]["0001_001"])


def test_what_is_not_as_downloaded_is_named(tree, prepared):
    raw, _ = tree
    (raw / "masks" / f"{SECOND}--0000_000.png").unlink()
    with pytest.raises(UserError, match="names files that are not in"):
        prepared()
    (raw / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps({"Brain_PTM": {"brain": "0000"}}))
    with pytest.raises(UserError, match="has no class 0001 of the dataset AbdomenCT1K"):
        prepared()
