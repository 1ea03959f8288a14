"""Scores of one image at its original size, on the host, and the processes that find them."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from medvlsm_jax.evaluation.pictures import resize_probability
from medvlsm_jax.evaluation.surface import surface_metrics


def score_original(
    probability: Float[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "height width"] | UInt8[np.ndarray, "height width"],
    threshold: float,
    *,
    tolerance: float,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> dict[str, float]:
    """Overlap and surface metrics of the very mask that `pictures.write_prediction` writes.

    Args:
        probability: of the foreground, at any size; resized to the truth's, then thresholded.
        truth: 0 or 1, at the original size.
        threshold: a probability; what exceeds it is predicted.
        tolerance: of nsd, in the unit of `spacing`.
        spacing: of the truth's pixels down and across, see `surface_metrics`.

    Returns:
        dice_original, iou_original, precision_original, recall_original and nsd, 0 to 1; hd95 in the unit of `spacing`;
        one_empty, 1 where prediction or truth is empty but not the other.
    """
    height, width = truth.shape
    prediction, true = resize_probability(probability, (width, height)) > threshold, truth > 0
    overlap = {f"{name}_original": value for name, value in mask_overlap(prediction, true).items()}
    overlap["one_empty"] = float(prediction.any() != true.any())
    return overlap | surface_metrics(prediction, true, tolerance=tolerance, spacing=spacing)


def mask_overlap(prediction: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> dict[str, float]:
    """Dice, IoU, precision and recall of two masks, by the rule of `metrics.overlap_metrics`."""
    intersection, predicted, true = (int(np.count_nonzero(x)) for x in (prediction & truth, prediction, truth))
    if predicted == true == 0:
        return dict.fromkeys(("dice", "iou", "precision", "recall"), 1.0)
    return {
        "dice": 2 * intersection / (predicted + true),
        "iou": intersection / (predicted + true - intersection),
        "precision": intersection / max(predicted, 1),
        "recall": intersection / max(true, 1),
    }
