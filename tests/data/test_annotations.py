"""Annotation files: what a record holds, and one clear line for everything that can be wrong with them."""

import itertools
import json
import unicodedata
from pathlib import Path

import pytest

from medvlsm_jax.data.annotations import check_files, find_target, select_target, targets_of
from medvlsm_jax.data.cards import CARDS
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.errors import UserError

ENTRY = {"img_name": "a.png", "mask_name": "b.png", "prompts": {"p0": "", "p1": "polyp", "p7": ["one", "two"]}}


@pytest.fixture
def write(tmp_path):
    """Writes a split of a dataset, from json values or from raw text or bytes."""

    def write_split(content, dataset: str = "mine", split: str = "train") -> Path:
        path = tmp_path / dataset / "anns" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_split


def test_names_are_found_in_either_form_of_unicode(write, tmp_path):
    """macOS parts an accent from its letter, where the annotation file does not."""
    composed, parted = unicodedata.normalize("NFC", "käse.png"), unicodedata.normalize("NFD", "käse.png")
    write([{**ENTRY, "img_name": composed, "mask_name": parted}])
    for folder, name in (("images", parted), ("masks", composed)):
        (tmp_path / "mine" / folder).mkdir()
        (tmp_path / "mine" / folder / name).touch()
    check_files(load_records(tmp_path, "mine", "train"))


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_record_has_its_files_and_sentences(write, tmp_path):
    write([ENTRY, ENTRY | {"img_name": "c.png", "bbox": [0, 1, 2, 3], "sentences": []}])
    first, second = load_records(tmp_path, "mine", "train")
    assert (first.dataset, first.image, first.mask) == (
        "mine",
        tmp_path / "mine" / "images" / "a.png",
        tmp_path / "mine" / "masks" / "b.png",
    )
    assert first.prompts == {"p0": "", "p1": "polyp", "p7": ("one", "two")}
    assert second.image.name == "c.png"


def test_a_record_may_have_its_patient_and_the_spacing_of_its_pixels(write, tmp_path):
    write([ENTRY, ENTRY | {"spacing": [0.31, 1], "group": "patient0001"}, ENTRY | {"spacing": None, "group": None}])
    records = load_records(tmp_path, "mine", "train")
    assert [record.spacing for record in records] == [None, (0.31, 1.0), None]
    assert [record.group for record in records] == ["", "patient0001", ""]


@pytest.mark.parametrize(
    "spacing",
    ["0.31x0.15", 0.3, [], [0.3], [1, 1, 1], [0, 1], [-1, 1], [True, 1], ["1", 1]],
)
def test_a_spacing_of_another_form_is_named_by_its_record(write, tmp_path, spacing):
    path = write([ENTRY, ENTRY | {"spacing": spacing}])
    message = error_of(load_records, tmp_path, "mine", "train")
    assert message.startswith(f"{path}, record 1: spacing must be two positive numbers")


@pytest.mark.parametrize(("number", "text"), [("NaN", "NaN is no number"), ("-Infinity", "-Infinity is no number")])
def test_what_is_no_number_is_named_by_its_place(write, tmp_path, number, text):
    path = write([ENTRY | {"note": "NaN", "spacing": [1, 2]}])
    path.write_text("\n" + path.read_text().replace("[1, 2]", f"[1, {number}]"))
    column = path.read_text().rindex(number)
    message = error_of(load_records, tmp_path, "mine", "train")
    assert message == f"{path} is not valid json: {text}: line 2 column {column} (char {column})"


def test_a_number_beyond_all_numbers_is_no_spacing(write, tmp_path):
    path = write([ENTRY | {"spacing": [1, 2]}])
    path.write_text(path.read_text().replace("[1, 2]", "[1, 1e999]"))
    assert "spacing must be two positive numbers" in error_of(load_records, tmp_path, "mine", "train")


@pytest.mark.parametrize("group", [3, ["patient1"], {"a": 1}])
def test_a_group_of_another_form_is_named_by_its_record(write, tmp_path, group):
    path = write([ENTRY | {"group": group}])
    assert error_of(load_records, tmp_path, "mine", "train").startswith(f"{path}, record 0: group must be a text")


def test_camus_lies_one_folder_deeper(write, tmp_path):
    write([ENTRY], dataset="camus")
    record = load_records(tmp_path, "camus", "train")[0]
    assert record.image == tmp_path / "camus" / "images" / "train" / "a.png"
    assert record.mask == tmp_path / "camus" / "masks" / "train" / "b.png"


