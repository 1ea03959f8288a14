"""Pools of datasets: how much of each is used, and how often each is drawn.

What one epoch means: as many full batches as the training records fill after `data_num`, all datasets together. By
default each of them comes once in a pass (concatenation, as in the paper), and what is left of a pass opens the next
epoch. With weights or a temperature an epoch has the same length, but a dataset's share of it is its weight; every
dataset still runs through its own shuffled passes, each of its records once in each. The streams that the records are
dealt to (`order.py`) keep step: at no time was a record drawn more than once more often than another of its dataset.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.arrayrecord import image_path
from medvlsm_jax.errors import UserError

Weights = dict[str, float]  # dataset -> share of the draws


def select_amount(records: Sequence[Record], data_num: str, seed: int) -> list[Record]:
    """The records of a seeded part of each dataset's images, in their old order.

    A smaller part is contained in a larger one of the same seed, and the records of an image stay together.

    Args:
        records: of one or several datasets.
        data_num: `0.1` is a tenth of each dataset's images, `200` that many images of each; json sets it per dataset:
            `{"isic": 0.5, "busi": 100}`, and those not named are used whole. Empty uses everything.
        seed: of the choice.

    Raises:
        UserError: `data_num` is not understood, names a dataset that is not there, or leaves no image of one.
    """
    amounts = parse_numbers("config.data_num", data_num, {record.dataset for record in records})
    kept: set[tuple[str, str]] = set()
    for dataset, amount in amounts.items():
        images = list(dict.fromkeys(image_path(record) for record in records if record.dataset == dataset))
        count = round(amount * len(images)) if isinstance(amount, float) else amount
        if not 0 < count <= len(images) or (isinstance(amount, float) and amount > 1):
            raise UserError(
                f"config.data_num: {amount} of the {len(images)} training images of {dataset} is not possible: give a "
                "share up to 1.0 or a whole number of images"
            )
        order = np.random.default_rng(seed).permutation(len(images))
        kept.update((dataset, images[i]) for i in order[:count])
    return [r for r in records if r.dataset not in amounts or (r.dataset, image_path(r)) in kept]


def mixing_weights(records: Sequence[Record], weights: str, temperature: float) -> Weights:
    """How often each dataset is drawn; empty for plain concatenation.

    Args:
        records: the training records.
        weights: json, `{"isic": 2, "busi": 1}`: shares of the draws, one for each dataset; empty for none.
        temperature: without weights, shares proportional to (number of records) ** (1 / temperature): 1 is
            concatenation, larger ones favour small datasets (Arivazhagan et al., arXiv 1907.05019).

    Raises:
        UserError: the weights do not name every dataset or are not positive, or the temperature is below 1.
    """
    sizes = Counter(record.dataset for record in records)
    if weights:
        given = parse_numbers("config.pool.weights", weights, set(sizes))
        if set(given) != set(sizes) or min(given.values()) <= 0:
            raise UserError(f"config.pool.weights={weights}: needs a positive number for each of {', '.join(sizes)}")
        return {dataset: float(given[dataset]) for dataset in sizes}
    if not temperature >= 1:
        raise UserError(f"config.pool.temperature={temperature} must be 1, which is plain concatenation, or more")
    if temperature == 1 or len(sizes) == 1:
        return {}
    return {dataset: size ** (1 / temperature) for dataset, size in sizes.items()}


def parse_numbers(flag: str, text: str, datasets: set[str]) -> dict[str, Any]:
    """A number for each dataset, or json of dataset -> number; raises UserError that names the flag."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f'{flag}={text} is neither a number nor json like {{"isic": 0.5}}: {error}') from error
    values: dict[str, Any] = value if isinstance(value, dict) else dict.fromkeys(sorted(datasets), value)
    for dataset, number in values.items():
        if dataset not in datasets:
            raise UserError(f"{flag} names {dataset!r}, but the training data are {', '.join(sorted(datasets))}")
        if type(number) not in (int, float) or not math.isfinite(number):
            raise UserError(f"{flag}: {number!r} for {dataset} is no number")
    return values
