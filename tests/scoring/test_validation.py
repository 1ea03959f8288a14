"""Every record is scored exactly once, in order, whatever the batch size."""

import jax.numpy as jnp
import numpy as np
import pytest

from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.pipeline import Loader
from medvlsm_jax.scoring.validation import score_records


@pytest.fixture
def loader(sample) -> Loader:
    records = load_records(sample, "sample", "train")[:11]
    return Loader(records, load_tokenizer("builtin", 16), "p6", image_size=16)


def look_at(_: dict, batch: dict) -> dict:
    """An eval step without a model: the share of each mask, and the masks themselves as a map."""
    masks = batch["mask"].astype(jnp.float32)
    return {"share": masks.mean((1, 2, 3)), "index": batch["index"], "valid": batch["valid"], "probability": masks}


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 4), (2, 4), (8, 8), (8, 16)])
def test_padding_is_left_out_and_the_order_is_the_records(loader, mesh_of, devices, batch_size):
    seen = []
    scores = score_records(
        look_at,
        {},
        loader,
        mesh_of(devices),
        batch_size,
        on_batch=lambda fetch: seen.append([fetch(name) for name in ("image", "probability")]),
    )
    assert scores.keys() == {"share", "index", "valid"}
    np.testing.assert_array_equal(scores["index"], np.arange(11))
    expected = loader([(i, 0, True) for i in range(11)])
    np.testing.assert_allclose(scores["share"], expected["mask"].mean((1, 2, 3)), rtol=1e-6)
    images, maps = (np.concatenate(rows) for rows in zip(*seen, strict=True))
    np.testing.assert_array_equal(images, expected["image"])
    np.testing.assert_array_equal(maps, expected["mask"])
