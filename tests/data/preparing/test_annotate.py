"""Annotation files made for a folder: from what its records come, which words win, and what is never lost."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.cards import CARDS, SPLITS, Card
from medvlsm_jax.data.language.grammars import read_attributes
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.preparing.annotate import annotate, describe_records
from medvlsm_jax.errors import UserError

CARD = Card("mine", targets=("polyp",), descriptions=("a lump", "a bump"))
BOXES = {"a": (0, 10, 0, 10), "b": (40, 55, 40, 55), "c": (10, 20, 62, 70), "empty": (0, 0, 0, 0)}  # y0 y1 x0 x1


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four brown images with a red object each, but for the last, whose mask is empty."""
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for name, (y0, y1, x0, x1) in BOXES.items():
        image, mask = np.full((60, 72, 3), (130, 85, 60), np.uint8), np.zeros((60, 72), np.uint8)
        image[y0:y1, x0:x1], mask[y0:y1, x0:x1] = (175, 50, 45), 255
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}_mask.png")
    return root


def write_published(folder: Path) -> dict[str, list[dict]]:
    """Annotations as the original publishes them, in words that no measurement gives."""
    files = {}
    for split, names in zip(SPLITS, (("a", "b"), ("c",), ("empty",)), strict=True):
        files[split] = [
            {
                "img_name": f"{name}.png",
                "mask_name": f"{name}_mask.png",
                "prompts": {
                    **{"p0": "", "p1": "polyp", "p2": "heart polyp", "p3": "gold heart polyp"},
                    **{"p4": "huge gold heart polyp", "p5": "ten huge gold heart polyp"},
                    "p7": ["polyp which is odd"],
                },
            }
            for name in names
        ]
        (folder / "anns").mkdir(exist_ok=True)
        (folder / "anns" / f"{split}.json").write_text(json.dumps(files[split]))
    return files


def read(folder: Path, subfolder: str = "anns") -> dict[str, list[dict]]:
    return {split: json.loads((folder / subfolder / f"{split}.json").read_text()) for split in SPLITS}


def by_name(folder: Path) -> dict[str, dict]:
    return {entry["img_name"].split(".")[0]: entry for entries in read(folder).values() for entry in entries}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- What is written -------------------------------------------------------------------------------------------------


def test_a_record_has_its_words_its_box_and_its_prompts(folder):
    annotate(folder, CARD)
    entry = by_name(folder)["b"]
    words = {"class": "polyp", "shape": "square", "color": "red", "size": "small", "number": "one"}
    assert entry["attributes"] == words | {"location": "bottom right"}
    assert (entry["mask_name"], entry["bbox"]) == ("b_mask.png", [40, 40, 55, 55])
    assert entry["prompts"]["p6"] == "one small red square polyp, located in bottom right of the image"
    assert entry["prompts"]["p7"] == ["polyp which is a lump", "polyp which is a bump"]


def test_an_empty_mask_is_annotated_as_nothing(folder):
    annotate(folder, CARD)
    entry = by_name(folder)["empty"]
    assert "bbox" not in entry
    assert entry["attributes"] == {"class": "polyp", "number": "no"}
    assert (entry["prompts"]["p6"], entry["prompts"]["p9"]) == ("no polyp", ["no polyp"])


def test_what_is_written_is_read_as_records(folder):
    counts = annotate(folder, CARD)
    records = [record for split in SPLITS for record in load_records(folder.parent, "mine", split, is_required=False)]
    assert len(records) == sum(counts.values()) == 4
    for record in records:
        assert record.image.is_file()
        assert record.mask.is_file()
        assert read_attributes("object", record.prompts) == record.attributes


@pytest.mark.parametrize("workers", [1, 2])
def test_several_processes_write_the_same(folder, tmp_path, workers):
    other = Path(shutil.copytree(folder, tmp_path / "other" / "mine"))
    assert annotate(folder, CARD) == annotate(other, CARD, workers=workers)
    assert read(folder) == read(other)


def test_a_second_run_changes_nothing(folder):
    write_published(folder)
    annotate(folder, CARD)
    before = contents(folder)
    annotate(folder, CARD)
    assert contents(folder) == before


def test_true_thirds_move_a_location(folder):
    mask = np.zeros((60, 72), np.uint8)
    mask[5:10, 30:54] = 255  # its centre, 41.5, lies beyond two thirds of the height but not of the width
    Image.fromarray(mask).save(folder / "masks" / "a_mask.png")
    annotate(folder, CARD)
    assert by_name(folder)["a"]["attributes"]["location"] == "top right"
    annotate(folder, CARD, true_thirds=True)
    assert by_name(folder)["a"]["attributes"]["location"] == "top"


