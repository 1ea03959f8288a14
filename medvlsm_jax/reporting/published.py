"""The Dice that the paper reports: MIDL 2024, PMLR 250:1142-1165, Table 2."""

import csv
import functools
from collections.abc import Mapping
from pathlib import Path

STATE_OF_THE_ART = "published_sota"  # the row of what the paper cites as best for a dataset


@functools.cache
def published_dice() -> Mapping[tuple[str, str, str], float]:
    """(finetuned on, network, dataset) -> mean Dice in percent; finetuned on individual, pooled_polyp or pooled_all."""
    found: dict[tuple[str, str, str], float] = {}
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            finetuned_on, network = row.pop("finetuned_on"), row.pop("model")
            found |= {(finetuned_on, network, dataset): float(text) for dataset, text in row.items() if text}
    return found


def published_datasets() -> list[str]:
    """The columns of the table, in its order."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))[2:]
