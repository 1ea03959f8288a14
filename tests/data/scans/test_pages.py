"""Every page and every frame is a slice, as a viewer shows it, in whatever order threads ask for them."""

import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from drawn_images import png, tiff
from PIL import Image

from medvlsm_jax.data.scans import pages
from medvlsm_jax.data.scans.pages import open_pages
from medvlsm_jax.errors import UserError

rng = np.random.default_rng(0)


def frames(count: int) -> list[Image.Image]:
    """A square that moves."""
    made = []
    for i in range(count):
        pixels = np.zeros((24, 40, 3), np.uint8)
        pixels[4:12, 2 * i % 32 :][:, :8] = (255, 10 * i % 256, 0)
        made.append(Image.fromarray(pixels))
    return made


def save(path: Path, images: list[Image.Image], **options) -> Path:
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


def test_an_image_is_a_scan_of_one_slice(tmp_path):
    pixels = rng.integers(0, 256, (12, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(300, 300))
    scan = open_pages(tmp_path / "a.png")
    assert (len(scan), scan.path, scan.files) == (1, tmp_path / "a.png", (tmp_path / "a.png",))
    assert (scan.spacing, scan.distance) == (None, None)
    np.testing.assert_array_equal(scan.read(0), pixels)
    assert scan.notes == ()


@pytest.mark.parametrize("compression", [1, 8])
def test_each_page_of_a_tiff_has_its_own_size_depth_and_orientation(tmp_path, compression):
    grey = rng.integers(0, 256, (12, 20)).astype(np.uint8)
    deep = rng.integers(0, 4096, (10, 14, 3)).astype(np.uint16)
    floats = rng.normal(size=(16, 9)).astype(np.float32)
    path = tmp_path / "a.tif"
    path.write_bytes(
        tiff(grey, (grey[:6, :10], {254: 1}), deep, (grey, {262: 0}), floats, (grey, {274: 6}), compression=compression)
    )
    scan = open_pages(path)
    shown = [scan.read(i) for i in range(len(scan))]
    assert [image.size for image in shown] == [(20, 12), (14, 10), (20, 12), (9, 16), (12, 20)]
    assert {image.mode for image in shown} == {"RGB"}
    np.testing.assert_array_equal(np.asarray(shown[0])[..., 0], grey)
    low, high = deep.min(), deep.max()
    np.testing.assert_array_equal(shown[1], np.rint((deep - float(low)) * (255 / (high - float(low)))))
    np.testing.assert_array_equal(np.asarray(shown[2])[..., 0], 255 - grey)
    np.testing.assert_array_equal(np.asarray(shown[4])[..., 0], grey[::-1].T)
    assert any("16 bits a colour" in note for note in scan.notes)
    assert "is turned upright by its EXIF orientation" in scan.notes


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
@pytest.mark.parametrize("order", ["forward", "backward", "mixed"])
def test_frames_are_composed_in_whatever_order_they_are_asked_for(tmp_path, name, order):
    made = frames(30)
    path = save(tmp_path / name, made, **({"lossless": True} if name == "a.webp" else {}))
    scan, indices = open_pages(path), list(range(30))
    assert len(scan) == 30
    if order != "forward":
        indices = indices[::-1] if order == "backward" else random.Random(0).sample(indices, 30)
    for i in indices:
        assert np.abs(np.asarray(scan.read(i), int) - np.asarray(made[i])).max() <= (4 if name == "a.gif" else 0)


def test_frames_that_are_drawn_over_others_are_shown_so(tmp_path):
    red, dot = Image.new("RGBA", (20, 12), (255, 0, 0, 255)), Image.new("RGBA", (20, 12))
    dot.putpixel((3, 4), (0, 0, 255, 255))
    path = save(tmp_path / "a.png", [red, dot], blend=1, disposal=0)
    shown = np.asarray(open_pages(path).read(1))
    assert (shown[4, 3].tolist(), shown[0, 0].tolist()) == ([0, 0, 255], [255, 0, 0])


@pytest.mark.parametrize("name", ["a.tif", "a.gif"])
def test_threads_may_share_a_scan(tmp_path, name):
    made = frames(40)
    scan = open_pages(save(tmp_path / name, made))
    with ThreadPoolExecutor(4) as pool:
        shown = list(pool.map(scan.read, range(40)))
    assert all(np.abs(np.asarray(x, int) - np.asarray(y)).max() <= 4 for x, y in zip(shown, made, strict=True))


def test_threads_that_overtake_each_other_do_not_make_a_film_begin_anew(tmp_path, monkeypatch):
    opened = []
    real = pages.Image.open
    scan = open_pages(save(tmp_path / "a.gif", frames(40)))
    monkeypatch.setattr(pages.Image, "open", lambda file: opened.append(1) or real(file))
    for i in [3, 0, 2, 1, 7, 5, 4, 6, *range(8, 40)]:
        scan.read(i)
    assert len(opened) == 1
    assert not scan.passed


def test_thousands_of_pages_are_held_one_at_a_time(tmp_path):
    pixels, path, count = rng.integers(0, 256, (64, 64)).astype(np.uint8), tmp_path / "a.tif", 10_000
    head = tiff(pixels)[8 : -pixels.size]
    end = 2 + 12 * int.from_bytes(head[:2], "little")  # where a directory says where the next one lies
    content = bytearray(tiff(pixels)[:8])
    for i in range(count):  # all alike, so each has the pixels behind the first
        following = (i < count - 1) * (8 + (i + 1) * len(head))
        content += head[:end] + following.to_bytes(4, "little") + head[end + 4 :]
    path.write_bytes(content + pixels.tobytes())
    scan = open_pages(path)
    assert len(scan) == count
    tracemalloc.start()
    for i in range(0, count, 500):
        assert scan.read(i).size == (64, 64)
    assert tracemalloc.get_traced_memory()[1] < 3e6
    tracemalloc.stop()


def test_a_calibrated_stack_of_imagej_has_a_spacing(tmp_path):
    page = rng.integers(0, 256, (12, 20)).astype(np.uint8)
    tags = {270: "ImageJ=1.54f\nimages=2\nslices=2\nspacing=2.5\nunit=mm\n", 282: 4.0, 283: 2.0, 296: 1}
    (tmp_path / "a.tif").write_bytes(tiff((page, tags), (page, tags)))
    scan = open_pages(tmp_path / "a.tif")
    assert (len(scan), scan.spacing, scan.distance) == (2, (0.5, 0.25), 2.5)


def test_what_is_turned_or_stretched_is_noted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 65536, (12, 20)).astype(np.uint16)).save(tmp_path / "a.png", exif=exif)
    scan = open_pages(tmp_path / "a.png")
    assert scan.read(0).size == (12, 20)
    assert len(scan.notes) == 2
    moving = open_pages(save(tmp_path / "b.webp", frames(3), exif=exif))
    assert moving.read(0).size == (24, 40)
    assert moving.notes == ("is turned upright by its EXIF orientation",)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.95])
