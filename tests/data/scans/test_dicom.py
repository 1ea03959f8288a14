"""DICOM files as stacks of slices."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from drawn_dicom import (
    CR,
    MR,
    US_MULTI,
    baseline_jpeg,
    draw_compressed,
    draw_dataset,
    draw_enhanced,
    draw_file,
    draw_jpeg,
    draw_series,
    lossless_jpeg,
)

from medvlsm_jax.data.scans.dicom import is_dicom, open_series
from medvlsm_jax.data.scans.scan import View, Window
from medvlsm_jax.errors import UserError

pydicom = pytest.importorskip("pydicom")

RLE, JPEG, JPEG_LOSSLESS = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
SMALL = 30_000  # bytes of a file that is quickly read
CORONAL = [1, 0, 0, 0, 0, -1]


@pytest.fixture
def slices():
    """Five slices of 16 bits with signs, none like another."""
    return np.random.default_rng(0).integers(-900, 2000, (5, 32, 34)).astype(np.int16)


def open_one(*paths: Path, view: View | None = None):
    """The one stack that files make."""
    failures: list[str] = []
    stacks = open_series(paths, view or View(), failures)
    assert not failures
    assert len(stacks) == 1
    return stacks[0]


def shades(path: Path, view: View | None = None) -> np.ndarray:
    """The first slice of a file, which is grey."""
    picture = np.asarray(open_one(path, view=view).read(0))
    np.testing.assert_array_equal(picture[..., 0], picture[..., 2])
    return picture[..., 0]


def refusal(*paths: Path) -> str:
    """The line for files of which nothing is read."""
    failures: list[str] = []
    assert not open_series(paths, View(), failures)
    (line,) = failures
    assert line.isprintable()
    return line


# --- Stacks ----------------------------------------------------------------------------------------------------------


def test_slices_lie_as_their_positions_say(tmp_path, slices):
    paths = draw_series(tmp_path, slices)
    series = open_one(*paths, view=View(Window(40, 400)))
    assert [frame.file.path for frame in series.frames] == paths[::-1]
    assert (len(series), series.path, series.spacing, series.distance) == (5, tmp_path, (0.7, 0.8), 2.5)
    expected = np.clip((slices[3] - 40.0) / 400 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(np.asarray(series.read(3))[..., 0], expected, atol=0.5)


def test_what_is_no_one_stack_is_parted(tmp_path, slices):
    axial = draw_series(tmp_path / "axial", slices)
    scout = draw_series(tmp_path / "scout", slices[:1], ImageOrientationPatient=CORONAL)
    other = draw_series(tmp_path / "other", slices[:2, :16])
    small = draw_series(tmp_path / "next", slices[:3], SeriesInstanceUID="1.2.3.5")
    series = open_series([*axial, *scout, *other, *small], View(), [])
    assert [len(stack) for stack in series] == [5, 1, 2, 3]


def test_phases_at_the_same_positions_are_stacks_of_their_own(tmp_path, slices):
    first = draw_series(tmp_path / "a", slices)
    second = draw_series(tmp_path / "b", slices[::-1])
    stacks = open_series(first + second, View(), [])
    assert [len(stack) for stack in stacks] == [5, 5]
    assert stacks[1].notes[0] == "part 2 of 2 at the same positions"
    assert "1 to 2 slices at a position" in refusal(*first, *second[:2])


def test_the_same_file_twice_counts_once(tmp_path, slices):
    (path,) = draw_series(tmp_path, slices[:1])
    twin = tmp_path / "twin.dcm"
    twin.write_bytes(path.read_bytes())
    assert len(open_one(path, twin)) == 1


def test_a_tilted_gantry_and_uneven_slices_are_said(tmp_path, slices):
    tilted = open_one(*draw_series(tmp_path / "tilted", slices, step=(0, 0.7, 2.5)))
    assert "the slices lie askew: each is moved against the one below it, by 15.6 degrees" in tilted.notes
    uneven = draw_series(tmp_path / "uneven", slices)
    assert "not evenly spaced: 2.5 to 5 mm" in " ".join(open_one(*uneven[:2], *uneven[3:]).notes)


def test_without_positions_the_numbers_count(tmp_path, slices):
    paths = [draw_file(tmp_path / f"{i}.dcm", slices[i], InstanceNumber=5 - i) for i in range(5)]
    series = open_one(*paths)
    assert [frame.file.path for frame in series.frames] == paths[::-1]
    assert series.distance is None


def test_frames_are_shown_by_their_functional_groups(tmp_path, slices):
    draw_enhanced(slices, [3, 1, 0, 2, 4]).save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    series = open_one(tmp_path / "enhanced.dcm")
    assert [frame.index for frame in series.frames] == [2, 1, 3, 0, 4]
    assert (series.distance, series.spacing) == (2.5, (0.7, 0.8))
    expected = np.clip((slices[3] - 300.0 - 49.5) / 99 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(np.asarray(series.read(3))[..., 0], expected, atol=0.5)


def test_spacing_of_ultrasound_is_that_of_its_regions(tmp_path):
    region = pydicom.Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.03, -0.05
    cine = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3)).astype(np.uint8)
    elements = {"NumberOfFrames": 3, "SOPClassUID": US_MULTI, "SequenceOfUltrasoundRegions": [region]}
    series = open_one(draw_file(tmp_path / "cine.dcm", cine, **elements))
    assert series.spacing == pytest.approx((0.5, 0.3))
    np.testing.assert_array_equal(series.read(2), cine[2])


def test_another_axis_is_refused(tmp_path, slices):
    with pytest.raises(UserError, match="--axis=0 is for volumes"):
        open_series(draw_series(tmp_path, slices), View(axis=0), [])


# --- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [RLE, JPEG_LOSSLESS, JPEG_LS, JPEG_2000])
def test_a_compressed_picture_is_the_same(tmp_path, slices, syntax):
    plain = draw_file(tmp_path / "plain.dcm", slices[0])
    if syntax == JPEG_LOSSLESS:
        dataset = draw_jpeg(lossless_jpeg(slices[0], 16), slices[0], syntax)
    else:
        dataset = draw_compressed(slices[0], syntax)
    dataset.save_as(tmp_path / "compressed.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(shades(tmp_path / "compressed.dcm"), shades(plain))


def test_colours_of_a_jpeg_are_right(tmp_path):
    colours = np.kron(np.random.default_rng(0).integers(0, 256, (2, 2, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    dataset = draw_jpeg(baseline_jpeg(colours), colours, JPEG, PhotometricInterpretation="YBR_FULL_422")
    dataset.save_as(tmp_path / "jpeg.dcm", enforce_file_format=True)
    read = np.asarray(open_one(tmp_path / "jpeg.dcm").read(0)).astype(int)
    assert np.abs(read - colours).mean() < 4


@pytest.mark.parametrize(
    ("window", "mirrored"),
    [({}, {}), ({"WindowCenter": 1000, "WindowWidth": 800}, {"WindowCenter": 4095 - 1000 + 1, "WindowWidth": 800})],
)
def test_monochrome1_is_the_picture_of_its_twin(tmp_path, window, mirrored):
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    dark = draw_file(tmp_path / "dark.dcm", pixels, BitsStored=12, **window)
    elements = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE", "BitsStored": 12}
    light = draw_file(tmp_path / "light.dcm", 4095 - pixels, **elements, **mirrored)
    np.testing.assert_array_equal(shades(light), shades(dark))
    assert "inverted: its smallest values are white" in open_one(light).notes


def test_rescale_comes_before_the_window_and_a_window_of_a_person_before_the_files(tmp_path):
    stored = np.array([[0, 1000, 1024, 1064], [1100, 1264, 1500, 4000]], np.uint16)
    elements = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": [0.5, 9], "WindowWidth": [401, 9]}
    path = draw_file(tmp_path / "ct.dcm", stored, **elements)
    hounsfield = stored.astype(float) - 1024
    np.testing.assert_allclose(shades(path), np.clip(hounsfield / 400 + 0.5, 0, 1) * 255, atol=0.5)
    own = np.clip((hounsfield - 40) / 80 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(shades(path, View(Window(40, 80))), own, atol=0.5)
    assert open_one(path).notes == ("shown through the window 0.5:401 of the file, the first of 2",)


def test_a_sigmoid_and_a_table_of_a_file(tmp_path):
    stored = np.arange(256, dtype=np.uint16).reshape(16, 16)
    window = {"WindowCenter": 100, "WindowWidth": 60, "VOILUTFunction": "SIGMOID"}
    path = draw_file(tmp_path / "sigmoid.dcm", stored, **window)
    np.testing.assert_allclose(shades(path), 255 / (1 + np.exp(-4 * (stored - 100.0) / 60)), atol=0.5)
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 100, 12], struct.pack("<4H", 0, 1365, 2730, 4095)
    path = draw_file(tmp_path / "table.dcm", stored, VOILUTSequence=[table])
    np.testing.assert_array_equal(shades(path), np.clip(stored.astype(int) - 100, 0, 3) * 85)


def test_padding_is_black_and_no_part_of_the_stretching(tmp_path):
    inside = np.linspace(100, 200, 256).reshape(16, 16).astype(np.int16)
    framed = np.pad(inside, 8, constant_values=-2000)
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        elements = {"PixelPaddingValue": -2000, "PhotometricInterpretation": photometric}
        picture = shades(draw_file(tmp_path / "padded.dcm", framed, **elements))
        assert not picture[:8].any()
        assert (picture[8:24, 8:24].min(), picture[8:24, 8:24].max()) == (0, 255)


def test_all_slices_are_stretched_alike(tmp_path):
    slices = np.stack([np.full((16, 16), value, np.int16) for value in (0, 500, 1000)])
    slices[:, 0] = np.arange(16) * 60
    series = open_one(*draw_series(tmp_path, slices, SOPClassUID=MR, Modality="MR"))
    rows = [np.asarray(series.read(i))[0] for i in range(3)]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert len(np.unique(rows[0])) > 12


@pytest.mark.parametrize(("bits", "stored"), [(1, 1), (8, 8), (8, 6), (16, 10), (32, 32)])
def test_bits(tmp_path, bits, stored):
    values = np.random.default_rng(0).integers(0, 1 << stored, (16, 16)).astype(f"u{max(bits, 8) // 8}")
    dataset = draw_dataset(values, BitsStored=stored)
    if bits == 1:
        dataset.BitsAllocated = 1
        dataset.PixelData = np.packbits(values, bitorder="little").tobytes()
    dataset.save_as(tmp_path / "bits.dcm", enforce_file_format=True)
    if stored <= 8:
        expected = np.rint(values * (255 / ((1 << stored) - 1)))
        np.testing.assert_allclose(shades(tmp_path / "bits.dcm"), expected, atol=1)
    else:
        order = np.argsort(values.ravel(), kind="stable")
        assert (np.diff(shades(tmp_path / "bits.dcm").ravel()[order].astype(int)) >= 0).all()


def test_floats_with_nan(tmp_path):
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    values[0, :4] = np.nan, np.inf, -np.inf, np.nan
    dataset = draw_dataset(np.zeros((16, 16), np.uint8))
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated, dataset.FloatPixelData = 32, values.tobytes()
    dataset.save_as(tmp_path / "float.dcm", enforce_file_format=True)
    picture = shades(tmp_path / "float.dcm")
    assert not picture[0, :4].any()
    assert picture[8, 8] == pytest.approx(values[8, 8] * 255, abs=3)


@pytest.mark.parametrize("is_segmented", [False, True])
def test_palettes(tmp_path, is_segmented):
    indices = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    elements, entries = {"PhotometricInterpretation": "PALETTE COLOR"}, {}
    for colour, last in (("Red", 65535), ("Green", 32768), ("Blue", 257)):
        table = np.rint(np.linspace(0, last, 256)).astype("<u2")
        data = struct.pack("<3H3H", 0, 1, 0, 1, 255, last) if is_segmented else table.tobytes()
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{'Segmented' * is_segmented}{colour}PaletteColorLookupTableData"] = data
        entries[colour] = np.rint(table / 257)
    path = draw_file(tmp_path / "palette.dcm", indices, **elements)
    expected = np.stack([entries[colour][indices] for colour in entries], axis=-1)
    np.testing.assert_allclose(np.asarray(open_one(path).read(0)), expected, atol=1)


def test_planes_of_colours_and_sixteen_bits(tmp_path):
    colours = np.random.default_rng(0).integers(0, 65536, (8, 9, 3)).astype(np.uint16)
    dataset = draw_dataset(colours, PlanarConfiguration=1)
    dataset.PixelData = colours.transpose(2, 0, 1).tobytes()
    dataset.save_as(tmp_path / "planes.dcm", enforce_file_format=True)
    np.testing.assert_allclose(np.asarray(open_one(tmp_path / "planes.dcm").read(0)), colours / 257, atol=0.5)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_dicom_is_known_by_its_content(tmp_path, slices):
    path = draw_file(tmp_path / "no_ending", slices[0])
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[132:])
    other = tmp_path / "other.dcm"
    other.write_bytes(b"\x08\x00" + bytes(300))
    assert (is_dicom(path), is_dicom(bare), is_dicom(other), is_dicom(tmp_path)) == (True, True, False, False)
    np.testing.assert_array_equal(shades(bare), shades(path))


def test_what_is_no_picture_is_named(tmp_path, slices):
    report = draw_dataset(slices[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    del report.PixelData
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    assert refusal(tmp_path / "report.dcm").endswith("holds no picture (Basic Text SR Storage): leave it out")
    dose = draw_file(tmp_path / "dose.dcm", slices[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")
    assert "no picture of a patient (RT Dose Storage)" in refusal(dose)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Rows": 65535, "Columns": 65535}, "a frame of 65535x65535 pixels is too large"),
        ({"NumberOfFrames": 1_000_000}, "claims 2176000000 bytes of pixels, but 2176 are there"),
        ({"Rows": 0}, "make no sense"),
        ({"HighBit": 11}, "its highest bit is 11, but 16 bits are stored"),
        ({"SamplesPerPixel": 4}, "its colours, MONOCHROME2 in 4 channels of 16 bits, are not read"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL"}, "YBR_FULL in 3 channels of 16 bits"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_PARTIAL_420"}, "its colours, YBR_PARTIAL_420"),
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_made(tmp_path, slices, elements, message):
    dataset = draw_dataset(slices[0])
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(tmp_path / "lie.dcm", enforce_file_format=True)
    assert message in refusal(tmp_path / "lie.dcm")


def test_films_are_refused_by_name(tmp_path, slices):
    dataset = draw_jpeg(bytes(100), slices[0], "1.2.840.10008.1.2.4.100")
    dataset.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    assert "is in MPEG2 Main Profile / Main Level, which is not read" in refusal(tmp_path / "film.dcm")


def test_a_bomb_is_not_inflated(tmp_path, slices, monkeypatch):
    monkeypatch.setattr("medvlsm_jax.data.scans.dicom_files.MAX_INFLATED", 1 << 20)
    path = draw_file(tmp_path / "plain.dcm", slices[0])
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(shades(tmp_path / "deflated.dcm"), shades(path))
    packer = zlib.compressobj(wbits=-15)
    start = (tmp_path / "deflated.dcm").read_bytes()[:400]
    meta = start[: start.index(b"1.2.840.10008.1.2.1.99") + 22]
    bomb = packer.compress(bytes(4 << 20)) + packer.flush()
    (tmp_path / "bomb.dcm").write_bytes(meta + bomb)
    assert "inflates to more than 1 MiB" in refusal(tmp_path / "bomb.dcm")


def test_deep_sequences_are_one_line(tmp_path, slices):
    data = draw_file(tmp_path / "plain.dcm", slices[0]).read_bytes()
    at = data.index(b"\x28\x00\x02\x00US")  # before the picture's own elements
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    (tmp_path / "deep.dcm").write_bytes(data[:at] + nested + data[at:])
    assert "cannot be read as DICOM" in refusal(tmp_path / "deep.dcm")


def test_sequences_that_would_fill_the_memory_are_refused(tmp_path, slices, monkeypatch):
    monkeypatch.setattr("medvlsm_jax.data.scans.dicom_files.MAX_ITEMS", 100)
    data = draw_file(tmp_path / "plain.dcm", slices[0]).read_bytes()
    at, items = data.index(b"\x28\x00\x02\x00US"), b"\xfe\xff\x00\xe0\0\0\0\0" * 200
    (tmp_path / "undefined.dcm").write_bytes(data[:at] + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + items + data[at:])
    assert "more than 100 items" in refusal(tmp_path / "undefined.dcm")
    at = data.index(b"\xe0\x7f\x10\x00OW")
    groups = b"\x00\x52\x30\x92SQ\0\0" + struct.pack("<L", len(items)) + items
    (tmp_path / "defined.dcm").write_bytes(data[:at] + groups + data[at:])
    assert "more than 100 items" in refusal(tmp_path / "defined.dcm")


def test_nothing_of_the_patient_is_said(tmp_path, slices, recwarn):
    path = draw_file(tmp_path / "ct.dcm", slices[0], PatientBirthDate="no date", WindowCenter=None)
    recwarn.clear()  # of drawing it
    series = open_one(path)
    series.read(0)
    assert not recwarn.list
    assert not any(word in " ".join(series.notes) for word in ("Doe", "secret"))


def test_own_files_of_pydicom_are_read_or_refused_in_one_line():
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    read = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in sorted(path for path in folder.glob("*.dcm") if path.stat().st_size < SMALL):
            failures: list[str] = []
            try:
                pictures = [series.read(0) for series in open_series([path], View(), failures)]
            except UserError as error:
                pictures, failures = [], [str(error)]
            assert len(pictures) + len(failures) == 1
            assert all(line.isprintable() for line in failures)
            read += len(pictures)
    assert read > 40


def test_a_radiograph_says_where_its_spacing_is_from(tmp_path, slices):
    series = open_one(draw_file(tmp_path / "cr.dcm", slices[0], SOPClassUID=CR, ImagerPixelSpacing=[0.1, 0.2]))
    assert series.spacing == (0.1, 0.2)
    assert "at the detector" in series.notes[0]
