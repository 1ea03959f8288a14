"""A mask for each class, named by a csv; the names of files are in test_label_maps.py."""

import numpy as np
import pytest

from medvlsm_jax.data.cards import Card
from medvlsm_jax.errors import UserError


@pytest.fixture
def tree(tmp_path, draw):
    """Images and masks whose names tell nothing."""
    for i in range(3):
        draw.write(tmp_path / "raw" / "scans" / f"{i}.png", draw.picture(i))
        draw.write(tmp_path / "raw" / "truth" / f"m{i}.png", draw.box(i, i, i + 5, i + 6) * np.uint8(255))
    draw.write(tmp_path / "raw" / "truth" / "more.png", draw.box(15, 10, 20, 15) * np.uint8(255))
    return tmp_path / "raw" / "table.csv"


def test_a_csv_names_masks_classes_splits_patients_and_spacing(tree, prepared, draw, assert_masks):
    tree.write_text(
        "image,mask,class,split,group,spacing\n0.png,m0.png,liver,train,p1,0.5x0.25\n0.png,truth/more.png,liver,train,p1,\n"
        "scans/1.png,m1.png,lung,val,p2,\n2.png,m2.png,liver,test,p3,\n"
    )
    done = prepared()
    assert_masks(
        done.masks(),
        {
            ("0.png", "liver"): draw.box(0, 0, 5, 6) | draw.box(15, 10, 20, 15),
            ("1.png", "lung"): draw.box(1, 1, 6, 7),
            ("2.png", "liver"): draw.box(2, 2, 7, 8),
        },
    )
    assert [(row["split"], row["group"], row["spacing"]) for row in done.rows] == [
        ("train", "p1", "0.5x0.25"),
        ("val", "p2", ""),
        ("test", "p3", ""),
    ]
    entry = done.entries["liver/0.png"]
    assert (entry["group"], entry["spacing"]) == ("p1", [0.5, 0.25])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.png,lost.png,liver,,", "line 2: the mask 'lost.png' is not in"),
        ("0.png,m0.png,,,", "line 2: the class is missing"),
        ("0.png,m0.png,liver,dev,", "line 2: split 'dev' is none of train, val, test"),
        ("0.png,m0.png,liver,,0.5", "line 2: spacing '0.5' is not of the form 0.31x0.15"),
    ],
)
def test_a_line_that_is_wrong_is_named(tree, prepared, line, message):
    tree.write_text(f"image,mask,class,split,spacing\n{line}\n")
    with pytest.raises(UserError, match=message):
        prepared()


def test_masks_whose_names_tell_no_class_are_named(tmp_path, draw, prepared):
    for stem in ("a", "a_liver", "b_liver"):
        draw.write(tmp_path / "raw" / "masks" / f"{stem}.png", draw.box(0, 0, 5, 5) * np.uint8(255))
    draw.write(tmp_path / "raw" / "images" / "a.png", draw.picture(0))
    with pytest.raises(UserError, match=r"has no image for masks .* IMAGE_CLASS and CLASS/IMAGE\): b_liver"):
        prepared(Card("x", importer="class_masks"))
    (tmp_path / "raw" / "masks" / "b_liver.png").unlink()
    with pytest.raises(UserError, match=r"has masks whose names tell no class .*: a.png"):
        prepared(Card("x", importer="class_masks"))
