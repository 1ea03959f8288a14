"""Label maps, and the same objects as a mask for each class."""

import json

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.cards import Card, read_card
from medvlsm_jax.data.preparing.importers.formats.label_maps import parse_labels
from medvlsm_jax.errors import UserError

NAMES = {1: "liver", 2: "left lung"}
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]


@pytest.fixture
def maps(tmp_path, draw):
    """Images, and for each a map of two classes; the last lacks one of them, one has none."""
    (tmp_path / "raw").mkdir()
    found = {}
    for i in range(4):
        values = 1 * draw.box(2, 2, 6 + i, 8) + 2 * draw.box(12, 4, 20, 10 + i)
        values = values * {2: values == 1, 3: False}.get(i, True)
        found[f"{i}.png"] = values.astype(np.uint8)
        draw.write(tmp_path / "raw" / "images" / f"{i}.png", draw.picture(i))
    return found


def expected(maps: dict) -> dict:
    return {
        (image, NAMES[value]): values == value
        for image, values in maps.items()
        for value in NAMES
        if (values == value).any()
    }


def error_of(prepared, *args, **options) -> str:
    with pytest.raises(UserError) as error:
        prepared(*args, **options)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("kind", ["L", "P", "I;16", "RGB grey"])
def test_values_become_classes_by_the_names_beside_them(maps, tmp_path, draw, prepared, assert_masks, kind, capsys):
    for name, values in maps.items():
        image = Image.fromarray(values.astype(np.uint16) if kind == "I;16" else values)
        if kind == "P":
            image.putpalette(PALETTE)
        (tmp_path / "raw" / "masks").mkdir(exist_ok=True)
        (image.convert("RGB") if kind == "RGB grey" else image).save(tmp_path / "raw" / "masks" / name)
    (tmp_path / "raw" / "classes.txt").write_text("background\nliver\nleft_lung\n")
    done = prepared(Card("organs", importer="label_maps"))
    assert_masks(done.masks(), expected(maps))
    assert "1 of 4 images have no object and are left out" in capsys.readouterr().out


def test_colours_become_classes_by_the_names_in_a_card(maps, tmp_path, draw, prepared, assert_masks):
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], np.uint8)
    for name, values in maps.items():
        draw.write(tmp_path / "raw" / "masks" / name, colours[values])
    card = tmp_path / "mine.toml"
    card.write_text('name = "mine"\nlabels = {"#ff0000" = "liver", "#0080ff" = "left lung"}\n')
    done = prepared(read_card(card))
    assert_masks(done.masks(), expected(maps))
    assert read_card(card).targets == ("liver", "left lung")


def test_label_maps_and_a_mask_for_each_class_give_the_same_records(maps, tmp_path, draw, prepared):
    for name, values in maps.items():
        draw.write(tmp_path / "raw" / "masks" / name, values)
        draw.write(tmp_path / "named" / "images" / name, draw.picture(int(name[0])))
        draw.write(tmp_path / "folders" / "images" / name, draw.picture(int(name[0])))
        for value in np.unique(values[values > 0]):
            mask, word = (values == value) * np.uint8(255), NAMES[value].replace(" ", "_")
            draw.write(tmp_path / "named" / "masks" / f"{name[:-4]}_{word}.png", mask)
            draw.write(tmp_path / "folders" / "masks" / word / name, mask)
    (tmp_path / "raw" / "labels.txt").write_text("1 liver\n2 left_lung\n")
    done = [prepared(Card(name), tmp_path / name) for name in ("raw", "named", "folders")]
    for other in done[1:]:
        assert other.rows == done[0].rows
        assert json.dumps(other.entries) == json.dumps(done[0].entries)
        for row in other.rows:
            np.testing.assert_array_equal(other.mask(row["mask"]), done[0].mask(row["mask"]))


def test_a_value_without_a_name_is_no_background(maps, tmp_path, draw, prepared):
    for name, values in maps.items():
        draw.write(tmp_path / "raw" / "masks" / name, np.where(values == 0, 255, values).astype(np.uint8))
    card = Card("mine", labels={"1": "liver", "2": "left lung"}, targets=("liver", "left lung"))
    assert 'has the label 255, which has no name: add it to labels in the card, {255 = "CLASS"}, or {255 = ""}' in (
        error_of(prepared, card)
    )
    done = prepared(Card("mine", labels={**card.labels, "255": ""}, targets=card.targets))
    assert len(done.rows) == 5  # the unfinished folder of the card before is taken over


def test_maps_without_names_and_lossy_ones_are_named(maps, tmp_path, draw, prepared):
    for name, values in maps.items():
        draw.write(tmp_path / "raw" / "masks" / name, values)
    assert 'write in the card what they are, labels = {1 = "CLASS"}' in error_of(
        prepared, Card("x", targets=("wound",))
    )
    assert "is not known: write them in the card organs, labels" in error_of(
        prepared, Card("organs", importer="label_maps")
    )
    for name, values in maps.items():
        (tmp_path / "raw" / "masks" / name).unlink()
        draw.write(tmp_path / "raw" / "masks" / f"{name[:-4]}.jpg", values)
    assert "is in a lossy format, which changes labels" in error_of(prepared, Card("y", labels={"1": "liver"}))


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        (["_background_", "liver", "lung"], {"0": "", "1": "liver", "2": "lung"}),
        (["liver", "lung"], {"1": "liver", "2": "lung"}),
        (["5 liver", "7: left lung", "09,bone"], {"5": "liver", "7": "left lung", "9": "bone"}),
        (
            ["# label:color_rgb:parts:actions", "background:0,0,0::", "liver:255,0,16::"],
            {"#000000": "", "#ff0010": "liver"},
        ),
    ],
)
def test_a_file_of_labels(tmp_path, lines, labels):
    assert parse_labels(lines, tmp_path) == labels


@pytest.mark.parametrize("lines", [[], ["background"], ["1 liver", "1 lung"]])
def test_a_file_of_labels_that_names_none_or_one_twice(tmp_path, lines):
    with pytest.raises(UserError, match=r"names no classes|names the label 1 twice"):
        parse_labels(lines, tmp_path)
