"""Masks as DICOM SEG, read back by highdicom and by pydicom."""

import numpy as np
import pytest
from drawn_dicom import CR, US_MULTI, draw_enhanced, draw_file, draw_series

from medvlsm_jax.data.scans.dicom import open_series
from medvlsm_jax.data.scans.dicom_seg import segment_labels, segmentation_files, write_segmentation
from medvlsm_jax.data.scans.scan import View
from medvlsm_jax.errors import UserError

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

SLICES = np.random.default_rng(0).integers(0, 1000, (5, 16, 18)).astype(np.int16)


def draw_masks(*sentences: str, num_slices: int = 5) -> dict[str, np.ndarray]:
    """Masks that overlap."""
    rng = np.random.default_rng(1)
    return {sentence: (rng.random((num_slices, 16, 18)) < 0.5).astype(np.uint8) for sentence in sentences}


def open_one(*paths):
    """The one stack that files make."""
    (series,) = open_series(paths, View(), [])
    return series


def write(path, series, masks):
    """Writes masks and reads the first file back."""
    write_segmentation(path, series, masks, model="clipseg", version="0.1.0")
    return highdicom.seg.segread(path)


def test_segments_of_a_series_come_back_slice_by_slice(tmp_path):
    series = open_one(*draw_series(tmp_path / "ct", SLICES))
    masks = draw_masks("one small polyp", "a liver")
    masks["a liver"][2] = masks["one small polyp"][2] = 0
    masks["nothing"] = np.zeros_like(masks["a liver"])
    assert segmentation_files(series, "ct_seg.dcm") == ["ct_seg.dcm"]
    segmentation = write(tmp_path / "ct_seg.dcm", series, masks)
    instances = [frame.file.instance for frame in series.frames]
    pixels = segmentation.get_pixels_by_source_instance(
        instances, segment_numbers=[1, 2, 3], assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(pixels, np.stack(list(masks.values()), axis=-1))
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == list(masks)
    assert {segment.SegmentAlgorithmType for segment in segmentation.SegmentSequence} == {"AUTOMATIC"}
    assert (segmentation.SegmentationType, segmentation.PatientID) == ("BINARY", "secret")
    assert segmentation.FrameOfReferenceUID == "1.2.3.9"
    assert segmentation.SOPInstanceUID not in instances


def test_pydicom_reads_the_same_pixels_at_the_same_places(tmp_path):
    series = open_one(*draw_series(tmp_path / "ct", SLICES))
    masks = draw_masks("a liver")
    write(tmp_path / "seg.dcm", series, masks)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    for frame, groups in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = tuple(groups.PlanePositionSequence[0].ImagePositionPatient)
        index = [slice_.place().position for slice_ in series.frames].index(position)
        np.testing.assert_array_equal(frame, masks["a liver"][index])


def test_frames_of_an_enhanced_file_are_named(tmp_path):
    draw_enhanced(SLICES, [3, 1, 0, 2, 4]).save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    series, masks = open_one(tmp_path / "enhanced.dcm"), draw_masks("a liver")
    segmentation = write(tmp_path / "seg.dcm", series, masks)
    numbers = [frame.index + 1 for frame in series.frames]
    pixels = segmentation.get_pixels_by_source_frame(series.frames[0].file.instance, numbers)
    np.testing.assert_array_equal(pixels[..., 0], masks["a liver"])


def test_without_a_frame_of_reference_each_frame_has_a_file(tmp_path):
    cine = np.random.default_rng(0).integers(0, 256, (3, 16, 18, 3)).astype(np.uint8)
    path = draw_file(tmp_path / "cine.dcm", cine, NumberOfFrames=3, SOPClassUID=US_MULTI, Modality="US")
    series, masks = open_one(path), draw_masks("a ventricle", num_slices=3)
    names = segmentation_files(series, "cine_seg.dcm")
    assert names == ["cine_seg.dcm", "cine_seg_2.dcm", "cine_seg_3.dcm"]
    write(tmp_path / names[0], series, masks)
    for i, name in enumerate(names):
        segmentation = highdicom.seg.segread(tmp_path / name)
        pixels = segmentation.get_pixels_by_source_frame(series.frames[0].file.instance, [i + 1])
        np.testing.assert_array_equal(pixels[0, ..., 0], masks["a ventricle"][i])


def test_a_radiograph(tmp_path):
    path = draw_file(tmp_path / "cr.dcm", SLICES[0], SOPClassUID=CR, Modality="CR", PixelSpacing=[0.1, 0.1])
    series, masks = open_one(path), draw_masks("a heart", num_slices=1)
    segmentation = write(tmp_path / "seg.dcm", series, masks)
    pixels = segmentation.get_pixels_by_source_instance([series.frames[0].file.instance])
    np.testing.assert_array_equal(pixels[..., 0], masks["a heart"])


@pytest.mark.parametrize("count", [1, 5])
def test_nothing_found_is_said_by_segments_without_a_pixel(tmp_path, count):
    series = open_one(*draw_series(tmp_path / "ct", SLICES[:count]))
    masks = {sentence: np.zeros((count, 16, 18), np.uint8) for sentence in ("a polyp", "a cyst")}
    segmentation = write(tmp_path / "seg.dcm", series, masks)
    assert [segment.SegmentLabel for segment in segmentation.SegmentSequence] == ["a polyp", "a cyst"]
    assert not segmentation.pixel_array.any()


def test_a_tilted_gantry_is_refused_and_leaves_nothing(tmp_path):
    series = open_one(*draw_series(tmp_path / "ct", SLICES, step=(0, 0.7, 2.5)))
    with pytest.raises(UserError, match=r"cannot be given a DICOM SEG: its slices lie askew by 15\.6 degrees"):
        write(tmp_path / "seg.dcm", series, draw_masks("a liver"))
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


def test_names_of_patients_and_sentences_in_other_letters(tmp_path):
    elements = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg", "PatientSex": "X"}
    series = open_one(*draw_series(tmp_path / "ct", SLICES, **elements))
    write(tmp_path / "seg.dcm", series, draw_masks("ein großer Polyp, 肝"))
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (str(dataset.PatientName), dataset.PatientSex) == ("Müller^Jörg", "")
    assert dataset.SegmentSequence[0].SegmentLabel == "ein großer Polyp, 肝"


def test_labels_are_short_and_none_is_like_another():
    long = "one small pink round polyp, located in the center of the image, " * 2
    labels = segment_labels([long, long + "x", "a \\ b\n c", ""])
    assert max(len(label) for label in labels) <= 64
    assert labels[1].endswith(" (2)")
    assert labels[2:] == ["a b c", "segment"]