# --- Where records come from -----------------------------------------------------------------------------------------


def test_a_bare_folder_is_paired_by_name_and_split(folder):
    for i in range(16):
        Image.fromarray(np.full((60, 72, 3), i, np.uint8)).save(folder / "images" / f"x{i}.png")
        shutil.copy(folder / "masks" / "a_mask.png", folder / "masks" / f"x{i}.png")
    assert annotate(folder, CARD) == {"train": 16, "val": 2, "test": 2}
    assert len(by_name(folder)) == 20


def test_copies_of_an_image_in_a_bare_folder_are_in_one_split(folder):
    for i in range(12):
        shutil.copy(folder / "images" / "a.png", folder / "images" / f"copy{i}.png")
        shutil.copy(folder / "masks" / "a_mask.png", folder / "masks" / f"copy{i}_mask.png")
    annotate(folder, CARD)
    names = {split: {entry["img_name"] for entry in entries} for split, entries in read(folder).items()}
    copies = {"a.png", *(f"copy{i}.png" for i in range(12))}
    assert [split for split in SPLITS if names[split] & copies] == [s for s in SPLITS if copies <= names[s]]


def test_a_class_that_the_card_names_anew_replaces_the_old_one(folder):
    annotate(folder, Card("mine", targets=("polyp",)))
    annotate(folder, Card("mine", targets=("lesion",)))
    assert {entry["prompts"]["p1"] for entry in by_name(folder).values()} == {"lesion", "no lesion"}


def test_cvc300_is_annotated_from_its_own_images_beside_colondbs_records(shared, folder, tmp_path):
    folder = folder.rename(tmp_path / "cvc300_polyp")
    shutil.copytree(shared / "annotations" / "cvc300_polyp", folder / "anns")
    for _ in range(2):
        assert annotate(folder, CARDS["cvc300_polyp"]) == {"train": 0, "val": 0, "test": len(BOXES)}
        assert set(by_name(folder)) == set(BOXES)
    assert len(read(folder, "anns.published")["test"]) == 360


def test_an_image_without_a_mask_is_named(folder):
    (folder / "masks" / "b_mask.png").unlink()
    assert f"{folder / 'masks'} has no mask for images of {folder / 'images'}: b.png" in error_of(
        annotate, folder, CARD
    )
    assert not (folder / "anns").exists()


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "mine").mkdir()
    assert "images holds no images" in error_of(annotate, tmp_path / "mine", CARD)


def test_records_csv_gives_splits_classes_and_metadata(folder):
    lines = ["image,mask,split,group,target,tumor_type", "a.png,a_mask.png,test,1,tumor,benign"]
    lines += ["empty.png,empty_mask.png,train,2,tumor,normal", "b.png,b_mask.png,,3,tumor,malignant"]
    (folder / "records.csv").write_text("\n".join(lines) + "\n")
    card = Card("mine", targets=("tumor",), grammar="busi")
    assert annotate(folder, card) == {"train": 1, "val": 0, "test": 1}  # b is in no split
    prompts = {name: entry["prompts"] for name, entry in by_name(folder).items()}
    assert prompts["a"]["p6"][0] == (
        "One small square-shaped benign tumor at the top left in the breast ultrasound image."
    )
    assert set(prompts["empty"].values()) == {"", "No tumor in the breast ultrasound image."}


def test_records_csv_gives_patients_and_spacing(folder):
    lines = ["image,mask,split,group,target,spacing", "a.png,a_mask.png,train,p1,polyp,0.31x0.15"]
    lines += ["b.png,b_mask.png,train,b.png,polyp,", "c.png,c_mask.png,val,c,polyp,2x1e-1"]
    (folder / "records.csv").write_text("\n".join(lines) + "\n")
    annotate(folder, CARD)
    keys = ("group", "spacing")
    known = {name: {key: entry[key] for key in keys if key in entry} for name, entry in by_name(folder).items()}
    c = {"group": "c", "spacing": [2.0, 0.1]}  # no image is called so
    assert known == {"a": {"group": "p1", "spacing": [0.31, 0.15]}, "b": {}, "c": c}
    assert "spacing" not in by_name(folder)["a"]["attributes"]


@pytest.mark.parametrize("cell", ["0.31", "0.31x0.15x1", "axb", "0x1", "-1x1", "nanx1", "infx1", "1 mm"])
def test_a_spacing_of_another_form_is_named_by_its_line(folder, cell):
    lines = ["image,mask,split,group,target,spacing", "a.png,a_mask.png,train,p1,polyp,1x1"]
    (folder / "records.csv").write_text("\n".join([*lines, f"b.png,b_mask.png,train,p1,polyp,{cell}"]) + "\n")
    message = error_of(annotate, folder, CARD)
    assert message.startswith(f"{folder / 'records.csv'}, line 3: spacing ")
    assert "mm of a pixel down and across" in message


