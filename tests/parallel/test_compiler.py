"""What the compiler is told, and what it is not."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from medvlsm_jax.parallel.compiler import FLAGS, OVERLAP, compiler_options


def chips(kind: str, number: int) -> np.ndarray:
    """Some that are not there."""
    return np.array([SimpleNamespace(device_kind=kind)] * number)


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    for variable in FLAGS:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5e"])
def test_several_v5e_chips_exchange_while_they_compute(kind):
    assert compiler_options(chips(kind, 2)) == OVERLAP


@pytest.mark.parametrize(
    ("kind", "number"), [("TPU v5 lite", 1), ("TPU v5", 4), ("TPU v6 lite", 4), ("NVIDIA H100 80GB HBM3", 8)]
)
def test_others_are_told_nothing(kind, number):
    assert compiler_options(chips(kind, number)) == {}


def test_devices_of_the_tests_are_told_nothing():
    assert compiler_options(np.array(jax.devices())) == {}


@pytest.mark.parametrize("variable", FLAGS)
def test_what_the_users_flags_set_is_left_alone(monkeypatch, variable):
    first, second, third = OVERLAP
    monkeypatch.setenv(variable, f"--xla_other=1 --{first}=false --no{second} --{third}_of_something=3")
    assert compiler_options(chips("TPU v5e", 4)) == {third: OVERLAP[third]}
