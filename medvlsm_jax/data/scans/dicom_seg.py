"""Masks of a series as DICOM SEG, which viewers lay over it: a segment for each sentence. The door of highdicom."""

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from medvlsm_jax import atomic
from medvlsm_jax.data.scans.dicom import Series
from medvlsm_jax.data.scans.dicom_files import import_pydicom, one_line, read_attributes
from medvlsm_jax.data.scans.dicom_places import TILT, tilt
from medvlsm_jax.errors import UserError

LABEL, DESCRIPTION = 64, 1024  # the most characters of a segment's label and of its description (PS3.5, 6.2)
SERIES_NUMBERS = 1000  # is added to the number of the series that is segmented
UTF_8 = "ISO_IR 192"
NO_LABEL = "segment"
# What a segmentation must name of the patient and the study, and may leave empty.
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
SEXES = ("M", "F", "O", "")

Masks = Mapping[str, UInt8[np.ndarray, "slices h w"]]


def segmentation_files(series: Series, name: str) -> list[str]:
    """The files that `write_segmentation` makes.

    Args:
        series: that is segmented.
        name: of the file.

    Returns:
        The name; and where the slices do not lie in the patient's coordinates, NAME_2, NAME_3 and so on for the others:
        a segmentation without a frame of reference is of one frame.
    """
    if has_reference(series):
        return [name]
    path = Path(name)
    return [name, *(f"{path.stem}_{i}{path.suffix}" for i in range(2, len(series) + 1))]


def write_segmentation(path: Path, series: Series, masks: Masks, *, model: str, version: str) -> None:
    """Writes BINARY segmentations, whole or not at all, which refer to the instances and frames of the series.

    Slices in which nothing is found are left out; where nothing is found at all, the segments have no pixel.

    Args:
        path: of the first of `segmentation_files`.
        series: that is segmented.
        masks: 0 or 1, in the order of the slices, under the sentence that was asked.
        model: that segmented it.
        version: of the software.

    Raises:
        UserError: highdicom is not installed, or the series is one that a segmentation cannot represent.
    """
    check_representable(series)
    library = import_highdicom()
    files = segmentation_files(series, path.name)
    try:
        attributes = {source: read_attributes(source) for source in series.files}
        if has_reference(series):
            images, ordered = placed_images(series, attributes), file_order(series, masks)
            datasets = [make_segmentation(library, images, ordered, model, version)]
        else:
            datasets = unplaced_segmentations(library, series, attributes, masks, model, version)
    except UserError:
        raise
    except Exception as error:  # what highdicom finds of a series that breaks the standard
        raise UserError(f"{series.path} cannot be given a DICOM SEG ({one_line(error)})") from error
    for name, dataset in zip(files, datasets, strict=True):
        with atomic.replacing(path.with_name(name)) as temporary:
            dataset.save_as(temporary)


def import_highdicom() -> ModuleType:
    """The library that writes segmentations; raises UserError when it is not installed."""
    import_pydicom()
    try:
        import highdicom
    except ImportError as error:
        raise UserError("DICOM SEG needs highdicom: pip install 'medvlsm-jax[medical]'") from error
    return highdicom


def has_reference(series: Series) -> bool:
    """Whether all slices lie in the patient's coordinates."""
    places = [frame.place() for frame in series.frames]
    return bool(series.frames[0].file.frame_of_reference) and all(
        place.position and place.orientation and place.spacing for place in places
    )


def check_representable(series: Series) -> None:
    """Refuses what a segmentation cannot represent.

    Raises:
        UserError: the slices lie askew, or they are some of the frames of a file.
    """
    if not has_reference(series):
        return
    refusal = f"{series.path} cannot be given a DICOM SEG"
    angle, num_frames = tilt([frame.place() for frame in series.frames]), series.frames[0].file.num_frames
    if angle > TILT:
        raise UserError(f"{refusal}: its slices lie askew by {angle:.1f} degrees (a tilted gantry?): resample it first")
    if len(series.files) == 1 and num_frames != len(series):
        raise UserError(
            f"{refusal}: it is a stack of {len(series)} of the {num_frames} frames of a file: split the file"
        )


# --- What is segmented -----------------------------------------------------------------------------------------------


def placed_images(series: Series, attributes: Mapping[Path, Any]) -> list[Any]:
    """The attributes of each file of a stack, in its order, with all that highdicom asks for."""
    images = [completed(attributes[path]) for path in series.files]
    height, _ = series.spacing or (1.0, 1.0)
    for image in images:
        # Where a thickness is not said it is that of slices without gaps, of a lone slice the height of its pixels.
        image.SliceThickness = image.get("SliceThickness") or series.distance or height
    return images


def completed(dataset: Any) -> Any:
    """Attributes with those that a segmentation must name, in one place for all frames where they are the same."""
    for keyword in MAY_BE_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    if dataset.PatientSex not in SEXES:
        dataset.PatientSex = ""
    shared, frames = (dataset.get(f"{kind}FunctionalGroupsSequence") for kind in ("Shared", "PerFrame"))
    if shared and frames:
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            if keyword not in shared[0] and keyword in frames[0]:
                setattr(shared[0], keyword, frames[0].get(keyword))
    return dataset


