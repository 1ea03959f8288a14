"""CAMUS: volumes in both formats the right way up, metadata in words, both releases."""

import numpy as np
import pytest

from medvlsm_jax.data.cards import CARDS
from medvlsm_jax.data.preparing.importers import find_items
from medvlsm_jax.data.preparing.importers.camus import find_published, read_extent, read_info, read_slice
from medvlsm_jax.data.preparing.splits import RecordLine
from medvlsm_jax.errors import UserError

pytest.importorskip("SimpleITK")

CAMUS = CARDS["camus"]


def test_a_structure_is_a_label_and_an_object(download, draw, capsys):
    items = {item.mask: item for item in find_items(download("camus"), CAMUS)}
    labels = draw.labels()
    for label, target in enumerate(("left ventricular cavity", "myocardium", "left atrium cavity"), start=1):
        item = items[f"mask_{label}/patient0002_4CH_ES_gt.png"]
        np.testing.assert_array_equal(item.read_mask(), labels == label)
        np.testing.assert_array_equal(item.read_image(), draw.pixels("trainingpatient0002_4CH_ES")[..., 0])
        assert (item.image, item.target, item.group) == ("patient0002_4CH_ES.png", target, "patient0002")
        assert item.attributes == {
            "view": "four-chamber",
            "cycle": "systole",
            "sex": "male",
            "age": "seventy-three-year-old",
            "quality": "poor",
        }
    assert "1 patients without labels are left out" in capsys.readouterr().out


def test_the_published_order_of_the_structures_is_that_of_the_labels(shared):
    import json

    for entry in json.loads((shared / "annotations" / "camus" / "test.json").read_text()):
        label = int(entry["mask_name"].removeprefix("mask_")[0])
        assert entry["prompts"]["p1"][0].lower().startswith(CAMUS.targets[label - 1])


@pytest.mark.parametrize("suffix", [".mhd", ".nii.gz", ".nii"])
def test_every_format_gives_the_same_pixels(tmp_path, draw, suffix):
    draw.write_patient(tmp_path / "database_nifti" / "patient0007", "F", 30, "Good", suffix)
    item = find_items(tmp_path, CAMUS)[0]
    np.testing.assert_array_equal(item.read_image(), draw.pixels("database_niftipatient0007_2CH_ED")[..., 0])
    np.testing.assert_array_equal(item.read_mask(), draw.labels() == 1)


@pytest.mark.parametrize("shape", ["plane", "slice"])
def test_nibabel_writes_columns_first(tmp_path, draw, shape):
    nibabel = pytest.importorskip("nibabel")
    values = draw.pixels("a")[..., 0]
    stored = values.T if shape == "plane" else values.T[..., None]
    nibabel.Nifti1Image(stored, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_slice(tmp_path / "a.nii.gz"), values)


@pytest.mark.parametrize("suffix", [".mhd", ".nii.gz"])
def test_height_and_width_in_mm_are_the_headers(tmp_path, draw, suffix):
    draw.write_patient(tmp_path / "database_nifti" / "patient0007", "F", 30, "Good", suffix)
    for item in find_items(tmp_path, CAMUS):
        height, width = item.read_image().shape
        assert item.read_extent() == pytest.approx((0.154 * height, 0.308 * width), rel=1e-6)


@pytest.mark.parametrize("shape", ["plane", "slice"])
def test_height_and_width_in_mm_of_what_nibabel_writes(tmp_path, draw, shape):
    nibabel = pytest.importorskip("nibabel")
    values = draw.pixels("a")[..., 0].T
    image = nibabel.Nifti1Image(values if shape == "plane" else values[..., None], np.diag([0.3, 0.2, 1, 1]))
    image.to_filename(tmp_path / "a.nii")
    height, width = read_slice(tmp_path / "a.nii").shape
    assert read_extent(tmp_path / "a.nii") == pytest.approx((0.2 * height, 0.3 * width), rel=1e-6)


def test_a_header_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.mhd").write_text("no header")
    with pytest.raises(UserError, match=r"a\.mhd cannot be read"):
        read_extent(tmp_path / "a.mhd")


def test_values_beyond_a_byte_are_stretched_and_others_kept(tmp_path):
    import SimpleITK

    for name, values, expected in [
        ("deep", np.array([[0, 1000], [500, 250]], np.int16), [[0, 255], [128, 64]]),
        ("float", np.array([[0, 10], [200.4, 255]], np.float32), [[0, 10], [200, 255]]),
    ]:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), tmp_path / f"{name}.mhd")
        np.testing.assert_array_equal(read_slice(tmp_path / f"{name}.mhd"), expected)


