"""Every record is scored exactly once, in order, whatever the batch size."""

import numpy as np
import pytest

from medvlsm_jax.data.annotations import load_records
from medvlsm_jax.data.pipeline import Loader
from medvlsm_jax.data.tokenizers import load_tokenizer
from medvlsm_jax.training.scoring import score_records


@pytest.fixture
def loader(sample) -> Loader:
    records = load_records(sample, "sample", "train")[:11]
    return Loader(records, load_tokenizer("builtin", 16), "p6", image_size=16)


def mean_mask(_: dict, batch: dict) -> dict:
    """An eval step without a model: the share of each mask, and the images."""
    share = np.asarray(batch["mask"]).mean((1, 2, 3))
    return {"share": share, "index": batch["index"], "valid": batch["valid"], "image": batch["image"]}


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 4), (2, 4), (8, 8), (8, 16)])
def test_padding_is_left_out_and_the_order_is_the_records(loader, mesh_of, devices, batch_size):
    seen = []
    scores = score_records(mean_mask, {}, loader, mesh_of(devices), batch_size, on_batch=seen.append)
    np.testing.assert_array_equal(scores["index"], np.arange(11))
    np.testing.assert_allclose(scores["share"], [loader(i)["mask"].mean() for i in range(11)], rtol=1e-6)
    assert "image" not in scores
    images = np.concatenate([rows["image"] for rows in seen])
    np.testing.assert_array_equal(images, [loader(i)["image"] for i in range(11)])
