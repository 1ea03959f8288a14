"""A file of several pages or frames is no image; what only looks like several is."""

import dataclasses
import io
import os
import struct

import numpy as np
import pytest
from drawn_images import chunk, tiff
from PIL import Image

from medvlsm_jax.data.decoding import tiff_pages
from medvlsm_jax.data.decoding.tiff_pages import imagej_spacing, page_offsets
from medvlsm_jax.data.facts import probe
from medvlsm_jax.data.images import load_pair, open_image, read_mask
from medvlsm_jax.errors import UserError

PAGES = [np.full((12, 20), value, np.uint8) for value in (0, 90, 255)]
REDUCED, MASK = {254: 1}, {254: 4}


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp", "a.avif"])
def test_several_pages_or_frames_are_an_error_that_says_how_many(tmp_path, name):
    path, first = tmp_path / name, Image.fromarray(PAGES[0])
    first.save(path, save_all=True, append_images=[Image.fromarray(page) for page in PAGES[1:]])
    kind = "pages" if name == "a.tif" else "frames"
    expected = f"{path} has 3 {kind}, but one picture is expected: split it into files of their own"
    for reader in (open_image, read_mask, lambda path: load_pair(path, path, 16)):
        assert error_of(reader, path) == expected
    assert probe(path, False).error == probe(path, True).error == expected.removeprefix(f"{path} ")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [REDUCED, MASK, {254: 5}, {254: 9}])
def test_a_thumbnail_is_no_page_whether_it_comes_first_or_last(tmp_path, order, kind):
    path, small = tmp_path / "a.tif", PAGES[0][:6, :10]
    page = np.arange(240, dtype=np.uint8).reshape(12, 20)
    for pages in ([page, (small, kind)], [(small, kind), page], [(small, kind), page, (small, kind)]):
        path.write_bytes(tiff(*pages, order=order))
        np.testing.assert_array_equal(open_image(path), page)
        path.write_bytes(tiff(*pages, order=order, compression=8))
        np.testing.assert_array_equal(open_image(path), page)
    path.write_bytes(tiff((small, kind)))
    assert open_image(path).size == (10, 6)


@dataclasses.dataclass(frozen=True)
class StoredBytes:
    """A file that lies in no folder, as an entry of an ArrayRecord."""

    content: bytes
    name: str = "a.tif"
    stem: str = "a"

    def open(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.content)

    def is_file(self) -> bool:
        return True

    def stat(self) -> os.stat_result:
        raise NotImplementedError

    def __str__(self) -> str:
        return "store[0]"


@pytest.mark.parametrize("compression", [1, 8])
def test_a_file_in_a_store_is_read_alike(compression):
    page, small = np.arange(240, dtype=np.uint8).reshape(12, 20), (PAGES[0][:6, :10], REDUCED)
    np.testing.assert_array_equal(open_image(StoredBytes(tiff(small, page, compression=compression))), page)
    assert "store[0] has 2 pages" in error_of(open_image, StoredBytes(tiff(page, page, compression=compression)))


@pytest.mark.parametrize(("order", "is_big"), [("<", False), (">", False), ("<", True)])
def test_pages_are_found_in_every_layout(tmp_path, order, is_big):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(*PAGES, (PAGES[0], REDUCED), order=order, is_big=is_big))
    with path.open("rb") as file:
        assert len(page_offsets(file)) == 3
    assert "has 3 pages" in error_of(open_image, path)


def test_a_fax_of_several_sheets_has_several_frames(tmp_path):
    Image.fromarray(PAGES[1]).save(tmp_path / "a.pcx")
    sheet = (tmp_path / "a.pcx").read_bytes()
    offsets = [4 + 4 * 3, 4 + 4 * 3 + len(sheet)]
    (tmp_path / "a.dcx").write_bytes(struct.pack("<IIII", 0x3ADE68B1, *offsets, 0) + 2 * sheet)
    assert "has 2 frames" in error_of(open_image, tmp_path / "a.dcx")


def test_a_photoshop_file_is_its_picture(tmp_path):
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 12, 20, 8, 3)
    layers = struct.pack(">h", 2) + b"".join(
        struct.pack(">iiiiH", 0, 0, 0, 0, 0) + b"8BIMnorm" + struct.pack(">BBBBI", 255, 0, 0, 0, 0) for _ in range(2)
    )
    layers = struct.pack(">I", len(layers)) + layers
    content = header + struct.pack(">II", 0, 0) + struct.pack(">I", len(layers)) + layers
    (tmp_path / "a.psd").write_bytes(content + b"\0\0" + np.full((3, 12, 20), 7, np.uint8).tobytes())
    assert np.asarray(open_image(tmp_path / "a.psd")).tolist() == np.full((12, 20, 3), 7).tolist()


