"""CAMUS: a folder for each patient, label volumes of one slice as MetaImage or NIfTI, metadata in Info_*.cfg."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.language.attributes import number_word
from medvlsm_jax.data.preparing.importers.item import Item, Mask
from medvlsm_jax.data.preparing.importers.layout import folders_of, wrong_folder
from medvlsm_jax.data.schema import RecordLine
from medvlsm_jax.errors import UserError

PATIENT = re.compile(r"patient(\d+)")
VIEWS = {"2CH": "two-chamber", "4CH": "four-chamber"}
PHASES = {"ED": "diastole", "ES": "systole"}
SEXES = {"F": "female", "M": "male"}
SUFFIXES = (".nii.gz", ".nii", ".mhd")
SUBGROUPS = {"subgroup_training.txt": "train", "subgroup_validation.txt": "val", "subgroup_testing.txt": "test"}
# The first release numbers its 450 training and its 50 test patients from 1 each, and so do the published annotations.
TESTING, PREFIX, NUM_TRAINING = "testing", "test_", 450


def find_items(raw: Path, card: Card) -> list[Item]:
    """Three objects, one a structure, for each view and phase of each patient with labels."""
    folders = [folder for folder in folders_of(raw, card) if PATIENT.fullmatch(folder.name)]
    if not folders:
        raise wrong_folder(raw, card)
    splits = read_subgroups(raw)
    frames = [(folder, view, phase) for folder in folders for view in VIEWS for phase in PHASES]
    labelled = [frame for frame in frames if find_volume(*frame, "_gt")]
    if skipped := len({folder for folder, *_ in frames} - {folder for folder, *_ in labelled}):
        print(f"{skipped} patients without labels are left out")
    if not labelled:
        raise wrong_folder(raw, card)
    return [item for frame in labelled for item in frame_items(*frame, card, splits)]


def frame_items(folder: Path, view: str, phase: str, card: Card, splits: Mapping[str, str]) -> list[Item]:
    """The three structures of an image."""
    volume, labels = find_volume(folder, view, phase), find_volume(folder, view, phase, "_gt")
    if volume is None or labels is None:
        raise UserError(f"{folder} has no image {folder.name}_{view}_{phase} ({' or '.join(SUFFIXES)}) for its labels")
    is_test = folder.parent.name.lower() == TESTING
    patient = PREFIX * is_test + folder.name
    split = "test" if is_test else splits.get(folder.name, "")
    attributes = read_info(folder / f"Info_{view}.cfg") | {"view": VIEWS[view], "cycle": PHASES[phase]}
    read_image = functools.partial(read_slice, volume)
    return [
        Item(
            f"{patient}_{view}_{phase}.png",
            f"mask_{label}/{patient}_{view}_{phase}_gt.png",
            split=split,
            group=patient,
            target=target,
            attributes=attributes,
            read_image=read_image,
            read_mask=functools.partial(read_label, labels, label),
            read_extent=functools.partial(read_extent, volume),
        )
        for label, target in enumerate(card.targets, start=1)
    ]


def find_volume(folder: Path, view: str, phase: str, kind: str = "") -> Path | None:
    """The file of an image, or of its labels (`_gt`), in the first format that is there."""
    paths = [folder / f"{folder.name}_{view}_{phase}{kind}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), None)


def read_subgroups(raw: Path) -> dict[str, str]:
    """Patient -> split, from the folder database_split of the second release; empty where there is none."""
    places = [raw, raw.parent, *raw.glob("*")]
    folder = next((path for place in places if (path := place / "database_split").is_dir()), None)
    if folder is None:
        return {}
    files = {folder / name: split for name, split in SUBGROUPS.items() if (folder / name).is_file()}
    return {patient: split for path, split in files.items() for patient in path.read_text("utf-8-sig").split()}


# --- Volumes and metadata --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)  # the three structures of an image come one after another
def read_volume(path: Path) -> Num[np.ndarray, "h w"]:
    """The one slice of a volume.

    Raises:
        UserError: SimpleITK is not installed, the file cannot be read, or it has several slices.
    """
    library = import_simpleitk()
    try:
        values = library.GetArrayFromImage(library.ReadImage(path))
    except RuntimeError as error:
        raise unreadable(path, error) from error
    values = values.reshape([side for i, side in enumerate(values.shape) if side > 1 or i >= values.ndim - 2])
    if values.ndim != 2:
        raise UserError(f"{path} has {values.ndim} axes, {values.shape}, but an image of one slice is expected")
    return values


@functools.lru_cache(maxsize=2)
def read_extent(path: Path) -> tuple[float, float]:
    """Height and width of a volume's slice in mm, from its header, where SimpleITK has the axis across first.

    Raises:
        UserError: SimpleITK is not installed, or the header cannot be read.
    """
    reader = import_simpleitk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    across, down, *_ = (n * mm for n, mm in zip(reader.GetSize(), reader.GetSpacing(), strict=True))
    return down, across


def import_simpleitk() -> ModuleType:
    """The library that reads both formats; raises UserError when it is not installed."""
    try:
        import SimpleITK
    except ImportError as error:
        raise UserError("CAMUS needs SimpleITK: pip install 'medvlsm-jax[medical]'") from error
    return SimpleITK


def unreadable(path: Path, error: RuntimeError) -> UserError:
    """What is said of a volume that SimpleITK refuses."""
    reason = str(error).strip().splitlines()[-1]
    return UserError(f"{path} cannot be read ({reason}): unpack it anew, .mhd with its .raw")


def read_slice(path: Path) -> UInt8[np.ndarray, "h w"]:
    """An image in 0 to 255, stretched only where its values go beyond that."""
    values = read_volume(path).astype(np.float64)
    low, high = min(values.min(), 0.0), max(values.max(), 255.0)
    return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)


def read_label(path: Path, label: int) -> Mask:
    """Where a volume of labels has the given one."""
    return read_volume(path) == label


def read_info(path: Path) -> dict[str, str]:
    """Sex, age and image quality in words, from lines of `Key: value`; raises UserError when one is missing."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        age = f"{number_word(round(float(values['Age'])))}-year-old"
        return {"sex": SEXES[values["Sex"][:1].upper()], "age": age, "quality": values["ImageQuality"].lower()}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): complete the download") from error
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} needs lines 'Sex: F', 'Age: 56' and 'ImageQuality: Good' ({error})") from error


# --- Published annotations -------------------------------------------------------------------------------------------


def find_published(
    entry: Mapping[str, Any], split: str, index: Mapping[tuple[str, str], RecordLine]
) -> RecordLine | None:
    """The object that a published record is about.

    A test record's patient0001 is the first release's test patient 1, who may be patient 451 of the second. Of those
    who may be meant it is the first whose sex, age and image quality are those of the record's sentence p6.
    """
    number = PATIENT.match(entry["img_name"])
    if number is None:
        return None
    names = [number[0]]
    if split == "test":
        names = [PREFIX + number[0], f"patient{int(number[1]) + NUM_TRAINING:04d}", number[0]]
    image, mask = Path(entry["img_name"]).stem, str(Path(entry["mask_name"]).with_suffix(""))
    keys = [(image.replace(number[0], name), mask.replace(number[0], name)) for name in names]
    return next((row for key in keys if (row := index.get(key)) and agrees(entry, row)), None)


def agrees(entry: Mapping[str, Any], row: RecordLine) -> bool:
    """Whether the sentence p6 of a published record says what the metadata say; true where it has none."""
    sentence = str(entry["prompts"].get("p6", ""))
    words = row.attributes
    return not sentence or f"a {words['age']} {words['sex']} with {words['quality']} image quality" in sentence
