"""Intervals, paired tests and corrections against scipy's and cases worked by hand."""

import numpy as np
import pytest
import scipy.stats

from medvlsm_jax.evaluation.statistics import estimate, estimate_columns, holm, paired

RNG = np.random.default_rng(1)


def names(count: int, each: int = 1) -> list[str]:
    return [f"image {i // each}" for i in range(count)]


def test_mean_and_deviation_are_those_of_the_records():
    found = estimate(np.array([0.2, 0.4, 0.9]), ["a", "b", "c"])
    assert (found.n, found.clusters) == (3, 3)
    assert found.mean == pytest.approx(0.5)
    assert found.std == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))


@pytest.mark.parametrize("each", [1, 3])
def test_the_interval_is_scipys(each):
    values = RNG.random(120)
    sums, counts = values.reshape(-1, each).sum(1), np.full(120 // each, float(each))
    expected = scipy.stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    found = estimate(values, names(120, each))
    assert found.low == pytest.approx(expected.low, abs=0.006)
    assert found.high == pytest.approx(expected.high, abs=0.006)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    covered = 0
    for _ in range(200):
        found = estimate(RNG.normal(0.5, 0.2, 60), names(60))
        covered += found.low <= 0.5 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_records_of_one_image_are_one_observation():
    values = np.repeat(RNG.random(30), 10)
    whole, alone = estimate(values, names(300, 10)), estimate(values[::10], names(30))
    assert (whole.n, whole.clusters) == (300, 30)
    assert (whole.low, whole.high) == pytest.approx((alone.low, alone.high))


def test_the_interval_depends_neither_on_the_order_nor_on_the_other_columns():
    values, clusters = RNG.random(40), names(40, 2)
    order = RNG.permutation(40)
    first = estimate(values, clusters)
    again = estimate(values[order], [clusters[i] for i in order])
    assert (again.low, again.high) == pytest.approx((first.low, first.high), abs=1e-12)
    beside = estimate_columns(np.stack([RNG.random(40), values], axis=1), clusters)[1]
    assert (beside.mean, beside.low, beside.high) == pytest.approx((first.mean, first.low, first.high), abs=1e-12)


def test_one_image_has_no_interval():
    found = estimate(np.array([0.3, 0.5]), ["a", "a"])
    assert (found.n, found.clusters, found.low, found.high) == (2, 1, None, None)
    assert estimate(np.array([0.3]), ["a"]).std == 0


def test_equal_values_have_an_interval_of_no_width():
    found = estimate(np.ones(5), names(5))
    assert (found.low, found.high) == (1, 1)


def test_a_paired_difference_is_tested_on_the_means_of_the_images():
    right, wrong = RNG.random(60), RNG.random(60)
    found = paired(right, wrong, names(60, 2))
    means = (right - wrong).reshape(-1, 2).mean(1)
    assert found.mean == pytest.approx(means.mean())
    assert found.p == pytest.approx(scipy.stats.wilcoxon(means).pvalue)


def test_no_difference_at_all_is_not_significant():
    values = RNG.random(20)
    found = paired(values, values.copy(), names(20))
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_rounding_errors_are_no_difference():
    values = RNG.random(20)
    assert paired(values, values + 1e-12, names(20)).p == 1


@pytest.mark.parametrize(
    ("values", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # Holm: 3 x 0.01, then 2 x 0.03, then no less than that
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_as_worked_by_hand(values, corrected):
    assert holm(values) == pytest.approx(corrected)
