"""A network of a few thousand parameters with reproducible weights, and batches for it."""

import zlib
from collections.abc import Callable
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from small_network import SMALL

from medvlsm_jax.models.clipseg import CLIPSeg
from medvlsm_jax.models.parameters import Arrays, split_model
from medvlsm_jax.parallel.sharding import AXES


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The initial values of a parameter, which follow from its name."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("scale"):
        return np.float32(1 + 0.1 * noise)
    return np.float32(noise / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.1 * noise)


@pytest.fixture(scope="session")
def network() -> SimpleNamespace:
    """config, model (shapes alone), graphdef, params and stats (host arrays)."""
    model = nnx.eval_shape(lambda: CLIPSeg(SMALL, rngs=nnx.Rngs(0)))
    graphdef, params, stats = split_model(model)
    params: Arrays = {name: draw(name, leaf.shape) for name, leaf in params.items()}
    return SimpleNamespace(config=SMALL, model=model, graphdef=graphdef, params=params, stats=stats)


@pytest.fixture(scope="session")
def mesh_of() -> Callable[..., Mesh]:
    """A mesh of the first data x fsdp devices."""
    return lambda data, fsdp=1: Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), AXES)


@pytest.fixture(scope="session")
def batches() -> list[dict[str, np.ndarray]]:
    """Three batches of eight: bright blobs to segment, sentences of different lengths."""
    rng = np.random.default_rng(0)
    rows = np.arange(32)
    result = []
    for step in range(3):
        centers = rng.integers(6, 26, (2, 8, 1, 1))
        mask = (rows[:, None] - centers[0]) ** 2 + (rows - centers[1]) ** 2 < 36
        image = np.clip(rng.normal(90, 20, (8, 32, 32, 3)) + 80 * mask[..., None], 0, 255)
        lengths = rng.integers(3, 30, 8)
        positions = np.arange(32)
        ids = np.where(positions < lengths[:, None], rng.integers(4, 1000, (8, 32)), 0)
        ids[:, 0], ids[np.arange(8), lengths - 1] = 1, SMALL.text.eos_token_id
        result.append(
            {
                "image": image.astype(np.uint8),
                "mask": mask[..., None].astype(np.uint8),
                "input_ids": ids.astype(np.int32),
                "attention_mask": (positions < lengths[:, None]).astype(np.int32),
                "index": np.arange(8 * step, 8 * step + 8, dtype=np.int32),
                "valid": np.ones(8, bool),
            }
        )
    return result
