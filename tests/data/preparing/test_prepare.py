"""A download becomes a dataset: all eleven, run twice, cut off, with several processes, and never touched."""

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.cards import CARDS, Card
from medvlsm_jax.data.images import load_pair
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.preparing import copying as files
from medvlsm_jax.data.preparing.annotate import annotate
from medvlsm_jax.data.preparing.importers.item import Options
from medvlsm_jax.data.preparing.prepare import draw_splits, prepare
from medvlsm_jax.data.preparing.splits import RecordLine, find_leaks
from medvlsm_jax.errors import UserError

DATASETS = [name for name, card in CARDS.items() if not card.members and name != "sample"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def records_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "records.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_download_becomes_a_dataset(download, tmp_path, dataset):
    raw = download(dataset)
    for path in raw.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = (contents(raw), times(raw))
    card = CARDS[dataset]
    counts = prepare(card, raw, tmp_path / "data", workers=1)
    assert (contents(raw), times(raw)) == before
    folder = tmp_path / "data" / dataset
    rows = records_csv(folder)
    assert Counter(row["split"] for row in rows) == Counter(counts)
    for split, count in counts.items():
        records = load_records(tmp_path / "data", dataset, split, is_required=False)
        assert len(records) == count
        for record in records:
            assert record.prompts["p1"]
            assert record.target in card.targets
            load_pair(record.image, record.mask, 16)
            mask = read(record.mask)
            assert mask.ndim == 2
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 255}
    assert (
        find_leaks(
            [
                RecordLine(**{key: row[key] for key in ("image", "mask", "split", "group", "target")}, attributes={})
                for row in rows
            ]
        )
        == []
    )
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_images_are_copied_byte_for_byte_and_tif_becomes_png(download, tmp_path, draw):
    raw = download("kvasir_polyp")
    prepare(CARDS["kvasir_polyp"], raw, tmp_path / "data", workers=1)
    for path in (tmp_path / "data" / "kvasir_polyp" / "images").iterdir():
        assert path.read_bytes() == (raw / "Kvasir-SEG" / "images" / path.name).read_bytes()
        assert os.access(path, os.W_OK)
    prepare(CARDS["clinicdb_polyp"], download("clinicdb_polyp"), tmp_path / "data", workers=1)
    for frame in draw.frames:
        path = tmp_path / "data" / "clinicdb_polyp" / "images" / f"{frame}.png"
        np.testing.assert_array_equal(read(path), draw.pixels(str(frame)))


def test_metadata_reach_the_prompts(download, tmp_path):
    prepare(CARDS["camus"], download("camus"), tmp_path, workers=1)
    records = [
        r for split in ("train", "val", "test") for r in load_records(tmp_path, "camus", split, is_required=False)
    ]
    record = next(r for r in records if r.mask.name == "patient0002_4CH_ES_gt.png" and "mask_2" in str(r.mask))
    assert record.prompts["p6"][0] == (
        "Myocardium in four-chamber view of the heart at end of the systole cycle of a seventy-three-year-old male "
        "with poor image quality."
    )
    assert record.image == tmp_path / "camus" / "images" / "train" / "patient0002_4CH_ES.png"


@pytest.mark.parametrize(("max_side", "spacing"), [(0, (0.154, 0.308)), (12, (0.308, 0.616))])
def test_camus_keeps_its_patients_and_the_spacing_of_the_written_pixels(download, tmp_path, max_side, spacing):
    prepare(CARDS["camus"], download("camus"), tmp_path, workers=1, max_side=max_side)
    assert {line["spacing"] for line in records_csv(tmp_path / "camus")} == {"x".join(map(str, spacing))}
    for _ in range(2):  # as prepared, and with prompts made anew
        records = load_records(tmp_path, "camus", "train")
        assert {record.spacing for record in records} == {spacing}
        assert all(record.image.name.startswith(f"{record.group}_") for record in records)
        assert "spacing" not in records[0].attributes
        annotate(tmp_path / "camus", CARDS["camus"], workers=1)


@pytest.mark.parametrize(("dataset", "has_group"), [("clinicdb_polyp", True), ("kvasir_polyp", False)])
def test_a_group_is_written_where_it_is_more_than_the_image(download, tmp_path, dataset, has_group):
    prepare(CARDS[dataset], download(dataset), tmp_path, workers=1)
    records = load_records(tmp_path, dataset, "train")
    assert {record.group.startswith("sequence ") for record in records} == {has_group}
    assert has_group or {record.group for record in records} == {""}
    assert {record.spacing for record in records} == {None}
    assert "spacing" not in records_csv(tmp_path / dataset)[0]