def test_a_chain_that_comes_back_ends(tmp_path):
    content = bytearray(tiff(*PAGES[:2]))
    first = struct.unpack_from("<I", content, 4)[0]
    (count,) = struct.unpack_from("<H", content, first)
    (second,) = struct.unpack_from("<I", content, first + 2 + 12 * count)
    struct.pack_into("<I", content, second + 2 + 12 * struct.unpack_from("<H", content, second)[0], first)
    (tmp_path / "a.tif").write_bytes(content)
    assert "has 2 pages" in error_of(open_image, tmp_path / "a.tif")


def test_a_chain_that_breaks_off_is_refused(tmp_path):
    content = tiff(*PAGES)
    (tmp_path / "a.tif").write_bytes(content[: -PAGES[0].size - 100])
    assert "its chain of pages breaks off after 2" in error_of(open_image, tmp_path / "a.tif")


def test_a_chain_of_more_pages_than_there_can_be_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_pages, "MAX_PAGES", 1)
    (tmp_path / "a.tif").write_bytes(tiff(*PAGES))
    assert "are too many" in error_of(open_image, tmp_path / "a.tif")


def test_directories_that_overlap_are_refused(tmp_path):
    size = 200_000
    content = bytearray(b"II*\0\x08\0\0\0" + b"\0" * size)
    for at in range(8, size - 80_000, 6):  # each claims 5000 entries, and the next begins within them
        struct.pack_into("<H", content, at, 5000)
        end = at + 2 + 12 * 5000
        if end + 4 < len(content):
            struct.pack_into("<I", content, end, at + 6)
    (tmp_path / "a.tif").write_bytes(content)
    with (tmp_path / "a.tif").open("rb") as file, pytest.raises(ValueError, match="lie one over the other"):
        page_offsets(file)


def test_a_stack_that_imagej_wrote_without_pages_is_an_error(tmp_path):
    stack = (PAGES[0], {270: "ImageJ=1.54f\nimages=300\nslices=300\n"})
    (tmp_path / "a.tif").write_bytes(tiff(stack))
    assert "is a stack of 300 slices that ImageJ wrote without pages" in error_of(open_image, tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(tiff((PAGES[0], {270: "ImageJ=1.54f\nimages=1\n"})))
    assert open_image(tmp_path / "a.tif").size == (20, 12)


def test_more_frames_than_a_file_can_hold_are_not_believed(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(PAGES[0]).save(path, save_all=True, append_images=[Image.fromarray(PAGES[1])])
    content = path.read_bytes()
    at = content.index(b"acTL")
    path.write_bytes(content[: at - 4] + chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + content[at + 16 :])
    assert "claims 2147483647 frames, but is too small" in error_of(open_image, path)


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("ImageJ=1.54f\nimages=2\nspacing=2.5\nunit=mm", ((0.25, 0.5), 2.5)),
        ("ImageJ=1.54f\nspacing=2.5\nunit=\\u00B5m", ((0.00025, 0.0005), 0.0025)),
        ("ImageJ=1.54f\nunit=cm", ((2.5, 5.0), None)),
        ("ImageJ=1.54f\nunit=pixel", (None, None)),
        ("ImageJ=1.54f", (None, None)),
        ("a drawing, unit=mm", (None, None)),
        ("ImageJ=1.54f\nunit=mm\nspacing=nan", ((0.25, 0.5), None)),
        ("ImageJ=1.54f\nunit=mm\nspacing=wide", (None, None)),
    ],
)
def test_what_imagej_calibrated_is_known_in_millimetres(description, expected):
    spacing, distance = imagej_spacing({270: description, 282: 2.0, 283: 4.0})
    assert (spacing and pytest.approx(spacing), distance and pytest.approx(distance)) == expected


@pytest.mark.parametrize("tags", [{}, {282: 0.0, 283: 0.0}, {282: float("nan"), 283: 1.0}, {282: 2.0}])
def test_a_resolution_that_is_none_is_not_known(tags):
    assert imagej_spacing({270: "ImageJ=1.54f\nunit=mm\nspacing=1"} | tags) == (None, None)
