"""MONAI's metrics of the same masks: Dice and IoU always, HD95 and NSD where the definitions meet."""

import functools
import json
import math
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import metrics as benchmark_metrics
from medvlsm_jax.evaluation.metrics import overlap_metrics
from medvlsm_jax.evaluation.surface import surface_metrics

pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI's, of empty masks and of its own deprecated arguments

SHAPES = np.random.default_rng(0).integers(1, 65, (24, 2)).tolist()


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="compares with MONAI")


@pytest.fixture(scope="module")
def monai(torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.metrics", reason="compares with MONAI")


def random_masks(seed: int, shape: list[int]) -> np.ndarray:
    """Predictions and truths (2, 8, h, w): random ones, empty and full ones, single pixels."""
    rng = np.random.default_rng(seed)
    masks = rng.random((2, 8, *shape)) < rng.random((2, 8, 1, 1))
    masks[0, [1, 2]] = masks[1, [1, 3]] = False
    masks[0, [4, 5]] = masks[1, [4, 6]] = True
    masks[:, 7] = False
    masks[0, 7, 0, 0] = masks[1, 7, -1, -1] = True
    return masks


@pytest.mark.parametrize("shape", [[352, 352], [1, 1], [1, 50], *SHAPES], ids=str)
def test_dice_and_iou_are_monais(torch, monai, shape):
    prediction, truth = random_masks(sum(shape), shape)
    rng = np.random.default_rng(1)
    probability = np.where(prediction, rng.uniform(0.501, 1, prediction.shape), rng.uniform(0, 0.5, prediction.shape))
    score = jax.jit(functools.partial(overlap_metrics, threshold=0.5))
    ours = score(*(jnp.asarray(x[..., None], jnp.float32) for x in (probability, truth)))

    tensors = [torch.tensor(x[:, None], dtype=torch.float32) for x in (prediction, truth)]
    for name, metric in (("dice", monai.DiceMetric), ("iou", monai.MeanIoU)):
        values = metric(include_background=True, reduction="none", ignore_empty=False)(*tensors)
        np.testing.assert_allclose(ours[name], values[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("shape", [(6, 6), (1, 9), (61, 40), (90, 70)])
def test_hd95_and_nsd_of_masks_that_hold_something_are_monais(torch, monai, shape, spacing):
    rng = np.random.default_rng(sum(shape))
    for density in (0.1, 0.5, 0.95):
        pair = rng.random((2, *shape)) < density
        pair[0, 0, 0] = pair[1, -1, -1] = True
        found = surface_metrics(*pair, tolerance=1.5, spacing=spacing)
        tensors = [torch.tensor(mask)[None, None] for mask in pair]
        options = {"include_background": True, "spacing": spacing}
        hd95 = monai.compute_hausdorff_distance(*tensors, percentile=95, **options)
        nsd = monai.compute_surface_dice(*tensors, [1.5], **options)
        assert found == pytest.approx({"hd95": hd95.item(), "nsd": nsd.item()}, rel=1e-5)


def test_of_an_empty_mask_monai_has_no_hd95(torch, monai):
    empty, filled = np.zeros((6, 8), bool), np.ones((6, 8), bool)
    for pair, hd95, nsd in (((empty, empty), 0, 1), ((empty, filled), 10, 0), ((filled, empty), 10, 0)):
        assert surface_metrics(*pair, tolerance=1.0) == {"hd95": hd95, "nsd": nsd}
        tensors = [torch.tensor(mask)[None, None] for mask in pair]
        theirs = monai.compute_hausdorff_distance(*tensors, include_background=True, percentile=95).item()
        assert not math.isfinite(theirs)
        if pair[0] is pair[1]:
            assert math.isnan(monai.compute_surface_dice(*tensors, [1.0], include_background=True).item())


def test_the_benchmark_times_both_sides(monai, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark_metrics, "MODEL_SIZES", (24,))
    monkeypatch.setattr(benchmark_metrics, "ORIGINAL_SIZES", (30,))
    benchmark_metrics.run(SimpleNamespace(batch_size=2, repeats=1, output=str(tmp_path / "figures.json")))
    results = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert list(results) == ["Dice, IoU / 24", "HD95, NSD / 30", "original / 30"]
    for sides in results.values():
        assert sides["ours"]["ratio"] == 1
        for side in sides.values():
            assert side["ratio"] == pytest.approx(side["seconds"] / sides["ours"]["seconds"])
    assert "HD95, NSD / 30 / MONAI, NSD alone" in capsys.readouterr().out
