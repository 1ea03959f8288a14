"""The splits and patients that a user has stand, however they are given; what they leave open is drawn and said."""

import json
from pathlib import Path

import pytest

from medvlsm_jax.data.cards import SPLITS, Card, read_card
from medvlsm_jax.data.preparing.annotate import annotate
from medvlsm_jax.data.preparing.importers.folders import find_items
from medvlsm_jax.data.preparing.own_splits import read_own_splits, split_named, split_of
from medvlsm_jax.data.preparing.prepare import prepare
from medvlsm_jax.errors import UserError

CARD = Card("mine", targets=("wound",))
OWN = {"train": range(8), "val": range(8, 11), "test": range(11, 14)}  # numbers of the images of each split


def draw_layout(draw, raw: Path, layout: str, splits: dict[str, range] = OWN, names: dict[str, str] | None = None):
    """Pairs in folders of a layout, `KIND` for images or masks and `SPLIT` for the name of a split."""
    for split, numbers in splits.items():
        place = layout.replace("SPLIT", (names or {}).get(split, split))
        images, masks = (raw / place.replace("KIND", kind) for kind in ("images", "masks"))
        draw.write_pairs(numbers, images, masks, ".png", ".png")


def entries(folder: Path) -> dict[str, list[dict]]:
    return {split: json.loads((folder / "anns" / f"{split}.json").read_text()) for split in SPLITS}


def numbers_of(folder: Path) -> dict[str, set[int]]:
    return {s: {int(Path(entry["img_name"]).stem) for entry in found} for s, found in entries(folder).items()}


def prepared(raw: Path, card: Card = CARD, **options) -> Path:
    prepare(card, raw, raw.parent / "data", workers=1, **options)
    return raw.parent / "data" / card.name


@pytest.fixture
def raw(tmp_path) -> Path:
    return tmp_path / "raw"


# --- Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", ["KIND/SPLIT", "SPLIT/KIND", "SPLIT/clinic a/KIND", "KIND/all/SPLIT", "set/SPLIT/KIND"]
)
def test_folders_named_as_splits_are_the_splits(raw, draw, layout):
    draw_layout(draw, raw, layout)
    assert numbers_of(prepared(raw)) == {split: set(numbers) for split, numbers in OWN.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"),
        ("VALID", "val"),
        ("validation", "val"),
        ("Hold-Out", "test"),
        ("testing", "test"),
        ("a", ""),
    ],
)
def test_splits_have_many_names(name, split):
    assert split_named(name) == split


def test_names_in_any_case_and_masks_that_lie_flat(raw, draw):
    draw_layout(draw, raw, "KIND/SPLIT", names={"train": "Training", "val": "Valid", "test": "HOLDOUT"})
    for mask in list((raw / "masks").rglob("*.png")):
        mask.rename(raw / "masks" / mask.name)
    for folder in list((raw / "masks").iterdir()):
        folder.rmdir() if folder.is_dir() else None
    assert numbers_of(prepared(raw)) == {split: set(numbers) for split, numbers in OWN.items()}


@pytest.mark.parametrize("layout", ["KIND/SPLIT", "SPLIT/KIND"])
def test_files_of_one_name_in_two_splits_stay_apart(raw, draw, layout):
    for split in SPLITS:
        images, masks = (raw / layout.replace("KIND", k).replace("SPLIT", split) for k in ("images", "masks"))
        for number in range(3):
            draw.write_picture(images / f"{number}.png", draw.pixels(f"{split}{number}"))
            draw.write_mask(masks / f"{number}.png", draw.blob(str(number)))
    found = entries(prepared(raw))
    for split in SPLITS:
        assert [entry["img_name"] for entry in found[split]] == [f"{split}/{number}.png" for number in range(3)]
        assert [entry["mask_name"] for entry in found[split]] == [f"{split}/{number}.png" for number in range(3)]


def test_missing_validation_images_are_drawn_from_the_training(raw, draw, capsys):
    draw_layout(draw, raw, "SPLIT/KIND", {"train": range(20), "test": range(20, 24)})
    found = numbers_of(prepared(raw))
    assert found["test"] == set(range(20, 24))
    assert found["train"] | found["val"] == set(range(20))
    assert len(found["val"]) == 3
    assert "3 of the training images become them" in capsys.readouterr().out


