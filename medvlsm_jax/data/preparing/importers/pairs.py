"""Images and masks in folders: which belong together, how they are called, in which split their folders put them."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.importers.layout import (
    SUFFIXES,
    find_inside,
    find_parent,
    folders_of,
    is_junk,
    lonely,
    sorted_folders,
)
from medvlsm_jax.data.preparing.own_splits import split_named, split_of
from medvlsm_jax.errors import UserError

# A mask's stem for an image's; the last is how the first release of ETIS-LaribPolypDB names them (p12.tif for 12.tif).
MASK_STEMS = ("{}", "{}_mask", "{}_segmentation", "p{}")
MASK_NAMES = "IMAGE, IMAGE_mask or IMAGE_segmentation"  # the same for people


class Part(NamedTuple):
    """A folder of images and one of their masks; either may have further folders in it. None is an empty one.

    Attributes:
        images: the folder of images.
        masks: that of the masks.
        split: that the images are in, as far as the folder is in one.
        label: what tells it from other parts: the folders around it.
    """

    images: Path | None
    masks: Path | None
    split: str = ""
    label: str = ""


class Pair(NamedTuple):
    """An image and its mask.

    Attributes:
        name: of the image in the dataset, without ending: its stem, with folders in front where others have that, too.
        image: its file.
        mask: its mask's.
        split: that its folders name; empty where they name none.
        place: the path of the image's file, without the folder that is just called images.
    """

    name: str
    image: Path
    mask: Path
    split: str
    place: str

    @property
    def mask_name(self) -> str:
        """Of the mask in the dataset, without ending."""
        own = PurePosixPath(self.name)
        return self.name if self.mask.stem == f"p{own.name}" else str(own.with_name(self.mask.stem))


def find_parts(raw: Path, card: Card, images: Sequence[str], masks: Sequence[str]) -> list[Part]:
    """The folders of images and masks in `raw`, by lower-case names: one of each, or one in each of several splits.

    Raises:
        UserError: there are none, or several side by side that are no splits.
    """
    holders = [folder for folder in folders_of(raw, card) if find_inside(folder, images) and find_inside(folder, masks)]
    splits = {folder: split_of(folder.relative_to(raw)) for folder in holders}
    chosen = [folder for folder in holders if splits[folder]]
    if len(chosen) < len(holders) or not holders:
        chosen.append(find_parent(raw, card, images, masks))
    parts = [
        Part(find_inside(folder, images), find_inside(folder, masks), splits[folder], str(folder.relative_to(raw)))
        for folder in dict.fromkeys(chosen)
    ]
    return [inner for part in parts for inner in divide_part(part)]


def divide_part(part: Part) -> list[Part]:
    """A part of each split, where the folders of images and masks both have one for it; else the part itself."""
    if part.images is None or part.masks is None:
        return [part]
    images, masks = (
        {split: Path(path) for path in sorted_folders(folder) if (split := split_named(Path(path).name))}
        for folder in (part.images, part.masks)
    )
    if part.split or not images or set(images) != set(masks):
        return [part]
    return [Part(images[split], masks[split], split, f"{part.label}/{images[split].name}") for split in images]


def find_pairs(parts: Sequence[Part]) -> list[Pair]:
    """The images of folders with their masks; raises UserError when one lacks its partner, or two have one name."""
    found = [(part, *files) for part in parts for files in pair_part(part)]
    stems = Counter(image.stem.casefold() for _, image, _ in found)
    return [name_pair(part, image, mask, is_alone=stems[image.stem.casefold()] == 1) for part, image, mask in found]


def name_pair(part: Part, image: Path, mask: Path, *, is_alone: bool) -> Pair:
    """A pair with its name and its split; others have the image's stem unless it `is_alone`."""
    below, mask_below = (
        path.relative_to(folder or path.parent) for path, folder in ((image, part.images), (mask, part.masks))
    )
    splits = dict.fromkeys(filter(None, (part.split, split_of(below.parent), split_of(mask_below.parent))))
    if len(splits) > 1:
        raise UserError(f"{image} lies in {' and its mask in '.join(splits)}, {mask}: move one of them")
    place = PurePosixPath(part.label, below.as_posix())
    name = image.stem if is_alone else place.with_suffix("").as_posix()
    return Pair(name, image, mask, next(iter(splits), ""), str(place))


def pair_part(part: Part) -> Iterator[tuple[Path, Path]]:
    """The images of a folder, each with its mask."""
    images, masks = (list_files(folder) for folder in (part.images, part.masks))
    by_path = {key.lower(): key for key in masks}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for key in masks:
        by_stem[PurePosixPath(key).name.lower()].append(key)
    alone = {stem: keys[0] for stem, keys in by_stem.items() if len(keys) == 1}
    matched = {key: match_mask(key, by_path) or match_mask(PurePosixPath(key).name, alone) for key in images}
    if missing := [images[key].name for key, mask in matched.items() if mask is None]:
        raise lonely(f"{part.masks} has no mask for images of {part.images}", missing, MASK_NAMES)
    users: dict[str, str] = {}
    for key, mask in matched.items():
        if (other := users.setdefault(mask or "", key)) != key:
            raise UserError(f"{images[other]} and {images[key]} have the same name: their mask is {masks[mask or '']}")
    if extra := sorted(set(masks) - set(users)):
        raise lonely(f"{part.images} has no image for masks of {part.masks}", [masks[key].name for key in extra])
    for key, mask in matched.items():
        yield images[key], masks[mask or ""]


def match_mask(stem: str, masks: Mapping[str, str]) -> str | None:
    """The mask of an image, out of lower-case stem -> mask, if there is one; the stem may have folders in front."""
    folder, slash, own = stem.rpartition("/")
    names = ((folder + slash + form.format(own)).lower() for form in MASK_STEMS)
    return next((masks[name] for name in names if name in masks), None)


def list_files(folder: Path | None) -> dict[str, Path]:
    """Path below a folder without its ending -> image file; raises UserError when two differ in their ending alone."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder else ():
        below = path.relative_to(folder or path)
        if path.suffix.lower() not in SUFFIXES or any(map(is_junk, below.parts)):
            continue
        key = below.with_suffix("").as_posix()
        if key in found:
            raise UserError(f"{found[key]} and {path} have the same name: remove one of them")
        found[key] = path
    return found
