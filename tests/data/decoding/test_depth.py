"""Values deeper than 8 bits are stretched, not cut; what cannot be had whole is refused, and its depth named."""

import struct

import numpy as np
import pytest
from drawn_images import chunk, png, tiff
from PIL import Image

from medvlsm_jax.data.decoding.decode import decode
from medvlsm_jax.data.decoding.depth import BLOCK, stretch
from medvlsm_jax.data.facts import probe
from medvlsm_jax.data.images import open_image, read_mask, to_rgb
from medvlsm_jax.errors import UserError

DEEP = np.random.default_rng(0).integers(0, 4096, (12, 20, 4)).astype(np.uint16)  # 12 bits, as of a scanner
DEEP[0, 0], DEEP[0, 1] = 0, 4095


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    return str(error.value)


def colours(values: np.ndarray) -> np.ndarray:
    return values[..., 0] if values.shape[-1] < 3 else values[..., :3]


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_is_read_whole(tmp_path, channels, is_interlaced):
    path, values = tmp_path / "a.png", DEEP[..., :channels]
    path.write_bytes(png(values, is_interlaced=is_interlaced))
    np.testing.assert_array_equal(decode(path).pixels, colours(values))
    shown = np.asarray(to_rgb(open_image(path)))
    np.testing.assert_array_equal(shown if channels > 2 else shown[..., 0], np.rint(colours(values) * (255 / 4095)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": 8}, {"compression": 8, "predictor": 2}])
@pytest.mark.parametrize(("channels", "tags"), [(3, {}), (4, {}), (4, {338: [0]})])
def test_a_tiff_of_16_bits_is_read_whole(tmp_path, channels, tags, order, options):
    path, values = tmp_path / "a.tif", DEEP[..., :channels]
    path.write_bytes(tiff((values, tags), order=order, **options))
    np.testing.assert_array_equal(decode(path).pixels, colours(values))


@pytest.mark.parametrize("largest", [4095, 65535])
def test_so_is_a_ppm(tmp_path, largest):
    path, values = tmp_path / "a.ppm", DEEP[..., :3]
    path.write_bytes(b"P6 20 12 %d\n" % largest + values.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode(path).pixels, values)


def test_a_transparent_colour_of_a_deep_png_is_a_colour(tmp_path):
    (tmp_path / "a.png").write_bytes(png(DEEP[..., :3], before=chunk(b"tRNS", struct.pack(">HHH", 0, 0, 0))))
    np.testing.assert_array_equal(decode(tmp_path / "a.png").pixels, DEEP[..., :3])


def test_colours_that_were_multiplied_with_their_opacity_are_divided_by_it(tmp_path):
    values = DEEP.copy()
    values[..., 3] = 32768
    (tmp_path / "a.tif").write_bytes(tiff((values, {338: [1]})))
    assert np.abs(np.asarray(decode(tmp_path / "a.tif").pixels, int) - values[..., :3] * 2).max() <= 1


def test_deep_cmyk_is_what_its_8_bits_are(tmp_path):
    shallow = np.random.default_rng(0).integers(0, 256, (12, 20, 4)).astype(np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff((shallow.astype(np.uint16) * 257, {262: 5, 338: None})))
    found = np.asarray(decode(tmp_path / "a.tif").pixels, int) // 257
    assert np.abs(found - np.asarray(Image.frombytes("CMYK", (20, 12), shallow.tobytes()).convert("RGB"))).max() <= 1


def test_an_8_bit_image_of_the_whole_range_in_16_bits_is_what_it_was(tmp_path):
    shallow = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    (tmp_path / "a.png").write_bytes(png(shallow.astype(np.uint16) * 257))
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), shallow)


