"""The table of accelerators."""

import pytest

from medvlsm_jax.parallel.chips import CHIPS, find_chip


@pytest.mark.parametrize(
    ("device_kind", "name"), [("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("NVIDIA H100 80GB HBM3", "H100 SXM")]
)
def test_chips_are_found_by_the_name_that_jax_gives_them(device_kind, name):
    assert find_chip(device_kind).name == name


@pytest.mark.parametrize("device_kind", ["cpu", "TPU v99", ""])
def test_another_device_has_no_known_peak(device_kind):
    assert find_chip(device_kind) is None


def test_matrix_units_reach_the_peak_at_the_clock():
    units = {"TPU v5e": 4 * 128**2, "TPU v5p": 8 * 128**2, "TPU v6e": 4 * 256**2}
    for chip in CHIPS.values():
        if chip.clock:
            assert 2 * units[chip.name] * chip.clock == pytest.approx(chip.flops, rel=0.01)
