"""Writes a dataset's folder as an ArrayRecord store: a builder of tensorflow-datasets that needs no TensorFlow."""

import contextlib
import functools
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from medvlsm_jax.data.annotations import Record, check_files
from medvlsm_jax.data.arrayrecord import DECODING, NAME, VERSION, check_decoded, config_name, import_tfds, stored_size
from medvlsm_jax.data.cards import CARDS, SPLITS, Card, find_folder
from medvlsm_jax.data.decoding.decode import VERSION as DECODED_BY
from medvlsm_jax.data.files import File, read_json
from medvlsm_jax.data.images import MIN_SIDE, load_pair
from medvlsm_jax.data.loading import load_split
from medvlsm_jax.errors import UserError

RECORDS_PER_SHARD = 128  # a shard is held in memory while it is written

StoreItem = tuple[Record, Mapping[str, Any]]  # a record and its entry in the annotation file
Example = Mapping[str, Any]  # feature -> bytes or text
Encode = Callable[[list[StoreItem]], Iterable[Example]]
Shards = Mapping[str, list[list[StoreItem]]]  # split -> what each of its shards holds


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
            an image cannot be resized, the output is no folder, or a store with other annotations is in the way.
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
    folder = store_folder(output, card, image_size) / VERSION
    if folder.exists():
        check_same(folder, image_size, annotations)
        return folder
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {output} cannot be made ({error.strerror}): choose another") from error
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


def store_folder(output: str | Path, card: Card, image_size: int) -> Path:
    """The folder that holds the versions of a store."""
    return Path(output) / NAME / config_name(card, image_size)


def read_items(data_dir: str | Path, card: Card) -> dict[str, list[StoreItem]]:
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


def cut(items: list[StoreItem], num_shards: int | None) -> list[list[StoreItem]]:
    """A split in parts whose lengths differ by one at most, none of them empty."""
    count = min(len(items), num_shards or -(-len(items) // RECORDS_PER_SHARD))
    ends = [len(items) * i // count for i in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]


def check_same(folder: Path, image_size: int, annotations: Mapping[str, bytes]) -> None:
    """Raises a UserError unless a store is complete and has this size and these annotation files."""
    check_decoded(folder)
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

        def encode(items: list[StoreItem]) -> Iterator[Example]:
            for example in pool.map(one, items):
                bar.update()
                yield example

        yield encode


def encode_item(item: StoreItem, image_size: int) -> Example:
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
                metadata=tfds.core.MetadataDict({"image_size": self.image_size, DECODING: DECODED_BY}),
            )

        def _shard_iterators_per_split(self, dl_manager):
            return {
                split: [functools.partial(self._examples, s) for s in shards] for split, shards in self.shards.items()
            }

        def _examples(self, items: list[StoreItem]) -> Iterator[tuple[int, Example]]:
            return enumerate(self.encode(items))

    return Builder
