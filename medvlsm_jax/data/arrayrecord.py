"""Datasets as ArrayRecord: a few large shards instead of thousands of files, by tensorflow-datasets without TensorFlow.

A store is a folder `<output>/medvlsm/<dataset>[_<image size>]/1.0.0/` with the shards, what tensorflow-datasets knows
of them, and a copy of the annotation files: example i of a split is record i of `anns/<split>.json`. Images lie in it
as found, byte for byte, or resized once; a run at that size gets the very batches that the dataset's folder would give.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from medvlsm_jax.data.annotations import Record, check_files, load_split, parse_record, read_json
from medvlsm_jax.data.cards import CARDS, SPLITS, Card, find_folder
from medvlsm_jax.data.files import File
from medvlsm_jax.data.images import MIN_SIDE, load_pair
from medvlsm_jax.errors import UserError

NAME, VERSION = "medvlsm", "1.0.0"  # of the builder, and so of its folders
INFO, METADATA = "dataset_info.json", "metadata.json"  # tensorflow-datasets' names
RECORDS_PER_SHARD = 128  # a shard is held in memory while it is written

Item = tuple[Record, Mapping[str, Any]]  # a record and its entry in the annotation file
Example = Mapping[str, Any]  # feature -> bytes or text
Encode = Callable[[list[Item]], Iterable[Example]]
Shards = Mapping[str, list[list[Item]]]  # split -> what each of its shards holds


# --- Writing ---------------------------------------------------------------------------------------------------------


def write_store(
    data_dir: str | Path,
    card: Card,
    output: str | Path,
    *,
    image_size: int = 0,
    num_shards: int | None = None,
    workers: int | None = None,
) -> Path:
    """Writes a dataset's folder as a store and returns the store's; one with the same annotations is left as it is.

    The store appears only when it is complete.

    Args:
        data_dir: holds the dataset's folder.
        card: of the dataset.
        output: data_dir of the runs that read the store; may be the same.
        image_size: side in pixels of the square that images and masks are resized to; 0 keeps the files as found.
        num_shards: of each split; by default one for every 128 records.
        workers: threads that read and resize; by default one for each processor, up to 16.

    Raises:
        UserError: an argument is out of range, tensorflow-datasets is missing, the folder lacks annotations or files,
            an image cannot be resized, or a store with other annotations is in the way.
    """
    workers = min(16, os.cpu_count() or 1) if workers is None else workers
    if (image_size and image_size < MIN_SIDE) or workers < 1 or (num_shards is not None and num_shards < 1):
        raise UserError(
            f"cannot write a store with {image_size=} (0, or >= {MIN_SIDE}), {num_shards=} (>= 1) and {workers=} (>= 1)"
        )
    builder = builder_class()
    splits = read_items(data_dir, card)
    anns = find_folder(data_dir, card) / "anns"
    annotations = {name: (anns / f"{name}.json").read_bytes() for name in splits}
    folder = Path(output) / NAME / config_name(card, image_size) / VERSION
    if folder.exists():
        check_same(folder, image_size, annotations)
        return folder
    Path(output).mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=output) as temporary,
        encoder(image_size, workers, sum(map(len, splits.values()))) as encode,
        contextlib.redirect_stdout(io.StringIO()),  # tensorflow-datasets names the temporary folder
    ):
        shards = {split: cut(items, num_shards) for split, items in splits.items()}
        new = builder(temporary, card, image_size, shards, encode)
        new.download_and_prepare(file_format="array_record")
        (new.data_path / "anns").mkdir()
        for name, content in annotations.items():
            (new.data_path / "anns" / f"{name}.json").write_bytes(content)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.data_path.rename(folder)
    return folder


def read_items(data_dir: str | Path, card: Card) -> dict[str, list[Item]]:
    """The records of each split that has some, with their entries; their files exist."""
    anns = find_folder(data_dir, card) / "anns"
    records = {split: load_split(data_dir, card, split, is_required=False) for split in SPLITS}
    if not any(records.values()):
        raise UserError(f"{anns} holds no records: there is nothing to store")
    check_files([record for split in records.values() for record in split])
    return {
        split: list(zip(found, read_json(anns / f"{split}.json"), strict=True))
        for split, found in records.items()
        if found
    }


def cut(items: list[Item], num_shards: int | None) -> list[list[Item]]:
    """A split in parts whose lengths differ by one at most, none of them empty."""
    count = min(len(items), num_shards or -(-len(items) // RECORDS_PER_SHARD))
    ends = [len(items) * i // count for i in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]


def config_name(card: Card, image_size: int) -> str:
    """The builder's config for a dataset whose images are resized, or with 0 stored as found."""
    return f"{card.name}_{image_size}" if image_size else card.name


