"""Eight emulated devices, no network, and every annotated shape and type of the package checked at run time."""

import gc
import hashlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # processes, small_network, small_fixtures
sys.path.insert(0, str(TESTS / "data" / "parity"))  # seeded_weights
sys.path.insert(0, str(TESTS.parent / "tools"))
sys.path.insert(0, str(TESTS.parent))  # configs

from processes import suite_flags


def compiled_folder() -> Path:
    """Where compiled programs are kept, for this run and later ones: a folder for each kind of machine and jaxlib.

    jax knows XLA_FLAGS of a program that it kept, but not which instructions the machine has.
    """
    cpu = Path("/proc/cpuinfo")
    lines = set(cpu.read_text().splitlines()) if cpu.exists() else set()
    features = sorted(line for line in lines if line.startswith(("flags", "Features", "model name")))
    machine = "\n".join([platform.system(), platform.machine(), platform.processor(), *features, version("jaxlib")])
    return TESTS.parent / ".pytest_cache" / "compiled" / hashlib.sha256(machine.encode()).hexdigest()[:16]


# Of the tests and of the programs that they start.
os.environ["XLA_FLAGS"] = suite_flags(os.environ)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # most tests compile longer than they run
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_folder()))
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(1 << 30)  # with a limit, entries are written under a lock
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"  # what is compiled sooner is as soon compiled again
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

# As PEP 484 has it, an int is a float.
install_import_hook("medvlsm_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import hypothesis
import jax
import pytest

pytest_plugins = ["small_fixtures"]

# A machine that does other things besides is slow now and then.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

PARITY = TESTS / "data" / "parity"
SHARED = TESTS.parent.parent / "shared"  # real samples and vocabularies, where a developer has them


# The longest first, so that no worker is left with one of them at the end; files or folders. `-m "not slow"` does
# without: what is left of the suite takes two minutes on two cores.
SLOW = (
    "programs/test_joined_runs.py",
    "programs/test_train.py",
    "programs/test_networks.py",
    "programs",
    "parity",
    "scoring/test_frozen_encoder.py",
    "training/test_step.py",
    "data/reading/test_pipeline.py",
    "models/test_cnn.py",
    "data/test_arrayrecord.py",
    "models/test_remat.py",
    "models/test_cris.py",
    "data/preparing/test_prepare.py",
    "data/language/test_grammars.py",
    "weights/test_biomedclipseg_weights.py",
    "weights/test_cris_weights.py",
    "weights/test_reference.py",
    "weights/test_source_configs.py",
    "scoring/test_validation.py",
    "sweeping/test_sweep.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks slow files and moves them to the front, in their order."""
    slow = [TESTS / name for name in SLOW]

    def rank(item: pytest.Item) -> int:
        return next((i for i, path in enumerate(slow) if path in (item.path, *item.path.parents)), len(slow))

    for item in items:
        if rank(item) < len(slow):
            item.add_marker(pytest.mark.slow)
    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Python's collector looks at what was imported no more, and seldom at what is traced: it took 15 % of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)


@pytest.fixture(autouse=True, scope="session")
def cache_home(tmp_path_factory):
    """What is remembered about files stays out of the home folder, in the programs that tests start as well."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_dropped():
    """Each file leaves the memory that its compiled programs took: all together are gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


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
