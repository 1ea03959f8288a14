"""Headers of NIfTI that lie: one line, or the right thing."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from drawn_volumes import SHAPE, lps_affine, noise

from medvlsm_jax.data.scans.orientation import AS_STORED
from medvlsm_jax.data.scans.scan import View, Window
from medvlsm_jax.data.scans.volumes import Volume, open_volume
from medvlsm_jax.errors import UserError

nibabel = pytest.importorskip("nibabel")
CT = View(Window(40, 400))


@pytest.fixture
def whole(tmp_path) -> bytes:
    """A sound file; int16, 352 bytes of header."""
    nibabel.save(nibabel.Nifti1Image(noise(), lps_affine()), tmp_path / "whole.nii")
    return (tmp_path / "whole.nii").read_bytes()


def put(content: bytes, at: int, kind: str, *numbers: float) -> bytes:
    changed = bytearray(content)
    struct.pack_into(f"<{kind}", changed, at, *numbers)
    return bytes(changed)


def opened(tmp_path: Path, content: bytes, name: str = "a.nii") -> Volume:
    (tmp_path / name).write_bytes(content)
    volume = open_volume(tmp_path / name, CT)
    volume.read(0)
    return volume


def error_of(tmp_path: Path, content: bytes, name: str = "a.nii") -> str:
    with pytest.raises(UserError) as error:
        opened(tmp_path, content, name)
    assert str(error.value).isprintable()
    assert str(error.value).startswith(str(tmp_path / name))
    return str(error.value)


@pytest.mark.parametrize(
    ("at", "kind", "numbers", "said"),
    [
        (42, "h", [32000], "is cut off, or its header is wrong"),
        (42, "3h", [32767, 32767, 32767], "is cut off, or its header is wrong"),
        (42, "h", [0], "axes of 0 x 10 x 9 voxels"),
        (42, "h", [-12], "axes of -12 x 10 x 9 voxels"),
        (40, "h", [0], "has 0 axes"),
        (40, "h", [8], "has 8 axes"),
        (40, "h", [-1], "has -1 axes"),
        (40, "5h", [4, 12, 10, 3, 3], "four_to_three"),
        (70, "h", [0], "an unknown type, 0"),
        (70, "h", [1], "single bits"),
        (70, "h", [32], "complex numbers"),
        (70, "h", [1536], "128-bit numbers"),
        (70, "h", [99], "an unknown type, 99"),
        (108, "f", [0], "from byte 0 on"),
        (108, "f", [np.nan], "from byte nan on"),
        (108, "f", [1e30], "from byte 1e\\+30 on"),
        (108, "f", [1e6], "is cut off, or its header is wrong"),
        (112, "2f", [2, np.nan], "scl_inter nan"),
        (344, "4s", [b"ni1\0"], "first of two files"),
        (344, "4s", [b"\0\0\0\0"], "is ANALYZE"),
        (0, "i", [349], "is no NIfTI file"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, whole, at, kind, numbers, said):
    with pytest.raises(UserError, match=said):
        opened(tmp_path, put(whole, at, kind, *numbers))
    error_of(tmp_path, put(whole, at, kind, *numbers))
    packed = gzip.compress(put(whole, at, kind, *numbers))
    error_of(tmp_path, packed, "a.nii.gz")


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_a_slope_that_is_none_counts_as_none(tmp_path, whole, slope):
    volume = opened(tmp_path, put(whole, 112, "2f", slope, 5))
    np.testing.assert_array_equal(volume.values(3), noise()[:, :, 3].T)


def test_without_a_sound_sform_the_qform_counts(tmp_path):
    image = nibabel.Nifti1Image(noise(), None)
    image.set_qform(lps_affine(is_oblique=True), 1)
    image.header["sform_code"] = 1  # of zeros
    nibabel.save(image, tmp_path / "a.nii")
    volume = opened(tmp_path, (tmp_path / "a.nii").read_bytes())
    np.testing.assert_allclose(volume.stored.affine, lps_affine(is_oblique=True), atol=1e-5)


@pytest.mark.parametrize(
    ("at", "kind", "numbers"),
    [
        (280, "12f", [0] * 12),
        (280, "f", [np.nan]),
        (292, "f", [np.inf]),
        (280, "8f", [1, 0, 0, 0, 2, 0, 0, 0]),
        (254, "h", [0]),
        (254, "h", [-3]),
    ],
)
def test_a_position_that_is_none_is_said(tmp_path, whole, at, kind, numbers):
    content = put(whole, 252, "h", 0)  # no qform
    volume = opened(tmp_path, put(content, at, kind, *numbers))
    assert volume.orientation == AS_STORED
    assert "does not say how the patient lies" in volume.notes[0]


@pytest.mark.parametrize(("qfac", "is_sound"), [(1, True), (-1, True), (0, True), (7, True)])
def test_qfac_counts_by_its_sign(tmp_path, qfac, is_sound):
    image = nibabel.Nifti1Image(noise(), None)
    image.set_qform(np.diag([1, 2, -np.sign(qfac or 1) * -3, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    volume = opened(tmp_path, put((tmp_path / "a.nii").read_bytes(), 76, "f", qfac))
    np.testing.assert_allclose(volume.stored.affine, np.diag([1, 2, np.sign(qfac or 1) * 3, 1]), atol=1e-6)


@pytest.mark.parametrize(("code", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 1e-3), (7, 1), (2 + 8, 1)])
def test_lengths_are_in_mm_whatever_their_unit(tmp_path, whole, code, factor):
    volume = opened(tmp_path, put(whole, 123, "B", code))
    np.testing.assert_allclose(volume.spacing, (0.8 * factor, 0.7 * factor), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_of_any_type_and_order(tmp_path, dtype, order):
    values = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.dtype(dtype).newbyteorder(order))
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(values.dtype)
    nibabel.save(nibabel.Nifti1Image(values, lps_affine(), header), tmp_path / "a.nii")
    volume = opened(tmp_path, (tmp_path / "a.nii").read_bytes())
    np.testing.assert_array_equal(volume.values(3), values[:, :, 3].T)


def test_a_file_is_known_by_its_content_where_only_the_packing_differs(tmp_path, whole):
    for name, content in (("a.nii", gzip.compress(whole)), ("a.nii.gz", whole)):
        np.testing.assert_array_equal(opened(tmp_path, content, name).values(3), noise()[:, :, 3].T)


def test_gzip_in_several_parts(tmp_path, whole):
    content = gzip.compress(whole[:400]) + gzip.compress(whole[400:]) + bytes(512)
    np.testing.assert_array_equal(opened(tmp_path, content, "a.nii.gz").values(3), noise()[:, :, 3].T)


def test_a_packed_file_that_is_broken_is_refused(tmp_path, whole):
    packed = gzip.compress(whole)
    assert "is cut off" in error_of(tmp_path, packed[: len(packed) // 2], "a.nii.gz")
    assert "is cut off" in error_of(tmp_path, packed[:-4], "a.nii.gz")
    assert "incorrect data check" in error_of(tmp_path, packed[:-8] + bytes(4) + packed[-4:], "a.nii.gz")
    assert "cannot be unpacked" in error_of(tmp_path, packed[:2] + bytes(500), "a.nii.gz")
    assert "no NIfTI" in error_of(tmp_path, b"", "a.nii.gz")


def test_a_small_packed_file_gets_no_memory_for_a_large_claim(tmp_path, whole):
    claims = put(whole, 42, "3h", 2000, 1000, 1000)
    assert "is cut off" in error_of(tmp_path, gzip.compress(claims), "a.nii.gz")
    claims = put(whole, 42, "3h", 3000, 1000, 1000)
    assert "would unpack to 5.6 GiB" in error_of(tmp_path, gzip.compress(claims), "a.nii.gz")


def test_what_follows_the_numbers_of_a_packed_file_is_not_unpacked(tmp_path, whole):
    stream = zlib.compressobj(9, wbits=31)
    packed = stream.compress(whole) + b"".join(stream.compress(bytes(1 << 20)) for _ in range(64)) + stream.flush()
    np.testing.assert_array_equal(opened(tmp_path, packed, "a.nii.gz").values(3), noise()[:, :, 3].T)


def test_of_a_pair_both_files_are_needed(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(noise(), lps_affine()), tmp_path / "a.img")
    for name in ("a.img", "a.hdr"):
        volume = open_volume(tmp_path / name, CT)
        assert volume.files == (tmp_path / "a.hdr", tmp_path / "a.img")
        np.testing.assert_array_equal(volume.values(3), noise()[:, :, 3].T)
    (tmp_path / "a.img").unlink()
    with pytest.raises(UserError, match=r"a\.img cannot be read \(No such file"):
        open_volume(tmp_path / "a.hdr", CT)


def test_a_long_axis_keeps_nifti_2(tmp_path):
    from medvlsm_jax.data.scans.nifti import nifti_header

    assert type(nifti_header((40_000, 10, 9), None, None).fields).__name__ == "Nifti2Header"
    assert type(nifti_header((400, 10, 9), None, None).fields).__name__ == "Nifti1Header"
