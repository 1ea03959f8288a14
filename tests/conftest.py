"""Eight emulated devices, no network, and every annotated shape and type of the package checked at run time."""

import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

# As PEP 484 has it, an int is a float.
install_import_hook("medvlsm_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)  # most tests compile longer than they run

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # small_network, small_fixtures
sys.path.insert(0, str(TESTS / "data" / "parity"))  # seeded_weights
sys.path.insert(0, str(TESTS.parent / "tools"))
sys.path.insert(0, str(TESTS.parent))  # configs

pytest_plugins = ["small_fixtures"]

PARITY = TESTS / "data" / "parity"
SHARED = TESTS.parent.parent / "shared"  # real samples and vocabularies, where a developer has them


@pytest.fixture(autouse=True, scope="session")
def cache_home(tmp_path_factory):
    """What is remembered about files stays out of the home folder, in the programs that tests start as well."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def parity() -> Path:
    """Stand-in checkpoints and outputs of the original networks."""
    return PARITY


@pytest.fixture
def shared() -> Path:
    """The folder of real samples beside the checkout; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared with real samples, annotations and vocabularies")
    return SHARED


@pytest.fixture
def exact_matmul():
    """Float32 matrix products in full precision."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """A data folder with a small drawn sample."""
    from medvlsm_jax.data.synthetic import write_sample

    return write_sample(tmp_path_factory.mktemp("data"), num_images=40, size=64, workers=1).parent
