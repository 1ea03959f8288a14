"""What the numbers of a run may be."""

import math
from typing import Any

import ml_collections
import pytest

from medvlsm_jax.config import NUMBERS, base_config, check_numbers
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluate import default_config
from medvlsm_jax.models import PRESETS, override


def numbers_in(config: Any, group: str = "") -> list[str]:
    """The names of all fields that hold numbers."""
    found = []
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            found += numbers_in(value, f"{group}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(group + name)
    return found


def changed(name: str, value: float) -> ml_collections.ConfigDict:
    """A config of which one field has another value, of whatever type."""
    config = base_config()
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict({name: value})
    return config


def test_the_defaults_make_sense():
    check_numbers(base_config())
    check_numbers(default_config())


def test_every_number_of_a_config_is_checked():
    elsewhere = {"distributed.num_processes", "distributed.process_id"}  # parallel/distributed.py
    assert set(numbers_in(base_config())) == set(NUMBERS) | elsewhere


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -2])
def test_what_is_not_finite_or_negative_is_refused(name, value):
    with pytest.raises(UserError, match=rf"config\.{name}={value}(\.0)?: give a number (from|above) "):
        check_numbers(changed(name, value))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", 0.0, "give a number above 0$"),
        ("batch_size", 0, "give a number from 1 on$"),
        ("ema", 1.0, "give a number from 0 and below 1, 0 for none, or a decay such as 0.999$"),
        ("plateau.factor", 0.0, "give a number above 0 to 1$"),
        ("plateau.factor", 1.5, "give a number above 0 to 1$"),
        ("plateau.threshold", 1.0, "give a number from 0 and below 1$"),
        ("seed", 2**40, "give a number from 0 to 2147483647$"),
        ("max_grad_norm", -1.0, "give a number from 0 on, 0 for no clipping$"),
    ],
)
def test_a_number_out_of_its_bounds_is_named_with_them(name, value, message):
    with pytest.raises(UserError, match=message):
        check_numbers(changed(name, value))


@pytest.mark.parametrize(("name", "value"), [("max_grad_norm", 0.0), ("plateau.factor", 1.0), ("ema", 0.0)])
def test_the_bounds_themselves_belong_to_them(name, value):
    check_numbers(changed(name, value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": math.nan}, "threshold=nan: give a number from 0 to 1"),
        ({"threshold": 35}, "threshold=35: give a number from 0 to 1"),
        ({"dropout": -0.1}, "dropout=-0.1: give a number from 0 to 1"),
        ({"decoder_heads": "4"}, "decoder_heads='4': give a number from 0 on"),
        ({"text": {"width": math.inf}}, "width=inf: give a number from 0 on"),
    ],
)
def test_the_numbers_of_a_model_are_checked_as_well(options, message):
    with pytest.raises(UserError, match=message):
        override(PRESETS["cris_tiny"][1], options)
