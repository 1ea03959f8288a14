"""Batches are a pure function of seed and step, whatever the processes, workers and interruptions."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from absl import flags

from medvlsm_jax.data.annotations import check_classes
from medvlsm_jax.data.images import load_pair
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.cache import open_cache
from medvlsm_jax.data.reading.pipeline import Loader, eval_batches, order_of, steps_per_epoch, train_batches
from medvlsm_jax.errors import UserError

BATCH = 4
RECORDS = 10  # two passes are five batches


@pytest.fixture
def loader(sample) -> Loader:
    records = load_records(sample, "sample", "train")[:RECORDS]
    return Loader(records, load_tokenizer("builtin", 24), "random", 16, seed=3)


def batches_of(loader: Loader, batch_size: int, seed: int, **options):
    return train_batches(loader, order_of(loader.records, batch_size, seed), **options)


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    with contextlib.closing(batches):
        return list(itertools.islice(batches, count))


def assert_equal(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def indices(batches: list[dict]) -> list[int]:
    return [int(i) for batch in batches for i in batch["index"]]


def test_an_example_is_the_record(loader):
    batch = loader([(4, 0, True), (2, 5, False)])
    for row, (index, epoch) in enumerate([(4, 0), (2, 5)]):
        record = loader.records[index]
        image, mask = load_pair(record.image, record.mask, 16)
        np.testing.assert_array_equal(batch["image"][row], image)
        np.testing.assert_array_equal(batch["mask"][row], mask)
        np.testing.assert_array_equal(batch["input_ids"][row], loader.tokenizer(loader.sentence(index, epoch))[0])
    assert (batch["index"].tolist(), batch["valid"].tolist()) == ([4, 2], [True, False])


def test_batches_have_fixed_shapes_and_types(loader):
    batch = take(batches_of(loader, BATCH, seed=0), 1)[0]
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "image": ((BATCH, 16, 16, 3), "uint8"),
        "mask": ((BATCH, 16, 16, 1), "uint8"),
        "input_ids": ((BATCH, 24), "int32"),
        "attention_mask": ((BATCH, 24), "int32"),
        "index": ((BATCH,), "int32"),
        "valid": ((BATCH,), "bool"),
    }


def test_a_seed_fixes_the_batches(loader):
    first, again, other = (take(batches_of(loader, BATCH, seed=seed), 5) for seed in (0, 0, 1))
    assert_equal(first, again)
    assert indices(first) != indices(other)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_a_run_continues_at_any_step_as_if_unbroken(loader, step):
    whole = take(batches_of(loader, BATCH, seed=0), step + 3)
    assert_equal(take(batches_of(loader, BATCH, seed=0, first_step=step), 3), whole[step:])


def test_a_run_reads_no_further_than_its_last_step(loader):
    whole = take(batches_of(loader, BATCH, seed=0), 7)
    assert_equal(take(batches_of(loader, BATCH, seed=0, first_step=4, last_step=7), 99), whole[4:])
    assert take(batches_of(loader, BATCH, seed=0, first_step=7, last_step=7), 99) == []


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_step(loader, count):
    whole = take(batches_of(loader, BATCH, seed=0, first_step=1), 5)
    shares = [take(batches_of(loader, BATCH, seed=0, first_step=1, process=(i, count)), 5) for i in range(count)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert {len(part["index"]) for part in parts} == {BATCH // count}
        assert_equal([{name: np.concatenate([part[name] for part in parts]) for name in batch}], [batch])


def test_a_batch_may_be_larger_than_the_set(loader):
    small = dataclasses.replace(loader, records=loader.records[:3])
    assert Counter(indices(take(batches_of(small, 6, seed=0), 2))) == {0: 4, 1: 4, 2: 4}
    assert steps_per_epoch(3, 6) == 1
    assert steps_per_epoch(10, 4) == 2


def test_random_sentences_depend_on_seed_pass_and_index_alone(loader):
    sentences = {(epoch, i): loader.sentence(i, epoch) for epoch in range(12) for i in range(3)}
    assert all(loader.sentence(i, epoch) == sentence for (epoch, i), sentence in reversed(sentences.items()))
    assert len({sentences[epoch, 0] for epoch in range(12)}) > 2
    other = dataclasses.replace(loader, seed=4)
    assert any(other.sentence(i, epoch) != sentence for (epoch, i), sentence in sentences.items())


def test_training_draws_the_sentence_of_its_pass(loader):
    batches = take(batches_of(loader, BATCH, seed=0), 5)
    rows = [row for batch in batches for row in batch["input_ids"]]
    passes = Counter()
    for index, row in zip(indices(batches), rows, strict=True):
        expected = loader.tokenizer(loader.sentence(index, passes[index]))[0]
        passes[index] += 1
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("records", [1, 4, 5, 8, 10])
def test_evaluation_covers_each_record_once(loader, records, count):
    part = dataclasses.replace(loader, records=loader.records[:records], seed=None)
    shares = [take(eval_batches(part, BATCH, process=(i, count)), 99) for i in range(count)]
    assert {len(share) for share in shares} == {-(-records // BATCH)}
    rows = [(int(i), bool(v)) for share in shares for b in share for i, v in zip(b["index"], b["valid"], strict=True)]
    assert sorted(i for i, valid in rows if valid) == list(range(records))
    assert {i for i, valid in rows if not valid} <= {records - 1}
    assert len(rows) == -(-records // BATCH) * BATCH


def test_evaluation_goes_in_the_files_order_with_fixed_sentences(loader):
    fixed = dataclasses.replace(loader, seed=None)
    batches = take(eval_batches(fixed, BATCH), 99)
    assert indices(batches)[:RECORDS] == list(range(RECORDS))
    expected = fixed.tokenizer(fixed.records[1].prompts["p6"])[0]
    np.testing.assert_array_equal(batches[0]["input_ids"][1], expected)


@pytest.fixture
def parsed_flags():
    """Grain reads an absl flag when it starts workers."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"])


