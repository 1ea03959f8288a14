"""Each thing that can be wrong with images, masks and prompts is found, named and, on request, left out."""

import csv
import dataclasses
import io
import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from medvlsm_jax.data import facts, integrity
from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.images import load_pair
from medvlsm_jax.data.integrity import (
    Finding,
    findings_rows,
    findings_table,
    inspect_dataset,
    inspect_records,
    is_colondb_copy,
    verify,
)
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.errors import UserError

PROMPTS = {"p0": "", "p1": "polyp"}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def make_record(folder: Path, i: int = 0, dataset: str = "mine", prompts: dict = PROMPTS) -> Record:
    """A good record: a colour image and a mask of 0 and 255."""
    image, mask = folder / dataset / "images" / f"{i}.png", folder / dataset / "masks" / f"{i}_mask.png"
    for path, pixels in ((image, noise(20, 30, 3)), (mask, noise(20, 30) // 128 * 255)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return Record(Card(dataset), image, mask, prompts, name=mask.name)


@pytest.fixture
def record(tmp_path) -> Record:
    return make_record(tmp_path)


@pytest.fixture
def records(tmp_path) -> list[Record]:
    return [make_record(tmp_path, i) for i in range(4)]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files that are decoded."""
    names, real = [], facts.open_image

    def count(path):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(facts, "open_image", count)
    return names


def with_image(record: Record, image: Image.Image, suffix: str = ".png", **options) -> Record:
    path = record.image.with_suffix(suffix)
    image.save(path, **options)
    return dataclasses.replace(record, image=path)


def with_mask(record: Record, mask: Image.Image) -> Record:
    mask.save(record.mask)
    return record


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    assert "\n" not in str(finding)
    return finding


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
    exif[0x0112] = 6
    record = with_image(record, Image.fromarray(noise(20, 30, 3)), suffix, exif=exif)
    assert_warning(record, record.image, "has an EXIF orientation, which is ignored")


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


@pytest.mark.parametrize("others", [(0, 255), (255, 255)], ids=["three values", "two without 0"])
def test_a_mask_with_grey_edges(record, others):
    mask = np.array(others, np.uint8)[noise(20, 30) // 128]
    mask[0] = 90
    record = with_mask(record, Image.fromarray(mask))
    assert_warning(record, record.mask, "holds grey values: what is above 127 counts")


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


def test_two_masks_of_one_name_overwrite_each_others_predictions(tmp_path, record):
    second = make_record(tmp_path / "deeper")
    finding = only(inspect_records([record, second, make_record(tmp_path, dataset="other")]))
    assert (finding.level, finding.file, finding.indices) == ("warning", str(second.mask), (1,))
    assert "has the name of another mask" in finding.text


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
    assert inspect_records(records, workers=1) == findings == inspect_records(records, workers=8)


@dataclasses.dataclass(frozen=True)
class StoredBytes:
    """A file that lies in no folder, as an entry of an ArrayRecord."""

    name: str
    content: bytes
    shard: Path

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    def open(self, mode):
        return io.BytesIO(self.content)

    def is_file(self) -> bool:
        return True

    def stat(self) -> os.stat_result:
        return self.shard.stat()

    def __str__(self) -> str:
        return f"store[0]:{self.name}"


def test_a_file_in_an_archive_is_checked_and_remembered_alike(record, tmp_path, decoded):
    shard = tmp_path / "shard"
    shard.touch()
    image, mask = (StoredBytes(path.name, path.read_bytes(), shard) for path in (record.image, record.mask))
    good = dataclasses.replace(record, image=image, mask=mask)
    assert inspect_records([good], cache=tmp_path / "cache.json") == []
    assert inspect_records([good], cache=tmp_path / "cache.json") == []
    assert sorted(decoded) == ["0.png", "0_mask.png"]
    bad = dataclasses.replace(good, image=dataclasses.replace(image, content=image.content[:-100]))
    assert str(only(inspect_records([bad]))).startswith("store[0]:0.png cannot be decoded as an image")
    shard.write_text("written anew")
    inspect_records([good], cache=tmp_path / "cache.json")
    assert sorted(decoded[-2:]) == ["0.png", "0_mask.png"]


# --- What is remembered -----------------------------------------------------------------------------------------------


def test_a_file_is_decoded_once_however_many_records_use_it(records, decoded):
    inspect_records([*records, dataclasses.replace(records[0], mask=records[1].mask)])
    assert sorted(decoded) == sorted(file.name for record in records for file in (record.image, record.mask))


def test_what_was_found_is_remembered_until_a_file_changes(records, tmp_path, decoded):
    cache = tmp_path / "new" / "cache.json"
    Image.fromarray(noise(20, 30, 4)).save(records[0].image)
    with_mask(records[1], Image.new("L", (20, 30), 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    with_image(records[3], Image.fromarray(noise(20, 30, 3)), exif=exif)
    first = inspect_records(records, cache=cache)
    texts = ["is 20x30 but its image", "has an alpha", "none above 127", "has an EXIF orientation"]
    assert len(first) == len(texts)
    assert all(text in finding.text for text, finding in zip(texts, first, strict=True))
    decoded.clear()
    assert inspect_records(records, cache=cache) == first
    assert inspect_records(records[2:], cache=cache) == [dataclasses.replace(first[3], indices=(1,))]
    assert decoded == []
    Image.fromarray(noise(20, 30, 3)).save(records[0].image)
    os.utime(records[2].mask, ns=(1, 1))
    assert len(inspect_records(records, cache=cache)) == 3
    assert sorted(decoded) == ["0.png", "2_mask.png"]
    decoded.clear()
    inspect_records(records, cache=cache)
    assert decoded == []


def test_two_calls_share_a_cache_without_forgetting(records, tmp_path, decoded):
    for part in (records[:2], records[2:]):
        inspect_records(part, cache=tmp_path / "cache.json")
    decoded.clear()
    inspect_records(records, cache=tmp_path / "cache.json")
    assert decoded == []


def test_one_file_as_image_and_as_mask_is_looked_at_as_both(record, tmp_path):
    grey = dataclasses.replace(with_image(record, Image.fromarray(noise(20, 30))), mask=record.image)
    for _ in range(2):
        finding = only(inspect_records([grey], cache=tmp_path / "cache.json"))
        assert "holds grey values" in finding.text


def test_a_file_that_failed_is_tried_again(record, tmp_path, monkeypatch):
    def fail(path):
        raise UserError(f"{path} cannot be decoded as an image (Input/output error): restore or remove it")

    with monkeypatch.context() as patch:
        patch.setattr(facts, "open_image", fail)
        assert len(inspect_records([record], cache=tmp_path / "cache.json")) == 2
    assert inspect_records([record], cache=tmp_path / "cache.json") == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b'{"version": 1}', b'{"version": 1, "files": [[1, 2]]}', b"\xff\xfe", b"null"]
)
def test_a_broken_cache_is_written_anew(records, tmp_path, decoded, content):
    cache = tmp_path / "cache.json"
    cache.write_bytes(content)
    assert inspect_records(records, cache=cache) == []
    assert len(decoded) == 8
    assert inspect_records(records, cache=cache) == []
    assert len(decoded) == 8


def test_a_cache_of_another_version_is_not_believed(record, tmp_path, decoded):
    cache = tmp_path / "cache.json"
    inspect_records([record], cache=cache)
    cache.write_text(json.dumps(json.loads(cache.read_text()) | {"version": 0}))
    inspect_records([record], cache=cache)
    assert len(decoded) == 4


def test_a_cache_that_cannot_be_written_is_done_without(record, tmp_path):
    (tmp_path / "file").touch()
    assert inspect_records([record], cache=tmp_path / "file" / "cache.json") == []


def test_an_unchanged_cache_is_not_written_again(record, tmp_path):
    cache = tmp_path / "cache.json"
    inspect_records([record], cache=cache)
    os.utime(cache, ns=(1, 1))
    inspect_records([record], cache=cache)
    assert cache.stat().st_mtime_ns == 1
    assert [path.name for path in tmp_path.glob("*cache*")] == ["cache.json"]


# --- The door ---------------------------------------------------------------------------------------------------------


def error_of(*args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        verify(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_errors_stop_with_one_line_that_says_how_to_see_them_all(records, tmp_path):
    report = tmp_path / "new" / "findings.csv"
    for record in records[1:]:
        cut(record.image)
    message = error_of(records, report=report)
    assert message.startswith(f"{records[1].image} cannot be decoded as an image")
    hint = "--config.data.on_bad=skip leaves such records out; tools/prepare_data.py --verify lists everything"
    assert message.endswith(f"; 2 more errors ({hint})")
    assert not report.parent.exists()


@pytest.mark.parametrize(("count", "text"), [(1, "remove it (--config"), (2, "remove it; 1 more error (--config")])
def test_the_line_counts_the_other_errors(records, count, text):
    for record in records[:count]:
        cut(record.image)
    assert text in error_of(records)


def test_bad_records_are_skipped_counted_and_listed(records, tmp_path, capsys):
    report = tmp_path / "findings.csv"
    cut(records[1].image)
    records[2] = dataclasses.replace(records[2], image=records[1].image)
    records[3] = with_mask(records[3], Image.new("L", (3, 3)))
    assert verify(records, on_bad="skip", report=report) == records[:1]
    printed = capsys.readouterr().out
    assert f"skipped 3 of 4 records with errors, see {report}" in printed
    assert f"mine: {records[1].image} cannot be decoded" in printed
    assert f"mine: {records[3].mask} is 3x3 pixels" in printed
    rows = list(csv.DictReader(report.read_text("utf-8").splitlines()))
    assert [(row["file"], row["records"]) for row in rows] == [
        (str(records[1].image), "2"),
        (str(records[3].mask), "1"),
    ]
    assert {(row["level"], row["dataset"]) for row in rows} == {("error", "mine")}
    assert rows[0]["finding"].startswith("cannot be decoded as an image")


def test_records_without_the_prompt_are_skipped(tmp_path):
    records = [make_record(tmp_path, 0), make_record(tmp_path, 1, prompts={"p0": ""}), make_record(tmp_path, 2)]
    assert "has no prompt 'p1'" in error_of(records, "p1")
    assert verify(records, "p1", on_bad="skip") == [records[0], records[2]]
    assert verify(records, "p0") == records


def test_when_no_record_is_left_that_is_an_error(records):
    for record in records:
        cut(record.mask)
    message = error_of(records, on_bad="skip")
    assert message.startswith(f"{records[0].mask} cannot be decoded")
    assert message.endswith("; 3 more errors (no record is left; tools/prepare_data.py --verify lists everything)")


@pytest.mark.parametrize("on_bad", ["ignore", "", "warning"])
def test_another_word_for_on_bad_lists_the_choices(records, on_bad):
    assert error_of(records, on_bad=on_bad) == f"--config.data.on_bad={on_bad}: choose error or skip"


def test_warnings_are_printed_in_few_lines_and_stop_nothing(tmp_path, capsys):
    records = [make_record(tmp_path, i) for i in range(30)]
    for record in records:
        Image.fromarray(noise(20, 30, 4)).save(record.image)
    assert verify(records) == records
    assert capsys.readouterr().out == (
        f"30 warnings\n  mine: {records[0].image} and 29 more: has an alpha channel: it is dropped\n"
    )


def test_a_report_without_findings_replaces_an_old_one(records, tmp_path):
    report = tmp_path / "findings.csv"
    report.write_text("old")
    verify(records, report=report)
    assert report.read_text() == "level,dataset,file,records,finding\n"


# --- Tables -----------------------------------------------------------------------------------------------------------


def finding(level: str = "error", text: str = "is bad", file: str = "a.png") -> Finding:
    return Finding(level, "mine", file, text, (0,))


def test_a_table_has_errors_and_warnings_apart():
    findings = [finding("warning"), finding(), finding(file="b.png"), *2 * [finding(file="", text="has no prompt")]]
    assert findings_table(findings).splitlines() == [
        "4 errors",
        "  mine: a.png and 1 more: is bad",
        "  mine (2 times): has no prompt",
        "1 warning",
        "  mine: a.png is bad",
    ]
    rows = findings_rows(findings)
    assert rows[0] == ["level", "dataset", "file", "records", "finding"]
    assert [row[0] for row in rows[1:]] == ["error", "error", "error", "error", "warning"]


def test_a_table_of_nothing_says_so():
    assert findings_table([]) == "no errors, no warnings"


def test_a_long_table_is_cut_and_says_by_how_much():
    lines = findings_table([finding(text=f"is bad {i}") for i in range(50)]).splitlines()
    assert (len(lines), lines[0], lines[-1]) == (22, "50 errors", "  … and 30 lines more")


# --- A whole dataset --------------------------------------------------------------------------------------------------


def test_all_splits_of_a_dataset_are_checked_and_what_they_share_is_named(sample, tmp_path):
    shutil.copytree(sample / "sample", tmp_path / "sample")
    anns = tmp_path / "sample" / "anns"
    entries = {split: json.loads((anns / f"{split}.json").read_text()) for split in ("train", "val")}
    (anns / "val.json").write_text(json.dumps([*entries["val"], entries["train"][0]]))
    bad = tmp_path / "sample" / "masks" / entries["train"][1]["mask_name"]
    bad.write_bytes(b"")
    error, leak = inspect_dataset(tmp_path, "sample", "p6")
    assert (error.level, error.file) == ("error", str(bad))
    assert (leak.level, leak.file) == ("warning", str(tmp_path / "sample" / "images" / entries["train"][0]["img_name"]))
    assert leak.text.startswith("is in the split val and in train as well")


def test_a_dataset_without_records_is_an_error(tmp_path):
    (tmp_path / "mine" / "anns").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mine: no annotation file in .* has records"):
        inspect_dataset(tmp_path, "mine")