def test_a_normal_busi_image_has_no_tumor(download, tmp_path):
    prepare(CARDS["busi"], download("busi"), tmp_path, workers=1)
    records = [
        r for split in ("train", "val", "test") for r in load_records(tmp_path, "busi", split, is_required=False)
    ]
    normal = [r for r in records if "normal" in r.image.name]
    assert len(normal) == 3
    assert all(r.prompts["p6"] == "No tumor in the breast ultrasound image." for r in normal)
    assert not any(read(r.mask).any() for r in normal)


def test_splits_keep_patients_together(download, tmp_path):
    for dataset, group in (("camus", slice(0, 11)), ("chexlocalize", slice(0, 12))):
        prepare(CARDS[dataset], download(dataset), tmp_path, workers=1)
        splits: dict[str, set[str]] = {}
        for row in records_csv(tmp_path / dataset):
            splits.setdefault(row["image"][group], set()).add(row["split"])
            assert row["group"] == row["image"][group]
        assert len(splits) == 3
        assert all(len(several) == 1 for several in splits.values())


def test_isic_divides_its_training_set_and_keeps_its_test_set(download, tmp_path):
    assert prepare(CARDS["isic"], download("isic"), tmp_path, workers=1) == {"train": 9, "val": 1, "test": 5}


def test_a_second_run_changes_nothing(download, tmp_path):
    raw = download("busi")
    first = prepare(CARDS["busi"], raw, tmp_path / "data", workers=1)
    before = (contents(tmp_path / "data"), times(tmp_path / "data"))
    assert prepare(CARDS["busi"], raw, tmp_path / "data", workers=1) == first
    assert (contents(tmp_path / "data"), times(tmp_path / "data")) == before


