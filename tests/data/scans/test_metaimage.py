"""MetaImage and NRRD: what their lines may say, and must not."""

import zlib

import numpy as np
import pytest
from drawn_volumes import SHAPE, noise, write_metaimage, write_nrrd

from medvlsm_jax.data.scans.scan import View, Window
from medvlsm_jax.data.scans.volumes import open_volume
from medvlsm_jax.errors import UserError

pytest.importorskip("nibabel")
CT = View(Window(40, 400))


def values_of(path):
    volume = open_volume(path, CT)
    return np.stack([volume.values(i) for i in range(len(volume))])


def error_of(path) -> str:
    with pytest.raises(UserError) as error:
        values_of(path)
    assert str(error.value).isprintable()
    assert str(error.value).startswith(str(path))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"DimSize": "12 10"}, "NDims = 3 but DimSize = 12 10"),
        ({"NDims": "-1"}, "NDims = -1"),
        ({"NDims": "1" + "0" * 30}, "whole numbers as NDims"),
        ({"NDims": "20", "DimSize": " ".join(["1"] * 20)}, "NDims = 20"),
        ({"DimSize": "12 10 -9"}, "12 x 10 x -9 voxels"),
        ({"DimSize": "12 10 0"}, "12 x 10 x 0 voxels"),
        ({"DimSize": "100000 100000 100"}, "is cut off"),
        ({"DimSize": "12 10 nan"}, "whole numbers as DimSize"),
        ({"DimSize": "12 10 9.5"}, "whole numbers as DimSize"),
        ({"DimSize": None}, "whole numbers as DimSize"),
        ({"NDims": "4", "DimSize": "12 10 3 3"}, "save each time point"),
        ({"ElementType": "MET_OTHER"}, "voxels of type 'MET_OTHER'"),
        ({"ElementType": None}, "voxels of type ''"),
        ({"ElementType": "MET_DOUBLE"}, "is cut off"),
        ({"ElementNumberOfChannels": "1000000000"}, "1000000000 numbers a voxel"),
        ({"ElementNumberOfChannels": "2"}, "2 numbers a voxel"),
        ({"BinaryData": "False"}, "as text"),
        ({"HeaderSize": "-7"}, "HeaderSize = -7"),
        ({"HeaderSize": "1099511627776"}, "is cut off"),
        ({"CompressedData": "True"}, "cannot be unpacked"),
        ({"ElementSpacing": "1 1"}, "as many numbers"),
        ({"ElementSpacing": "1 one 1"}, "ElementSpacing = 1 one 1"),
        ({"TransformMatrix": "1 0 0"}, "as many numbers"),
        ({"Position": "1 1 1"}, "says Offset twice"),
        ({"ElementType": "MET_\0S\tHORT"}, "voxels of type"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, said):
    assert said in error_of(write_metaimage(tmp_path / "a.mha", noise(), **changes))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../b.raw",
        "..",
        ".",
        "LIST",
        "LIST 2",
        "b%03d.raw 1 9 1",
        "C:\\b.raw",
        "b.raw c.raw",
        "*.raw",
        "x" * 300,
    ],
)
def test_a_header_leads_to_no_file_but_one_beside_it(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "b.raw").write_bytes(noise().tobytes("F"))
    error = error_of(write_metaimage(folder / "a.mhd", noise(), data=name))
    assert "only a single file beside it" in error or "is not beside it" in error
    nrrd = write_nrrd(folder / "a.nhdr", noise(), data_file=name)
    error = error_of(nrrd)
    assert "only a single file beside it" in error or "is not beside it" in error


def test_what_is_no_metaimage_is_refused(tmp_path):
    for content in (b"", b"\x89PNG\r\n", b"NDims = 3\nDimSize = 1 1 1\n", bytes(range(256))):
        (tmp_path / "a.mha").write_bytes(content)
        assert "is no MetaImage" in error_of(tmp_path / "a.mha")
        (tmp_path / "a.nrrd").write_bytes(content)
        assert "is no NRRD" in error_of(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    "changes",
    [
        {"ElementByteOrderMSB": "False"},
        {"NDims": "4", "DimSize": "12 10 9 1", "ElementSpacing": "1 1 1 1", "Offset": None, "TransformMatrix": None},
        {"Comment": "é = : x", "0008|0060": "CT", "dim[0]": "3"},
        {"HeaderSize": "-1"},
        {"TransformMatrix": None, "Orientation": "1 0 0 0 1 0 0 0 1"},
        {"ElementSpacing": None, "ElementSize": "1 1 1"},
        {"ElementType": "MET_SHORT_ARRAY"},
    ],
)
def test_what_may_be_said_in_other_ways_is_the_same(tmp_path, changes):
    path = write_metaimage(tmp_path / "a.mha", noise(), **changes)
    np.testing.assert_array_equal(values_of(path), noise().transpose(2, 1, 0))
    assert open_volume(path, CT).spacing == (1, 1)