def file_order(series: Series, masks: Masks) -> Masks:
    """Masks in the order of a file's frames; that of the slices where each has a file of its own."""
    if len(series.files) > 1:
        return masks
    order = np.argsort([frame.index for frame in series.frames])
    return {sentence: stack[order] for sentence, stack in masks.items()}


def unplaced_segmentations(
    library: ModuleType, series: Series, attributes: Mapping[Path, Any], masks: Masks, model: str, version: str
) -> list[Any]:
    """One for each frame, as many as slices, in one series."""
    uid, segmentations = library.UID(), []
    for i, frame in enumerate(series.frames):
        image = unplaced_image(attributes[frame.file.path])
        frame_masks = {sentence: stack[i : i + 1] for sentence, stack in masks.items()}
        segmentation = make_segmentation(library, [image], frame_masks, model, version, number=i + 1, series=uid)
        if frame.file.num_frames > 1:
            name_frame(segmentation, frame.index + 1)
        # Its pixels have a size only where they have a place, and highdicom would read none without a thickness.
        segmentation.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)
        segmentations.append(segmentation)
    return segmentations


def unplaced_image(attributes: Any) -> Any:
    """The attributes of a frame as if it were alone in its file: highdicom takes no more where nothing has a place."""
    from pydicom.dataset import Dataset

    attributes.pop("PerFrameFunctionalGroupsSequence", None)
    image = completed(copy.deepcopy(attributes))
    image.NumberOfFrames = 1
    image.pop("ImagePositionPatient", None)
    image.pop("PixelSpacing", None)
    groups = Dataset()
    groups.PixelMeasuresSequence = [Dataset()]  # highdicom looks there in any file of frames
    image.SharedFunctionalGroupsSequence = [groups]
    return image


def name_frame(segmentation: Any, number: int) -> None:
    """Says from which frame of a file the masks are."""
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", ()):
            for source in derivation.SourceImageSequence:
                source.ReferencedFrameNumber = number


# --- What is written -------------------------------------------------------------------------------------------------


def make_segmentation(
    library: ModuleType,
    images: Sequence[Any],
    masks: Masks,
    model: str,
    version: str,
    number: int = 1,
    series: str = "",
) -> Any:
    """A segmentation of images, which have a mask each; of one image of many frames, its frames have."""
    pixels = combine(list(masks.values()))
    if len(images) > 1 and not pixels.any():
        images, pixels = images[:1], pixels[:1]  # highdicom writes all slices then; one says that there is nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of attributes that break the standard
        return library.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type="BINARY",
            segment_descriptions=describe(library, list(masks), model, version),
            series_instance_uid=series or library.UID(),
            series_number=int(images[0].get("SeriesNumber") or 0) + SERIES_NUMBERS,
            sop_instance_uid=library.UID(),
            instance_number=number,
            manufacturer="medvlsm-jax",
            manufacturer_model_name=model[:LABEL],
            software_versions=version,
            device_serial_number=version,
            content_label="SENTENCES",
            content_description="One segment for each sentence",
            series_description=f"Segmentation by {model}"[:LABEL],
            specific_character_set=UTF_8,
        )


def combine(stacks: Sequence[UInt8[np.ndarray, "slices h w"]]) -> UInt8[np.ndarray, "slices h w *segments"]:
    """The number of the segment at each pixel; where segments overlap, 0 and 1 with a last axis for them."""
    labels, overlap = np.zeros(stacks[0].shape, np.min_scalar_type(len(stacks))), False
    for number, stack in enumerate(stacks, start=1):
        overlap = overlap or bool((labels[stack > 0] > 0).any())
        labels[stack > 0] = number
    return np.stack(stacks, axis=-1) if overlap else labels


def describe(library: ModuleType, sentences: Sequence[str], model: str, version: str) -> list[Any]:
    """What each segment is: tissue, for a sentence may name an organ or a lesion; the sentence says which."""
    from pydicom.sr.codedict import codes

    algorithm = library.AlgorithmIdentificationSequence(
        name=model[:LABEL], family=codes.DCM.ArtificialIntelligence, version=version
    )
    segments = []
    for number, (sentence, label) in enumerate(zip(sentences, segment_labels(sentences), strict=True), start=1):
        segment = library.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        if sentence:
            segment.SegmentDescription = sentence[:DESCRIPTION]
        segments.append(segment)
    return segments


def segment_labels(sentences: Sequence[str]) -> list[str]:
    """The sentences as labels: of at most 64 characters, without backslashes, which part values; no two are alike."""
    labels = list[str]()
    for sentence in sentences:
        text = re.sub(r"[\\\s]+", " ", sentence).strip() or NO_LABEL
        label, count = text[:LABEL].strip(), 1
        while label in labels:
            count += 1
            label = f"{text[: LABEL - 5].strip()} ({count})"
        labels.append(label)
    return labels
