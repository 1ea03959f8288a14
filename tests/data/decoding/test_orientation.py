"""Whatever way a camera was held, the image is upright, and its mask by its own word."""

from pathlib import Path

import numpy as np
import pytest
from drawn_images import chunk, png, tiff
from PIL import Image, ImageOps

from medvlsm_jax.data.decoding.decode import decode
from medvlsm_jax.data.facts import probe
from medvlsm_jax.data.images import load_pair, open_image, read_mask
from medvlsm_jax.data.preparing.importers.item import image_size
from medvlsm_jax.data.scans.pages import open_pages
from medvlsm_jax.errors import UserError

ORIENTATIONS = range(1, 9)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
TURNS = {  # what of the stored rows and columns is the upright image's first row and column (EXIF 2.32, tag 0x0112)
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


def exif(orientation: object) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def save(path: Path, orientation: int, **options) -> Path:
    Image.fromarray(PIXELS).save(path, exif=exif(orientation), **options)
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_an_image_is_upright_wherever_it_is_read(tmp_path, name, orientation):
    path = save(tmp_path / name, orientation, **({"lossless": True} if name == "a.webp" else {}))
    upright = TURNS[orientation](PIXELS)
    np.testing.assert_array_equal(open_image(path), upright)
    np.testing.assert_array_equal(open_pages(path).read(0), upright)
    assert image_size(path) == probe(path, False).size == upright.shape[1::-1]
    assert decode(path).is_turned == probe(path, True).is_turned == (orientation != 1)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", ["a.jpg", "a.avif"])
def test_and_so_is_one_of_a_lossy_format(tmp_path, name, orientation):
    big = Image.fromarray(PIXELS).resize((160, 96), Image.Resampling.NEAREST)
    big.save(tmp_path / name, exif=exif(orientation), quality=95)
    found, upright = open_image(tmp_path / name), TURNS[orientation](np.asarray(big))
    assert found.size == upright.shape[1::-1] == image_size(tmp_path / name)
    assert np.abs(np.asarray(found, int) - upright).mean() < 12


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_first_picture_of_a_phone_is_the_image(tmp_path, orientation):
    path = tmp_path / "a.jpg"
    picture = Image.fromarray(PIXELS)
    picture.save(path, "MPO", save_all=True, append_images=[picture.resize((10, 6))], exif=exif(orientation))
    with Image.open(path) as opened:
        assert opened.format == "MPO"
    assert open_image(path).size == TURNS[orientation](PIXELS).shape[1::-1]
    assert len(open_pages(path)) == 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_xmp_says_it_as_well(tmp_path, name):
    options = {"xmp": xmp(6)}
    if name == "a.png":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)
        Image.fromarray(PIXELS).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:33] + chunk(b"iTXt", text) + content[33:])
    else:
        options = {"tiffinfo": {700: xmp(6)}} if name == "a.tif" else options
        Image.fromarray(PIXELS).save(tmp_path / name, **options)
    assert open_image(tmp_path / name).size == image_size(tmp_path / name) == (12, 20)


def test_exif_behind_the_pixels_of_a_png_holds_as_well(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk(b"eXIf", exif(8).tobytes()[6:]) + content[-12:])
    np.testing.assert_array_equal(open_image(path), TURNS[8](PIXELS))
    assert image_size(path) == (12, 20)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_word_that_is_none_changes_nothing(tmp_path, name, orientation):
    path = tmp_path / name
    if name == "a.tif":
        path.write_bytes(tiff((PIXELS, {274: orientation})))
    else:
        Image.fromarray(PIXELS).save(path, exif=exif(orientation))
    assert open_image(path).size == image_size(path) == (20, 12)


@pytest.mark.parametrize("block", [b"", b"II", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\xff\xff\xff\xff", b"garbage" * 99])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Possibly corrupt EXIF", "ignore:Truncated")
def test_broken_exif_makes_no_image_unreadable(tmp_path, block):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=b"Exif\0\0" + block)
    for name in ("a.jpg", "a.png"):
        assert open_image(tmp_path / name).size == image_size(tmp_path / name) == (20, 12)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colour_is_turned_too(tmp_path, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (12, 20, channels)).astype(np.uint16)
    colours = deep[..., 0] if channels == 2 else deep[..., :3]
    (tmp_path / "a.png").write_bytes(png(deep, before=chunk(b"eXIf", exif(6).tobytes()[6:])))
    (tmp_path / "a.tif").write_bytes(tiff((deep[..., :3], {274: 6}), compression=8))
    np.testing.assert_array_equal(decode(tmp_path / "a.png").pixels, TURNS[6](colours))
    if channels == 3:
        np.testing.assert_array_equal(decode(tmp_path / "a.tif").pixels, TURNS[6](colours))


def test_nothing_turns_an_image_twice(tmp_path):
    once = open_image(save(tmp_path / "a.png", 6))
    for name in ("b.png", "b.tif", "b.webp"):
        once.save(tmp_path / name, **({"lossless": True} if name == "b.webp" else {}))
        np.testing.assert_array_equal(open_image(tmp_path / name), TURNS[6](PIXELS))
    assert np.array_equal(ImageOps.exif_transpose(once), once)


def test_a_mask_follows_its_own_exif(tmp_path):
    mask = PIXELS[..., 0] // 128 * 255
    Image.fromarray(mask).save(tmp_path / "m.png", exif=exif(8))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), TURNS[8](mask // 255))
    load_pair(save(tmp_path / "a.png", 6), tmp_path / "m.png", 16)


def test_a_mask_that_lies_as_the_camera_did_is_one_line_that_says_so(tmp_path):
    image = save(tmp_path / "a.png", 6)
    Image.new("L", (20, 12)).save(tmp_path / "m.png")
    with pytest.raises(UserError) as error:
        load_pair(image, tmp_path / "m.png", 16)
    assert str(error.value) == (
        f"{tmp_path / 'm.png'} is 20x12 but its image {image} is 12x20: one of them is turned upright by its EXIF "
        "orientation, the other is not; turn the other's pixels likewise, or take the orientation out of the one"
    )
