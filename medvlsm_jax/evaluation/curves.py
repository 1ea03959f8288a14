"""What follows from the probabilities of all pixels: other thresholds, and whether probabilities are frequencies."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from medvlsm_jax.evaluation.cases import Cases
from medvlsm_jax.evaluation.metrics import BINS
from medvlsm_jax.evaluation.statistics import estimate

COUNTS_SHAPE = (3, BINS)  # of float32 for each line of cases.csv: metrics.probability_counts
COUNTS_BYTES = 4 * math.prod(COUNTS_SHAPE)
RELIABILITY_BINS = 20
AT_ONCE = 256  # cases that are worked on together

Curves = dict[str, dict[str, dict[str, Any]]]  # dataset -> condition -> curves


def summarise_curves(cases: Cases, counts_file: Path) -> Curves:
    """What curves.json holds: dataset -> condition -> mean Dice and IoU by threshold, reliability, and ECE.

    Means are over images, as those of metrics.json are; that at the best threshold has an interval. A threshold that is
    chosen here is to be used on other images.
    """
    counts = np.memmap(counts_file, np.float32, "r", shape=(len(cases), *COUNTS_SHAPE))
    curves: Curves = {}
    for (dataset, prompt), rows in cases.by("dataset", "prompt").items():
        sweep, total = np.zeros((2, BINS - 1)), np.zeros(COUNTS_SHAPE)
        for part in in_parts(counts, rows):
            sweep += threshold_sweep(part).sum(axis=0) / len(rows)
            total += part.sum(axis=0)
        dice, iou = sweep
        best = int(dice.argmax())
        at_best = [threshold_sweep(part)[:, 0, best] for part in in_parts(counts, rows)]
        found = estimate(np.concatenate(at_best), [cases.texts["cluster"][i] for i in rows])
        curves.setdefault(dataset, {})[prompt] = {
            "thresholds": [(i + 1) / BINS for i in range(BINS - 1)],
            "dice": dice.tolist(),
            "iou": iou.tolist(),
            "best_threshold": (best + 1) / BINS,
            "best_dice": float(dice[best]),
            **{f"best_dice_{field}": getattr(found, field) for field in ("std", "low", "high")},
            "n": found.n,
            **calibration(total),
        }
    return curves


def in_parts(counts: np.ndarray, rows: Sequence[int]) -> Iterator[np.ndarray]:
    """The counts of some cases, a few at a time."""
    for i in range(0, len(rows), AT_ONCE):
        yield counts[rows[i : i + AT_ONCE]].astype(np.float64)


def threshold_sweep(counts: Float[np.ndarray, "n 3 bins"]) -> Float[np.ndarray, "n 2 thresholds"]:
    """Dice and IoU of each image at the thresholds 0.01 to 0.99."""
    background, truth = counts[:, 0], counts[:, 1]
    above = [np.cumsum(pixels[:, ::-1], axis=1)[:, ::-1][:, 1:] for pixels in (background, truth)]
    false_positive, true_positive = above
    total = false_positive + true_positive + truth.sum(axis=1, keepdims=True)
    is_empty, union = total == 0, np.maximum(total - true_positive, 1)
    dice = np.where(is_empty, 1.0, 2 * true_positive / np.maximum(total, 1))
    return np.stack([dice, np.where(is_empty, 1.0, true_positive / union)], axis=1)


def calibration(counts: Float[np.ndarray, "3 bins"]) -> dict[str, Any]:
    """Reliability of the pixels' probabilities in 20 equal bins, and the expected calibration error.

    ECE is the mean over pixels of |mean probability - share of foreground| of their bin (Guo et al., arXiv 1706.04599,
    for the probability of the foreground). Bins without a pixel have null.
    """
    background, truth, probability = counts.reshape(3, RELIABILITY_BINS, -1).sum(axis=2)
    pixels = background + truth
    filled = np.maximum(pixels, 1)
    confidence, frequency = probability / filled, truth / filled
    gap = (pixels * np.abs(confidence - frequency)).sum() / max(pixels.sum(), 1)

    def listed(values: np.ndarray) -> list[float | None]:
        return [float(value) if count else None for value, count in zip(values, pixels, strict=True)]

    reliability = {"confidence": listed(confidence), "frequency": listed(frequency), "pixels": pixels.tolist()}
    return {"reliability": reliability, "ece": float(gap)}