def test_camus_as_the_original_prepared_it_has_its_test_patients_apart(write, tmp_path):
    write([ENTRY], dataset="camus", split="test")
    (tmp_path / "camus" / "images" / "test").mkdir(parents=True)
    record = load_records(tmp_path, "camus", "test")[0]
    assert record.image == tmp_path / "camus" / "images" / "test" / "a.png"
    assert record.mask == tmp_path / "camus" / "masks" / "test" / "b.png"


def test_names_may_hold_folders_and_letters_of_any_script(write, tmp_path):
    write(json.dumps([ENTRY | {"mask_name": "mask_1/größe.png"}], ensure_ascii=False).encode())
    assert load_records(tmp_path, "mine", "train")[0].mask == tmp_path / "mine" / "masks" / "mask_1" / "größe.png"


@pytest.mark.parametrize(
    "content",
    ['[{"img_name": ', json.dumps([ENTRY])[:-1] + ",]", "", b"\xff\xfe[]", json.dumps([ENTRY]).encode("utf-16")],
    ids=["cut", "trailing comma", "empty file", "not UTF-8", "UTF-16"],
)
def test_broken_json_is_named(write, tmp_path, content):
    path = write(content)
    assert error_of(load_records, tmp_path, "mine", "train").startswith(f"{path} is not valid json")


@pytest.mark.parametrize("key", ENTRY)
def test_a_record_without_a_field_is_named_by_its_number(write, tmp_path, key):
    path = write([ENTRY, {name: value for name, value in ENTRY.items() if name != key}])
    message = error_of(load_records, tmp_path, "mine", "train")
    assert message.startswith(f"{path}, record 1: needs img_name, mask_name and prompts")
    assert key in message.split("(")[1]


@pytest.mark.parametrize("entry", ["a.png", None, 3, ENTRY | {"prompts": None}, ENTRY | {"prompts": {"p1": 3}}])
def test_a_record_of_another_form_is_named_by_its_number(write, tmp_path, entry):
    path = write([entry])
    assert error_of(load_records, tmp_path, "mine", "train").startswith(f"{path}, record 0: needs img_name")


@pytest.mark.parametrize("key", ["img_name", "mask_name"])
@pytest.mark.parametrize("value", [None, 3, ["a.png"]])
def test_a_file_name_that_is_no_text_is_named_by_its_number(write, tmp_path, key, value):
    path = write([ENTRY | {key: value}])
    assert error_of(load_records, tmp_path, "mine", "train").startswith(f"{path}, record 0: ")


def test_a_split_without_records_is_named(write, tmp_path):
    path = write([])
    assert error_of(load_records, tmp_path, "mine", "train") == (
        f"{path} has no records: mine has nothing for the split 'train'"
    )


@pytest.mark.parametrize("content", [{}, {"annotations": [ENTRY]}, "null", '"text"'])
def test_a_file_without_a_list_of_records_is_named(write, tmp_path, content):
    path = write(content)
    assert error_of(load_records, tmp_path, "mine", "train").startswith(f"{path} holds no list of records")


@pytest.mark.parametrize("key", ["img_name", "mask_name"])
@pytest.mark.parametrize("name", ["../../secret.png", "x/../../y.png", "/etc/passwd", "x/../a.png"])
def test_a_path_that_climbs_out_is_refused(write, tmp_path, key, name):
    write([ENTRY | {key: name}])
    assert f"record 0: {name} leads out of" in error_of(load_records, tmp_path, "mine", "train")


def test_an_unknown_dataset_lists_what_is_there(write, tmp_path):
    write([ENTRY], dataset="busi")
    write([ENTRY], dataset="isic")
    message = error_of(load_records, tmp_path, "kvasir", "train")
    assert "dataset 'kvasir' is not a dataset that the package knows" in message
    assert "holds busi, isic" in message
    assert "dataset 'dfu' has no folder with annotations" in error_of(load_records, tmp_path, "dfu", "train")


def test_a_missing_data_folder_names_the_flag(tmp_path):
    message = error_of(load_records, tmp_path / "gone", "busi", "train")
    assert f"{tmp_path / 'gone'} does not exist" in message
    assert "--config.data_dir" in message


def test_an_unknown_split_lists_the_splits(write, tmp_path):
    write([ENTRY])
    assert "unknown split 'testing': choose one of train, val, test" in error_of(
        load_records, tmp_path, "mine", "testing"
    )


