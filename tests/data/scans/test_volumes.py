"""Volumes slice by slice, and masks that lie where the volume lies."""

import gzip
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from drawn_volumes import SHAPE, SIDES, all_orders, lps_affine, noise, stored_as, write_metaimage, write_nrrd

from medvlsm_jax.data.scans.scan import View, Window
from medvlsm_jax.data.scans.volumes import Volume, is_volume, mask_files, open_volume, write_mask, write_probability
from medvlsm_jax.data.scans.windows import apply_window
from medvlsm_jax.errors import UserError

nibabel = pytest.importorskip("nibabel")
CT = View(Window(40, 400))


def save(path: Path, values: np.ndarray, affine: np.ndarray | None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def pictures(volume: Volume) -> np.ndarray:
    return np.stack([np.asarray(volume.read(i)) for i in range(len(volume))])


def error_of(path: Path, view: View = CT) -> str:
    with pytest.raises(UserError) as error:
        pictures(open_volume(path, view))
    assert str(error.value).isprintable()
    assert str(path.parent) in str(error.value)
    return str(error.value)


def test_slices_are_windowed_and_upright(tmp_path):
    values = noise()
    volume = open_volume(save(tmp_path / "a.nii.gz", values, lps_affine()), CT)
    assert len(volume) == SHAPE[2]
    shown = np.stack([apply_window(values[:, :, i].T, Window(40, 400)) for i in range(len(volume))])
    np.testing.assert_array_equal(pictures(volume), np.repeat(shown[..., None], 3, axis=-1))
    np.testing.assert_allclose((*volume.spacing, volume.distance), (SIDES[1], SIDES[0], SIDES[2]), rtol=1e-6)
    assert volume.notes == ()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_what_a_volume_of_that_slice_alone_is(tmp_path, axis):
    image = nibabel.Nifti1Image(noise(), lps_affine(is_oblique=True))
    nibabel.save(image, tmp_path / "whole.nii")
    whole = pictures(open_volume(tmp_path / "whole.nii", View(CT.window, axis)))
    for i in (0, 5):
        cut = (slice(None),) * axis + (slice(i, i + 1),)
        nibabel.save(image.slicer[cut], tmp_path / "one.nii")
        one = open_volume(tmp_path / "one.nii", View(CT.window, axis))
        np.testing.assert_array_equal(pictures(one), whole[i : i + 1])
        assert one.distance is None


def test_formats_agree(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject_GlobalWarningDisplayOff()
    save(tmp_path / "a.nii.gz", noise(), lps_affine(is_oblique=True))
    expected = pictures(open_volume(tmp_path / "a.nii.gz", View()))
    image = sitk.ReadImage(tmp_path / "a.nii.gz")
    for name, is_packed in (("a.mha", True), ("b.mha", False), ("a.mhd", True), ("b.mhd", False)):
        sitk.WriteImage(image, tmp_path / name, is_packed)
    for name, is_packed in (("a.nrrd", True), ("b.nrrd", False), ("a.nhdr", True), ("b.nhdr", False)):
        sitk.WriteImage(image, tmp_path / name, is_packed)
    names = ["a.mha", "b.mha", "a.mhd", "b.mhd", "a.nrrd", "b.nrrd", "a.nhdr", "b.nhdr"]
    for name in names:
        volume = open_volume(tmp_path / name, View())
        np.testing.assert_array_equal(pictures(volume), expected, name)
        np.testing.assert_allclose((*volume.spacing, volume.distance), (SIDES[1], SIDES[0], SIDES[2]), rtol=1e-6)
        assert all(path.is_file() for path in volume.files)
        assert len(volume.files) == (2 if "hd" in name else 1)


@pytest.mark.parametrize("is_oblique", [False, True])
def test_masks_lie_where_the_volume_lies_in_any_order_of_axes(tmp_path, is_oblique):
    sitk = pytest.importorskip("SimpleITK")
    sitk.ProcessObject_GlobalWarningDisplayOff()
    values, path, mask_path = noise(), tmp_path / "a.nii", tmp_path / "a_mask.nii.gz"
    for number, (order, flips) in enumerate(all_orders()):
        stored, affine = stored_as(values, lps_affine(is_oblique), order, flips)
        volume = open_volume(save(path, stored, affine), View(axis=number % 3))
        masks = np.stack([volume.values(i) > 500 for i in range(len(volume))]).astype(np.uint8)
        write_mask(mask_path, volume, masks)
        image, mask = nibabel.load(path), nibabel.load(mask_path)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), stored > 500)
        assert mask.get_data_dtype() == np.uint8
        assert mask.affine.tobytes() == image.affine.tobytes()
        image, mask = sitk.ReadImage(path), sitk.ReadImage(mask_path)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(image) > 500)
        for read in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(mask, read)() == getattr(image, read)()


