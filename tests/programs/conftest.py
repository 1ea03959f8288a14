"""A very small network as the preset "small" on two devices, and a finished run."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from drawn_scores import DrawnSegmenter
from evaluations import write_rectangles
from jax.sharding import Mesh
from small_network import SMALLEST

from medvlsm_jax import evaluate as evaluation
from medvlsm_jax import models
from medvlsm_jax.checkpoints import model_folder
from medvlsm_jax.checkpoints.model_folder import save_model
from medvlsm_jax.config import base_config
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.evaluate import default_config
from medvlsm_jax.models.parameters import merge_model
from medvlsm_jax.parallel import sharding
from medvlsm_jax.train import train


def mesh_of(devices: int) -> Callable[..., Mesh]:
    """A make_mesh that knows the first few devices alone."""
    return lambda data=-1, fsdp=1: Mesh(np.array(jax.devices()[:devices]).reshape(data, fsdp), sharding.AXES)


@contextlib.contextmanager
def small_preset(devices: int = 2) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "small", ("clipseg", SMALLEST))
        for module in (sharding, model_folder):
            patch.setattr(module, "make_mesh", mesh_of(devices))
        yield


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """The preset "small", and two devices for whatever asks for a mesh."""
    with small_preset():
        yield


@pytest.fixture
def use_devices(monkeypatch) -> Callable[[int], None]:
    """Another number of devices."""

    def use(devices: int) -> None:
        for module in (sharding, model_folder):
            monkeypatch.setattr(module, "make_mesh", mesh_of(devices))

    return use


def make_config(data_dir: Path | str) -> ml_collections.ConfigDict:
    """Two epochs of a few steps."""
    config = base_config()
    config.data_dir = str(data_dir)
    config.dataset = "sample"
    config.model = "small"
    config.batch_size = 16
    config.num_epochs = 2
    config.loss = "dice_bce"
    config.learning_rate = 3e-3
    config.log_every_steps = 1
    config.num_overlays = 2
    return config


@pytest.fixture
def config(sample) -> ml_collections.ConfigDict:
    return make_config(sample)


@pytest.fixture(scope="session")
def run(sample, tmp_path_factory) -> Path:
    """The workdir of a finished run of `config`; tests leave it as it is."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with small_preset():
        train(make_config(sample), workdir)
    return workdir


@pytest.fixture
def run_copy(run, tmp_path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="session")
def findings(sample, tmp_path_factory) -> Path:
    """Chest findings of two classes, edema and lung lesion, whose images are the drawn sample's."""
    folder = tmp_path_factory.mktemp("findings") / "chexlocalize"
    (folder / "anns").mkdir(parents=True)
    for name in ("images", "masks"):
        (folder / name).symlink_to(sample / "sample" / name)
    for path in (sample / "sample" / "anns").glob("*.json"):
        entries = json.loads(path.read_text())
        for i, entry in enumerate(entries):
            entry["prompts"] |= {"p1": ("Edema", "Lung Lesion")[i % 2] + " in a chest Xray."}
        (folder / "anns" / path.name).write_text(json.dumps(entries))
    return folder.parent


@pytest.fixture(scope="session")
def two_classes(findings, tmp_path_factory) -> Path:
    """The workdir of a U-Net that was trained on both classes; tests leave it as it is."""
    workdir = tmp_path_factory.mktemp("runs") / "two_classes"
    config = make_config(findings)
    config.update({"dataset": "chexlocalize", "model": "unet_tiny", "loss": "dice_nonempty", "max_steps": 2})
    with small_preset():
        train(config, workdir)
    return workdir


# --- Evaluations ------------------------------------------------------------------------------------------------------


@pytest.fixture
def options(sample) -> ml_collections.ConfigDict:
    """The config of an evaluation of the drawn sample."""
    options = default_config()
    options.data_dir = str(sample)
    options.batch_size = 8
    return options


@pytest.fixture
def rectangles(tmp_path) -> Path:
    """A data folder with images of several sizes, and masks of several modes."""
    write_rectangles(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def untrained(network, tmp_path_factory) -> Path:
    """A model folder."""
    model = merge_model(network.graphdef, jax.tree.map(jnp.asarray, network.params))
    folder = tmp_path_factory.mktemp("models") / "untrained"
    save_model(folder, model, load_tokenizer("builtin", network.config.text.context_length))
    return folder


@pytest.fixture
def drawn(monkeypatch, untrained) -> Path:
    """A model folder that evaluations load, but do not run: their scores are drawn."""
    monkeypatch.setattr(evaluation, "make_batch_segmenter", lambda _, mesh: DrawnSegmenter(mesh))
    return untrained
