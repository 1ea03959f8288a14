"""Small trees in the layouts of the formats, and what became of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers.item import Options
from medvlsm_jax.data.preparing.prepare import prepare

SIZE = (24, 20)  # width, height


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """An image that no other number has (h, w, 3)."""
    return np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)


def box(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A rectangle of pixels, its last column and row included (h, w)."""
    mask = np.zeros(size[::-1], bool)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


def write(path: Path, values: np.ndarray, **options) -> Path:
    """A picture file, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


class Prepared:
    """A prepared dataset.

    Attributes:
        folder: of it.
        rows: of records.csv.
        entries: of all annotation files, by mask.
        card: the path of the card that was made of what the files say.
    """

    def __init__(self, data_dir: Path, name: str):
        self.folder, self.card = data_dir / name, data_dir / f"{name}.toml"
        with (self.folder / "records.csv").open(newline="") as file:
            self.rows = list(csv.DictReader(file))
        paths = (self.folder / "anns").glob("*.json")
        self.entries = {entry["mask_name"]: entry for path in paths for entry in json.loads(path.read_text())}

    def masks(self) -> dict[tuple[str, str], np.ndarray]:
        """Image and class -> its mask."""
        return {(row["image"], row["target"]): self.mask(row["mask"]) for row in self.rows}

    def mask(self, name: str) -> np.ndarray:
        """A mask of 0 and 255, as bool."""
        values = np.asarray(Image.open(self.folder / "masks" / name))
        assert set(np.unique(values)) <= {0, 255}
        return values > 0

    def image(self, name: str) -> np.ndarray:
        return np.asarray(Image.open(self.folder / "images" / name))


@pytest.fixture
def prepared(tmp_path):
    """Prepares a folder `raw` without a card, or with a given one."""

    def run(card: Card | None = None, raw: Path = tmp_path / "raw", **options) -> Prepared:
        card = card or Card("organs")
        prepare(card, raw, tmp_path / "data", workers=1, options=Options(**options))
        return Prepared(tmp_path / "data", card.name)

    return run


@pytest.fixture
def draw():
    """The functions that draw: `draw.picture`, `draw.box`, `draw.write`."""
    from types import SimpleNamespace

    return SimpleNamespace(picture=picture, box=box, write=write, size=SIZE)


def same(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for key, mask in expected.items():
        np.testing.assert_array_equal(found[key], mask, err_msg=str(key))


@pytest.fixture
def assert_masks():
    """Compares masks by image and class, to the pixel."""
    return same