@pytest.mark.parametrize("dataset", ["busi", "camus", "bkai_polyp"])
def test_a_run_that_was_cut_off_is_continued(download, tmp_path, monkeypatch, dataset):
    raw = download(dataset)
    prepare(CARDS[dataset], raw, tmp_path / "whole", workers=1, options=Options(per_class=dataset == "bkai_polyp"))
    real, count = files.write_image, 0

    def killed(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(files, "write_image", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(CARDS[dataset], raw, tmp_path / "data", workers=1, options=Options(per_class=dataset == "bkai_polyp"))
    folder = tmp_path / "data" / dataset
    assert not (folder / "anns").exists()
    kept = {
        name: time for name, time in times(folder).items() if name.startswith(("images/", "masks/")) and "." in name
    }
    whole = [name for name in contents(tmp_path / "whole" / dataset) if name.startswith("images/")]
    lost = next(name for name in whole if not (folder / name).exists())
    half = (folder / lost).with_name(".0123456789abcdef.tmp")  # as `atomic.replacing` names it
    half.write_bytes(b"half")
    os.utime(half, (0, 0))
    prepare(CARDS[dataset], raw, tmp_path / "data", workers=1, options=Options(per_class=dataset == "bkai_polyp"))
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")
    after = times(folder)
    assert kept
    assert {name: after[name] for name in kept} == kept


def test_a_half_written_file_is_not_taken_for_a_whole_one(download, tmp_path, monkeypatch):
    raw = download("clinicdb_polyp")
    real = os.replace

    def fails(source, target):
        if str(target).endswith("26.png"):
            raise OSError("No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        prepare(CARDS["clinicdb_polyp"], raw, tmp_path / "data", workers=1)
    folder = tmp_path / "data" / "clinicdb_polyp"
    assert not (folder / "images" / "26.png").exists()
    monkeypatch.undo()
    prepare(CARDS["clinicdb_polyp"], raw, tmp_path / "data", workers=1)
    assert not [path.name for path in folder.rglob(".*.tmp")]


@pytest.mark.parametrize("dataset", ["camus", "chexlocalize"])
def test_the_number_of_processes_plays_no_part(download, tmp_path, dataset):
    raw = download(dataset)
    for workers in (1, 2):
        prepare(CARDS[dataset], raw, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_another_seed_draws_other_splits_of_the_same_files(download, tmp_path):
    raw = download("dfu")
    for seed in (1, 2):
        prepare(CARDS["dfu"], raw, tmp_path / str(seed), seed=seed, workers=1)
    first, second = (contents(tmp_path / str(seed) / "dfu") for seed in (1, 2))
    assert first["records.csv"] != second["records.csv"]
    assert {k: v for k, v in first.items() if "." in k and k.startswith(("images", "masks"))} == {
        k: v for k, v in second.items() if k.startswith(("images", "masks"))
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("seed", {"seed": 1}),
        ("max_side", {"max_side": 8}),
        ("per_class", {"options": Options(per_class=True)}),
        ("on_leak", {"on_leak": "keep"}),
    ],
)
def test_a_folder_of_other_options_is_refused(download, tmp_path, name, options):
    raw = download("bkai_polyp")
    prepare(CARDS["bkai_polyp"], raw, tmp_path / "data", workers=1)
    before = contents(tmp_path / "data")
    message = error_of(prepare, CARDS["bkai_polyp"], raw, tmp_path / "data", workers=1, **options)
    assert f"was prepared with {name}=" in message
    assert contents(tmp_path / "data") == before


def test_a_folder_of_other_origin_is_refused(download, tmp_path):
    raw = download("dfu")
    (tmp_path / "data" / "dfu" / "anns").mkdir(parents=True)
    (tmp_path / "data" / "dfu" / "anns" / "train.json").write_text("[]")
    assert "was not made by this program" in error_of(prepare, CARDS["dfu"], raw, tmp_path / "data", workers=1)
    (tmp_path / "data" / "dfu" / "SOURCE.json").write_text("not json")
    assert "was not made by this program" in error_of(prepare, CARDS["dfu"], raw, tmp_path / "data", workers=1)


def test_the_download_is_no_place_for_the_dataset(download):
    raw = download("dfu")
    assert "into the download" in error_of(prepare, CARDS["dfu"], raw, raw, workers=1)


def test_a_wrong_download_leaves_no_folder(download, tmp_path):
    error_of(prepare, CARDS["isic"], download("dfu"), tmp_path / "data", workers=1)
    assert not (tmp_path / "data").exists()


def test_a_broken_image_is_named(download, tmp_path):
    raw = download("kvasir_polyp")
    path = raw / "Kvasir-SEG" / "images" / "cju0qkwl35piu0004.jpg"
    path.write_bytes(path.read_bytes()[:200])
    for workers in (1, 2):
        message = error_of(prepare, CARDS["kvasir_polyp"], raw, tmp_path / str(workers), workers=workers)
        assert str(path) in message


def test_a_mask_of_another_size_is_named(download, tmp_path, draw):
    raw = download("dfu")
    path = raw / "DFUC2022_train_release" / "DFUC2022_train_masks" / "100004.png"
    draw.write_mask(path, np.ones((5, 6), bool))
    message = error_of(prepare, CARDS["dfu"], raw, tmp_path / "data", workers=1)
    assert "100004.png is 6x5" in message
    assert "24x20" in message


def test_large_images_shrink_with_their_masks(download, tmp_path, draw):
    raw = download("chexlocalize")
    prepare(CARDS["chexlocalize"], raw, tmp_path, workers=1, max_side=12)
    folder = tmp_path / "chexlocalize"
    mask = read(folder / "masks" / "patient64541_study1_view1_frontal_airspace_opacity.png")
    image = read(folder / "images" / "patient64541_study1_view1_frontal.jpg")
    assert image.shape == mask.shape == (10, 12)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[3:6, 4:8].all()
    assert not mask[:1].any()


def test_small_images_are_left_as_found(download, tmp_path):
    raw = download("dfu")
    prepare(CARDS["dfu"], raw, tmp_path, workers=1, max_side=24)
    for path in (tmp_path / "dfu" / "images").iterdir():
        assert path.read_bytes() == (raw / "DFUC2022_train_release" / "DFUC2022_train_images" / path.name).read_bytes()


def test_bkai_a_class_at_a_time_leaves_out_empty_masks(download, tmp_path):
    counts = prepare(CARDS["bkai_polyp"], download("bkai_polyp"), tmp_path, workers=1, options=Options(per_class=True))
    rows = records_csv(tmp_path / "bkai_polyp")
    assert Counter(row["target"] for row in rows) == {"neoplastic polyp": 9, "non-neoplastic polyp": 9}
    assert sum(counts.values()) == 18
    assert len(list((tmp_path / "bkai_polyp" / "masks").iterdir())) == 18
    entries = json.loads((tmp_path / "bkai_polyp" / "anns" / "train.json").read_text())
    assert {entry["prompts"]["p1"] for entry in entries} == {"neoplastic polyp", "non-neoplastic polyp"}


def test_published_records_know_no_classes_of_bkai(download, tmp_path):
    options = {"options": Options(per_class=True), "annotations": tmp_path}
    message = error_of(prepare, CARDS["bkai_polyp"], download("bkai_polyp"), tmp_path / "data", **options)
    assert message.startswith("--per_class: the published records are about all polyps of an image")
    assert not (tmp_path / "data").exists()


def test_bkai_has_the_classes_that_a_users_card_names(download, tmp_path):
    targets = ("neoplastic polyp", "non-neoplastic polyp")
    card = Card("neo", targets=targets, importer="bkai")
    prepare(card, download("bkai_polyp"), tmp_path / "data", options=Options(per_class=True), workers=1)
    rows = records_csv(tmp_path / "data" / "neo")
    assert {row["target"] for row in rows} == set(targets)
    for entry in json.loads((tmp_path / "data" / "neo" / "anns" / "train.json").read_text()):
        kind = Path(entry["mask_name"]).stem.partition("_")[2]
        assert entry["prompts"]["p1"] == entry["attributes"]["class"] == f"{kind} polyp"


def test_a_data_dir_that_is_a_file_is_named(download, tmp_path):
    (tmp_path / "data").touch()
    message = error_of(prepare, CARDS["busi"], download("busi"), tmp_path / "data")
    assert message == f"{tmp_path / 'data' / 'busi'} cannot be made (Not a directory): choose another --data_dir"


def test_a_card_of_the_user_needs_no_importer(tmp_path, draw):
    draw.write_pairs(range(20), tmp_path / "raw" / "images", tmp_path / "raw" / "masks", ".png", ".png")
    card = Card("mine", targets=("lesion",), subfolder="all")
    assert prepare(card, tmp_path / "raw", tmp_path / "data", workers=1) == {"train": 16, "val": 2, "test": 2}
    assert (tmp_path / "data" / "mine" / "images" / "all" / "7.png").is_file()
    assert "unknown importer 'magic'" in error_of(
        prepare, Card("x", importer="magic"), tmp_path / "raw", tmp_path / "data"
    )


def test_identical_images_are_never_parted(tmp_path, draw):
    draw.write_pairs(range(30), tmp_path / "raw" / "images", tmp_path / "raw" / "masks", ".png", ".png")
    for i in range(1, 10):
        shutil.copy(tmp_path / "raw" / "images" / "0.png", tmp_path / "raw" / "images" / f"{i}.png")
    prepare(Card("mine", targets=("lesion",)), tmp_path / "raw", tmp_path / "data", workers=1)
    assert len({row["split"] for row in records_csv(tmp_path / "data" / "mine") if int(row["image"][:-4]) < 10}) == 1


def test_a_leak_that_the_download_itself_fixes(download, tmp_path, capsys):
    raw = download("camus")
    draw_test = raw / "testing" / "patient0001"
    shutil.rmtree(draw_test)
    shutil.copytree(raw / "training" / "patient0001", draw_test)
    (raw / "database_split").mkdir()
    (raw / "database_split" / "subgroup_training.txt").write_text("patient0001")
    message = error_of(prepare, CARDS["camus"], raw, tmp_path, workers=1)
    assert (
        "splits are not apart: one image is in train (patient0001_2CH_ED.png) and test (test_patient0001_2CH_ED.png)"
        in message
    )
    assert "--on_leak=drop" in message
    assert not (tmp_path / "camus" / "anns").exists()
    counts = prepare(CARDS["camus"], raw, tmp_path, workers=1, on_leak="drop")  # continues the same folder
    assert counts["test"] == 12
    assert not any(row["image"].startswith("patient0001") for row in records_csv(tmp_path / "camus"))
    assert "12 records are left out" in capsys.readouterr().out


def test_an_unknown_way_with_leaks_is_refused(tmp_path):
    assert "--on_leak=fix" in error_of(prepare, CARDS["dfu"], tmp_path, tmp_path / "data", on_leak="fix")


def test_copies_of_an_official_test_image_are_left_out_and_the_test_set_stays_as_it_is(capsys):
    split = ["test" if i < 10 else "" for i in range(40)]
    digests = ["3" if i == 20 else str(i) for i in range(40)]
    rows = [RecordLine(f"{i}.png", f"{i}.png", split[i], f"{i}.png", "x", digest=digests[i]) for i in range(40)]
    drawn = draw_splits(rows, CARDS["isic"], seed=0)
    assert [row.image for row in drawn if row.split == "test"] == [f"{i}.png" for i in range(10)]
    assert {f"{i}.png" for i in range(40)} - {row.image for row in drawn} == {"20.png"}
    assert Counter(row.split for row in drawn) == {"test": 10, "train": 26, "val": 3}
    assert find_leaks(drawn) == []
    assert capsys.readouterr().out == "1 records are left out, whose images the download has in test as well\n"