@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image", "Nifti1Pair"])
def test_the_header_stays_bit_for_bit_without_what_may_name_a_patient(tmp_path, kind):
    image = getattr(nibabel, kind)(noise(), None)
    header = image.header
    header.set_sform(lps_affine(), 3)
    header.set_qform(lps_affine(is_oblique=True), 1)
    header.set_xyzt_units("mm", "sec")
    header["descrip"], header["aux_file"], header["intent_name"] = b"Jane Doe", b"Jane", b"Doe"
    header["toffset"], header["slice_duration"], header["cal_max"] = 3.25, 0.5, 99
    header.set_slope_inter(2, -3)
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    path = tmp_path / ("a.img" if kind == "Nifti1Pair" else "a.nii")
    nibabel.save(image, path)
    volume = open_volume(path, CT)
    write_mask(tmp_path / "mask.nii.gz", volume, np.ones((SHAPE[2], SHAPE[1], SHAPE[0]), np.uint8))
    content = gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    assert b"Jane" not in content
    assert b"Doe" not in content
    image, written = nibabel.load(path), nibabel.load(tmp_path / "mask.nii.gz")
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    found, mask = image.header, written.header
    assert type(mask).__name__ == kind.replace("Image", "Header").replace("Pair", "Header")
    for name in found:
        if name not in ("datatype", "bitpix", "magic", "vox_offset", "scl_slope", "scl_inter", "cal_max", "data_type"):
            expected = b"" if name in ("descrip", "aux_file", "intent_name") else found[name].tobytes()
            assert mask[name].tobytes().rstrip(b"\0") == expected.rstrip(b"\0"), name
    assert list(mask.extensions) == []


def test_probabilities_are_0_to_1_by_their_slope(tmp_path):
    volume = open_volume(save(tmp_path / "a.nii", noise(), lps_affine()), CT)
    shown = np.arange(SHAPE[2] * SHAPE[1] * SHAPE[0]).reshape(SHAPE[2], SHAPE[1], SHAPE[0]).astype(np.uint8)
    write_probability(tmp_path / "p.nii.gz", volume, shown)
    image = nibabel.load(tmp_path / "p.nii.gz")
    np.testing.assert_allclose(image.get_fdata(), shown.T / 255, atol=1e-7)
    assert image.get_data_dtype() == np.uint8


