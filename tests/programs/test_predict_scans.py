"""Pages, volumes and DICOM in; masks that lie where the input lay out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.images import open_image
from medvlsm_jax.data.scans.opening import find_images
from medvlsm_jax.data.scans.scan import View, Window
from medvlsm_jax.errors import UserError
from medvlsm_jax.predict import predict

RNG = np.random.default_rng(0)
VIEW = View(Window(40, 400))
OBLIQUE = np.array([[0.6, -0.2, 0.1, 9.5], [0.3, 0.7, -0.3, -20.25], [-0.1, 0.4, -2.4, 31.0], [0, 0, 0, 1]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slices_of_a_volume_get_the_masks_that_they_get_alone(run, tmp_path, axis):
    nib = pytest.importorskip("nibabel")
    volume = nib.Nifti1Image(RNG.integers(-300, 300, (10, 12, 14)).astype(np.int16), OBLIQUE)
    nib.save(volume, tmp_path / "whole.nii.gz")
    view = View(VIEW.window, axis)
    (mask,) = predict(run, [tmp_path / "whole.nii.gz"], "one polyp", tmp_path / "out", view=view, threshold=0.5)
    whole = nib.load(mask)
    assert mask.name == "whole_mask.nii.gz"
    np.testing.assert_array_equal(whole.affine, nib.load(tmp_path / "whole.nii.gz").affine)
    assert whole.shape == (10, 12, 14)
    for i in (0, 7):
        part = tuple(slice(i, i + 1) if a == axis else slice(None) for a in range(3))
        nib.save(volume.slicer[part], tmp_path / f"{i}.nii.gz")
        (alone,) = predict(run, [tmp_path / f"{i}.nii.gz"], "one polyp", tmp_path / "out", view=view, threshold=0.5)
        np.testing.assert_array_equal(np.asarray(nib.load(alone).dataobj), np.asarray(whole.dataobj)[part])


def test_the_pages_of_a_tiff_get_the_masks_that_they_get_alone(run, tmp_path):
    pages = [Image.fromarray(RNG.integers(0, 255, (30 + i, 40, 3), np.uint8)) for i in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    (mask,) = predict(run, [tmp_path / "pages.tif"], "one polyp", tmp_path / "out", save_json=True)
    with Image.open(mask) as found:
        assert found.n_frames == 3
        for i, page in enumerate(pages):
            page.save(tmp_path / f"{i}.png")
            (alone,) = predict(run, [tmp_path / f"{i}.png"], "one polyp", tmp_path / "out")
            found.seek(i)
            np.testing.assert_array_equal(np.asarray(found), np.asarray(open_image(alone)))
    said = json.loads((tmp_path / "out" / "pages_masks.json").read_text())
    assert said["slices"] == 3
    (about,) = said["masks"]
    assert about["area_px"] == sum(values["area_px"] for values in about["slices_with_mask"])


def test_a_photograph_that_lies_on_its_side_is_segmented_upright_and_said_to_be(run, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(RNG.integers(0, 255, (40, 60, 3), np.uint8))
    image.save(tmp_path / "turned.png", exif=exif)
    image.rotate(-90, expand=True).save(tmp_path / "upright.png")
    turned, upright = predict(run, [tmp_path / f"{n}.png" for n in ("turned", "upright")], "ulcer", tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(open_image(turned)), np.asarray(open_image(upright)))
    assert open_image(turned).size == (40, 60)
    assert "EXIF orientation: turned.png" in capsys.readouterr().out


def slice_of_series(folder: Path, index: int, series: str, study: str, frame: str) -> Path:
    """A CT slice of 16 x 20 pixels, as a scanner writes one."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series, study, frame
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "1", "A^B", "", ""
    data.StudyID, data.StudyDate, data.StudyTime, data.AccessionNumber, data.ReferringPhysicianName = "", "", "", "", ""
    data.Modality, data.SeriesNumber, data.InstanceNumber = "CT", 1, index + 1
    data.Manufacturer, data.ManufacturerModelName, data.DeviceSerialNumber, data.SoftwareVersions = "m", "n", "1", "1"
    data.PositionReferenceIndicator, data.Laterality = "", ""
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.5 * index], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = [0.7, 0.8], 2.5
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 16, 20, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = RNG.integers(700, 1400, (16, 20)).astype("<i2").tobytes()
    path = folder / f"{series[-4:]}_{index}"  # without an ending, as archives export them
    data.save_as(path, enforce_file_format=True)
    return path


def test_the_slices_of_a_series_become_one_segmentation_with_a_segment_for_each_sentence(run, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    highdicom = pytest.importorskip("highdicom")
    from pydicom.uid import generate_uid

    folder = tmp_path / "study"
    folder.mkdir()
    uids = [generate_uid() for _ in range(3)]
    paths = [slice_of_series(folder, i, *uids) for i in (2, 0, 1)]
    sentences = ["one polyp", "two large polyps"]
    written = predict(run, find_images(folder), sentences, tmp_path / "out", view=VIEW, threshold=0.5, save_json=True)
    (name,) = {path.name for path in written}
    found = highdicom.seg.segread(written[0])
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == sentences
    said = json.loads((tmp_path / "out" / name.replace("_seg.dcm", "_masks.json")).read_text())
    assert (said["slices"], said["spacing_mm"], said["slice_distance_mm"]) == (3, [0.7, 0.8], 2.5)
    instances = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    pixels = found.get_pixels_by_source_instance(instances)
    for i, about in enumerate(said["masks"]):
        assert about["area_px"] == pixels[..., i].sum()
    alone = predict(run, [paths[0]], sentences, tmp_path / "alone", view=VIEW, threshold=0.5)
    single = highdicom.seg.segread(alone[0]).get_pixels_by_source_instance(instances[:1])
    np.testing.assert_array_equal(single, pixels[:1])


def test_what_cannot_be_read_in_a_mixed_folder_is_named(run, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    (tmp_path / "c.nii.gz").write_bytes(b"\x1f\x8b" + b"\0" * 64)
    with pytest.raises(UserError, match=r"2 of 3 images are left out: .*c.nii.gz .*b.dcm |b.dcm .*c.nii.gz ") as error:
        predict(run, find_images(tmp_path), "one polyp", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert (tmp_path / "out" / "a_mask.png").is_file()
