"""What is wrong with the masks and classes of a dataset as a whole is said; what nobody can learn from is an error."""

import dataclasses

import numpy as np
import pytest
from checked_records import make_record, only
from PIL import Image

from medvlsm_jax.data.facts import read_facts
from medvlsm_jax.data.findings import Finding
from medvlsm_jax.data.suspicious import find_meaningless, find_unknown_classes


def found(folder, shares: list[float], targets: list[str] | None = None) -> list[Finding]:
    """The findings on masks whose upper rows are the object."""
    records = []
    for i, share in enumerate(shares):
        record = make_record(folder, i)
        mask = np.zeros((20, 30), np.uint8)
        mask[: round(20 * share)] = 255
        Image.fromarray(mask).save(record.mask)
        records.append(dataclasses.replace(record, target=targets[i] if targets else ""))
    return list(find_meaningless(records, read_facts(records, None)))


@pytest.mark.parametrize(
    ("share", "level", "text"),
    [
        (0.0, "error", "all 4 masks are empty"),
        (1.0, "error", "all 4 masks are full"),
        (0.7, "warning", "are the masks inverted?"),
    ],
)
def test_masks_that_are_all_alike(tmp_path, share, level, text):
    finding = only(found(tmp_path, [share] * 4))
    assert (finding.level, finding.indices) == (level, (0, 1, 2, 3))
    assert text in finding.text


@pytest.mark.parametrize("shares", [[0.0, 0.0, 0.1], [1.0, 1.0, 0.2], [0.7, 0.8, 0.3], [0.0, 0.0], [0.0, 0.0, 0.8]])
def test_masks_that_may_well_be_so(tmp_path, shares):
    assert found(tmp_path, shares) == []


def test_a_class_without_an_object(tmp_path):
    finding = only(found(tmp_path, [0.1, 0.0, 0.0, 0.0], ["liver", "spleen", "spleen", "spleen"]))
    assert (finding.level, finding.indices) == ("warning", (1, 2, 3))
    assert finding.text == "all 3 masks of the class 'spleen' are empty"


def test_a_class_that_the_card_does_not_name(tmp_path):
    record = make_record(tmp_path)
    card = dataclasses.replace(record.card, targets=("liver", "spleen"))
    words = [{"class": "liver"}, {"class": "kidney"}, {}]
    records = [dataclasses.replace(record, card=card, attributes=word) for word in words]
    finding = only(list(find_unknown_classes(records)))
    assert (finding.level, finding.indices) == ("warning", (1,))
    assert (
        "1 of 3 records are of the class 'kidney', which is none of the card's targets (liver, spleen)" in finding.text
    )
