"""Which reader a file has, and which files of a folder are images."""

from collections.abc import Collection, Sequence
from pathlib import Path

from medvlsm_jax.data.images import image_endings
from medvlsm_jax.data.scans.dicom import is_dicom, open_series
from medvlsm_jax.data.scans.pages import open_pages
from medvlsm_jax.data.scans.scan import Scan, View
from medvlsm_jax.data.scans.volumes import is_volume, open_volume
from medvlsm_jax.errors import UserError
from medvlsm_jax.text import listed
from medvlsm_jax.written import Written

NAMED = 5  # files that are left out, in a line


def open_scans(paths: Sequence[Path], view: View, failures: list[str]) -> list[Scan]:
    """The scans that files hold, in the order of the files; DICOM files of one series are one scan.

    Args:
        paths: files.
        view: of volumes and series.
        failures: gets a line for each file that cannot be read.
    """
    scans, series = list[Scan](), list[Path]()
    for path in paths:
        if not is_picture(path) and not is_volume(path) and path.is_file() and is_dicom(path):
            series.append(path)
            continue
        try:
            scans.append(open_volume(path, view) if is_volume(path) else open_pages(path))
        except UserError as error:
            failures.append(str(error))
    if series:
        scans += open_series(series, view, failures)
    places = {path: place for place, path in enumerate(paths)}
    return sorted(scans, key=lambda scan: min(places.get(path, len(paths)) for path in scan.files))


def is_picture(path: Path) -> bool:
    """Whether a file's ending is of a format that Pillow decodes."""
    return path.suffix.lower() in image_endings()


def find_images(path: Path) -> list[Path]:
    """The file itself, or the images, volumes and DICOM files of a folder; says what else is there.

    What an earlier run has put there is no image.

    Raises:
        UserError: there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--image={path} does not exist: give an image or a folder of images")
    images, left_out = list[Path](), dict[str, list[str]]()
    made = Written("--image", path).digests
    for file in sorted(path.iterdir()):
        if file.name.startswith("."):
            continue
        if reason := reason_against(file, made):
            left_out.setdefault(reason, []).append(file.name)
        else:
            images.append(file)
    if not images:
        others = [name for names in left_out.values() for name in names]
        raise UserError(
            f"--image={path} holds no images that can be read" + (f", but {listed(others, NAMED)}" if others else "")
        )
    for reason, names in left_out.items():
        print(f"left out, for {reason}: {listed(names, NAMED)}")
    return images


def reason_against(path: Path, made: Collection[str]) -> str:
    """Why a file of a folder is not read as an image; empty for one that is."""
    if path.name in made:
        return "they are predictions"
    if path.is_dir():
        return "they are folders"
    if is_volume(path) or is_picture(path) or is_dicom(path):
        return ""
    return "they are in no format that is read (docs/images.md)"
