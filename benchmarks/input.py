"""`benchmark.py input`: our input pipeline against a PyTorch DataLoader that does the same work.

Both decode with Pillow, stretch to a square, tokenise and batch, with as many worker processes, in turn in
one run. The first batches, during which the workers start, are not timed.
"""

import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import named_card
from medvlsm_jax.data.language.tokenizers import BUILTIN, load_tokenizer
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.cache import ExampleCache, open_cache
from medvlsm_jax.data.reading.entries import MEMORY
from medvlsm_jax.data.reading.pipeline import Loader, order_of, train_batches
from medvlsm_jax.data.synthetic import SAMPLE, write_sample
from medvlsm_jax.text import table
from medvlsm_jax.weights.reference.pytorch import require_torch

CONTEXT_LENGTH = 77
DRAWN_SIZE = 576  # of the drawn images, in pixels: about that of Kvasir-SEG's
WARM_BATCHES = 2  # of each worker, not timed


def define_flags() -> None:
    """The flags that only this benchmark has."""
    flags.DEFINE_string("data_dir", "", "Holds --dataset, whose training images are read; empty draws some JPEGs.")
    flags.DEFINE_string("dataset", "kvasir_polyp", "In --data_dir.")
    flags.DEFINE_integer(
        "num_images",
        None,
        "By default: input 1600, train 120, evaluate 10000; fewer are repeated.",
        lower_bound=1,
    )
    flags.DEFINE_integer("image_size", 352, "Side of the square, in pixels.", lower_bound=1)
    flags.DEFINE_integer("num_workers", os.cpu_count(), "Worker processes of either side.", lower_bound=1)


def run(args: flags.FlagValues) -> None:
    """Measures and prints a table."""
    sides = ("PyTorch", "first epoch", "cached epochs", "first epoch, threads", "cached epochs, threads")
    rates: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=args.repeats * 3, desc="epochs", disable=None) as bar:
        records = linked_records(args, Path(folder))
        for _ in range(args.repeats):
            rates["PyTorch"].append(pytorch_rate(records, args))
            bar.update()
            for suffix, workers in (("", args.num_workers), (", threads", 0)):
                first, cached = our_rates(records, args, workers)
                rates[f"first epoch{suffix}"].append(first)
                rates[f"cached epochs{suffix}"].append(cached)
                bar.update()
    rows = [["images/s", "total", "a core", "ours / PyTorch"]]
    for side in sides:
        ratio = statistics.median(a / b for a, b in zip(rates[side], rates["PyTorch"], strict=True))
        rate = statistics.median(rates[side])
        rows.append([side, f"{rate:.0f}", f"{rate / args.num_workers:.0f}", f"{ratio:.2f}"])
    print(f"{len(records)} images to {args.image_size} px, batches of {args.batch_size}, {args.num_workers} workers")
    print(table(rows))


def linked_records(args: flags.FlagValues, folder: Path) -> list[Record]:
    """As many records as asked for, under names of their own in `folder`: no cache has seen them."""
    found = load_records(args.data_dir, args.dataset, "train") if args.data_dir else drawn_records(folder)
    linked = []
    for i in range(args.num_images):
        record = found[i % len(found)]
        image, mask = (folder / f"{i}_{kind}_{file.name}" for kind, file in (("i", record.image), ("m", record.mask)))
        image.symlink_to(Path(str(record.image)).resolve())
        mask.symlink_to(Path(str(record.mask)).resolve())
        linked.append(Record(record.card, image, mask, record.prompts))
    return linked


def drawn_records(folder: Path) -> list[Record]:
    """A drawn sample with its images as JPEG, as most of the datasets have them."""
    root = write_sample(folder, num_images=100, size=DRAWN_SIZE, workers=os.cpu_count())
    records = load_records(folder, SAMPLE, "train")
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), quality=90)
    images = [root / "images" / f"{record.image.stem}.jpg" for record in records]
    card = named_card(SAMPLE)
    return [Record(card, image, record.mask, record.prompts) for image, record in zip(images, records, strict=True)]


def our_rates(records: list[Record], args: flags.FlagValues, num_workers: int) -> tuple[float, float]:
    """Images/s in the first epoch and in the two after it; without workers, threads read."""
    steps = len(records) // args.batch_size
    with open_cache(MEMORY, args.image_size, len(records)) as cache:
        loader = make_loader(records, args.image_size, cache)
        threads = 2 if num_workers else args.num_workers
        order = order_of(records, args.batch_size, seed=0)
        batches = train_batches(loader, order, num_workers=num_workers, num_threads=threads)
        with contextlib.closing(batches):
            first = rate(batches, steps, args)
            list(itertools.islice(batches, WARM_BATCHES * args.num_workers))
            return first, rate(batches, 2 * steps, args)


def make_loader(records: list[Record], image_size: int, cache: ExampleCache | None) -> Loader:
    """Our side's work on one record."""
    tokenizer = load_tokenizer(BUILTIN, CONTEXT_LENGTH)
    return Loader(records, tokenizer, "p6", image_size, seed=0, cache=cache)


def pytorch_rate(records: list[Record], args: flags.FlagValues) -> float:
    """Images/s of a DataLoader."""
    torch = require_torch()
    loader = torch.utils.data.DataLoader(
        PillowDataset(records, args.image_size),
        args.batch_size,
        shuffle=True,
        num_workers=args.num_workers,
        drop_last=True,
    )
    return rate(iter(loader), len(loader), args)


class PillowDataset:
    """What the original's dataset does for a record, as PyTorch users write it."""

    def __init__(self, records: list[Record], image_size: int):
        self.records, self.size = records, (image_size, image_size)
        self.tokenize = load_tokenizer(BUILTIN, CONTEXT_LENGTH).backend

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        with Image.open(str(record.image)) as image, Image.open(str(record.mask)) as mask:
            pixels = np.array(image.convert("RGB").resize(self.size, Image.Resampling.BILINEAR))
            target = np.array(mask.convert("L").resize(self.size, Image.Resampling.NEAREST)) > 127
        tokens = self.tokenize(
            record.prompts["p6"], padding="max_length", truncation=True, max_length=CONTEXT_LENGTH, return_tensors="np"
        )
        return {"image": pixels, "mask": target[..., None], "input_ids": tokens["input_ids"][0]}


def rate(batches: Iterator[Any], count: int, args: flags.FlagValues) -> float:
    """Images/s over `count` batches, the first few left out."""
    warm = min(WARM_BATCHES * args.num_workers, count // 2)
    list(itertools.islice(batches, warm))
    start = time.perf_counter()
    timed = sum(1 for _ in itertools.islice(batches, count - warm))
    return timed * args.batch_size / (time.perf_counter() - start)
