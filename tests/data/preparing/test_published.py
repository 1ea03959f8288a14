"""Published annotations: prompts and splits taken over whole, names brought to ours, leaks found."""

import json
from pathlib import Path

import pytest

from medvlsm_jax.data.cards import CARDS
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.preparing.prepare import prepare
from medvlsm_jax.errors import UserError

PROMPTS = {"p0": "", "p1": "polyp", "p2": "round polyp", "p7": ["polyp which is so", "polyp which is thus"]}


def entry(image: str, mask: str = "", **more) -> dict:
    return {"img_name": image, "mask_name": mask or image, "prompts": PROMPTS, "cat": 0, **more}


def write_anns(folder: Path, **splits: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, entries in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def kvasir(download, tmp_path):
    """Prepares Kvasir with published records of these image numbers."""
    raw = download("kvasir_polyp")

    def run(train=range(8), val=(8,), test=(9,), **options) -> dict[str, int]:
        splits = {"train": train, "val": val, "test": test}
        entries = {split: [entry(f"cju0qkwl35piu{i:04d}.jpg") for i in several] for split, several in splits.items()}
        anns = write_anns(tmp_path / "published" / "kvasir_polyp", **entries)
        where = options.pop("annotations", anns.parent)
        return prepare(CARDS["kvasir_polyp"], raw, tmp_path / "data", annotations=where, workers=1, **options)

    return run


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_records_are_taken_over_whole_with_the_names_of_our_files(kvasir, tmp_path):
    assert kvasir() == {"train": 8, "val": 1, "test": 1}
    written = json.loads((tmp_path / "data" / "kvasir_polyp" / "anns" / "train.json").read_text())
    assert written[3] == entry("cju0qkwl35piu0003.jpg", "cju0qkwl35piu0003.png")
    records = load_records(tmp_path / "data", "kvasir_polyp", "test")
    assert records[0].image.is_file()
    assert records[0].mask.is_file()


@pytest.mark.parametrize("place", ["published", "published/kvasir_polyp"])
def test_the_folder_may_be_that_of_the_dataset_or_of_all(kvasir, tmp_path, place):
    assert kvasir(annotations=tmp_path / place) == {"train": 8, "val": 1, "test": 1}


def test_a_folder_without_annotations_is_named(kvasir, tmp_path):
    message = error_of(kvasir, annotations=tmp_path / "elsewhere")
    assert f"--annotations={tmp_path / 'elsewhere'}" in message
    assert "kvasir_polyp/train.json" in message


def test_a_published_record_without_a_file_is_named(kvasir):
    message = error_of(kvasir, train=range(12))
    assert "4 of 12 records have no file in the download, the first cju0qkwl35piu0008" not in message
    assert "2 of 12 records have no file in the download, the first cju0qkwl35piu0010.jpg" in message


def test_files_without_a_record_are_counted(kvasir, tmp_path, capsys):
    assert kvasir(train=range(5)) == {"train": 5, "val": 1, "test": 1}
    assert "3 of 10 masks have no published record: they are in no split" in capsys.readouterr().out


def test_an_absent_annotation_file_is_said(kvasir, tmp_path, capsys):
    kvasir(train=range(8))
    (tmp_path / "published" / "kvasir_polyp" / "train.json").unlink()
    card, raw = CARDS["kvasir_polyp"], tmp_path / "raw" / "kvasir_polyp"
    counts = prepare(card, raw, tmp_path / "other", annotations=tmp_path / "published", workers=1)
    assert counts == {"train": 0, "val": 1, "test": 1}
    assert "8 of 10 masks have no published record (train.json not in" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{}", '[{"img_name": "a.png"}]', "[3]"])
def test_other_content_is_named(kvasir, tmp_path, content):
    write_anns(tmp_path / "published" / "kvasir_polyp", val=[])
    (tmp_path / "published" / "kvasir_polyp" / "test.json").write_text(content)
    card, raw = CARDS["kvasir_polyp"], tmp_path / "raw" / "kvasir_polyp"
    message = error_of(prepare, card, raw, tmp_path / "data", annotations=tmp_path / "published", workers=1)
    assert "test.json is no list of records with img_name, mask_name, prompts" in message


def test_an_image_in_two_published_splits_is_an_error(kvasir, tmp_path):
    message = error_of(kvasir, train=(0, 1, 2, 9, 9), val=(2, 8), test=(9,))
    assert "one image is in train (cju0qkwl35piu0009.jpg) and test (cju0qkwl35piu0009.jpg)" in message
    assert "--on_leak=drop" in message
    assert not (tmp_path / "data" / "kvasir_polyp" / "anns").exists()


def test_leaks_can_be_dropped_or_kept(kvasir, tmp_path, capsys):
    leaky = {"train": (0, 1, 2, 9, 9), "val": (2, 8), "test": (9,)}
    error_of(kvasir, **leaky)
    assert kvasir(**leaky, on_leak="drop") == {"train": 2, "val": 2, "test": 1}
    assert "3 records are left out" in capsys.readouterr().out
    other = prepare(
        CARDS["kvasir_polyp"],
        tmp_path / "raw" / "kvasir_polyp",
        tmp_path / "kept",
        annotations=tmp_path / "published",
        on_leak="keep",
        workers=1,
    )
    assert other == {"train": 5, "val": 2, "test": 1}
    assert "they are kept" in capsys.readouterr().out


def test_a_patient_whom_published_records_name_in_two_splits_is_an_error(download, tmp_path):
    raw, names = download("kvasir_polyp"), [f"cju0qkwl35piu{i:04d}.jpg" for i in range(3)]
    entries = [entry(name, group=group, spacing=[0.5, 0.5]) for name, group in zip(names, "aba", strict=True)]
    anns = write_anns(tmp_path / "anns", train=entries[:1], val=entries[1:2], test=entries[2:])
    options = {"annotations": anns, "workers": 1}
    message = error_of(prepare, CARDS["kvasir_polyp"], raw, tmp_path / "data", **options)
    assert f"a is in train ({names[0]}) and test ({names[2]}): give --on_leak=drop" in message
    message = error_of(prepare, CARDS["kvasir_polyp"], raw, tmp_path / "small", max_side=8, **options)
    assert message.startswith("--max_side: the published records have pixel sizes")


def test_published_splits_may_part_the_frames_of_a_sequence(download, tmp_path, draw, capsys):
    frames = {"train": draw.frames[::2], "val": [], "test": draw.frames[1::2]}
    anns = write_anns(tmp_path / "anns", **{s: [entry(f"{i}.png") for i in several] for s, several in frames.items()})
    raw = download("clinicdb_polyp")
    counts = prepare(CARDS["clinicdb_polyp"], raw, tmp_path / "data", annotations=anns, workers=1)
    assert counts == {"train": 6, "val": 0, "test": 6}
    assert "2 sequences are in several" in capsys.readouterr().out


def test_records_get_the_patient_and_the_spacing_of_the_download(download, tmp_path):
    names = ("patient0001_2CH_ED.png", "mask_1/patient0001_2CH_ED_gt.png")
    published = entry(*names) | {"prompts": {"p1": "Left ventricular cavity of the heart."}}
    anns = write_anns(tmp_path / "published" / "camus", val=[published])
    prepare(CARDS["camus"], download("camus"), tmp_path / "data", annotations=anns, workers=1)
    written = json.loads((tmp_path / "data" / "camus" / "anns" / "val.json").read_text())
    assert written == [published | {"group": "patient0001", "spacing": [0.154, 0.308]}]
    record = load_records(tmp_path / "data", "camus", "val")[0]
    assert (record.group, record.spacing) == ("patient0001", (0.154, 0.308))


def test_the_published_records_of_cvc300_are_not_its_own(download, tmp_path, shared, capsys):
    counts = prepare(
        CARDS["cvc300_polyp"], download("cvc300_polyp"), tmp_path, annotations=shared / "annotations", workers=1
    )
    assert counts == {"train": 0, "val": 0, "test": 10}
    assert "the published records of cvc300_polyp are CVC-ColonDB's" in capsys.readouterr().out
    assert load_records(tmp_path, "cvc300_polyp", "test")[0].prompts["p1"] == "polyp"


@pytest.mark.parametrize("dataset", ["bkai_polyp", "isic"])
def test_the_published_splits_that_leak(shared, dataset):
    from medvlsm_jax.data.preparing.published import find_published, read_entries
    from medvlsm_jax.data.preparing.splits import RecordLine, find_leaks

    files = find_published(shared / "annotations", CARDS[dataset])
    rows = [
        RecordLine(entry["img_name"], entry["mask_name"], split, entry["img_name"])
        for split, path in files.items()
        for entry in read_entries(path)
    ]
    assert len(find_leaks(rows)) == 3


@pytest.mark.parametrize("dataset", ["kvasir_polyp", "clinicdb_polyp", "etis_polyp", "colondb_polyp", "dfu", "busi"])
def test_the_published_splits_that_share_no_image(shared, dataset):
    from medvlsm_jax.data.preparing.published import find_published, read_entries
    from medvlsm_jax.data.preparing.splits import RecordLine, find_leaks

    files = find_published(shared / "annotations", CARDS[dataset])
    rows = [
        RecordLine(entry["img_name"], entry["mask_name"], split, entry["img_name"])
        for split, path in files.items()
        for entry in read_entries(path)
    ]
    assert find_leaks(rows) == []