def test_equal_masks_make_equal_files(tmp_path):
    volume = open_volume(save(tmp_path / "a.nii", noise(), lps_affine()), CT)
    for name in ("a_mask.nii.gz", "b_mask.nii.gz"):
        write_mask(tmp_path / name, volume, np.zeros((SHAPE[2], SHAPE[1], SHAPE[0]), np.uint8))
    assert (tmp_path / "a_mask.nii.gz").read_bytes() == (tmp_path / "b_mask.nii.gz").read_bytes()


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_beside_nifti_lies_a_mask_in_the_format_of_the_volume_with_its_geometry_to_the_letter(tmp_path, ending):
    sitk = pytest.importorskip("SimpleITK")
    direction = " ".join(map(repr, (lps_affine(is_oblique=True)[:3, :3] / SIDES).T.ravel().tolist()))
    path = tmp_path / f"a.{ending}"
    if ending == "mha":
        write_metaimage(path, noise(), TransformMatrix=direction, Offset="0.1 -33.3 1e-3", ElementSpacing="0.7 0.8 2.5")
    else:
        vectors = [",".join(words) for words in np.array(direction.split()).reshape(3, 3)]
        write_nrrd(path, noise(), space_directions=" ".join(f"({v})" for v in vectors), space_origin="(0.1,-33.3,1e-3)")
    volume = open_volume(path, View(axis=1))
    masks = np.stack([volume.values(i) > 500 for i in range(len(volume))]).astype(np.uint8)
    assert mask_files(volume, "m.nii.gz") == ["m.nii.gz", f"m.{ending}"]
    write_mask(tmp_path / "m.nii.gz", volume, masks)
    image, same, nifti = (sitk.ReadImage(tmp_path / name) for name in (path.name, f"m.{ending}", "m.nii.gz"))
    for mask in (same, nifti):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(image) > 500)
    for read in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(same, read)() == getattr(image, read)()
        np.testing.assert_allclose(getattr(nifti, read)(), getattr(image, read)(), rtol=1e-6, atol=1e-6)


def test_a_mask_of_nifti_is_one_file(tmp_path):
    volume = open_volume(save(tmp_path / "a.nii", noise(), lps_affine()), CT)
    assert mask_files(volume, "a_mask.nii.gz") == ["a_mask.nii.gz"]


def test_slices_are_stretched_together_and_it_is_said(tmp_path):
    values = np.zeros(SHAPE, np.float32)
    values[..., 4:] = np.linspace(0, 100, 12 * 10 * 5).reshape(12, 10, 5)
    values[0, 0, 0] = np.nan
    volume = open_volume(save(tmp_path / "a.nii.gz", values, lps_affine()), View())
    assert volume.notes == ("is shown from its 0.5 to its 99.5 percentile: of CT, give --window",)
    shown = pictures(volume)
    assert not shown[:4].any()
    assert shown[4:].max() == 255
    assert volume.notes[0].startswith("is shown from 0.")
    assert "to 99." in volume.notes[0]


def test_bytes_and_colours_are_shown_as_they_are(tmp_path):
    grey = np.random.default_rng(0).integers(50, 60, SHAPE).astype(np.uint8)
    volume = open_volume(save(tmp_path / "a.nii", grey, lps_affine()), View())
    np.testing.assert_array_equal(pictures(volume)[..., 0], grey.T)
    colours = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    packed = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    volume = open_volume(save(tmp_path / "rgb.nii", packed, lps_affine()), CT)
    np.testing.assert_array_equal(pictures(volume), colours.transpose(2, 1, 0, 3))
    assert volume.notes == ("is in colours, to which --window is not applied",)
    write_mask(tmp_path / "m.nii.gz", volume, colours[..., 0].T % 2)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "m.nii.gz").get_fdata(), colours[..., 0] % 2)


def test_labels_can_be_had_as_they_are(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.int32)
    volume = open_volume(save(tmp_path / "a.nii.gz", labels, lps_affine()), View())
    assert volume.values(3).dtype == np.int32
    np.testing.assert_array_equal(volume.values(3), labels[:, :, 3].T)


def test_slopes_are_applied(tmp_path):
    image = nibabel.Nifti1Image(noise(), lps_affine())
    image.header.set_slope_inter(0.5, -24)
    nibabel.save(image, tmp_path / "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").get_fdata()[:, :, 3].T
    np.testing.assert_allclose(open_volume(tmp_path / "a.nii", CT).values(3), expected)


def test_without_a_position_slices_are_shown_as_they_are_stored_and_it_is_said(tmp_path):
    image = nibabel.Nifti1Image(noise(), None)
    image.header.set_zooms((0.7, 0.8, 2.5))
    nibabel.save(image, tmp_path / "a.nii")
    volume = open_volume(tmp_path / "a.nii", CT)
    np.testing.assert_array_equal(volume.values(3), noise()[:, :, 3].T)
    np.testing.assert_allclose(volume.spacing, (0.8, 0.7), rtol=1e-6)
    assert "does not say how the patient lies" in volume.notes[0]