def test_annotations_keep_patients_and_spacing(folder):
    for entries in write_published(folder).values():
        for entry in entries:
            entry |= {"group": f"patient of {entry['img_name']}", "spacing": [0.5, 0.25]}
        split = {"a": "train", "c": "val", "e": "test"}[entries[0]["img_name"][0]]
        (folder / "anns" / f"{split}.json").write_text(json.dumps(entries))
    for _ in range(2):
        annotate(folder, CARD)
        found = [(name, entry["group"], entry["spacing"]) for name, entry in by_name(folder).items()]
        assert found == [(name, f"patient of {name}.png", [0.5, 0.25]) for name in BOXES]


def test_records_of_a_subfolder_and_of_several_masks_an_image(folder, tmp_path):
    root = tmp_path / "camus"
    for kind in ("images", "masks"):
        shutil.copytree(folder / kind, root / kind / "train")
    header = "image,mask,split,group,target,view,cycle,sex,age,quality"
    rows = [
        f"a.png,{mask}_mask.png,val,p1,{target},two-chamber,systole,female,,good"
        for mask, target in (("a", "myocardium"), ("b", "left atrium cavity"))
    ]
    (root / "records.csv").write_text("\n".join([header, *rows]))
    annotate(root, CARDS["camus"])
    records = load_records(tmp_path, "camus", "val")
    assert [record.target for record in records] == ["myocardium", "left atrium cavity"]
    assert records[0].prompts["p7"][0] == (
        "Myocardium of square shape in two-chamber view of the heart at end of the systole cycle of a female with good "
        "image quality."
    )


def test_annotations_keep_splits_and_what_masks_cannot_tell(folder):
    published = write_published(folder)
    for entries in published.values():
        for entry in entries:
            entry["prompts"] = {"p1": "Tumor in the breast ultrasound image."}
            entry["prompts"]["p2"] = ["Malignant tumor in the breast ultrasound image.", "x"]
    for split, entries in published.items():
        (folder / "anns" / f"{split}.json").write_text(json.dumps(entries))
    annotate(folder, Card("mine", targets=("tumor",), grammar="busi"))
    assert {split: [entry["img_name"] for entry in entries] for split, entries in read(folder).items()} == {
        "train": ["a.png", "b.png"],
        "val": ["c.png"],
        "test": ["empty.png"],
    }
    words = by_name(folder)["a"]["attributes"]
    assert (words["tumor_type"], words["number"], words["size"]) == ("malignant", "one", "small")


def test_a_class_that_nothing_names_is_asked_for(folder):
    message = error_of(annotate, folder, Card("mine"))
    assert message.startswith(
        "mine: of what class a_mask.png (and 3 more) is, is not known: name one class in a card's targets"
    )
    assert "column class" in message
    annotate(folder, Card("mine"), overrides={f"{name}.png": {"class": "ulcer"} for name in BOXES})
    assert by_name(folder)["a"]["prompts"]["p1"] == "ulcer"


def test_a_missing_file_is_named_before_anything_is_written(folder):
    write_published(folder)
    before = contents(folder)
    del before["masks/c_mask.png"]
    (folder / "masks" / "c_mask.png").unlink()
    assert error_of(annotate, folder, CARD).startswith(f"{folder / 'masks' / 'c_mask.png'} is missing")
    assert contents(folder) == before


def test_a_mask_of_another_size_is_named_and_nothing_is_written(folder):
    write_published(folder)
    Image.new("L", (30, 20)).save(folder / "masks" / "c_mask.png")
    before = contents(folder)
    for workers in (1, 2):
        assert "c_mask.png is 30x20 but its image" in error_of(annotate, folder, CARD, workers=workers)
    assert contents(folder) == before


def test_an_unknown_grammar_is_named(folder):
    assert "unknown grammar 'poem'" in error_of(annotate, folder, Card("mine", grammar="poem"))


# --- Which words win -------------------------------------------------------------------------------------------------


def test_published_words_are_kept_on_request(folder):
    write_published(folder)
    annotate(folder, CARD, keep=("shape", "color"))
    assert by_name(folder)["a"]["prompts"]["p5"] == "one small gold heart polyp"
    assert by_name(folder)["a"]["prompts"]["p7"] == ["polyp which is a lump", "polyp which is a bump"]
    annotate(folder, CARD, keep=("shape", "general"))  # those that it came with, not those just written
    assert by_name(folder)["a"]["prompts"]["p5"] == "one small red heart polyp"
    assert by_name(folder)["a"]["prompts"]["p7"] == ["polyp which is odd"]