def test_a_page_that_is_cut_off_is_one_line(tmp_path, name, share):
    path = save(tmp_path / name, frames(9))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    def read_all():
        scan = open_pages(path)
        for i in range(len(scan)):
            scan.read(i)

    with pytest.raises(UserError, match=r"cannot be decoded as an image|too small|is cut off") as error:
        read_all()
    assert "\n" not in str(error.value)


def test_a_film_of_huge_frames_is_refused_by_its_header(tmp_path):
    path = save(tmp_path / "a.gif", frames(2))
    content = bytearray(path.read_bytes())
    content[6:10] = (9_000).to_bytes(2, "little") * 2
    path.write_bytes(content)
    with pytest.raises(UserError, match="has frames of 9000x9000 pixels"):
        open_pages(path)


def test_a_film_of_deep_colour_is_refused(tmp_path):
    path = save(tmp_path / "a.png", frames(2))
    content = bytearray(path.read_bytes())
    still = png(rng.integers(0, 65536, (24, 40, 3)).astype(np.uint16))
    moving = content[content.index(b"acTL") - 4 : content.index(b"fcTL") + 34]
    path.write_bytes(still[:33] + moving + still[33:])
    with pytest.raises(UserError, match="has frames of 16 bits a colour"):
        open_pages(path)


def test_an_error_names_the_page(tmp_path):
    page = rng.integers(0, 256, (12, 20)).astype(np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(page, (page, {273: None, 279: None}), page))
    content = tiff(page, page, page, compression=8)
    at = content.rindex(b"\x78\x9c")
    (tmp_path / "a.tif").write_bytes(content[:at] + b"\0" * (len(content) - at))
    scan = open_pages(tmp_path / "a.tif")
    scan.read(1)
    with pytest.raises(UserError, match=r"a\.tif, page 3, cannot be decoded"):
        scan.read(2)
