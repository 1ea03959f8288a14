"""Datasets as ArrayRecord: a few large shards instead of thousands of files, by tensorflow-datasets without TensorFlow.

A store is a folder `<output>/medvlsm/<dataset>[_<image size>]/1.0.0/` with the shards, what tensorflow-datasets knows
of them, and a copy of the annotation files: example i of a split is record i of `anns/<split>.json`. Images lie in it
as found, byte for byte, or resized once; a run at that size gets the very batches that the dataset's folder would give.
"""

import functools
import io
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, Literal

from medvlsm_jax.data.annotations import Record, parse_record
from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.decoding.decode import VERSION as DECODED_BY
from medvlsm_jax.data.files import read_json
from medvlsm_jax.errors import UserError

NAME, VERSION = "medvlsm", "1.0.0"  # of the builder, and so of its folders
INFO, METADATA = "dataset_info.json", "metadata.json"  # tensorflow-datasets' names
DECODING = "decoding"  # in the metadata: by which version of the rules images were decoded


def import_tfds() -> ModuleType:
    """tensorflow-datasets, which imports TensorFlow only where it needs it, and here never does."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError("ArrayRecord stores need tensorflow-datasets: run pip install 'medvlsm-jax[tfds]'") from error
    return tensorflow_datasets


def config_name(card: Card, image_size: int) -> str:
    """The builder's config for a dataset whose images are resized, or with 0 stored as found."""
    return f"{card.name}_{image_size}" if image_size else card.name


def find_store(data_dir: str | Path, card: Card) -> Path | None:
    """The newest store of a dataset in `data_dir`, rather as found than resized; None where there is none.

    Raises:
        UserError: a store is incomplete, or there are several, all of them resized.
    """
    stores: dict[int, Path] = {}
    for config in (Path(data_dir) / NAME).glob("*"):
        versions = [path for path in config.glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
        if versions and re.fullmatch(rf"{re.escape(card.name)}(_\d+)?", config.name):
            folder = max(versions, key=lambda path: [int(number) for number in path.name.split(".")])
            size = stored_size(folder)
            if config.name == config_name(card, size):  # not another dataset whose name ends in a number
                stores[size] = folder
    if len(stores) > 1 and 0 not in stores:
        found = ", ".join(sorted(str(folder.parent) for folder in stores.values()))
        raise UserError(f"dataset {card.name!r} is stored at several sizes ({found}): keep one of them in data_dir")
    return stores.get(0) or next(iter(stores.values()), None)


def stored_size(folder: Path) -> int:
    """The side in pixels that a store's images are resized to, 0 for images as found.

    Raises:
        UserError: the folder is no complete store.
    """
    for name in (INFO, METADATA, "anns"):
        if not (folder / name).exists():
            raise UserError(f"{folder} is an incomplete store ({name} is missing): remove it and write it again")
    return read_json(folder / METADATA)["image_size"]


def check_decoded(folder: Path) -> None:
    """Raises a UserError for a store of resized images that were decoded by other rules than today's."""
    if stored_size(folder) and read_json(folder / METADATA).get(DECODING) != DECODED_BY:
        raise UserError(f"{folder} holds images that an earlier version decoded and resized: remove it, write it again")


def check_stored_size(records: Iterable[Record], image_size: int) -> None:
    """Raises a UserError when records lie in a store that was resized to another size than a network's, or long ago."""
    for folder in dict.fromkeys(record.image.folder for record in records if isinstance(record.image, StoredFile)):
        check_decoded(folder)
        if (size := stored_size(folder)) not in (0, image_size):
            raise UserError(
                f"{folder} holds images of {size} px, but the network reads {image_size}: write a store of that size "
                f"(tools/prepare_data.py --array_record=DIR --image_size={image_size}), or one as found"
            )


def load_store(folder: Path, card: Card, split: str, *, is_required: bool = True) -> list[Record]:
    """The records of a split of a store, as `annotations.load_split` has them of the dataset's folder.

    Raises:
        UserError: tensorflow-datasets or the split is missing, or shards or annotations are not whole.
    """
    path = folder / "anns" / f"{split}.json"
    if not is_required and not path.exists():
        return []
    entries = read_json(path)
    check_shards(folder, split, len(entries))
    is_resized = stored_size(folder) > 0  # then the spacing of the annotations is not that of the stored pixels
    records = []
    for i, entry in enumerate(entries):
        record = parse_record(entry, card, folder, f"{path}, record {i}")
        image = StoredFile(folder, split, i, "image", entry["img_name"])
        mask = StoredFile(folder, split, i, "mask", entry["mask_name"])
        spacing = None if is_resized else record.spacing
        records.append(replace(record, image=image, mask=mask, spacing=spacing))
    return records


def check_shards(folder: Path, split: str, records: int) -> None:
    """Raises a UserError unless the shards of a split are all there, whole, and hold an example for each record."""
    splits = import_tfds().builder_from_directory(folder).info.splits
    if split not in splits:
        raise UserError(f"{folder} has annotations of {split} but no shards: remove them, or write it again")
    info = splits[split]
    shards = [Path(path) for path in info.filepaths]
    if missing := [path for path in shards if not path.exists()]:
        raise UserError(f"{missing[0]} is missing: restore it, or remove {folder} and write it again")
    if sum(path.stat().st_size for path in shards) != info.num_bytes:
        raise UserError(f"{folder}: the shards of {split} are not whole: copy them again or write the store again")
    if info.num_examples != records:
        raise UserError(f"{folder}: {split} has {info.num_examples} examples but {records} annotations: write it again")


@dataclass(frozen=True)
class StoredFile:
    """An image or a mask in a store, with the part of a path that images are read by (`files.File`).

    Attributes:
        folder: of the store.
        split: train, val or test.
        index: of the example in the split.
        kind: which of the example's files.
        path: of the file that was stored, in the dataset's folder of images or masks.
    """

    folder: Path
    split: str
    index: int
    kind: Literal["image", "mask"]
    path: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.split}[{self.index}]:{self.path}"

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    def open(self, mode: Literal["rb"]) -> io.BytesIO:
        """The content; raises OSError when the shard is damaged, or the annotations name another file."""
        example = read_example(self.folder, self.split, self.index)
        if (found := example[f"{self.kind}_name"].decode()) != self.path:
            raise OSError(f"the store holds {found} there")
        return io.BytesIO(example[self.kind])

    def is_file(self) -> bool:
        return (self.folder / INFO).is_file()

    def stat(self) -> os.stat_result:
        return (self.folder / INFO).stat()  # written with the shards


_LOCK = threading.Lock()
_LAST = threading.local()  # image and mask are read one after the other: the second finds its example here


def read_example(folder: Path, split: str, index: int) -> Mapping[str, bytes]:
    """An example of a store by random access; raises OSError when its shard cannot be read."""
    if getattr(_LAST, "key", None) != (folder, split, index):
        with _LOCK:
            source = open_source(folder, split)
        try:
            _LAST.example, _LAST.key = source[index], (folder, split, index)
        except RuntimeError as error:  # of the shard's checksums, or of the file
            raise OSError(f"its shard cannot be read, {str(error).splitlines()[0]}") from error
    return _LAST.example


@functools.cache
def open_source(folder: Path, split: str) -> Sequence[Any]:
    """The examples of a split; a process opens them once and reads them with all its threads."""
    return import_tfds().builder_from_directory(folder).as_data_source(split)


def image_path(record: Record) -> str:
    """Which image a record is about; in a store each of an image's records has a copy of its own."""
    return record.image.path if isinstance(record.image, StoredFile) else str(record.image)