def test_a_deep_mask_has_its_values_as_they_are(tmp_path):
    truth = np.random.default_rng(0).integers(0, 2, (12, 20)).astype(np.uint16)
    for scale in (255, 65535):
        (tmp_path / "m.png").write_bytes(png(np.stack([truth * scale] * 3, axis=-1)))
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), truth)
    (tmp_path / "m.png").write_bytes(png(np.stack([truth] * 3, axis=-1)))
    assert "holds the values 0 and 1" in error_of(read_mask, tmp_path / "m.png")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_white_is_white_where_0_is_white(tmp_path, dtype, order):
    values = (DEEP[..., 0] // 16).astype(dtype)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff((values, {262: 0}), order=order))
    if (dtype, order) == ("u2", ">"):
        assert "is a TIFF of 16-bit whole values, 1 a pixel, white at 0" in error_of(open_image, path)
    else:
        np.testing.assert_array_equal(to_rgb(open_image(path)), 255 - np.stack([values] * 3, axis=-1))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u4", "f4"])
def test_signed_and_large_values_keep_their_order(tmp_path, dtype):
    wide = {"i1": 100, "i2": 30_000, "i4": 2**30, "u4": 2**31 - 1, "f4": 1e30}[dtype]
    values = (np.linspace(0 if dtype == "u4" else -wide, 2 * wide if dtype == "u4" else wide, 240)).astype(dtype)
    (tmp_path / "a.tif").write_bytes(tiff(values.reshape(12, 20)))
    found = np.asarray(to_rgb(open_image(tmp_path / "a.tif")))[..., 0].ravel()
    np.testing.assert_allclose(found, np.linspace(0, 255, 240), atol=2)


@pytest.mark.parametrize("content", ["u1 planar", "f8", "f2", "u8", "f4 colour", "u4 colour"])
def test_what_pillow_does_not_read_is_named(tmp_path, content):
    dtype, _, kind = content.partition(" ")
    values = DEEP[..., :3] if kind else DEEP[..., 0]
    (tmp_path / "a.tif").write_bytes(
        tiff((values if kind == "planar" else values.astype(dtype), {284: 1 + (kind == "planar")}))
    )
    message = error_of(open_image, tmp_path / "a.tif")
    assert f"{16 if kind == 'planar' else 8 * int(dtype[1])}" in message
    assert "save it" in message


@pytest.mark.parametrize("compression", [1, 8])
def test_planes_of_8_bits_are_read(tmp_path, compression):
    values = (DEEP[..., :3] // 16).astype(np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff((values, {284: 2}), compression=compression))
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif"), values)


def test_a_deep_sgi_is_refused(tmp_path):
    header = struct.pack(">hBBHHHH", 474, 0, 2, 3, 20, 12, 3).ljust(512, b"\0")
    (tmp_path / "a.sgi").write_bytes(header + DEEP[..., :3].transpose(2, 0, 1).astype(">u2").tobytes())
    assert "has 16 bits a value, of which 8 would be read" in error_of(open_image, tmp_path / "a.sgi")


def test_a_deep_plain_ppm_is_refused(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P3 20 12 4095\n" + b" ".join(b"%d" % x for x in DEEP[..., :3].ravel()))
    assert "has 12 bits a value" in error_of(open_image, tmp_path / "a.ppm")


@pytest.mark.parametrize(("name", "depth"), [("a.jp2", 12), ("a.j2k", 16)])
def test_deep_colour_in_jpeg_2000_is_refused_and_grey_read(tmp_path, name, depth):
    grey, path = tmp_path / f"grey{name}", tmp_path / name
    Image.fromarray(DEEP[..., 0]).save(grey)
    np.testing.assert_array_equal(decode(grey).pixels, DEEP[..., 0])
    Image.fromarray((DEEP[..., :3] // 16).astype(np.uint8)).save(path)
    assert decode(path).mode == "RGB"
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\x4f\xff\x51") + 42
    content[at : at + 9 : 3] = bytes([depth - 1] * 3)
    path.write_bytes(content)
    assert f"has {depth} bits a value" in error_of(open_image, path)


@pytest.mark.parametrize(("flag", "depth"), [(0x40, 10), (0x60, 12)])
def test_deep_colour_in_avif_is_refused(tmp_path, flag, depth):
    path = tmp_path / "a.avif"
    Image.fromarray((DEEP[..., :3] // 16).astype(np.uint8)).save(path)
    assert decode(path).mode == "RGB"
    content = bytearray(path.read_bytes())
    content[content.index(b"av1C") + 6] |= flag
    depths = content.index(b"pixi") + 9
    content[depths : depths + 3] = bytes([depth] * 3)
    path.write_bytes(content)
    assert f"has {depth} bits a value" in error_of(open_image, path)


def test_a_jpeg_of_12_bits_is_named(tmp_path):
    Image.fromarray((DEEP[..., 0] // 16).astype(np.uint8)).save(tmp_path / "a.jpg")
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    content[content.index(b"\xff\xc0") + 4] = 12
    (tmp_path / "a.jpg").write_bytes(content)
    assert "12-bit" in error_of(open_image, tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_deep_colour_that_would_take_gigabytes_is_refused_by_its_header(tmp_path):
    content = png(DEEP[..., :3])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 16, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(content[:8] + header + content[33:])
    assert "is too large: its deep values take 572 MiB of at most 512" in error_of(open_image, tmp_path / "a.png")


def test_a_fits_file_is_refused(tmp_path):
    cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 3", "NAXIS1  = 20", "NAXIS2  = 12", "NAXIS3  = 5", "END"]
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    (tmp_path / "a.fits").write_bytes(header + bytes(20 * 12 * 5))
    assert "is a FITS file" in error_of(open_image, tmp_path / "a.fits")


def test_a_drawing_that_pillow_would_start_a_program_for_is_refused_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("a program was started"))
    Image.fromarray(DEEP[..., 0].astype(np.uint8)).save(tmp_path / "a.png", "EPS")
    assert "is a PostScript file" in error_of(open_image, tmp_path / "a.png")


# --- What is no number ------------------------------------------------------------------------------------------------


def test_values_that_are_no_numbers_do_not_take_the_range(tmp_path):
    values = np.array([[0.0, 1.0, 2.0, np.nan, np.inf, -np.inf]], np.float32).repeat(8, axis=0)
    (tmp_path / "a.tif").write_bytes(tiff(values.repeat(2, axis=1)))
    found = np.asarray(to_rgb(open_image(tmp_path / "a.tif")))[0, ::2, 0]
    assert found.tolist() == [0, 128, 255, 0, 255, 0]
    assert any("NaN and minus infinity are black" in note for note in probe(tmp_path / "a.tif", False).notes)
    assert "holds NaN or infinity, but masks are 0 and 255" in error_of(read_mask, tmp_path / "a.tif")


def test_no_number_at_all_is_an_error(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(np.full((8, 8), np.nan, np.float32)))
    assert "holds NaN and infinity alone" in error_of(open_image, tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "f4"])
def test_a_mask_of_negative_values_is_an_error(tmp_path, dtype):
    (tmp_path / "m.tif").write_bytes(tiff(-np.eye(12, dtype=dtype)))
    assert "holds negative values" in error_of(read_mask, tmp_path / "m.tif")


def test_a_mask_of_the_largest_values_is_an_object(tmp_path):
    (tmp_path / "m.tif").write_bytes(tiff(np.eye(12, dtype=np.uint32) * (2**32 - 1)))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif"), np.eye(12))


def test_stretching_in_blocks_is_stretching_at_once():
    values = np.random.default_rng(0).integers(0, 65536, (3, BLOCK // 2 + 7)).astype(np.uint16)
    low, high = values.min(), values.max()
    np.testing.assert_array_equal(stretch(values), np.rint((values - float(low)) * (255.0 / (high - float(low)))))


@pytest.mark.parametrize("mode", ["La", "LA", "RGBa", "RGBX", "HSV", "LAB", "CMYK", "YCbCr", "I;16N", "PA"])
def test_every_mode_that_pillow_decodes_to_becomes_rgb(mode):
    assert to_rgb(Image.new(mode, (8, 8))).mode == "RGB"


@pytest.mark.parametrize(
    ("mode", "text"),
    [("RGB", "has 16 bits a colour: stretched"), ("L", "is a 16-bit, 32-bit or float image: stretched")],
)
def test_what_was_done_is_said(tmp_path, mode, text):
    (tmp_path / "a.png").write_bytes(png(DEEP[..., : len(mode)]))
    (note,) = probe(tmp_path / "a.png", False).notes
    assert note.startswith(text)
