"""Images of every mode that hospitals send, masks, and files that are broken."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from medvlsm_jax.data.facts import probe
from medvlsm_jax.data.images import load_pair, open_image, read_mask, resize_image, to_rgb
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def save(image: np.ndarray | Image.Image, path: Path, **options) -> Path:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = noise(5, 7)
    rgb = np.asarray(to_rgb(open_image(save(grey, tmp_path / "a.png"))))
    np.testing.assert_array_equal(rgb, np.repeat(grey[..., None], 3, axis=-1))


def test_transparency_is_dropped(tmp_path):
    pixels = noise(5, 7, 4)
    np.testing.assert_array_equal(to_rgb(open_image(save(pixels, tmp_path / "a.png"))), pixels[..., :3])


@pytest.mark.parametrize("options", [{}, {"transparency": 3}, {"transparency": bytes(range(256))}])
def test_a_palette_is_looked_up(tmp_path, options):
    image = Image.fromarray(noise(5, 7)).quantize(8)
    rgb = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(to_rgb(open_image(save(image, tmp_path / "a.png", **options))), rgb)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "1", "LA"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(np.full((5, 7, 3), 255, np.uint8)).convert(mode)
    path = save(image, tmp_path / ("a.png" if mode in ("1", "LA") else "a.jpg"))
    rgb = to_rgb(open_image(path))
    assert (rgb.mode, rgb.size) == ("RGB", (7, 5))
    assert np.asarray(rgb).min() >= 250


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_images_are_stretched_to_their_own_range(tmp_path, dtype):
    deep = np.array([[1000, 1100], [1500, 2000]], dtype)
    rgb = to_rgb(open_image(save(deep, tmp_path / ("a.png" if dtype == np.uint16 else "a.tif"))))
    np.testing.assert_array_equal(np.asarray(rgb)[..., 0], [[0, 26], [128, 255]])


def test_a_deep_image_of_one_value_is_black(tmp_path):
    assert not np.asarray(to_rgb(open_image(save(np.full((3, 3), 700, np.uint16), tmp_path / "a.png")))).any()


@pytest.mark.parametrize("size", [16, 64])
def test_images_are_resized_as_pillow_does(size):
    image = Image.fromarray(noise(40, 30, 3))
    expected = image.resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_image(image, size), expected)


def test_shrinking_averages():
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    assert np.abs(resize_image(Image.fromarray(checkers.astype(np.uint8)), 8).astype(int) - 127.5).max() < 3


def nearest(mask: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def test_masks_are_resized_to_nearest(tmp_path):
    eye = np.eye(8, dtype=np.uint8)
    paths = save(noise(8, 8, 3), tmp_path / "a.png"), save(eye * 255, tmp_path / "m.png")
    np.testing.assert_array_equal(load_pair(*paths, 17)[1][..., 0], nearest(eye, 17))
    np.testing.assert_array_equal(load_pair(*paths, 16)[1][..., 0], np.kron(eye, np.ones((2, 2))))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_mask_of_any_mode_is_zero_and_one(tmp_path, mode):
    truth = noise(6, 9) // 128
    image = Image.fromarray(truth.astype(np.uint16) * 65535 if mode == "I;16" else truth * 255)
    path = save(image if mode == "I;16" else image.convert(mode), tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(path), truth)
    assert read_mask(path).dtype == np.uint8


def test_the_first_channel_of_a_colour_mask_counts(tmp_path):
    mask = np.zeros((2, 3, 3), np.uint8)
    mask[0, 0], mask[1, 2] = (255, 0, 0), (0, 255, 0)
    np.testing.assert_array_equal(read_mask(save(mask, tmp_path / "m.png")), [[1, 0, 0], [0, 0, 0]])


def test_grey_values_are_thresholded_above_127(tmp_path):
    mask = np.array([[0, 1, 127, 128, 254, 255]], np.uint8)
    assert read_mask(save(mask, tmp_path / "m.png")).tolist() == [[0, 0, 0, 1, 1, 1]]


def test_a_jpegs_edges_are_cleaned(tmp_path):
    truth = np.zeros((64, 64), np.uint8)
    truth[20:50, 10:40] = 1
    path = save(truth * 255, tmp_path / "m.jpg", quality=75)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    np.testing.assert_array_equal(read_mask(path), truth)


def test_an_empty_mask_is_empty(tmp_path):
    assert not read_mask(save(np.zeros((4, 4), np.uint8), tmp_path / "m.png")).any()


def test_a_mask_of_zeros_and_ones_is_an_error_that_says_how_to_mend_it(tmp_path):
    path = save(noise(4, 4) // 128, tmp_path / "m.png")
    assert error_of(read_mask, path) == f"{path} holds the values 0 and 1, but masks are 0 and 255: multiply it by 255"


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("at", [(0, 0), (3, 3)])
def test_a_mask_of_zeros_and_ones_is_refused_whatever_resizing_would_pick_of_it(tmp_path, size, at):
    mask = np.zeros((64, 64), np.uint8)
    mask[at] = 1
    path = save(mask, tmp_path / "m.png")
    assert "holds the values 0 and 1" in error_of(load_pair, path, path, size)


@pytest.mark.parametrize(("at", "side"), [(10, 3), (14, 4), (19, 3)])
def test_what_resizing_leaves_of_a_small_object_in_a_jpeg_is_no_mask_of_zeros_and_ones(tmp_path, at, side):
    truth = np.zeros((128, 128), np.uint8)
    truth[at : at + side, at : at + side] = 1
    image, path = save(noise(128, 128, 3), tmp_path / "a.png"), save(255 * truth, tmp_path / "m.jpg", quality=95)
    assert open_image(path).resize((24, 24), Image.Resampling.NEAREST).getextrema() == (0, 1)  # which stopped runs
    assert probe(path, True).error == ""
    assert not load_pair(image, path, 24)[1].any()
    np.testing.assert_array_equal(read_mask(path), truth)


@pytest.mark.parametrize("quality", range(50, 71, 2))
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_empty_mask_in_a_jpeg_is_empty_though_its_values_may_be_1(tmp_path, mode, quality):
    path = save(Image.new(mode, (40, 40)), tmp_path / "m.jpg", quality=quality)
    assert not read_mask(path).any()
    assert not load_pair(path, path, 16)[1].any()


def test_a_part_of_a_jpeg_mask_that_holds_its_ringing_alone_is_empty(tmp_path):
    truth = np.zeros((64, 64), np.uint8)
    truth[10:13, 10:13] = 255
    whole = open_image(save(truth, tmp_path / "whole.jpg", quality=95))
    path = save(whole.crop((8, 8, 16, 9)).resize((40, 40), Image.Resampling.NEAREST), tmp_path / "m.jpg", quality=95)
    assert open_image(path).getextrema() == (0, 1)
    assert not read_mask(path).any()


@pytest.mark.parametrize("reader", [open_image, read_mask, lambda path: load_pair(path, path, 16)])
@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, reader, ending, share):
    path = save(noise(40, 40, 3), tmp_path / f"a.{ending}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert error_of(reader, path).startswith(f"{path} cannot be decoded as an image")


def test_a_text_file_is_no_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("version https://git-lfs.github.com/spec/v1")
    reason = "cannot be decoded as an image (in no format that Pillow reads): restore or remove it"
    assert error_of(open_image, path) == f"{path} {reason}"


def test_a_missing_file_is_named(tmp_path):
    assert error_of(open_image, tmp_path / "gone.png") == f"{tmp_path / 'gone.png'} does not exist"


@pytest.mark.parametrize("error", [RuntimeError, EOFError, struct.error, SyntaxError, ValueError])
def test_whatever_pillow_raises_for_a_broken_file_names_it(tmp_path, monkeypatch, error):
    def fail(image):
        raise error("bad block")

    path = save(noise(40, 40), tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert error_of(open_image, path) == f"{path} cannot be decoded as an image (bad block): restore or remove it"


@pytest.mark.parametrize("size", [(20_000, 20_000), (1, 2**31 - 1), (13_378, 13_378)])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, size):
    path = save(noise(40, 40), tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    content[16:24] = b"".join(side.to_bytes(4, "big") for side in size)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    expected = f"{path} is too large: shrink or remove it (Image size ({size[0] * size[1]} pixels) exceeds limit of"
    for reader in (open_image, read_mask):
        assert error_of(reader, path).startswith(expected)


def test_a_large_image_below_the_limit_is_read_without_a_warning(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (9_500, 9_500)).save(path)  # Pillow warns of it
    code = f"import pathlib, medvlsm_jax.data.images as i; print(i.open_image(pathlib.Path({str(path)!r})).size)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "(9500, 9500)\n"
    assert "DecompressionBomb" not in done.stderr


def test_a_pair_is_a_square_image_and_its_mask(tmp_path):
    image, truth = noise(20, 30, 3), noise(20, 30) // 128
    paths = save(image, tmp_path / "a.png"), save(truth * 255, tmp_path / "m.png")
    pixels, mask = load_pair(*paths, 16)
    assert (pixels.shape, pixels.dtype, mask.shape, mask.dtype) == ((16, 16, 3), np.uint8, (16, 16, 1), np.uint8)
    np.testing.assert_array_equal(pixels, resize_image(Image.fromarray(image), 16))
    np.testing.assert_array_equal(mask[..., 0], nearest(truth, 16))


@pytest.mark.parametrize("mask_mode", ["L", "1", "P", "RGB", "RGBA", "LA", "I;16", "I;16B", "I", "F"])
@pytest.mark.parametrize("image_mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
def test_a_pair_is_what_its_parts_are_for_every_mode(tmp_path, image_mode, mask_mode):
    image = save(Image.fromarray(noise(40, 30)).convert(image_mode), tmp_path / "a.tif")
    deep = {"I;16": "<u2", "I;16B": ">u2", "I": "i4", "F": "f4"}
    grey = noise(40, 30)
    mask = Image.fromarray((grey * 300.0).astype(deep[mask_mode])) if mask_mode in deep else Image.fromarray(grey)
    mask = save(mask if mask_mode in deep else mask.convert(mask_mode), tmp_path / "m.tif")
    assert open_image(mask).mode == mask_mode
    pixels, target = load_pair(image, mask, 17)
    np.testing.assert_array_equal(pixels, resize_image(open_image(image), 17))
    np.testing.assert_array_equal(target[..., 0], nearest(read_mask(mask), 17))
    assert (target.dtype, target.max()) == (np.uint8, 1)


@pytest.mark.parametrize("dataset", ["kvasir_polyp", "clinicdb_polyp", "isic", "busi"])
def test_a_pair_of_a_real_sample_is_resized_as_pillow_does(shared, dataset):
    for record in load_records(shared / "realdata", dataset, "train")[:5]:
        with Image.open(record.image) as image, Image.open(record.mask) as mask:
            expected = image.convert("RGB").resize((99, 99), Image.Resampling.BILINEAR)
            truth = Image.fromarray((np.asarray(mask) > 127).astype(np.uint8)).resize(
                (99, 99), Image.Resampling.NEAREST
            )
        pixels, target = load_pair(record.image, record.mask, 99)
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(target[..., 0], truth)


@pytest.mark.parametrize("size", [(1, 1), (7, 30)])
def test_a_tiny_image_is_an_error_that_names_it(tmp_path, size):
    image = save(Image.new("RGB", size), tmp_path / "a.png")
    mask = save(Image.new("L", size), tmp_path / "m.png")
    expected = f"{image} is {size[0]}x{size[1]} pixels, but at least 8x8 are needed: restore or remove it"
    assert error_of(load_pair, image, mask, 16) == expected


def test_a_mask_of_another_size_is_an_error_that_names_both(tmp_path):
    image, mask = save(noise(20, 30, 3), tmp_path / "a.png"), save(np.zeros((30, 20), np.uint8), tmp_path / "m.png")
    assert error_of(load_pair, image, mask, 16) == f"{mask} is 20x30 but its image {image} is 30x20: they must agree"