def test_a_single_time_point_is_left_out_of_the_count(tmp_path):
    volume = open_volume(save(tmp_path / "a.nii", noise()[..., None], lps_affine()), CT)
    assert len(volume) == SHAPE[2]
    write_mask(tmp_path / "m.nii.gz", volume, np.ones((SHAPE[2], SHAPE[1], SHAPE[0]), np.uint8))
    assert nibabel.load(tmp_path / "m.nii.gz").shape == (*SHAPE, 1)


def test_a_flat_file_is_one_slice(tmp_path):
    volume = open_volume(save(tmp_path / "a.nii", noise((12, 10)), lps_affine()), CT)
    assert (len(volume), volume.read(0).size, volume.distance) == (1, (12, 10), None)
    assert "slices of 12x1 pixels along axis 1" in error_of(tmp_path / "a.nii", View(axis=1))


def test_several_time_points_are_refused_with_a_way_to_part_them(tmp_path):
    assert "12 x 10 x 9 x 2" in error_of(save(tmp_path / "a.nii", noise((*SHAPE, 2)), lps_affine()))
    assert "four_to_three" in error_of(tmp_path / "a.nii")


def test_what_is_closed_can_be_read_again(tmp_path):
    volume = open_volume(save(tmp_path / "a.nii.gz", noise(), lps_affine()), View())
    before = pictures(volume)
    volume.close()
    (tmp_path / "a.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-2000])
    with pytest.raises(UserError, match="cut off"):
        volume.read(0)
    save(tmp_path / "a.nii.gz", noise(), lps_affine())
    np.testing.assert_array_equal(pictures(volume), before)


def test_threads_read_the_same(tmp_path):
    path = save(tmp_path / "a.nii.gz", noise((40, 40, 30)), lps_affine())
    expected, volume = pictures(open_volume(path, View())), open_volume(path, View())
    with ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(np.stack(list(pool.map(volume.read, range(30)))), expected)


@pytest.mark.parametrize(("ending", "own"), [(".nii", 0), (".nii.gz", 1)])
def test_memory_is_that_of_the_numbers_and_a_few_slices(tmp_path, ending, own):
    values = np.zeros((256, 256, 80), np.int16)
    values += np.arange(80, dtype=np.int16)
    path = save(tmp_path / f"a{ending}", values, lps_affine())
    tracemalloc.start()
    try:
        volume = open_volume(path, View())
        for i in range(len(volume)):
            volume.read(i)
        assert tracemalloc.get_traced_memory()[1] < own * values.nbytes + (6 << 20)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        write_mask(tmp_path / "m.nii.gz", volume, np.broadcast_to(np.uint8(1), (80, 256, 256)))
        assert tracemalloc.get_traced_memory()[1] - before < 2 << 20
    finally:
        tracemalloc.stop()


def test_names_of_volumes():
    names = ("a.nii", "A.NII.GZ", "a.hdr", "a.img", "a.mha", "a.mhd", "a.nrrd", "a.nhdr")
    assert all(is_volume(Path(name)) for name in names)
    assert not any(is_volume(Path(name)) for name in ("a.png", "a.gz", "nii", "a.raw", "a.dcm"))
    with pytest.raises(UserError, match="in no format of volumes"):
        open_volume(Path("a.png"), CT)


def test_without_nibabel_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(UserError, match=r"pip install 'medvlsm-jax\[medical\]'"):
        open_volume(Path("a.mha"), CT)


def test_colours_of_16_bits_are_stretched_as_grey_is(tmp_path):
    values = noise((3, *SHAPE)).astype(np.int16)
    path = write_metaimage(
        tmp_path / "a.mha", values, NDims="3", DimSize="12 10 9", ElementNumberOfChannels="3", Offset=None,
        TransformMatrix=None, ElementSpacing="1 1 1",
    )  # fmt: skip
    shown = pictures(open_volume(path, View()))
    assert (shown.min(), shown.max()) == (0, 255)
    assert shown.shape == (9, 10, 12, 3)
    assert (shown[..., 0] != shown[..., 1]).any()