def test_a_split_without_a_file_is_an_error_only_where_it_is_required(write, tmp_path):
    write([ENTRY])
    write([], split="val")
    assert "test.json does not exist" in error_of(load_records, tmp_path, "mine", "test")
    assert load_records(tmp_path, "mine", "test", is_required=False) == []
    assert load_records(tmp_path, "mine", "val", is_required=False) == []


def test_missing_files_are_counted_and_the_first_is_named(write, tmp_path):
    write([ENTRY, ENTRY | {"img_name": "c.png"}])
    records = load_records(tmp_path, "mine", "train")
    folder = tmp_path / "mine"
    for name in ("images", "masks"):
        (folder / name).mkdir()
    (folder / "images" / "a.png").touch()
    assert error_of(check_files, records).startswith(f"{folder / 'masks' / 'b.png'} and 2 more is missing")
    (folder / "masks" / "b.png").touch()
    assert error_of(check_files, records).startswith(f"{folder / 'images' / 'c.png'} is missing")
    (folder / "images" / "c.png").touch()
    check_files(records)


def test_the_drawn_sample_is_whole(sample):
    for split in ("train", "val", "test"):
        check_files(load_records(sample, "sample", split))


PUBLISHED = {  # train, val, test; CVC-300's files are copies of ColonDB's
    "kvasir_polyp": (800, 100, 100),
    "bkai_polyp": (800, 100, 100),
    "clinicdb_polyp": (490, 61, 61),
    "cvc300_polyp": (20, 0, 360),
    "colondb_polyp": (20, 0, 360),
    "etis_polyp": (20, 0, 176),
    "isic": (810, 90, 379),
    "dfu": (1600, 200, 200),
    "camus": (0, 600, 600),  # its train.json is not beside the checkout
    "busi": (624, 78, 78),
    "chexlocalize": (1279, 446, 452),
}


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_the_published_annotations_are_read_whole(shared, tmp_path, dataset):
    assert dataset in CARDS
    (tmp_path / dataset).mkdir()
    (tmp_path / dataset / "anns").symlink_to(shared / "annotations" / dataset)
    splits = [load_records(tmp_path, dataset, split, is_required=False) for split in ("train", "val", "test")]
    assert tuple(map(len, splits)) == PUBLISHED[dataset]
    last = {"camus": "p7", "busi": "p6", "chexlocalize": "p6"}.get(dataset, "p9")
    for record in itertools.chain(*splits):
        assert list(record.prompts) == [f"p{i}" for i in range(int(last[1:]) + 1)]
        assert record.prompts["p0"] == ""
        assert all(record.prompts[f"p{i}"] for i in range(1, int(last[1:]) + 1))


@pytest.mark.parametrize("dataset", ["kvasir_polyp", "clinicdb_polyp", "isic", "busi"])
def test_real_samples_have_their_files(shared, dataset):
    for split in ("train", "val", "test"):
        check_files(load_records(shared / "realdata", dataset, split, is_required=False))


def test_a_record_is_of_its_datasets_only_class(write, tmp_path):
    write([ENTRY], dataset="isic")
    write([ENTRY], dataset="mine")
    assert [load_records(tmp_path, name, "train")[0].target for name in ("isic", "mine")] == ["skin melanoma", ""]


def test_of_several_classes_the_sentence_p1_names_the_records(write, tmp_path):
    sentences = ["Pleural Effusion in a chest Xray.", ["Edema in a chest Xray.", "Edema."], "A heart."]
    write([ENTRY | {"prompts": {"p1": sentence}} for sentence in sentences], dataset="chexlocalize")
    records = load_records(tmp_path, "chexlocalize", "train")
    assert [record.target for record in records] == ["pleural effusion", "edema", ""]
    assert targets_of(records) == CARDS["chexlocalize"].targets  # a class without records here may have some elsewhere
    assert targets_of(records[:1]) == ("pleural effusion",)
    assert select_target(records, "edema") == records[1:2]
    assert select_target(records, "") == records
    with pytest.raises(UserError, match=r"config.target='polyp'.*there are airspace opacity, .*, edema, .*"):
        select_target(records, "polyp")


def test_every_published_record_names_one_of_the_17_classes(shared):
    found = set()
    for dataset in set(CARDS) - {"sample"}:
        for path in (shared / "annotations" / dataset).glob("*.json"):
            prompts = [entry["prompts"] for entry in json.loads(path.read_text())]
            found |= {find_target(CARDS[dataset], prompt) for prompt in prompts}
    assert len(found) == 17
    assert "" not in found
