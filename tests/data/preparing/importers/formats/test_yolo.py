"""YOLO's polygons, in shares of the image."""

import numpy as np
import pytest

from medvlsm_jax.errors import UserError


def line(number: int, left: int, top: int, right: int, bottom: int) -> str:
    """A rectangle of pixels, in an image of 24 x 20."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return f"{number} " + " ".join(f"{x / 24:.9f} {y / 20:.9f}" for x, y in corners)


@pytest.fixture
def tree(tmp_path, draw):
    """The layout of Ultralytics: images/PART beside labels/PART."""
    for part, count in (("train", 3), ("val", 1)):
        for i in range(count):
            draw.write(tmp_path / "raw" / "images" / part / f"{part}{i}.png", draw.picture(len(part) * 10 + i))
        (tmp_path / "raw" / "labels" / part).mkdir(parents=True)
    (tmp_path / "raw" / "labels" / "train" / "train0.txt").write_text(
        f"{line(0, 2, 3, 8, 9)}\n{line(1, 12, 4, 18, 7)}\n"
    )
    (tmp_path / "raw" / "labels" / "train" / "train1.txt").write_text(
        f"{line(1, 1, 1, 4, 4)}\n{line(1, 9, 9, 12, 15)}\n"
    )
    (tmp_path / "raw" / "labels" / "val" / "val0.txt").write_text(f"{line(0, 5, 5, 9, 9)}\n")
    data = tmp_path / "raw" / "data.yaml"
    data.write_text(
        "path: /home/me/dataset\ntrain: images/train\nval: images/val\nnames:\n  0: liver\n  1: left_lung\n"
    )
    return data


def test_polygons_become_masks_and_parts_splits(tree, draw, prepared, assert_masks, capsys):
    done = prepared()
    assert_masks(
        done.masks(),
        {
            ("train0.png", "liver"): draw.box(2, 3, 8, 9),
            ("train0.png", "left lung"): draw.box(12, 4, 18, 7),
            ("train1.png", "left lung"): draw.box(1, 1, 4, 4) | draw.box(9, 9, 12, 15),
            ("val0.png", "liver"): draw.box(5, 5, 9, 9),
        },
    )
    assert {row["image"]: row["split"] for row in done.rows} == {
        "train0.png": "train",
        "train1.png": "train",
        "val0.png": "val",
    }
    assert "1 of 4 images have no object and are left out" in capsys.readouterr().out


def test_each_polygon_may_be_a_record(tree, draw, prepared):
    done = prepared(per_object=True)
    np.testing.assert_array_equal(done.mask("left_lung/train1_2.png"), draw.box(9, 9, 12, 15))


@pytest.mark.parametrize(
    "data",
    [
        "train: ../train/images\nnames: [liver, left_lung]\n",  # of Roboflow
        "path: ../raw\ntrain: train/images\nnames: [liver, left_lung]\n",
        "train: [list.txt]\nnames: [liver, left_lung]\n",
    ],
)
def test_images_are_found_wherever_the_file_was_written(tmp_path, draw, prepared, data):
    draw.write(tmp_path / "raw" / "train" / "images" / "a.png", draw.picture(0))
    (tmp_path / "raw" / "train" / "labels").mkdir()
    (tmp_path / "raw" / "train" / "labels" / "a.txt").write_text(line(1, 2, 3, 8, 9))
    (tmp_path / "raw" / "list.txt").write_text("/home/me/dataset/train/images/a.png\n")
    (tmp_path / "raw" / "data.yaml").write_text(data)
    assert [(row["image"], row["target"]) for row in prepared().rows] == [("a.png", "left lung")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 1 is a box: these are labels to detect objects, not to segment them"),
        ("0 0.1 0.1 0.5 0.1", "line 1 is a box"),
        ("0 0.1 0.1 0.5", "line 1: a polygon has at least three corners X Y, not 3 numbers"),
        ("liver 0.1 0.1", "line 1: a line is a class and numbers"),
        ("0 0.1 0.1 0.5 nan 0.5 0.5", "line 1: a corner lies at"),
        ("7 0.1 0.1 0.5 0.1 0.5 0.5", "has the class 7, but data.yaml names 2 classes"),
    ],
)
def test_a_line_that_is_wrong_is_named(tree, tmp_path, prepared, text, message):
    (tmp_path / "raw" / "labels" / "val" / "val0.txt").write_text(text)
    with pytest.raises(UserError) as error:
        prepared()
    assert message in str(error.value)


def test_a_yaml_file_that_is_wrong_is_named(tree, prepared):
    for text, message in (
        ("names: 3\ntrain: images\n", "names must be a list of classes"),
        ("names: [a\n", "is no valid yaml"),
        ("names: [a]\ntrain: pictures\n", "names images in 'pictures', which is not in"),
        ("names: [a]\n", "names no images that are there"),
    ):
        tree.write_text(text)
        with pytest.raises(UserError, match=message):
            prepared()
