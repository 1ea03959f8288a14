"""`benchmark.py evaluate`: a whole evaluation of many images, its speed and the memory that it takes as it goes on.

A tiny network with random weights scores drawn images, each under a name of its own, with two prompt types: what grows
with the number of images would show.
"""

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import flags
from flax import nnx

from medvlsm_jax.checkpoints.model_folder import load_model_tokenizer, save_model
from medvlsm_jax.data.synthetic import SAMPLE, write_sample
from medvlsm_jax.evaluate import default_config, evaluate
from medvlsm_jax.evaluation.cases import UNFINISHED
from medvlsm_jax.models import create_model
from medvlsm_jax.text import table

PROMPTS = ("p6", "p0")
DRAWN_IMAGES = 100


def run(args: flags.FlagValues) -> None:
    """Measures and prints a table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "data", args.num_images)
        model = create_model("clipseg_tiny", rngs=nnx.Rngs(0))
        save_model(folder / "model", model, load_model_tokenizer(model.config.tokenizer, model.config))
        config = default_config()
        config.data_dir, config.batch_size = str(folder / "data"), args.batch_size
        with watching(folder / "output" / UNFINISHED) as samples:
            evaluate(config, folder / "model", [SAMPLE], PROMPTS, folder / "output", num_pictures=0)
    done = [(lines // len(PROMPTS), mib, seconds) for lines, mib, seconds in samples if lines > 0]
    rows = [["images scored", "resident MiB", "images/s so far"]]
    first = done[0]
    for tenth in range(1, 11):
        images, mib, seconds = next(s for s in done if s[0] >= tenth * done[-1][0] // 10)
        rate = (images - first[0]) / max(seconds - first[2], 1e-9)
        rows.append([str(images), f"{mib:.0f}", f"{rate:.0f}"])
    print(f"{args.num_images} images, prompts {' and '.join(PROMPTS)}, batches of {args.batch_size}")
    print(table(rows))


def write_images(data_dir: Path, count: int) -> None:
    """A test split of so many records, whose files are names of a few drawn images."""
    drawn = write_sample(data_dir, num_images=DRAWN_IMAGES)
    records = [
        r for split in ("train", "val", "test") for r in json.loads((drawn / "anns" / f"{split}.json").read_text())
    ]
    linked = []
    for i in range(count):
        record = dict(records[i % len(records)])
        for kind in ("img", "mask"):
            name = f"{i:06d}_{record[f'{kind}_name']}"
            source = drawn / ("images" if kind == "img" else "masks") / record[f"{kind}_name"]
            source.with_name(name).symlink_to(source)
            record[f"{kind}_name"] = name
        linked.append(record)
    (drawn / "anns" / "test.json").write_text(json.dumps(linked))


@contextmanager
def watching(file: Path, every: float = 0.5) -> Iterator[list[tuple[int, float, float]]]:
    """Lines of a file, MiB of resident memory and the time, again and again."""
    samples: list[tuple[int, float, float]] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(every):
            lines = file.read_bytes().count(b"\n") - 1 if file.exists() else 0
            samples.append((lines, resident_mib(), time.perf_counter()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()


def resident_mib() -> float:
    """Memory of this process, as Linux counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