def test_training_images_alone_are_no_division(raw, draw, capsys):
    draw_layout(draw, raw, "SPLIT/KIND", {"train": range(20)})
    assert [len(found) for found in numbers_of(prepared(raw)).values()] == [16, 2, 2]
    assert "are drawn from them" in capsys.readouterr().out


def test_a_test_set_alone_is_one(raw, draw):
    draw_layout(draw, raw, "KIND/SPLIT", {"test": range(4)})
    assert numbers_of(prepared(raw)) == {"train": set(), "val": set(), "test": set(range(4))}


def test_no_test_set_is_made_of_what_was_given_for_training(raw, draw):
    draw_layout(draw, raw, "SPLIT/KIND", {"train": range(10), "val": range(10, 12)})
    assert numbers_of(prepared(raw)) == {"train": set(range(10)), "val": {10, 11}, "test": set()}


def test_an_image_and_its_mask_in_different_splits_are_refused(raw, draw):
    draw_layout(draw, raw, "KIND/all/SPLIT")
    (raw / "masks" / "all" / "train" / "0.png").rename(raw / "masks" / "all" / "test" / "0.png")
    with pytest.raises(UserError, match=r"0\.png lies in train and its mask in test"):
        find_items(raw, CARD)
    with pytest.raises(UserError, match="names the splits train and test"):
        split_of(Path("train/test"))


def test_an_image_in_two_of_the_users_splits_is_an_error(raw, draw):
    draw_layout(draw, raw, "SPLIT/KIND", {"train": range(8), "test": range(8, 11)})
    copy = (raw / "train" / "images" / "0.png").read_bytes()
    (raw / "test" / "images" / "8.png").write_bytes(copy)
    with pytest.raises(UserError, match=r"one image is in train \(0\.png\) and test \(8\.png\)"):
        prepared(raw)
    found = numbers_of(prepared(raw, on_leak="drop"))
    assert 0 not in found["train"] | found["val"]
    assert found["test"] == {8, 9, 10}


def test_a_prepared_folder_without_annotations_has_its_folders_splits(tmp_path, draw):
    draw_layout(draw, tmp_path / "mine", "KIND/SPLIT")
    annotate(tmp_path / "mine", CARD, workers=1)
    assert numbers_of(tmp_path / "mine") == {split: set(numbers) for split, numbers in OWN.items()}


@pytest.mark.parametrize("layout", ["KIND/SPLIT/", "SPLIT/KIND/"])
@pytest.mark.parametrize("form", ["{0}_{1}.png", "{1}/{0}.png", "label map"])
def test_several_classes_have_the_splits_of_their_folders(raw, draw, layout, form):
    for split in SPLITS:
        images, masks = (raw / layout.replace("KIND", k).replace("SPLIT", split) for k in ("images", "masks"))
        draw.write_picture(images / "a.png", draw.pixels(split))
        if form == "label map":
            draw.write_picture(masks / "a.png", draw.labels().clip(max=2))
            continue
        for word in ("liver", "spleen"):
            draw.write_mask(masks / form.format("a", word), draw.blob(word))
    card = Card("mine", targets=("liver", "spleen"), labels={"1": "liver", "2": "spleen"} if "map" in form else {})
    found = entries(prepared(raw, card))
    for split in SPLITS:
        assert {entry["img_name"] for entry in found[split]} == {f"{split}/a.png"}
        assert [entry["attributes"]["class"] for entry in found[split]] == ["liver", "spleen"]


# --- A csv -----------------------------------------------------------------------------------------------------------


def write_splits(path: Path, lines: list[str], header: str = "image,split,group") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_csv_gives_splits_and_patients(raw, draw, tmp_path):
    draw_layout(draw, raw, "KIND", {"train": range(6)})
    lines = ["0.png,train,a", "1,train,a", "images/2.png,Training,b", "3.png,val,c", "4.png,test,d"]
    folder = prepared(raw, splits=write_splits(tmp_path / "own.csv", lines))
    assert numbers_of(folder) == {"train": {0, 1, 2}, "val": {3}, "test": {4}}  # 5.png is in no split
    assert [entry["group"] for entry in entries(folder)["train"]] == ["a", "a", "b"]


