"""Work in threads comes back in order, and takes no more than it should ahead."""

import threading
import time

import pytest

from medvlsm_jax.predicting.in_order import in_order


def test_results_come_in_the_order_of_their_items():
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    assert list(in_order(slow_first, range(20), threads=4)) == [i * i for i in range(20)]


def test_no_more_items_are_taken_than_are_under_way():
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    for done in in_order(lambda i: i, items(), threads=2, ahead=3):
        assert len(taken) <= done + 5


def test_an_error_is_the_callers_and_what_was_not_begun_is_left_alone():
    begun, go = [], threading.Event()

    def work(i: int) -> None:
        begun.append(i)
        if i == 0:
            raise ValueError("the first")
        go.wait(0.05)

    with pytest.raises(ValueError, match="the first"):
        list(in_order(work, range(100), threads=1, ahead=20))
    assert len(begun) < 5


def test_one_chain_may_read_another():
    doubled = in_order(lambda i: 2 * i, range(10), threads=2)
    assert list(in_order(lambda i: i + 1, doubled, threads=2)) == [2 * i + 1 for i in range(10)]
