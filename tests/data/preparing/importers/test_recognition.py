"""What a folder is taken for, and by what sign."""

import json

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.cards import CARDS, Card
from medvlsm_jax.data.preparing.importers import FORMATS, IMPORTERS, choose_importer
from medvlsm_jax.data.preparing.importers.recognition import recognize
from medvlsm_jax.errors import UserError

MASK = np.zeros((8, 8), np.uint8)
MASK[2:5, 2:5] = 1
COCO = {"images": [], "annotations": [], "categories": []}
# Files -> content: a value of an image, or text.
TREES = {
    "folders": {"images/a.png": 9, "masks/a.png": 255},
    "class_masks": {"images/a.png": 9, "masks/a_liver.png": 255, "masks/a_left lung.png": 255},
    "class_masks in folders": {"images/a.png": 9, "masks/liver/a.png": 255},
    "class_masks in a csv": {"x/a.png": 9, "y/b.png": 255, "list.csv": "image,mask,class\na.png,b.png,liver\n"},
    "label_maps": {"images/a.png": 9, "masks/a.png": 3, "classes.txt": "liver\nlung\nspleen\n"},
    "label_maps of one class": {"images/a.png": 9, "labels/a.png": 1, "labels.txt": "liver\n"},
    "coco": {"x/a.png": 9, "x/instances.json": json.dumps(COCO)},
    "labelme": {"a.png": 9, "a.json": json.dumps({"shapes": [], "imagePath": "a.png"})},
    "yolo": {"images/a.png": 9, "labels/a.txt": "", "data.yaml": "names: [liver]\ntrain: images\n"},
    "nnunet": {"imagesTr/a_0000.png": 9, "labelsTr/a.png": 1, "dataset.json": "{}"},
    "decathlon": {"imagesTr/a.nii.gz": "", "labelsTr/a.nii.gz": "", "dataset.json": "{}"},
    "sa_med2d": {"images/a.png": 9, "masks/a.png": 1, "SAMed2D_v1.json": "{}"},
    "biomedparse": {"train/a_b_c.png": 9, "train_mask/a_b_c_d.png": 1, "train.json": json.dumps(COCO)},
}


@pytest.fixture
def draw(tmp_path):
    def write(files: dict) -> None:
        for name, content in files.items():
            path = tmp_path / "raw" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content)
            else:
                Image.fromarray(MASK * np.uint8(content)).save(path)

    return write


@pytest.mark.parametrize("name", TREES)
def test_a_download_is_recognized(draw, tmp_path, name):
    draw(TREES[name])
    found, sign = recognize(tmp_path, Card("mine"))
    assert found == name.split()[0]
    assert str(tmp_path) in sign


def test_every_format_is_recognized():
    assert {name.split()[0] for name in TREES} == {"folders", *FORMATS}


def test_it_is_said_what_a_download_is_taken_for_and_a_user_may_know_better(draw, tmp_path, capsys):
    draw(TREES["folders"])
    assert choose_importer(tmp_path, Card("mine")) == "folders"
    assert capsys.readouterr().out.startswith(f"{tmp_path} is read as folders, by {tmp_path / 'raw' / 'images'}")
    assert choose_importer(tmp_path, Card("mine"), "class_masks") == "class_masks"
    assert choose_importer(tmp_path, CARDS["isic"]) == "isic"
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_nothing_is_named(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="is not the download of mine: expected images/"):
        recognize(tmp_path, Card("mine"))


def test_every_published_card_names_its_importer():
    assert all(card.importer in IMPORTERS for name, card in CARDS.items() if not card.members and name != "sample")