def test_the_csv_of_a_download_is_found_and_its_patients_stay_together(raw, draw):
    draw_layout(draw, raw, "KIND", {"train": range(20)})
    write_splits(raw / "splits.csv", [f"{i}.png,p{i // 4}" for i in range(20)], "image,group")
    found = numbers_of(prepared(raw))
    assert all({i // 4 * 4 + k for k in range(4)} <= numbers for numbers in found.values() for i in numbers)
    assert sum(map(len, found.values())) == 20


def test_one_patient_in_two_splits_of_a_csv_is_an_error(raw, draw, tmp_path):
    draw_layout(draw, raw, "KIND", {"train": range(3)})
    path = write_splits(tmp_path / "own.csv", ["0.png,train,ann", "1.png,val,bob", "2.png,test,ann"])
    with pytest.raises(UserError, match=r"ann is in train \(0\.png\) and test \(2\.png\).*--on_leak=drop"):
        prepared(raw, splits=path)
    assert numbers_of(prepared(raw, splits=path, on_leak="keep"))["train"] == {0}


def test_another_csv_is_another_preparation(raw, draw, tmp_path):
    draw_layout(draw, raw, "KIND", {"train": range(3)})
    first = write_splits(tmp_path / "own.csv", ["0.png,train", "1.png,val", "2.png,test"], "image,split")
    prepared(raw, splits=first)
    prepared(raw, splits=first)
    other = write_splits(tmp_path / "other.csv", ["1.png,train", "0.png,val", "2.png,test"], "image,split")
    with pytest.raises(UserError, match="was prepared with splits="):
        prepared(raw, splits=other)
    with pytest.raises(UserError, match="--splits: the published records"):
        prepared(raw, splits=first, annotations=tmp_path)


@pytest.mark.parametrize(
    ("header", "line", "text"),
    [
        ("name,split", "0.png,train", "has the columns name, split"),
        ("image", "0.png", "has the columns image:"),
        ("image,split", "", "has no lines"),
        ("image,split", "0.png,later", "line 2: 'later' is no split: write train, val, test, or nothing"),
        ("image,split", "0.png,train\n0.png,test", "line 3: it has 0.png twice"),
        ("image,split", "9.png,train", "the image 9.png is none of the dataset"),
        ("image,split", "0.png,train\n0,test", "says two things of the image 0.png"),
    ],
)
def test_a_csv_that_says_nonsense_is_one_line(raw, draw, tmp_path, header, line, text):
    draw_layout(draw, raw, "KIND", {"train": range(2)})
    path = write_splits(tmp_path / "own.csv", [line] if line else [], header)
    with pytest.raises(UserError) as error:
        prepared(raw, splits=path)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_a_csv_with_a_byte_order_mark(tmp_path):
    (tmp_path / "own.csv").write_bytes(b"\xef\xbb\xbfimage,split\r\n0.png,test\r\n")
    assert read_own_splits(tmp_path / "own.csv").places["0.png"].split == "test"


# --- A pattern -------------------------------------------------------------------------------------------------------


def test_a_cards_pattern_finds_patients_in_the_path(raw, draw):
    for i in range(20):
        draw_layout(draw, raw, f"KIND/patient{i // 4}", {"train": range(i, i + 1)})
    card = Card("mine", targets=("wound",), group=r"patient(\d+)/")
    folder = prepared(raw, card)
    for entry in [entry for found in entries(folder).values() for entry in found]:
        assert entry["group"] == str(int(Path(entry["img_name"]).stem) // 4)
    found = numbers_of(folder)
    assert all({i // 4 * 4 + k for k in range(4)} <= numbers for numbers in found.values() for i in numbers)


def test_a_pattern_that_finds_nothing_is_an_error(raw, draw):
    draw_layout(draw, raw, "KIND", {"train": range(3)})
    with pytest.raises(UserError, match=r"is in the name of no image, as 0\.png"):
        prepared(raw, Card("mine", targets=("wound",), group=r"patient(\d+)"))


@pytest.mark.parametrize(
    ("pattern", "text"), [("(", "no regular expression"), ("p", "has 0 captures"), ("(a)(b)", "2")]
)
def test_a_pattern_with_one_capture_is_asked_for(tmp_path, pattern, text):
    (tmp_path / "mine.toml").write_text(f'name = "mine"\ngroup = "{pattern}"\n')
    with pytest.raises(UserError, match=text):
        read_card(tmp_path / "mine.toml")
