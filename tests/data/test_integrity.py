"""Each thing that can be wrong with images, masks and prompts is found and named."""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from checked_records import cut, make_record, noise, only, with_image, with_mask
from PIL import Image, ImageFile

from medvlsm_jax.data import facts, integrity
from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.images import load_pair
from medvlsm_jax.data.integrity import inspect_records, is_colondb_copy, verify
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.errors import UserError


def assert_error(record: Record, file: Path, text: str) -> None:
    """The one finding is an error of that file, and reading the pair says the same."""
    finding = only(inspect_records([record]))
    assert (finding.level, finding.dataset, finding.file, finding.indices) == ("error", "mine", str(file), (0,))
    assert text in finding.text
    with pytest.raises(UserError) as error:
        load_pair(record.image, record.mask, 16)
    assert str(error.value) == str(finding)


def assert_warning(record: Record, file: Path, text: str) -> None:
    """The one finding is a warning of that file, and the pair can be read."""
    finding = only(inspect_records([record]))
    assert (finding.level, finding.dataset, finding.file, finding.indices) == ("warning", "mine", str(file), (0,))
    assert text in finding.text
    assert load_pair(record.image, record.mask, 16)[0].shape == (16, 16, 3)


# --- Files that cannot be used ----------------------------------------------------------------------------------------


def test_good_records_have_no_findings(records):
    assert inspect_records(records, "p1") == []
    assert verify(records, "p1") == records


def test_no_records_have_no_findings():
    assert inspect_records([], "p1") == []
    assert verify([], "p1") == []


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image(record, suffix):
    record = with_image(record, Image.fromarray(noise(20, 30, 3)), suffix)
    cut(record.image)
    assert_error(record, record.image, "cannot be decoded as an image")


def test_a_truncated_mask(record):
    cut(record.mask)
    assert_error(record, record.mask, "cannot be decoded as an image")


@pytest.mark.parametrize("content", ["", "version https://git-lfs.github.com/spec/v1"], ids=["empty", "text"])
def test_a_file_that_is_no_image(record, content):
    record.image.write_text(content)
    assert_error(record, record.image, "cannot be decoded as an image (in no format that Pillow reads)")


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_missing_file(record, kind):
    path = getattr(record, kind)
    path.unlink()
    finding = only(inspect_records([record]))
    assert (finding.level, finding.file) == ("error", str(path))
    assert finding.text == "is missing, but an annotation file names it: restore it or drop its record"


def test_a_folder_and_a_loop_of_links_are_no_images(record, tmp_path):
    for path in (tmp_path / "folder.png", tmp_path / "loop.png"):
        path.mkdir() if path.stem == "folder" else path.symlink_to(path)
        spoilt = dataclasses.replace(record, image=path)
        assert_error(spoilt, path, "cannot be decoded as an image")


def test_an_image_of_400_million_pixels_is_never_decoded(record, monkeypatch):
    load = ImageFile.ImageFile.load

    def load_small(image):
        assert image.width < 20_000, "decoded"
        return load(image)

    Image.new("1", (20_000, 20_000)).save(record.image)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load_small)
    assert_error(record, record.image, "is too large: shrink or remove it (Image size (400000000 pixels)")


