"""Small DICOM files, drawn."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

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


def draw_compressed(pixels: np.ndarray, syntax: str, **elements):
    """A data set in a transfer syntax that pydicom encodes."""
    dataset = draw_dataset(pixels, **elements)
    dataset.compress(syntax, generate_instance_uid=False)
    return dataset


def draw_jpeg(data: bytes, pixels: np.ndarray, syntax: str, **elements):
    """A data set of one frame, compressed to `data`."""
    from pydicom.encaps import encapsulate

    dataset = draw_dataset(pixels, syntax=syntax, **elements)
    dataset.PixelData = encapsulate([data])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def baseline_jpeg(pixels: np.ndarray) -> bytes:
    """Colours (h, w, 3) by Pillow."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def lossless_jpeg(pixels: np.ndarray, bits: int, selection: int = 1) -> bytes:
    """Grey values (h, w) as a lossless JPEG of one of the seven predictors (T.81, H)."""
    values = pixels.astype(np.int64) & 0xFFFF
    left, above, diagonal = (np.roll(values, shift, axis=(0, 1)) for shift in ((0, 1), (1, 0), (1, 1)))
    predicted = [
        left,
        above,
        diagonal,
        left + above - diagonal,
        left + ((above - diagonal) >> 1),
        above + ((left - diagonal) >> 1),
        (left + above) >> 1,
    ][selection - 1].copy()
    predicted[0], predicted[1:, 0], predicted[0, 0] = left[0], above[1:, 0], 1 << (bits - 1)
    differences = (values - predicted + (1 << 15)) % (1 << 16) - (1 << 15)
    coded = "".join(huffman(int(difference)) for difference in differences.ravel())
    return jpeg(0xC3, pixels.shape, bits, [*range(17)], coded, selection=selection)


def jpeg_of_blocks(blocks: np.ndarray) -> bytes:
    """A JPEG of 12 bits whose blocks of 8 x 8 pixels have the grey values (h, w): nothing but first coefficients."""
    differences = np.diff(blocks.astype(np.int64).ravel(), prepend=2048)
    coded = "".join(huffman(int(difference)) + "0" for difference in differences)  # and the end of the block
    tables = segment(0xDB, b"\0" + bytes([8] * 64)) + segment(0xC4, b"\x10" + bytes([1, *[0] * 15]) + b"\0")
    height, width = blocks.shape
    return jpeg(0xC1, (8 * height, 8 * width), 12, [*range(16)], coded, tables=tables)


def huffman(difference: int) -> str:
    """The bits of a difference: its category in five, and as many as that (T.81, F.1.2.1)."""
    category = abs(difference).bit_length()
    extra = difference if difference > 0 else difference + (1 << category) - 1
    return f"{category:05b}" + (f"{extra:0{category}b}" if 0 < category < 16 else "")


def jpeg(marker: int, shape, bits: int, categories, coded: str, *, tables: bytes = b"", selection: int = 0) -> bytes:
    """The file around coded bits, with categories of five bits."""
    coded += "1" * (-len(coded) % 8)
    content = int(coded, 2).to_bytes(len(coded) // 8, "big").replace(b"\xff", b"\xff\0")
    counts = bytes([0, 0, 0, 0, len(categories), *[0] * 11])
    return b"".join(
        [
            b"\xff\xd8",
            tables,
            segment(0xC4, b"\0" + counts + bytes(categories)),
            segment(marker, struct.pack(">BHHB3B", bits, *shape, 1, 1, 0x11, 0)),
            segment(0xDA, bytes([1, 1, 0, selection, 0 if selection else 63, 0])),
            content,
            b"\xff\xd9",
        ]
    )


def segment(marker: int, content: bytes) -> bytes:
    """A marker and what belongs to it."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