def test_the_splits_of_the_second_release(tmp_path, draw):
    for number in (1, 2, 3, 4):
        draw.write_patient(tmp_path / "database_nifti" / f"patient000{number}", "F", 30, "Good", ".nii.gz")
    (tmp_path / "database_split").mkdir()
    for name, patients in {
        "training": "patient0003\npatient0001\n",
        "validation": "patient0002",
        "testing": "",
    }.items():
        (tmp_path / "database_split" / f"subgroup_{name}.txt").write_text(patients)
    for raw in (tmp_path, tmp_path / "database_nifti"):
        splits = {item.group: item.split for item in find_items(raw, CAMUS)}
        assert splits == {"patient0001": "train", "patient0002": "val", "patient0003": "train", "patient0004": ""}


def test_labelled_test_patients_of_the_first_release_are_other_people(tmp_path, draw):
    draw.write_patient(tmp_path / "training" / "patient0001", "F", 56, "Good", ".mhd")
    draw.write_patient(tmp_path / "testing" / "patient0001", "M", 73, "Good", ".mhd")
    items = {item.mask: item for item in find_items(tmp_path, CAMUS)}
    first, second = (items[f"mask_1/{name}_2CH_ED_gt.png"] for name in ("patient0001", "test_patient0001"))
    assert (first.group, first.split) == ("patient0001", "")
    assert (second.group, second.split) == ("test_patient0001", "test")
    assert (first.read_image() != second.read_image()).any()


def test_a_patient_in_two_releases_is_refused(tmp_path, draw):
    for folder in ("training", "database_nifti"):
        draw.write_patient(tmp_path / folder / "patient0001", "F", 56, "Good", ".mhd")
    with pytest.raises(UserError, match=r"patient0001_2CH_ED\.png twice"):
        find_items(tmp_path, CAMUS)


@pytest.mark.parametrize(
    ("name", "words"), [("patient0001_2CH_ED.mhd", "has no image"), ("Info_2CH.cfg", "complete the download")]
)
def test_a_missing_file_is_named(download, name, words):
    raw = download("camus")
    (raw / "training" / "patient0001" / name).unlink()
    with pytest.raises(UserError, match=words) as error:
        find_items(raw, CAMUS)
    assert name.removesuffix(".mhd") in str(error.value)


def test_a_missing_raw_file_is_named(download):
    raw = download("camus")
    (raw / "training" / "patient0001" / "patient0001_2CH_ED_gt.raw").unlink()
    item = find_items(raw, CAMUS)[0]
    with pytest.raises(UserError, match=r"patient0001_2CH_ED_gt\.mhd cannot be read"):
        item.read_mask()


def test_metadata_of_another_form_are_named(tmp_path):
    for text in ("Sex: F\nAge: 30\n", "Sex: X\nAge: 30\nImageQuality: Good\n", "Sex: F\nAge: ?\nImageQuality: Good\n"):
        (tmp_path / "Info_2CH.cfg").write_text(text)
        with pytest.raises(UserError, match=r"Info_2CH\.cfg needs lines"):
            read_info(tmp_path / "Info_2CH.cfg")


def test_without_simpleitk_the_extra_is_named(download, monkeypatch):
    item = find_items(download("camus"), CAMUS)[0]
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(UserError, match=r"pip install 'medvlsm-jax\[medical\]'"):
        item.read_mask()


def entry(sentence: str, patient: str = "patient0001") -> dict:
    names = {"img_name": f"{patient}_2CH_ED.png", "mask_name": f"mask_1/{patient}_2CH_ED_gt.png"}
    return names | {"prompts": {"p6": [sentence, sentence]}}


def row(patient: str, age: str, sex: str) -> RecordLine:
    attributes = {"age": age, "sex": sex, "quality": "good"}
    image, mask = f"{patient}_2CH_ED.png", f"mask_1/{patient}_2CH_ED_gt.png"
    return RecordLine(image, mask, "", patient, "left ventricular cavity", attributes=attributes)


@pytest.mark.parametrize("held", [("test_patient0001",), ("patient0451",), ("patient0001",)])
def test_a_published_test_record_is_matched_by_what_it_says(held):
    record = entry("Left ventricular cavity … of a seventy-three-year-old male with good image quality.")
    names = ("test_patient0001", "patient0451", "patient0001")
    others = [row(name, "fifty-six-year-old", "female") for name in names]
    rows = [row(other.group, "seventy-three-year-old", "male") if other.group in held else other for other in others]
    index = {(row.image.removesuffix(".png"), row.mask.removesuffix(".png")): row for row in rows}
    found = find_published(record, "test", index)
    assert found is not None
    assert found.group == held[0]


def test_a_published_record_that_says_something_else_has_no_match():
    record = entry("Left ventricular cavity … of a seventy-three-year-old male with good image quality.")
    other = row("patient0001", "seventy-three-year-old", "female")
    index = {(other.image.removesuffix(".png"), other.mask.removesuffix(".png")): other}
    assert find_published(record, "val", index) is None
    assert find_published(record, "test", index) is None
