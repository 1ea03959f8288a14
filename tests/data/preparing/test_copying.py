"""What is written of a download lies as it is to be looked at, however a camera was held."""

import functools
from pathlib import Path

import numpy as np
import pytest
from drawn_images import tiff
from PIL import Image

from medvlsm_jax.data.images import load_pair, open_image
from medvlsm_jax.data.preparing.copying import write_files
from medvlsm_jax.data.preparing.importers.item import Item, as_found, image_name, sources_of
from medvlsm_jax.data.preparing.importers.masks import read_binary
from medvlsm_jax.data.preparing.measuring import measure_files
from medvlsm_jax.errors import UserError

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (24, 40, 3)).astype(np.uint8)
UPRIGHT = np.rot90(PIXELS, -1)
MASK = UPRIGHT[..., 0] // 128 * 255
EXIF = Image.Exif()
EXIF[0x0112] = 6


def write(image: Path, mask: np.ndarray, folder: Path, max_side: int = 0) -> tuple[Path, Path]:
    """Writes one pair, which is measured as its files would be; returns where."""
    Image.fromarray(mask).save(image.with_name("mask.png"))
    reads = {
        "read_image": functools.partial(as_found, image),
        "read_mask": functools.partial(read_binary, image.with_name("mask.png")),
    }
    item = Item(image_name(image), "m.png", **reads)
    [(line, words)] = write_files(sources_of([item]), folder, "", max_side=max_side, workers=1)
    files = folder / "images" / item.image, folder / "masks" / "m.png"
    assert (words, line.box) == measure_files(files, true_thirds=False)
    return files


@pytest.mark.parametrize("max_side", [0, 20])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_a_turned_image_is_written_so_that_it_and_its_mask_lie_alike(tmp_path, name, max_side):
    Image.fromarray(PIXELS).save(tmp_path / name, exif=EXIF, **({"lossless": True} if name == "a.webp" else {}))
    image, mask = write(tmp_path / name, MASK, tmp_path / "out", max_side)
    size = (12, 20) if max_side else (24, 40)
    assert open_image(image).size == open_image(mask).size == size
    load_pair(image, mask, 16)
    if max_side == 0 and name != "a.jpg":
        np.testing.assert_array_equal(open_image(image), UPRIGHT)
    if max_side == 0 and name in ("a.png", "a.jpg"):
        assert image.read_bytes() == (tmp_path / name).read_bytes()


def test_a_mask_of_the_pixels_as_they_lie_in_the_file_is_named(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=EXIF)
    with pytest.raises(
        UserError, match=r"the mask m\.png is 40x24 .* 24x40: one of them is turned upright by its EXIF"
    ):
        write(tmp_path / "a.png", MASK.T, tmp_path / "out")


def test_deep_colour_is_written_as_it_is_shown(tmp_path):
    deep = rng.integers(0, 4096, (24, 40, 3)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff((deep, {274: 6})))
    image, _ = write(tmp_path / "a.tif", MASK, tmp_path / "out")
    np.testing.assert_array_equal(open_image(image), open_image(tmp_path / "a.tif"))
    assert (np.min(open_image(image)), np.max(open_image(image))) == (0, 255)


def test_several_pages_are_an_error_that_names_the_download(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(PIXELS, PIXELS))
    with pytest.raises(UserError, match=r"a\.tif has 2 pages"):
        write(tmp_path / "a.tif", MASK, tmp_path / "out")