def check_same(folder: Path, image_size: int, annotations: Mapping[str, bytes]) -> None:
    """Raises a UserError unless a store is complete and has this size and these annotation files."""
    size = stored_size(folder)
    found = {path.stem: path.read_bytes() for path in (folder / "anns").glob("*.json")}
    if (size, found) != (image_size, annotations):
        raise UserError(f"{folder} was written from other annotations: remove it to write it anew")


@contextlib.contextmanager
def encoder(image_size: int, workers: int, total: int) -> Iterator[Encode]:
    """What turns items into examples, in order, and shows how far it is."""
    one = functools.partial(encode_item, image_size=image_size)
    # Threads, for Pillow lets go of the interpreter: four of them are faster than processes, which import JAX first.
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, desc="storing", unit="record", disable=None) as bar,
    ):

        def encode(items: list[Item]) -> Iterator[Example]:
            for example in pool.map(one, items):
                bar.update()
                yield example

        yield encode


def encode_item(item: Item, image_size: int) -> Example:
    """A record as an example: its files' bytes or, with an image size, both resized as lossless PNG."""
    record, entry = item
    if image_size:
        image, mask = load_pair(record.image, record.mask, image_size)
        files = {"image": to_png(image), "mask": to_png(255 * mask[..., 0])}
    else:
        files = {"image": read_bytes(record.image), "mask": read_bytes(record.mask)}
    names = {"image_name": entry["img_name"], "mask_name": entry["mask_name"]}
    prompts, attributes = json.dumps(entry["prompts"]), json.dumps(dict(record.attributes))
    return files | names | {"prompts": prompts, "attributes": attributes}


def read_bytes(file: File) -> bytes:
    """The content of a file."""
    with file.open("rb") as stream:
        return stream.read()


def to_png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """Pixels as the content of a PNG file; level 3 takes a third of the default's time, for 7 % more bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=3)
    return stream.getvalue()


# --- The builder -----------------------------------------------------------------------------------------------------


def import_tfds() -> ModuleType:
    """tensorflow-datasets, which imports TensorFlow only where it needs it, and here never does."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError("ArrayRecord stores need tensorflow-datasets: run pip install 'medvlsm-jax[tfds]'") from error
    return tensorflow_datasets


@functools.cache
def builder_class() -> type:
    """The builder of all datasets; a function, for it needs a library that need not be installed.

    Raises:
        UserError: tensorflow-datasets is missing.
    """
    tfds = import_tfds()

    # Shard by shard, for GeneratorBasedBuilder buffers a split and asks TensorFlow to once it exceeds 1000 MiB.
    class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]
        """One config per dataset, and one more for each size that its images are resized to."""

        name = NAME
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS: ClassVar = [
            tfds.core.BuilderConfig(name=card.name, description=card.title)
            for card in CARDS.values()
            if not card.members
        ]

        def __init__(self, data_dir: str, card: Card, image_size: int, shards: Shards, encode: Encode):
            self.card, self.image_size, self.shards, self.encode = card, image_size, shards, encode
            super().__init__(data_dir=data_dir, config=config_name(card, image_size), version=VERSION)

        @classmethod
        def get_builder_config(cls, name: str, version: Any = None) -> Any:
            """Of a known dataset, else a new one: of a size or of a user's card."""
            return super().get_builder_config(name, version) or tfds.core.BuilderConfig(name=name)

        def _info(self):
            # Plain bytes, for Image promises what TensorFlow decodes: no TIFF, one depth, one number of channels.
            content = tfds.features.Scalar(np.object_)
            texts = ("image_name", "mask_name", "prompts", "attributes")
            features = {"image": content, "mask": content} | {name: tfds.features.Text() for name in texts}
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.card.title or self.card.name,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
                homepage=self.card.download,
                citation=self.card.citation,
                license=self.card.licence,
                metadata=tfds.core.MetadataDict(image_size=self.image_size),
            )

        def _shard_iterators_per_split(self, dl_manager):
            return {
                split: [functools.partial(self._examples, s) for s in shards] for split, shards in self.shards.items()
            }

        def _examples(self, items: list[Item]) -> Iterator[tuple[int, Example]]:
            return enumerate(self.encode(items))

    return Builder


# --- Reading ---------------------------------------------------------------------------------------------------------


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
    records = []
    for i, entry in enumerate(entries):
        record = parse_record(entry, card, folder, f"{path}, record {i}")
        image = StoredFile(folder, split, i, "image", entry["img_name"])
        mask = StoredFile(folder, split, i, "mask", entry["mask_name"])
        records.append(replace(record, image=image, mask=mask))
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
