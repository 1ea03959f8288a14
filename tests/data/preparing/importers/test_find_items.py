"""What is found in each of the eleven downloads, wherever the user points, and what is said about a wrong folder."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.cards import CARDS
from medvlsm_jax.data.preparing.importers import IMPORTERS, find_items
from medvlsm_jax.data.preparing.importers.item import image_size
from medvlsm_jax.errors import UserError

DATASETS = [name for name, card in CARDS.items() if not card.members and name != "sample"]
# The names that are written, and how many objects there are in the drawn downloads.
FOUND = {
    "kvasir_polyp": (10, r"c[jk]\w+\.jpg", r"c[jk]\w+\.png"),
    "bkai_polyp": (10, r"[0-9a-f]{32}\.jpeg", r"[0-9a-f]{32}\.png"),
    "clinicdb_polyp": (12, r"\d+\.png", r"\d+\.png"),
    "cvc300_polyp": (10, r"\d+\.png", r"\d+\.png"),
    "colondb_polyp": (10, r"\d+\.png", r"\d+\.png"),
    "etis_polyp": (10, r"\d+\.png", r"\d+\.png"),
    "isic": (15, r"ISIC_\d{7}\.jpg", r"ISIC_\d{7}_Segmentation\.png"),
    "dfu": (10, r"\d{6}\.jpg", r"\d{6}\.png"),
    "camus": (36, r"patient\d{4}_[24]CH_E[DS]\.png", r"mask_[123]/patient\d{4}_[24]CH_E[DS]_gt\.png"),
    "busi": (11, r"\d+_(benign|malignant|normal)\.png", r"\d+_(benign|malignant|normal)\.png"),
    "chexlocalize": (
        5,
        r"patient\d+_study\d+_view\d+_(frontal|lateral)\.jpg",
        r"patient\d+_study\d+_view\d+_(frontal|lateral)_[a-z_]+\.png",
    ),
}


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_card_has_its_importer():
    assert {CARDS[name].importer for name in DATASETS} == set(IMPORTERS)


@pytest.mark.parametrize("dataset", FOUND)
def test_the_objects_of_a_download_have_the_published_names(download, dataset):
    items = find_items(download(dataset), CARDS[dataset])
    count, image, mask = FOUND[dataset]
    assert len(items) == count
    assert all(re.fullmatch(image, item.image) and re.fullmatch(mask, item.mask) for item in items)
    assert {item.target for item in items} <= set(CARDS[dataset].targets)
    for item in items:
        source = item.read_image()
        size = image_size(source) if isinstance(source, Path) else source.shape[::-1]
        found = item.read_mask()
        assert found.dtype == bool
        assert found.shape == size[::-1]
        assert found.any() == ("normal" not in item.image)


def raw_files(dataset: str, split: str, image: str, mask: str) -> list[str]:
    """Where the files of a published record lie in the download; `image` is its name, `mask` its stem."""
    stem = Path(image).stem
    part = "Test" if split == "test" else "Training"
    number, _, kind = stem.partition("_")
    phase = f"patient{stem.removeprefix('patient')}"
    return {
        "kvasir_polyp": [f"images/{image}", f"masks/{mask}.jpg"],
        "bkai_polyp": [f"train/train/{image}", f"train_gt/train_gt/{mask}.jpeg"],
        "clinicdb_polyp": [f"Original/{stem}.tif", f"Ground Truth/{mask}.tif"],
        "isic": [f"ISBI2016_ISIC_Part1_{part}_Data/{image}", f"ISBI2016_ISIC_Part1_{part}_GroundTruth/{mask}.png"],
        "dfu": [f"DFUC2022_train_images/{image}", f"DFUC2022_train_masks/{mask}.png"],
        "busi": [f"{kind}/{kind} ({number}).png", f"{kind}/{kind} ({number})_mask.png"],
        "camus": [f"{stem[:11]}/{phase}.mhd", f"{stem[:11]}/{phase}_gt.mhd"],
        "chexlocalize": [f"CheXpert/val/{image}"],
    }.get(dataset, [f"images/{image}", f"masks/{mask}.png"])


@pytest.mark.parametrize("dataset", FOUND)
def test_all_published_names_are_those_that_are_written(shared, tmp_path, dataset):
    expected, polygons = set(), {}
    for path in sorted((shared / "annotations" / dataset).glob("*.json"), reverse=True):  # train before test
        for entry in json.loads(path.read_text()):
            image, mask = entry["img_name"], Path(entry["mask_name"]).with_suffix("")
            expected.add((image, f"{mask}.png"))
            finding = mask.name.removeprefix(Path(image).stem).strip("_").replace("_", " ").title()
            polygons.setdefault(Path(image).stem, {"img_size": [9, 9]})[finding] = [[[0, 0], [9, 0], [9, 9]]]
            # Files without content: what is found goes by names alone. Published test images that are in training as
            # well are kept in one place.
            for name in raw_files(dataset, path.stem, image, mask.name):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                if not (tmp_path / name.replace("_Test_", "_Training_")).exists():
                    (tmp_path / name).touch()
    for patient in tmp_path.glob("patient*"):
        for view in ("2CH", "4CH"):
            (patient / f"Info_{view}.cfg").write_text("Sex: F\nAge: 56\nImageQuality: Good\n")
    (tmp_path / "gt_annotations_val.json").write_text(json.dumps(polygons))
    found = {(item.image, item.mask) for item in find_items(tmp_path, CARDS[dataset])}
    assert found == expected


@pytest.mark.parametrize("dataset", FOUND)
def test_the_user_may_point_one_level_above_and_systems_leave_files(download, dataset):
    raw = download(dataset)
    expected = find_items(raw, CARDS[dataset])
    for folder in [folder for folder in raw.rglob("*") if folder.is_dir()]:
        (folder / ".DS_Store").touch()
        (folder / "Thumbs.db").touch()
        (folder / "._1.png").write_text("no image")
    (raw / "__MACOSX" / "images").mkdir(parents=True)
    (raw / "__MACOSX" / "masks").mkdir()
    found = find_items(raw.parent, CARDS[dataset])
    assert [(item.image, item.mask) for item in found] == [(item.image, item.mask) for item in expected]


@pytest.mark.parametrize("dataset", FOUND)
def test_a_wrong_folder_says_what_was_expected_and_found(tmp_path, dataset):
    raw = tmp_path / "raw"
    assert "found no such folder" in error_of(find_items, raw, CARDS[dataset])
    raw.mkdir()
    assert "found nothing" in error_of(find_items, raw, CARDS[dataset])
    for name in ("holiday", "letters", "a", "b", "c", "d"):
        (raw / name).mkdir()
    message = error_of(find_items, raw, CARDS[dataset])
    assert f"--raw={raw} is not the download of {CARDS[dataset].title}" in message
    assert "expected " + CARDS[dataset].layout.strip().splitlines()[0] in message
    assert "found a, b, c, d, holiday and 1 more" in message


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "kvasir-seg.zip").touch()
    assert "unpack the archive" in error_of(find_items, tmp_path / "kvasir-seg.zip", CARDS["kvasir_polyp"])


def test_several_datasets_side_by_side_are_not_guessed_among(tmp_path, draw):
    for name in ("CVC-300", "CVC-ColonDB"):
        folder = tmp_path / "TestDataset" / name
        draw.write_pairs(range(3), folder / "images", folder / "masks", ".png", ".png")
    message = error_of(find_items, tmp_path, CARDS["cvc300_polyp"])
    assert "several datasets (CVC-300, CVC-ColonDB)" in message
    assert len(find_items(tmp_path / "TestDataset" / "CVC-300", CARDS["cvc300_polyp"])) == 3


@pytest.mark.parametrize("dataset", ["kvasir_polyp", "bkai_polyp", "clinicdb_polyp", "isic", "dfu", "busi"])
@pytest.mark.parametrize("lost", ["image", "mask"])
def test_a_file_without_its_partner_is_named_and_counted(download, dataset, lost):
    raw = download(dataset)
    masks = ("masks", "train_gt", "Ground Truth", "_Test_GroundTruth", "_train_masks")
    files = [path for path in raw.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png", ".tif")]
    files = [path for path in files if path.parent.parent.name != "test" and "normal" not in path.name]
    is_mask = [path.parent.name.endswith(masks) or "_mask" in path.name for path in files]
    chosen = sorted(path for path, flag in zip(files, is_mask, strict=True) if flag == (lost == "mask"))
    chosen = [path for path in chosen if "mask_1" not in path.name and "Training" not in str(path)]
    if dataset == "busi" and lost == "mask":
        chosen = [path for path in chosen if "malignant" in path.name]
    for path in chosen[:2]:
        path.unlink()
    message = error_of(find_items, raw, CARDS[dataset])
    assert chosen[0].stem.removesuffix("_mask").removesuffix("_Segmentation") in message
    assert "and 1 more" in message
    assert f"has no {lost} for" in message


def test_two_files_of_one_name_are_refused(download):
    raw = download("kvasir_polyp")
    image = next((raw / "Kvasir-SEG" / "images").iterdir())
    shutil.copy(image, image.with_suffix(".png"))
    assert "have the same name" in error_of(find_items, raw, CARDS["kvasir_polyp"])


# --- One dataset at a time -------------------------------------------------------------------------------------------


def test_grey_edges_of_a_jpeg_mask_are_thresholded(tmp_path, draw):
    values = np.full((16, 16), 3, np.uint8)
    values[4:12, 4:12] = 250
    values[4:12, 12] = 127
    draw.write_picture(tmp_path / "images" / "a.jpg", draw.pixels("a", (16, 16)))
    draw.write_picture(tmp_path / "masks" / "a.jpg", values, quality=100)
    mask = find_items(tmp_path, CARDS["kvasir_polyp"])[0].read_mask()
    assert mask[5:11, 5:11].all()
    assert mask.sum() <= 8 * 9
    assert not mask[:3].any()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("high", [1, 255])
def test_masks_of_any_mode_become_binary(tmp_path, draw, mode, high):
    mask = draw.blob("a")
    image = Image.fromarray(np.where(mask, high, 0).astype(np.uint8))
    image = Image.fromarray(mask) if mode == "1" else image
    image = Image.fromarray(np.where(mask, 257 * high, 0).astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    draw.write_picture(tmp_path / "images" / "a.png", draw.pixels("a"))
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks" / "a.png")
    np.testing.assert_array_equal(find_items(tmp_path, CARDS["kvasir_polyp"])[0].read_mask(), mask)


@pytest.mark.parametrize("form", ["{}_mask", "{}_segmentation", "{}_Segmentation"])
def test_masks_may_have_a_suffix_and_images_lie_deeper(tmp_path, draw, form):
    draw.write_pairs(range(3), tmp_path / "data" / "Images" / "all", tmp_path / "data" / "Masks", ".bmp", ".png", form)
    items = find_items(tmp_path, CARDS["kvasir_polyp"])
    assert [item.image for item in items] == ["0.png", "1.png", "2.png"]
    assert items[0].mask == f"{form.format(0)}.png"


def test_etis_in_its_first_release(tmp_path, draw):
    folder = tmp_path / "ETIS-LaribPolypDB"
    draw.write_pairs((1, 2, 12), folder / "ETIS-LaribPolypDB", folder / "Ground Truth", ".tif", ".tif", "p{}")
    items = find_items(tmp_path, CARDS["etis_polyp"])
    assert [(item.image, item.mask) for item in items] == [(f"{i}.png", f"{i}.png") for i in (1, 12, 2)]
    np.testing.assert_array_equal(items[1].read_mask(), draw.blob("12"))


def test_both_colours_of_bkai_are_polyps(download):
    items = find_items(download("bkai_polyp"), CARDS["bkai_polyp"])
    assert {item.target for item in items} == {"polyp"}
    expected = np.zeros((48, 64), bool)
    expected[8:24, 8:24] = True
    expected[28:44, 32:56] = True
    assert (items[2].read_mask() ^ expected).mean() < 0.02  # JPEG's edges


def test_bkai_a_class_at_a_time(download):
    items = find_items(download("bkai_polyp"), CARDS["bkai_polyp"], per_class=True)
    assert Counter(item.target for item in items) == {"neoplastic polyp": 10, "non-neoplastic polyp": 10}
    assert not any(item.keep_empty for item in items)
    first = {item.target: item for item in items[:2]}
    assert first["neoplastic polyp"].mask.endswith("_neoplastic.png")
    assert first["neoplastic polyp"].read_mask()[10:22, 10:22].all()
    assert not first["non-neoplastic polyp"].read_mask().any()
    red, green = (item.read_mask() for item in items[4:6])
    assert not (red & green).any()
    assert green[30:42, 34:54].all()


def test_only_bkai_has_classes_to_part(download):
    assert "--per_class" in error_of(find_items, download("dfu"), CARDS["dfu"], per_class=True)


def test_clinicdb_frames_are_grouped_by_their_known_sequence(download, draw):
    items = find_items(download("clinicdb_polyp"), CARDS["clinicdb_polyp"])
    groups = {int(Path(item.image).stem): item.group for item in items}
    assert [groups[frame] for frame in (1, 2, 25, 26, 27, 60)] == [f"sequence {i}" for i in (1, 1, 1, 2, 2, 3)]
    assert len(set(groups.values())) == 9


def test_clinicdb_sequences_of_a_csv_come_first_and_png_before_tif(tmp_path, draw):
    for kind in ("TIF", "PNG"):
        folder, suffix = tmp_path / kind, f".{kind.lower()}"
        draw.write_pairs((1, 2, 3), folder / "Original", folder / "Ground Truth", suffix, suffix)
    lines = ["frame_id,sequence_id,png_image_path", *(f"{i},{i // 2},PNG/Original/{i}.png" for i in (1, 2, 3))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    items = find_items(tmp_path, CARDS["clinicdb_polyp"])
    assert [item.group for item in items] == ["sequence 0", "sequence 1", "sequence 1"]
    assert {item.read_image().suffix for item in items} == {".png"}


def test_clinicdb_sequences_that_are_no_utf8_are_named(download, tmp_path):
    path = download("clinicdb_polyp") / "metadata.csv"
    path.write_bytes(b"frame_id,sequence_id\n1,s\xe9quence\n")
    message = error_of(find_items, path.parent, CARDS["clinicdb_polyp"])
    assert message.startswith(f"{path} cannot be read as a csv file")


def test_clinicdb_frames_of_other_names_are_their_own_groups(tmp_path, draw, capsys):
    draw.write_pairs(("x", "y", 700), tmp_path / "images", tmp_path / "masks", ".png", ".png")
    items = find_items(tmp_path, CARDS["clinicdb_polyp"])
    assert [item.group for item in items] == [item.image for item in items]
    assert "3 frames (700.png, …) are in no known sequence" in capsys.readouterr().out


def test_isic_keeps_its_test_set(download):
    items = find_items(download("isic"), CARDS["isic"])
    assert Counter(item.split for item in items) == {"": 10, "test": 5}
    assert {item.image for item in items if item.split} == {f"ISIC_{i:07d}.jpg" for i in range(100, 105)}


def test_busi_masks_are_merged_and_normal_ones_empty(download, draw):
    items = {item.image: item for item in find_items(download("busi"), CARDS["busi"])}
    merged = items["1_benign.png"].read_mask()
    assert merged[15:19, 18:23].all()
    assert merged.sum() == draw.blob("benign (1)").sum() + 20
    assert not items["2_normal.png"].read_mask().any()
    assert [items[f"3_{kind}.png"].attributes["tumor_type"] for kind in ("benign", "malignant", "normal")] == [
        "benign",
        "malignant",
        "normal",
    ]


def test_a_normal_busi_image_may_have_no_mask_file(download):
    raw = download("busi")
    (raw / "Dataset_BUSI_with_GT" / "normal" / "normal (1)_mask.png").unlink()
    items = {item.image: item for item in find_items(raw, CARDS["busi"])}
    assert not items["1_normal.png"].read_mask().any()


def test_a_busi_mask_of_another_size_is_named(download, draw):
    raw = download("busi")
    draw.write_mask(raw / "Dataset_BUSI_with_GT" / "benign" / "benign (2)_mask_1.png", np.ones((9, 8), bool))
    items = {item.image: item for item in find_items(raw, CARDS["busi"])}
    message = error_of(items["2_benign.png"].read_mask)
    assert "benign (2)_mask_1.png is 8x9" in message