def test_numbers_of_the_other_order(tmp_path):
    path = write_metaimage(tmp_path / "a.mha", noise().byteswap(), BinaryDataByteOrderMSB="True")
    np.testing.assert_array_equal(values_of(path), noise().transpose(2, 1, 0))
    path = write_nrrd(tmp_path / "a.nrrd", noise().byteswap(), endian="big")
    np.testing.assert_array_equal(values_of(path), noise().transpose(2, 1, 0))


def test_colours(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject_GlobalWarningDisplayOff()
    colours = np.random.default_rng(0).integers(0, 256, (9, 10, 12, 3)).astype(np.uint8)
    image = sitk.GetImageFromArray(colours, isVector=True)
    for name in ("a.mha", "a.nrrd", "a.nhdr"):
        sitk.WriteImage(image, tmp_path / name)
        volume = open_volume(tmp_path / name, View())
        shown = np.stack([np.asarray(volume.read(i)) for i in range(len(volume))])
        np.testing.assert_array_equal(shown, colours)


def test_a_line_of_zeros_says_nothing(tmp_path):
    for changes in ({"ElementSpacing": "0 1 1"}, {"TransformMatrix": " ".join(["0"] * 9)}, {"Offset": "nan 0 0"}):
        volume = open_volume(write_metaimage(tmp_path / "a.mha", noise(), **changes), CT)
        assert "does not say how the patient lies" in volume.notes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sizes": "12 10"}, "dimension 3 but sizes 12 10"),
        ({"sizes": "12 10 -9"}, "12 x 10 x -9 voxels"),
        ({"sizes": "12 10 1099511627776"}, "is cut off"),
        ({"sizes": None}, "whole numbers as sizes"),
        ({"type": "block"}, "voxels of type 'block'"),
        ({"endian": None}, "voxels of type 'int16'"),
        ({"encoding": "bzip2"}, "encoding 'bzip2'"),
        ({"encoding": "gzip"}, "cannot be unpacked"),
        ({"line_skip": "2"}, "skips lines"),
        ({"byte_skip": "-2"}, "skips lines"),
        ({"space_directions": "(1,0,0) (0,1,0) (0,0,x)"}, "are no numbers"),
        ({"space_directions": "(1,0,0)"}, "1 space directions"),
        ({"space_directions": "none (1,0,0) (0,1,0)"}, "12 numbers a voxel"),
        ({"dimension": "4", "sizes": "12 10 3 3"}, "save each time point"),
    ],
)
def test_what_cannot_be_of_nrrd_is_refused(tmp_path, changes, said):
    assert said in error_of(write_nrrd(tmp_path / "a.nrrd", noise(), **changes))


def test_spaces_of_nrrd(tmp_path):
    volume = open_volume(write_nrrd(tmp_path / "a.nrrd", noise()), CT)
    np.testing.assert_allclose(volume.stored.affine[:3, 3], (-1, -2, 3))
    assert (volume.spacing, volume.distance) == ((0.8, 0.7), 2.5)
    volume = open_volume(write_nrrd(tmp_path / "a.nrrd", noise(), space="RAS"), CT)
    np.testing.assert_allclose(volume.stored.affine[:3, 3], (1, 2, 3))
    np.testing.assert_array_equal(volume.values(0), noise()[::-1, ::-1, 0].T)
    for changes in ({"space": "scanner-xyz"}, {"space": None, "space_directions": None, "spacings": "0.7 0.8 2.5"}):
        volume = open_volume(write_nrrd(tmp_path / "a.nrrd", noise(), **changes), CT)
        np.testing.assert_array_equal(volume.values(0), noise()[:, :, 0].T)
        assert (volume.spacing, volume.distance) == ((0.8, 0.7), 2.5)
        assert "does not say how the patient lies" in volume.notes[0]


def test_bytes_that_are_skipped(tmp_path):
    path = write_nrrd(tmp_path / "a.nrrd", noise(), byte_skip="-1")
    np.testing.assert_array_equal(values_of(path), noise().transpose(2, 1, 0))
    path = write_nrrd(tmp_path / "a.nhdr", noise(), byte_skip="5", encoding="gz", data_file="a.raw.gz")
    (tmp_path / "a.raw.gz").write_bytes(zlib.compress(bytes(5) + noise().tobytes("F"), wbits=31))
    np.testing.assert_array_equal(values_of(path), noise().transpose(2, 1, 0))
    assert open_volume(path, CT).files == (path, tmp_path / "a.raw.gz")
    assert noise().shape == SHAPE
