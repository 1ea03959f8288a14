"""Means with intervals, paired differences with tests: what a reviewer asks of a table.

Records of one image, or of one patient, are not independent. They form a cluster, which is resampled, and tested, as
one: the cluster bootstrap (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0  # the same values give the same interval
AT_ONCE = 1 << 21  # clusters that are drawn at once, in all resamples of a part: 16 MB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over records.

    Attributes:
        n: records.
        clusters: images or patients that they are of.
        mean: over records.
        std: sample standard deviation of the records; 0 of a single one.
        low: lower end of the percentile bootstrap interval of the mean; None for fewer than 2 clusters.
        high: upper end.
    """

    n: int
    clusters: int
    mean: float
    std: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference over pairs of values.

    Attributes:
        p: two-sided, of Wilcoxon's signed-rank test on the clusters' mean differences; 1 where all are 0.
    """

    p: float


def estimate(values: Float[np.ndarray, " n"], clusters: Sequence[str]) -> Estimate:
    """Mean, standard deviation and interval of at least one value; `clusters` names each value's."""
    return estimate_columns(values[:, None], clusters)[0]


def estimate_columns(values: Float[np.ndarray, "n m"], clusters: Sequence[str]) -> list[Estimate]:
    """`estimate` of each column, over the same clusters."""
    sums, counts = cluster_sums(values, clusters)
    stds = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    ends = bootstrap_interval(sums, counts)
    return [
        Estimate(len(values), len(counts), float(mean), float(std), *interval)
        for mean, std, interval in zip(values.mean(axis=0), stds, ends, strict=True)
    ]


def paired(right: Float[np.ndarray, " n"], wrong: Float[np.ndarray, " n"], clusters: Sequence[str]) -> Difference:
    """How much larger `right` is than `wrong` in the mean over the same records."""
    differences = right - wrong
    sums, counts = cluster_sums(differences[:, None], clusters)
    found = estimate(differences, clusters)
    return Difference(**dataclasses.asdict(found), p=signed_rank(sums[:, 0] / counts))


def cluster_sums(
    values: Float[np.ndarray, "n m"], clusters: Sequence[str]
) -> tuple[Float[np.ndarray, "c m"], Float[np.ndarray, " c"]]:
    """The sum of each cluster's values, and how many they are; clusters in the order of their names."""
    _, members = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.bincount(members).astype(np.float64)
    sums = [np.bincount(members, column) for column in values.T]
    return np.stack(sums, axis=1), counts


def bootstrap_interval(
    sums: Float[np.ndarray, "c m"], counts: Float[np.ndarray, " c"]
) -> list[tuple[float | None, float | None]]:
    """The percentile interval of each column's mean when whole clusters are drawn with replacement.

    What scipy.stats.bootstrap gives with `paired=True, method="percentile"`; but one draw serves all columns.
    """
    clusters, columns = sums.shape
    if clusters < 2:
        return [(None, None)] * columns
    rng, means = np.random.default_rng(SEED), []
    at_once = max(1, AT_ONCE // clusters)
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        drawn = rng.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)
        means.append(times @ sums / (times @ counts)[:, None])
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(means), (tail, 100 - tail), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def signed_rank(differences: Float[np.ndarray, " c"]) -> float:
    """The two-sided p value of Wilcoxon's signed-rank test, zeros ranked and then left out (Pratt, 1959)."""
    rounded = np.round(differences, 9)  # equal values whose difference is a rounding error are ties
    if not rounded.any():
        return 1.0
    test: Any = scipy.stats.wilcoxon(rounded, zero_method="pratt")
    p = float(test.pvalue)
    return 1.0 if math.isnan(p) else p


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, corrected by Holm's step-down method (Scandinavian Journal of Statistics, 1979)."""
    order = np.argsort(p_values)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