def test_a_header_that_claims_400_million_pixels(record):
    content = bytearray(record.image.read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")  # the header's checksum
    record.image.write_bytes(content)
    assert_error(record, record.image, "is too large: shrink or remove it (Image size (400000000 pixels)")


@pytest.mark.parametrize("size", [(1, 1), (7, 30), (30, 7)])
def test_an_image_with_next_to_nothing_in_it(record, size):
    record = with_image(record, Image.new("RGB", size))
    finding = only(inspect_records([record]))
    assert str(finding) == (
        f"{record.image} is {size[0]}x{size[1]} pixels, but at least 8x8 are needed: restore or remove it"
    )
    with pytest.raises(UserError) as error:
        load_pair(record.image, record.mask, 16)
    assert str(error.value) == str(finding)


def test_an_image_of_8_by_8_pixels_is_large_enough(record):
    record = with_mask(with_image(record, Image.new("RGB", (8, 8))), Image.new("L", (8, 8)))
    assert inspect_records([record]) == []
    assert load_pair(record.image, record.mask, 16)[0].shape == (16, 16, 3)


def test_a_mask_of_another_size(record):
    record = with_mask(record, Image.new("L", (20, 30)))
    assert_error(record, record.mask, f"is 20x30 but its image {record.image} is 30x20: they must agree")


def test_a_mask_of_0_and_1(record):
    record = with_mask(record, Image.fromarray(noise(20, 30) // 128))
    assert_error(record, record.mask, "holds the values 0 and 1, but masks are 0 and 255: multiply it by 255")


def test_an_error_of_a_shared_image_concerns_all_its_records(tmp_path):
    records = [make_record(tmp_path, i) for i in range(3)]
    records[2] = dataclasses.replace(records[2], image=records[0].image)
    cut(records[0].image)
    assert only(inspect_records(records)).indices == (0, 2)


# --- Files that are converted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix", "text"),
    [
        ("CMYK", ".jpg", "is CMYK: it is converted to RGB"),
        ("P", ".png", "has a palette"),
        ("RGBA", ".png", "has an alpha channel: it is dropped"),
        ("LA", ".png", "has an alpha channel: it is dropped"),
        ("I;16", ".png", "stretched from its own minimum and maximum to 0..255"),
        ("I", ".tif", "stretched from its own minimum and maximum to 0..255"),
        ("F", ".tif", "stretched from its own minimum and maximum to 0..255"),
    ],
)
def test_an_image_of_another_mode(record, mode, suffix, text):
    record = with_image(record, Image.fromarray(noise(20, 30)).convert(mode), suffix)
    assert_warning(record, record.image, text)


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_grey_and_one_bit_images_need_no_word(record, mode):
    assert inspect_records([with_image(record, Image.fromarray(noise(20, 30)).convert(mode))]) == []


def test_a_palette_with_transparency_gives_no_warning_of_pillow(record):
    image = Image.fromarray(noise(20, 30)).quantize(8)
    record = with_image(record, image, transparency=bytes(range(8)))
    assert_warning(record, record.image, "has a palette")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_that_a_camera_turned(record, suffix):
    exif = Image.Exif()
    exif[0x0112] = 3
    record = with_image(record, Image.fromarray(noise(20, 30, 3)), suffix, exif=exif)
    assert_warning(record, record.image, "is turned upright by its EXIF orientation: check that image and mask lie")


def test_an_upright_image_that_says_so_needs_no_word(record):
    exif = Image.Exif()
    exif[0x0112] = 1
    assert inspect_records([with_image(record, Image.fromarray(noise(20, 30, 3)), ".jpg", exif=exif)]) == []


@pytest.mark.parametrize("value", [0, 255, 200])
@pytest.mark.parametrize("mode", ["L", "1", "I;16"])
def test_a_mask_of_one_value_is_fine(record, value, mode):
    mask = Image.new("L", (30, 20), value)
    mask = Image.fromarray(np.asarray(mask, np.uint16) * 257) if mode == "I;16" else mask.convert(mode)
    assert inspect_records([with_mask(record, mask)]) == []


def test_a_deep_mask_of_two_values_is_fine(record):
    mask = Image.fromarray((noise(20, 30) // 128).astype(np.uint16) * 65535)
    assert inspect_records([with_mask(record, mask)]) == []


@pytest.mark.parametrize("low", [0, 255], ids=["soft edges", "two without 0"])
def test_a_mask_with_grey_edges(record, low):
    mask = np.array((low, 255), np.uint8)[noise(20, 30) // 128]
    mask[0] = 90 if low else np.arange(60, 90)
    record = with_mask(record, Image.fromarray(mask))
    assert_warning(record, record.mask, "holds grey values: what is above 127 counts")


def test_a_mask_of_few_values_may_be_a_label_map(record):
    mask = noise(20, 30) // 64 * 80
    record = with_mask(record, Image.fromarray(mask))
    assert_warning(record, record.mask, "holds more than two values, as a label map")


@pytest.mark.parametrize(
    ("mode", "text"), [("alpha", "its object in its alpha channel"), ("green", "in another channel than the first")]
)
def test_a_mask_with_its_object_where_nobody_looks_is_an_error(record, mode, text):
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[5:9, 5:9, 3 if mode == "alpha" else 1] = 255
    image = Image.fromarray(pixels if mode == "alpha" else pixels[..., :3])
    findings = inspect_records([with_mask(record, image)])
    assert [finding.level for finding in findings] == ["error", "warning"]  # and it is of several channels
    assert text in findings[0].text


def test_an_image_that_is_all_alpha_channel_is_an_error(record):
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[..., 3] = noise(20, 30)
    finding = only(inspect_records([with_image(record, Image.fromarray(pixels))]))
    assert finding.level == "error"
    assert "shows what it shows in its alpha channel" in finding.text


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_of_labels_reads_as_empty(record, dtype):
    record = with_mask(record, Image.fromarray((noise(20, 30) // 64).astype(dtype)))
    assert_warning(record, record.mask, "none above 127: it is read as empty")
    assert not load_pair(record.image, record.mask, 16)[1].any()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_mask_of_several_channels(record, mode):
    record = with_mask(record, Image.open(record.mask).convert(mode))
    assert_warning(record, record.mask, f"is of mode {mode}, not of a single channel: its first channel counts")


# --- Records ----------------------------------------------------------------------------------------------------------


def test_records_without_the_prompt_are_one_finding_of_their_dataset(tmp_path):
    records = [make_record(tmp_path, i) for i in range(3)]
    records += [make_record(tmp_path, i, prompts={"p0": ""}) for i in range(3, 5)]
    records += [make_record(tmp_path, 0, "other", prompts={})]
    first, second = inspect_records(records, "p1")
    assert (first.level, first.dataset, first.file, first.indices) == ("error", "mine", "", (3, 4))
    assert (second.dataset, second.indices) == ("other", (5,))
    assert str(first).startswith("mine: the annotation of 3.png has no prompt 'p1'; it has p0")
    assert str(first).endswith("(2 of 5 records)")


@pytest.mark.parametrize("prompt", ["p0", "random", "text:a polyp"])
def test_some_prompts_every_record_has(tmp_path, prompt):
    assert inspect_records([make_record(tmp_path, prompts={})], prompt) == []


def test_a_dataset_that_fails_as_a_whole_fails_in_all_its_records(records, monkeypatch):
    def check(records, prompt):
        if len(records) > 1:
            raise UserError("mine: no record has a colour")

    monkeypatch.setattr(integrity, "check_prompt", check)
    assert only(inspect_records(records, "attributes:color")).indices == (0, 1, 2, 3)


def test_a_record_that_is_listed_twice(records):
    finding = only(inspect_records([*records, records[1]]))
    assert (finding.level, finding.file, finding.indices) == ("warning", str(records[1].image), (4,))
    assert "is listed twice with the same mask" in finding.text


def test_two_masks_of_an_image_are_no_duplicate(records):
    assert inspect_records([records[0], dataclasses.replace(records[1], image=records[0].image)]) == []


def test_two_masks_of_one_name_are_no_duplicate_for_predictions_are_named_after_records(tmp_path, record):
    assert inspect_records([record, make_record(tmp_path / "deeper"), make_record(tmp_path, dataset="other")]) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_colondbs_annotations_in_the_place_of_cvc300s(shared, tmp_path, split):
    for dataset in ("cvc300_polyp", "colondb_polyp"):
        (tmp_path / dataset).mkdir()
        (tmp_path / dataset / "anns").symlink_to(shared / "annotations" / dataset)
    entries = json.loads((shared / "annotations" / "cvc300_polyp" / f"{split}.json").read_text())
    assert is_colondb_copy(entries)
    assert is_colondb_copy(reversed(entries))
    assert not is_colondb_copy(entries[1:])
    records = load_records(tmp_path, "cvc300_polyp+colondb_polyp", split)
    finding = only([finding for finding in inspect_records(records) if finding.text != facts.MISSING])
    assert (finding.level, finding.dataset) == ("warning", "cvc300_polyp")
    assert finding.indices == tuple(range(len(entries)))
    assert "generate its own with tools/make_prompts.py" in finding.text


def test_no_other_published_annotations_are_taken_for_colondbs(shared):
    found = {
        path.parent.name
        for path in (shared / "annotations").glob("*/*.json")
        if is_colondb_copy(json.loads(path.read_text()))
    }
    assert found == {"cvc300_polyp", "colondb_polyp"}


def test_entries_without_names_are_no_copy():
    assert not is_colondb_copy([])
    assert not is_colondb_copy([{}, {"img_name": None}])


@pytest.mark.parametrize("dataset", ["kvasir_polyp", "clinicdb_polyp", "isic", "busi"])
def test_real_samples_are_good(shared, dataset):
    for split in ("train", "val", "test"):
        records = load_records(shared / "realdata", dataset, split, is_required=False)
        assert inspect_records(records, "p6") == []


def test_the_drawn_sample_is_good(sample):
    assert inspect_records(load_records(sample, "sample", "train"), "p6") == []


def test_errors_come_before_warnings_for_any_number_of_threads(records):
    Image.fromarray(noise(20, 30, 4)).save(records[0].image)
    cut(records[2].mask)
    findings = inspect_records(records)
    assert [(finding.level, finding.indices) for finding in findings] == [("error", (2,)), ("warning", (0,))]
    assert inspect_records(records, workers=1) == findings == inspect_records(records, workers=3)
