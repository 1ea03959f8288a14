"""COCO files, written by pycocotools; masks as pycocotools itself gives them."""

import json
import tomllib

import numpy as np
import pytest

from medvlsm_jax.data.cards import Card
from medvlsm_jax.errors import UserError

coco_mask = pytest.importorskip("pycocotools.mask")
COCO = pytest.importorskip("pycocotools.coco").COCO

POLYGONS = [[2.5, 2, 12, 3.5, 9, 11], [14, 12, 22, 12, 22, 18.5, 14, 18]]  # one object in two parts
CATEGORIES = [{"id": 7, "name": "liver"}, {"id": 9, "name": "left_lung", "supercategory": "organ"}]


def packed(mask: np.ndarray) -> dict:
    """COCO's run lengths as a text."""
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def counted(mask: np.ndarray) -> dict:
    """COCO's run lengths as numbers, beginning with zeros, column after column."""
    values = np.concatenate([[0], mask.T.ravel(), [2]])
    ends = np.flatnonzero(np.diff(values)) - 0
    counts = np.diff(np.concatenate([[0], ends]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def annotation(number: int, image: int, category: int, segmentation, **others) -> dict:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": 0,
    } | others


@pytest.fixture
def tree(tmp_path, draw):
    """Three images with annotations of each kind."""
    for i in range(3):
        draw.write(tmp_path / "raw" / "images" / f"{i}.png", draw.picture(i))
    annotations = [
        annotation(1, 0, 7, POLYGONS),
        annotation(2, 0, 7, packed(draw.box(0, 15, 6, 19))),
        annotation(3, 0, 9, counted(draw.box(3, 3, 9, 9))),
        annotation(4, 1, 9, packed(draw.box(5, 5, 9, 9))),
        annotation(5, 1, 7, counted(draw.box(0, 0, 23, 19)), iscrowd=1),
        annotation(6, 1, 7, []),
        annotation(7, 2, 7, [[1, 1, 8, 1, 8, 8]]),
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": 24, "height": 20} for i in range(3)]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES}

    def save(name: str = "instances_train.json", **others) -> None:
        (tmp_path / "raw" / name).write_text(json.dumps(content | others))

    save()
    save.content = content
    return save


def error_of(prepared, *args, **options) -> str:
    with pytest.raises(UserError) as error:
        prepared(*args, **options)
    assert str(error.value).isprintable()
    return str(error.value)


def test_regions_of_a_class_are_one_record_as_pycocotools_draws_them(tree, tmp_path, prepared, assert_masks, capsys):
    done = prepared()
    original, expected = COCO(tmp_path / "raw" / "instances_train.json"), {}
    for number in (1, 2, 3, 4, 7):
        entry = original.anns[number]
        key = (f"{entry['image_id']}.png", {7: "liver", 9: "left lung"}[entry["category_id"]])
        mask = original.annToMask(entry) > 0
        expected[key] = expected[key] | mask if key in expected else mask
    assert_masks(done.masks(), expected)
    said = capsys.readouterr().out
    assert "is read as coco, by images, annotations, categories in" in said
    assert "1 annotations that are of crowds are left out" in said
    assert "1 annotations that have a box alone are left out" in said
    assert tomllib.loads(done.card.read_text())["targets"] == ["liver", "left lung"]
    assert done.entries["left_lung/1.png"]["prompts"]["p1"] == "left lung"


def test_each_annotation_may_be_a_record(tree, prepared, draw):
    done = prepared(per_object=True)
    assert sorted(row["mask"] for row in done.rows if row["image"] == "0.png") == [
        "left_lung/0_1.png",
        "liver/0_1.png",
        "liver/0_2.png",
    ]
    np.testing.assert_array_equal(done.mask("liver/0_2.png"), draw.box(0, 15, 6, 19))


def test_several_files_are_splits_and_images_of_one_name_are_told_apart(tree, tmp_path, prepared, draw):
    (tmp_path / "raw" / "instances_train.json").unlink()
    for part in ("train2017", "val2017"):
        draw.write(tmp_path / "raw" / part / "0.png", draw.picture(len(part)))
        image = {"id": 0, "file_name": "0.png", "width": 24, "height": 20}
        (tmp_path / "raw" / "annotations").mkdir(exist_ok=True)
        tree(f"annotations/instances_{part}.json", images=[image], annotations=[annotation(1, 0, 7, POLYGONS)])
    done = prepared()
    assert {(row["image"], row["split"]) for row in done.rows} == {
        ("train2017/0.png", "train"),
        ("val2017/0.png", "val"),
    }


def test_the_targets_of_a_card_choose_among_the_classes(tree, prepared, capsys):
    done = prepared(Card("mine", targets=("Left lung",)))
    assert {row["target"] for row in done.rows} == {"Left lung"}
    assert "1 classes that the card's targets do not name are left out: liver" in capsys.readouterr().out
    assert "its targets are bone, but the classes of the download are liver, left lung" in error_of(
        prepared, Card("other", targets=("bone",))
    )


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 1e9, 0, 5, 5]], "annotation 1: a polygon lies outside of the 24x20 image"),
        ([[0, 0, "x", 0, 5, 5]], "annotation 1: a polygon is a list of numbers"),
        ({"size": [20, 24], "counts": [5, 5]}, "annotation 1: its run lengths fill 10 pixels of 480"),
        ({"size": [20, 24], "counts": "P1" * 50}, "annotation 1: its run lengths"),
        ({"size": [24, 20], "counts": [480]}, "annotation 1: its run lengths are of size [24, 20]"),
    ],
)
def test_a_region_that_does_not_fit_is_named(tree, prepared, segmentation, message):
    tree(annotations=[annotation(1, 0, 7, segmentation)])
    assert message in error_of(prepared)


def test_what_does_not_belong_together_is_named(tree, tmp_path, prepared):
    tree(annotations=[annotation(1, 5, 7, POLYGONS)])
    assert "annotations are of the image 5, which it does not list" in error_of(prepared)
    tree(
        images=[{"id": 0, "file_name": "0.png", "width": 20, "height": 24}], annotations=[annotation(1, 0, 7, POLYGONS)]
    )
    assert "0.png is 24x20, but" in error_of(prepared)
    tree(annotations=[annotation(1, 0, 7, [])])
    assert "boxes alone are no segmentation" in error_of(prepared)
    tree()
    (tmp_path / "raw" / "images" / "2.png").unlink()
    assert "has annotations of images that are not there: 2.png" in error_of(prepared)
