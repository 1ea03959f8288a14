"""Scores of one image at its original size, on the host, and the processes that find them."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, UInt8

from medvlsm_jax.evaluation.pictures import resize_probability
from medvlsm_jax.evaluation.surface import surface_metrics

MAX_WORKERS = 16  # of 115 MB each; they score thousands of maps a second, more than a host's devices make


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


def host_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """Processes to score maps in: what is submitted, a module's function and its arguments, travels to one of them.

    Not threads, which wait for Python's lock: at 600 pixels, four of them on 4 cores took no less time than two. The
    processes start as they are needed, which takes seconds, and end with the program, however it ends. They are
    spawned, for a forked copy of a process that runs JAX can hang.

    Args:
        workers: processes at most; by default one for each core, but no more than MAX_WORKERS.
    """
    workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=follow_program)


def follow_program() -> None:
    """Lets a worker live exactly as long as its program, and leaves the signals that reach both to the program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    program = multiprocessing.parent_process()

    def follow() -> None:
        if program is not None:
            program.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
