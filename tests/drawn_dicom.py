"""Small DICOM files, drawn."""

from pathlib import Path

import numpy as np

AXIAL = [1, 0, 0, 0, 1, 0]
CT, MR, US_MULTI, CR = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.1",
)


def draw_dataset(pixels: np.ndarray, **elements):
    """A data set of one picture (h, w), (h, w, 3) or of frames where `NumberOfFrames` is given; CT unless said."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    is_colour = pixels.shape[-1] == 3
    frames = int(elements.get("NumberOfFrames", 1))
    shape = pixels.shape[1:] if frames > 1 or pixels.ndim - is_colour > 2 else pixels.shape
    bits = 8 * pixels.dtype.itemsize
    values = {
        "SOPClassUID": CT,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "Modality": "CT",
        "PatientName": "Doe^Jane",
        "PatientID": "secret",
        "InstanceNumber": 1,
        "SeriesNumber": 3,
        "SamplesPerPixel": 3 if is_colour else 1,
        "PhotometricInterpretation": "RGB" if is_colour else "MONOCHROME2",
        "Rows": shape[0],
        "Columns": shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": elements.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    if is_colour:
        values["PlanarConfiguration"] = 0
    for keyword, value in (values | elements).items():
        setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    return dataset


def draw_file(path: Path, pixels: np.ndarray, **elements) -> Path:
    """Writes a `draw_dataset`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_dataset(pixels, **elements).save_as(path, enforce_file_format=True)
    return path


def draw_series(folder: Path, slices: np.ndarray, step=(0.0, 0.0, 2.5), **elements) -> list[Path]:
    """A CT series (slices, h, w), one file a slice, that of the last slice first."""
    paths = []
    for i, pixels in enumerate(slices):
        place = {
            "FrameOfReferenceUID": "1.2.3.9",
            "ImagePositionPatient": [float(a * i + b) for a, b in zip(step, (-10, -20, 30), strict=True)],
            "ImageOrientationPatient": AXIAL,
            "PixelSpacing": [0.7, 0.8],
            "InstanceNumber": len(slices) - i,
        }
        paths.append(draw_file(folder / f"{len(slices) - i}.dcm", pixels, **place | elements))
    return paths[::-1]


def draw_enhanced(slices: np.ndarray, order: list[int], **elements):
    """An enhanced CT with slice `order[i]` in frame i, whose place, rescale and window stand in functional groups."""
    from pydicom.dataset import Dataset

    def item(**values) -> Dataset:
        made = Dataset()
        for keyword, value in values.items():
            setattr(made, keyword, [value] if isinstance(value, Dataset) else value)
        return made

    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=AXIAL),
        PixelMeasuresSequence=item(PixelSpacing=[0.7, 0.8], SliceThickness=2.5),
        FrameVOILUTSequence=item(WindowCenter=50, WindowWidth=100),
    )
    frames = [
        item(
            PlanePositionSequence=item(ImagePositionPatient=[0.0, 0.0, 2.5 * k]),
            PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=-100 * k, RescaleType="HU"),
        )
        for k in order
    ]
    return draw_dataset(
        np.stack([slices[k] for k in order]),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1",
        NumberOfFrames=len(order),
        FrameOfReferenceUID="1.2.3.9",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
        **elements,
    )
