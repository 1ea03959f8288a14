"""Every record once a pass, each read by the same process, in batches that nothing but seed and step decides."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from medvlsm_jax.data.reading.order import Order, training_order

SIZES = [(10, 4), (64, 16), (100, 12), (33, 32), (48, 32), (3, 6), (5, 1)]


def order_of(num_records: int, batch_size: int, seed: int = 0) -> Order:
    """Of one dataset, with two records an image."""
    return training_order(["a"] * num_records, [str(i // 2) for i in range(num_records)], batch_size, seed)


def draws(order: Order, steps: int) -> list[list[tuple[int, int]]]:
    return [[order.draw(step, row) for row in range(order.batch_size)] for step in range(steps)]


@pytest.mark.parametrize(("num_records", "batch_size"), SIZES)
def test_every_record_comes_once_a_pass_and_no_record_oftener_than_another(num_records, batch_size):
    passes, drawn = defaultdict(list), Counter(dict.fromkeys(range(num_records), 0))
    for batch in draws(order_of(num_records, batch_size), 7 * num_records // batch_size):
        for index, number in batch:
            passes[number].append(index)
            drawn[index] += 1
        assert max(drawn.values()) - min(drawn.values()) <= 1
    for number in range(6):
        assert sorted(passes[number]) == list(range(num_records))
    if num_records > batch_size:
        assert len({tuple(passes[number]) for number in range(6)}) > 4


@pytest.mark.parametrize(("num_records", "batch_size"), SIZES)
def test_there_are_as_many_streams_as_rows_and_records_allow(num_records, batch_size):
    streams = order_of(num_records, batch_size).streams
    assert batch_size % streams == 0
    assert streams <= num_records
    assert streams == batch_size or num_records < batch_size


@pytest.mark.parametrize("processes", [2, 8, 32])
def test_a_record_is_read_by_one_process_and_an_image_is_too(processes):
    batch_size, readers, images = 32, defaultdict(set), defaultdict(set)
    for batch in draws(order_of(300, batch_size), 60):
        for row, (index, _) in enumerate(batch):
            readers[index].add(row * processes // batch_size)
            images[index // 2].add(row * processes // batch_size)
    assert len(readers) == 300
    for found in (readers, images):  # a cut between two processes falls on a record, or on the two of an image
        assert sum(len(several) > 1 for several in found.values()) <= processes - 1
        assert max(map(len, found.values())) <= 2


def test_another_seed_shuffles_otherwise_what_a_stream_has():
    (one, other) = (draws(order_of(64, 16, seed), 4) for seed in (0, 1))
    assert one != other
    for row in range(16):
        assert {batch[row][0] for batch in one} == {batch[row][0] for batch in other}


def test_records_meet_in_batches_as_if_shuffled():
    """Of pairs of records in different streams, each comes in a batch about as often as another."""
    together = np.zeros((32, 32), int)
    for batch in draws(order_of(32, 4), 4000):
        found = [index for index, _ in batch]
        together[np.ix_(found, found)] += 1
    np.fill_diagonal(together, 0)
    met = together[together > 0]
    assert len(met) == 32 * 24
    assert 0.6 * met.mean() < met.min() <= met.max() < 1.5 * met.mean()


def test_every_stretch_of_the_line_has_its_share_of_each_dataset():
    datasets = ["isic"] * 60 + ["busi"] * 20
    order = training_order(datasets, [str(i) for i in range(80)], 8, 0)
    for row in range(8):
        found = Counter(datasets[order.draw(step, row)[0]] for step in range(10))
        assert 6 <= found["isic"] <= 8


def test_weights_are_shares_of_the_draws_and_each_dataset_keeps_its_passes():
    datasets = ["isic"] * 40 + ["busi"] * 12
    order = training_order(datasets, [str(i) for i in range(52)], 8, 0, {"isic": 1.0, "busi": 3.0})
    assert order.streams == 8
    batches = draws(order, 26)
    for batch in batches:  # evenly spread in each
        assert Counter(datasets[index] for index, _ in batch) == {"isic": 2, "busi": 6}
    for row in range(8):  # and in each stream
        assert Counter(datasets[batch[row][0]] for batch in batches[:24]) == {"isic": 6, "busi": 18}
    passes, readers = defaultdict(list), defaultdict(set)
    for batch in batches:
        for row, (index, number) in enumerate(batch):
            if datasets[index] == "busi":
                passes[number].append(index)
                readers[index].add(row // 4)
    for number in range(12):  # 13 in all, the last of which has not ended in every stream
        assert sorted(passes[number]) == list(range(40, 52))
    assert max(map(len, readers.values())) == 1  # 12 records are six for each of two processes