@pytest.mark.parametrize("num_workers", [1, 3])
def test_worker_processes_give_the_same_batches(loader, parsed_flags, num_workers):
    expected = take(batches_of(loader, BATCH, seed=0, first_step=2), 11)
    found = batches_of(loader, BATCH, seed=0, first_step=2, num_workers=num_workers, num_threads=2)
    assert_equal(take(found, 11), expected)


def test_worker_processes_leave_signals_to_the_program(loader, parsed_flags):
    whole = take(batches_of(loader, BATCH, seed=0), 12)
    with contextlib.closing(batches_of(loader, BATCH, seed=0, num_workers=1, num_threads=2)) as batches:
        found = [next(batches)]
        for worker in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker.pid, number)
        assert_equal(found + list(itertools.islice(batches, 11)), whole)


KILLED = """
import os, signal, sys, time
from absl import flags
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.pipeline import Loader, order_of, train_batches
if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    loader = Loader(load_records(sys.argv[1], "sample", "train"), None, "p6", 16)
    batches = train_batches(loader, order_of(loader.records, 4, seed=0), num_workers=1)
    for _ in range(8):
        next(batches)
    time.sleep(1)  # the worker has read ahead and waits
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_worker_processes_end_with_a_program_that_is_killed(sample, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    # The workers hold the program's output open: its end is theirs.
    ended = subprocess.run([sys.executable, str(program), str(sample)], capture_output=True, timeout=600, check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_cache_changes_no_batch(loader, parsed_flags, num_workers):
    expected = take(batches_of(loader, BATCH, seed=0, last_step=9), 9)
    with open_cache("memory", loader.image_size, len(loader.records)) as cache:
        cached = dataclasses.replace(loader, cache=cache)
        assert_equal(take(batches_of(cached, BATCH, seed=0, last_step=9, num_workers=num_workers), 9), expected)
        files = {record.image for record in loader.records} | {record.mask for record in loader.records}
        assert len(list(cache.entries.folder.iterdir())) == len(files)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_named(loader, parsed_flags, num_workers, tmp_path):
    broken = dataclasses.replace(loader.records[1], image=tmp_path / "broken.png")
    broken.image.write_bytes(b"no image")
    records = [loader.records[0], broken, *loader.records[2:]]
    batches = batches_of(dataclasses.replace(loader, records=records), BATCH, seed=0, num_workers=num_workers)
    with pytest.raises(Exception, match=f"{broken.image} cannot be decoded as an image"):
        take(batches, 3)


def test_a_network_without_text_gets_no_tokens(loader):
    assert set(dataclasses.replace(loader, tokenizer=None)([(0, 0, True)])) == {"image", "mask", "index", "valid"}


def test_a_network_with_several_outputs_is_told_which_one_a_record_is_about(loader):
    records = [dataclasses.replace(r, target=("edema", "polyp")[i % 2]) for i, r in enumerate(loader.records)]
    loader = dataclasses.replace(loader, records=records, classes=("polyp", "tumor", "edema"))
    assert loader([(i, 0, True) for i in range(3)])["class_index"].tolist() == [2, 0, 2]
    check_classes(records, loader.classes)
    with pytest.raises(UserError, match=r"asks for 'edema', but the network has outputs for polyp alone"):
        check_classes(records, ("polyp",))


def test_a_shared_memory_that_is_too_small_for_the_workers_is_named_before_one_is_killed(loader, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 14))
    with pytest.raises(UserError, match=r"config\.data\.num_workers=2: the batches .* but /dev/shm has 0 MiB to spare"):
        batches_of(loader, 4, seed=0, num_workers=2)
    with contextlib.closing(batches_of(loader, 4, seed=0)):
        pass
