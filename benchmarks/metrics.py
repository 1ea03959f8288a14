"""`benchmark.py metrics`: our metrics against MONAI's of the same masks on the same cores, in turn in one run.

Dice and IoU of a batch are one compiled call on the device, with its threshold, precision and recall; MONAI gets
tensors that are thresholded already. HD95 and NSD are one call on the host, and two of MONAI's. Both sides' values
must agree. `original` is what the host does for one image: it decodes the truth, resizes the probability map from 352
pixels, and finds overlap, HD95 and NSD.
"""

import functools
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Bool, Float
from PIL import Image
from tqdm import tqdm

from benchmarks.timing import machine, time_in_turn, warn_of_load
from medvlsm_jax import atomic
from medvlsm_jax.data.images import read_mask
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.metrics import overlap_metrics
from medvlsm_jax.evaluation.original import score_original
from medvlsm_jax.evaluation.surface import surface_metrics
from medvlsm_jax.text import table
from medvlsm_jax.weights.reference.pytorch import require_torch

MODEL_SIZES = (224, 352)
ORIGINAL_SIZES = (352, 600, 1000)
PAIRS = 8  # of masks whose surfaces are measured in one turn
BATCHES = 10  # that one turn takes
TOLERANCE = 2.0  # pixels
THRESHOLD = 0.5

Runs = dict[str, Callable[[], Any]]


def run(args: flags.FlagValues) -> None:
    """Measures and prints a table."""
    warn_of_load()
    monai, torch = import_monai(), require_torch()
    cases = {f"Dice, IoU / {n}": functools.partial(overlap_runs, n, args.batch_size) for n in MODEL_SIZES}
    cases |= {f"HD95, NSD / {n}": functools.partial(surface_runs, n) for n in ORIGINAL_SIZES}
    cases |= {f"original / {n}": functools.partial(original_runs, n) for n in ORIGINAL_SIZES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MONAI's own deprecated arguments
        results = {name: measure(*make(), args.repeats) for name, make in tqdm(cases.items(), disable=None)}
    print(
        f"batch {args.batch_size}; monai {monai.__version__}, torch in {torch.get_num_threads()} threads; {machine()}"
    )
    print(results_table(results))
    if args.output:
        atomic.write_text(Path(args.output), json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


def measure(runs: Runs, images: int, repeats: int) -> dict[str, dict[str, float]]:
    """Side -> seconds an image and how many times ours that is, medians of the turns; `images` are those of a turn."""
    seconds = time_in_turn(runs, repeats)
    return {
        side: {"seconds": float(np.median(turns)) / images, "ratio": float(np.median(turns / seconds["ours"]))}
        for side, turns in seconds.items()
    }


def results_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line for each side."""
    rows = [["metrics / size / side", "ms/image", "times ours"]]
    for name, sides in results.items():
        rows += [[f"{name} / {side}", f"{1000 * x['seconds']:.3f}", f"{x['ratio']:.2f}"] for side, x in sides.items()]
    return table(rows)


def overlap_runs(size: int, batch_size: int) -> tuple[Runs, int]:
    """Dice and IoU of batches in float32."""
    probability, truth = draw_batch(size, batch_size)
    score = jax.jit(functools.partial(overlap_metrics, threshold=THRESHOLD))
    on_device = [jnp.asarray(x[..., None], jnp.float32) for x in (probability, truth)]
    tensors = [require_torch().from_numpy(x[:, None].astype(np.float32)) for x in (probability > THRESHOLD, truth)]
    monai = import_monai().metrics

    def ours() -> list[jax.Array]:
        values = jax.block_until_ready(score(*on_device))
        return [values["dice"], values["iou"]]

    def theirs() -> list[Any]:
        options = {"include_background": True, "reduction": "none", "ignore_empty": False}
        return [metric(**options)(*tensors)[:, 0] for metric in (monai.DiceMetric, monai.MeanIoU)]

    np.testing.assert_allclose(ours(), theirs(), atol=1e-6)
    runs = {"ours": ours, "MONAI": theirs}
    return {side: functools.partial(repeat, function) for side, function in runs.items()}, BATCHES * batch_size


def repeat(function: Callable[[], Any]) -> None:
    """One turn of a function that takes only milliseconds."""
    for _ in range(BATCHES):
        function()


def surface_runs(size: int) -> tuple[Runs, int]:
    """HD95 and NSD of some pairs of masks; MONAI's calls also one by one."""
    probability, truth = draw_batch(size, PAIRS)
    prediction = probability > THRESHOLD
    tensors = [require_torch().from_numpy(x[:, None]) for x in (prediction, truth)]
    monai = import_monai().metrics

    def ours() -> list[list[float]]:
        found = [surface_metrics(*pair, tolerance=TOLERANCE) for pair in zip(prediction, truth, strict=True)]
        return [[values[name] for values in found] for name in ("hd95", "nsd")]

    def hd95() -> Any:
        return monai.compute_hausdorff_distance(*tensors, include_background=True, percentile=95)[:, 0]

    def nsd() -> Any:
        return monai.compute_surface_dice(*tensors, [TOLERANCE], include_background=True)[:, 0]

    def theirs() -> list[Any]:
        return [hd95(), nsd()]

    np.testing.assert_allclose(ours(), theirs(), rtol=1e-5)
    return {"ours": ours, "MONAI": theirs, "MONAI, HD95 alone": hd95, "MONAI, NSD alone": nsd}, PAIRS


def original_runs(size: int) -> tuple[Runs, int]:
    """All of the host's work on some images."""
    probability, truth = draw_batch(size, PAIRS)
    maps = [np.asarray(Image.fromarray(x).resize((352, 352), Image.Resampling.BILINEAR)) for x in probability]
    folder = tempfile.TemporaryDirectory()
    masks = [Path(folder.name) / f"{i}.png" for i in range(PAIRS)]
    for path, mask in zip(masks, truth, strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)

    def ours(_: Any = folder) -> None:  # holds the folder as long as it is needed
        for probability, path in zip(maps, masks, strict=True):
            score_original(probability, read_mask(path), THRESHOLD, tolerance=TOLERANCE)

    return {"ours": ours}, PAIRS


def draw_batch(size: int, count: int) -> tuple[Float[np.ndarray, "n h w"], Bool[np.ndarray, "n h w"]]:
    """Probability maps and truths: ellipses with wavy outlines, which are about as far apart as a fair model's."""
    rng = np.random.default_rng(size)
    maps = [ellipse(size, shift, rng) for _ in range(count) for shift in (0.03, 0.0)]
    probability = 1 / (1 + np.exp(np.stack(maps[::2]) * 8))
    return probability.astype(np.float32), np.stack(maps[1::2]) < 0


def ellipse(size: int, shift: float, rng: np.random.Generator) -> Float[np.ndarray, "size size"]:
    """Below 0 within an ellipse; `shift` moves it by that share of the image."""
    down, across = np.mgrid[:size, :size] / size - 0.5
    waves = Image.fromarray(rng.standard_normal((24, 24)).astype(np.float32))
    noise = np.asarray(waves.resize((size, size), Image.Resampling.BICUBIC))
    height, width = rng.uniform(0.15, 0.3, 2)
    return ((down - shift) / height) ** 2 + ((across + shift) / width) ** 2 + 0.2 * noise - 1


def import_monai() -> Any:
    """The monai module; raises UserError when it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other libraries' news
            import monai
            import monai.metrics
    except ImportError as error:
        raise UserError(f"comparing with MONAI needs monai ({error}): run make install-torch") from error
    return monai
