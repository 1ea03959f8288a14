"""CheXlocalize: polygons become masks at the size of the image, labels become words."""

import json
import re
import shutil

import numpy as np
import pytest

from medvlsm_jax.data.cards import CARDS
from medvlsm_jax.data.preparing.importers import find_items
from medvlsm_jax.data.preparing.prepare import prepare
from medvlsm_jax.errors import UserError

CARD = CARDS["chexlocalize"]


def items_of(raw) -> dict:
    return {item.mask: item for item in find_items(raw, CARD)}


def test_a_finding_is_an_object_with_its_polygons(download):
    items = items_of(download("chexlocalize"))
    item = items["patient64541_study1_view1_frontal_airspace_opacity.png"]
    expected = np.zeros((20, 24), bool)
    expected[4:13, 6:19] = True
    np.testing.assert_array_equal(item.read_mask(), expected)
    assert (item.image, item.target) == ("patient64541_study1_view1_frontal.jpg", "airspace opacity")
    assert (item.group, item.split) == ("patient64541", "")


def test_several_polygons_are_one_mask(download):
    mask = items_of(download("chexlocalize"))["patient64541_study1_view2_lateral_support_devices.png"].read_mask()
    assert mask[0, 0]
    assert mask[17, 21]
    assert not mask[10, 10]


@pytest.mark.parametrize("name", ["/../../../../escaped", "x/../../../../escaped", "..\\..\\escaped/..", "a\0b"])
def test_a_finding_whose_name_leads_out_of_the_folder_is_an_error_that_names_it(download, tmp_path, name):
    raw = download("chexlocalize")
    path = next(raw.rglob("gt_annotations_val.json"))
    content = json.loads(path.read_text())
    findings = next(iter(content.values()))
    findings[name] = next(value for key, value in findings.items() if key != "img_size" and value)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(repr(f"_{name.lower()}.png")[2:])) as error:
        prepare(CARD, raw, tmp_path / "data", workers=1)
    assert "outside of the dataset's folder" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_finding_without_polygons_is_no_object(download):
    assert not any("edema" in mask for mask in items_of(download("chexlocalize")))


def test_polygons_follow_the_size_that_the_image_has(download):
    mask = items_of(download("chexlocalize"))["patient64741_study1_view1_frontal_cardiomegaly.png"].read_mask()
    expected = np.zeros((20, 24), bool)
    expected[4:13, 6:19] = True  # drawn for an image of twice this size
    np.testing.assert_array_equal(mask, expected)


def test_words_are_all_positive_labels_in_their_order(download):
    items = items_of(download("chexlocalize"))
    frontal = items["patient64541_study1_view1_frontal_lung_lesion.png"].attributes
    assert frontal == {
        "view": "frontal",
        "pathology": "Enlarged Cardiomediastinum, Lung Opacity, Lung Lesion, Pneumonia",
    }
    lateral = items["patient64541_study1_view2_lateral_support_devices.png"].attributes
    assert lateral == {"view": "lateral", "pathology": "Support Devices"}
    no_finding = items["patient64542_study1_view1_frontal_enlarged_cardiomediastinum.png"].attributes
    assert no_finding["pathology"] == "Enlarged Cardiomediastinum"


def test_without_labels_the_findings_with_polygons_are_named(download):
    raw = download("chexlocalize")
    (raw / "CheXpert" / "val_labels.csv").unlink()
    items = items_of(raw)
    words = items["patient64541_study1_view1_frontal_lung_lesion.png"].attributes["pathology"]
    assert words == "Airspace Opacity, Lung Lesion"


def test_images_may_lie_flat_or_as_in_chexpert(download):
    raw = download("chexlocalize")
    expected = list(items_of(raw))
    (raw / "CheXpert" / "val").rename(raw / "CheXpert" / "valid")
    assert list(items_of(raw)) == expected
    for path in list((raw / "CheXpert").rglob("*.jpg")):
        shutil.move(path, raw / "CheXlocalize" / "_".join(path.parts[-3:]))
    assert list(items_of(raw)) == expected


def test_training_images_of_chexpert_are_not_looked_at(download, draw):
    raw = download("chexlocalize")
    draw.write_picture(raw / "CheXpert" / "train" / "patient64541" / "study1" / "view1_frontal.jpg", draw.pixels("x"))
    item = items_of(raw)["patient64541_study1_view1_frontal_lung_lesion.png"]
    assert "val" in item.read_image().parts


def test_a_missing_image_is_named(download):
    raw = download("chexlocalize")
    shutil.rmtree(raw / "CheXpert" / "val" / "patient64541")
    with pytest.raises(UserError, match="no image for: patient64541_study1_view1_frontal and 1 more"):
        find_items(raw, CARD)


@pytest.mark.parametrize(
    "content",
    ["[", "[]", '{"patient1_study1_view1_frontal": {}}', '{"other": {"img_size": [1, 2]}}', '{"p": {"img_size": 3}}'],
)
def test_json_of_another_form_is_named(download, content):
    raw = download("chexlocalize")
    (raw / "CheXlocalize" / "gt_annotations_val.json").write_text(content)
    with pytest.raises(UserError, match=r"gt_annotations_val\.json is not as downloaded"):
        find_items(raw, CARD)


def test_polygons_of_another_form_are_named(download):
    raw = download("chexlocalize")
    path = raw / "CheXlocalize" / "gt_annotations_val.json"
    content = json.loads(path.read_text())
    content["patient64542_study1_view1_frontal"]["Edema"] = [[[1.0], [2.0]]]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="patient64542_study1_view1_frontal: the polygons of Edema"):
        find_items(raw, CARD)