def test_words_are_kept_beside_records_csv_too(folder):
    write_published(folder)
    (folder / "records.csv").write_text("image,mask,split,group,target\na.png,a_mask.png,val,1,polyp\n")
    annotate(folder, CARD, keep=("color",))
    assert [entry["prompts"]["p3"] for entry in read(folder)["val"]] == ["gold square polyp"]


def test_nothing_can_be_kept_of_annotations_made_here(folder):
    assert "--keep=shape" in error_of(annotate, folder, CARD, keep=("shape",))
    annotate(folder, CARD)
    assert "no published annotations" in error_of(annotate, folder, CARD, keep=("shape",))


def test_a_users_words_go_before_all_others(folder):
    write_published(folder)
    overrides = {"a.png": {"shape": "flat", "color": "pale"}, "a_mask.png": {"shape": "bean"}}
    annotate(folder, CARD, overrides=overrides, keep=("shape", "size"))
    assert by_name(folder)["a"]["prompts"]["p5"] == "one huge pale bean polyp"
    assert by_name(folder)["b"]["prompts"]["p5"] == "one huge red heart polyp"


def test_a_users_words_for_an_unknown_file_are_an_error(folder):
    message = error_of(annotate, folder, CARD, overrides={"z.png": {"shape": "flat"}, "y.png": {}})
    assert message.startswith("--attributes names z.png and 1 more, which is no image or mask of a record in ")


@pytest.mark.parametrize(
    ("descriptions", "expected"),
    [
        (["a dot"], ["polyp which is a dot"]),
        ({"polyp": ["a dot"], "ulcer": ["a hole"]}, ["polyp which is a dot"]),
        (None, ["polyp which is a lump", "polyp which is a bump"]),
    ],
)
def test_descriptions_are_the_users_or_the_cards(folder, descriptions, expected):
    annotate(folder, CARD, descriptions=descriptions)
    assert by_name(folder)["a"]["prompts"]["p7"] == expected


def test_descriptions_of_other_classes_alone_are_an_error(folder):
    message = error_of(annotate, folder, CARD, descriptions={"polpy": ["a slip"], "ulcer": ["a sore"]})
    assert message == "--descriptions has sentences for polpy, ulcer, but the records are of polyp"
    assert not (folder / "anns").exists()


# --- What is never lost ----------------------------------------------------------------------------------------------


def test_published_annotations_are_kept_once_and_announced(folder, capsys):
    published = write_published(folder)
    annotate(folder, CARD)
    assert read(folder, "anns.published") == published
    assert f"are kept in {folder / 'anns.published'}" in capsys.readouterr().out
    annotate(folder, CARD, descriptions=["other"])
    assert read(folder, "anns.published") == published
    assert capsys.readouterr().out == ""


def test_annotations_of_another_origin_are_not_overwritten_when_their_place_is_taken(folder):
    write_published(folder)
    annotate(folder, CARD)
    write_published(folder)
    before = contents(folder)
    assert "move one of them away" in error_of(annotate, folder, CARD)
    assert contents(folder) == before


def test_images_and_masks_are_left_alone(folder):
    before = contents(folder)
    annotate(folder, CARD)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {".written.jsonl", *(f"anns/{split}.json" for split in SPLITS)}


def test_describing_writes_nothing(folder):
    write_published(folder)
    before = contents(folder)
    described = {item.row.image: item for item in describe_records(folder, CARD)}
    assert contents(folder) == before
    assert described["a.png"].attributes["number"] == "one"
    assert described["a.png"].published.attributes["number"] == "ten"
    assert described["a.png"].box == (0, 0, 10, 10)
    assert described["empty.png"].box is None
    annotate(folder, CARD)
    assert Counter(bool(item.published) for item in describe_records(folder, CARD)) == {True: 4}


@pytest.mark.parametrize("dataset", ["kvasir_polyp", "busi"])
def test_a_real_dataset_gets_its_prompts(shared, tmp_path, dataset):
    folder = Path(shutil.copytree(shared / "realdata" / dataset, tmp_path / dataset))
    published = read(folder)
    assert annotate(folder, CARDS[dataset], keep=("shape", "color"))["test"] == len(published["test"])
    kinds = [f"p{i}" for i in range(7)]  # p7 to p9 are in other words than the published ones
    for split in SPLITS:
        for ours, theirs in zip(read(folder)[split], published[split], strict=True):
            assert [ours["prompts"][kind] for kind in kinds] == [theirs["prompts"][kind] for kind in kinds]
