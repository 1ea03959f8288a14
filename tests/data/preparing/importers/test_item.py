"""What an importer finds has names below the dataset's folder, whatever the download says."""

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.cards import CARDS
from medvlsm_jax.data.preparing.importers import find_items
from medvlsm_jax.data.preparing.importers.item import Item
from medvlsm_jax.errors import UserError

NAMES = ["../a.png", "x/../../a.png", "/etc/a.png", "..\\a.png", "x\\..\\a.png", "\\a.png", "a\0.png"]


def nothing() -> np.ndarray:
    return np.zeros((8, 8), bool)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_name_that_leads_out_of_the_folder_makes_no_item(name, kind):
    names = {"image": "a.png", "mask": "mask_1/a.png"} | {kind: name}
    with pytest.raises(UserError) as error:
        Item(**names, read_image=nothing, read_mask=nothing)
    assert repr(name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["..a.png", "a..png", "x/y/a.png", "benign (1).png", "a:b.png"])
def test_other_names_are_kept(name):
    assert Item(name, name, read_image=nothing, read_mask=nothing).mask == name


def test_a_file_that_a_bad_unpacking_named_after_its_folder_is_named(tmp_path):
    """On Linux an archive of Windows may become one file `..\\images\\1.png` instead of folders."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / folder / "x\\..\\1.png")
    with pytest.raises(UserError, match="outside of the dataset's folder"):
        find_items(tmp_path, CARDS["kvasir_polyp"])
