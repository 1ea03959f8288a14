"""Under which sentences records are evaluated: weights add up, mirrored sentences are mirrored, batches are counted."""

from pathlib import Path

import pytest

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.language.conditions import (
    is_asked,
    lines_before,
    perturbed_conditions,
    prompt_conditions,
    sentence_of,
    split_ensemble,
)
from medvlsm_jax.errors import UserError

CARD = Card("mine", targets=("polyp",))
PLACES = ("left", "top right", "center")


def make_record(i: int, phrasings: int = 1) -> Record:
    p7 = tuple(f"polyp which is {word}" for word in ("a bump", "a lump", "a mound")[:phrasings])
    prompts = {"p0": "", "p1": "polyp", "p2": "round polyp", "p3": "red round polyp", "p4": "small red round polyp"}
    prompts |= {"p5": "one small red round polyp", "p7": p7}
    prompts["p6"] = f"one small red round polyp, located in {PLACES[i % 3]} of the image"
    return Record(CARD, Path(f"{i}.png"), Path(f"{i}.png"), prompts, "polyp", name=f"{i}.png")


RECORDS = [make_record(0, 3), make_record(1, 1), make_record(2, 2)]


def test_a_prompt_type_is_its_first_phrasing():
    (variant,) = prompt_conditions(RECORDS, ["p7"])["p7"]
    assert variant.sentences == ["polyp which is a bump"] * 3
    assert variant.weights == [1, 1, 1]


@pytest.mark.parametrize("ensemble", [(), ("sentences",), ("flips",), ("sentences", "flips")])
def test_the_weights_of_a_record_add_up_to_one(ensemble):
    for variants in prompt_conditions(RECORDS, ["p6", "p7", "p0"], ensemble).values():
        for i in range(3):
            assert sum(variant.weights[i] for variant in variants) == pytest.approx(1)


def test_all_phrasings_of_a_record_are_averaged():
    variants = prompt_conditions(RECORDS, ["p7"], ["sentences"])["p7"]
    assert [sentence_of(variants, i) for i in range(3)] == [
        "polyp which is a bump | polyp which is a lump | polyp which is a mound",
        "polyp which is a bump",
        "polyp which is a bump | polyp which is a lump",
    ]
    assert [variant.weights[2] for variant in variants] == [0.5, 0.5, 0]


def test_the_mirror_image_has_the_mirrored_sentence():
    plain, mirrored = prompt_conditions(RECORDS, ["p6"], ["flips"])["p6"]
    assert (plain.is_mirrored, mirrored.is_mirrored) == (False, True)
    assert mirrored.sentences[0] == "one small red round polyp, located in right of the image"
    assert mirrored.sentences[1] == "one small red round polyp, located in top left of the image"
    assert mirrored.sentences[2] == plain.sentences[2]
    assert sentence_of([plain, mirrored], 0) == plain.sentences[0]


def test_records_that_a_perturbation_leaves_alone_are_not_asked():
    found = perturbed_conditions(RECORDS, "p6")
    assert set(found) >= {"none", "shuffled", "other_image", "wrong_location"}
    assert [is_asked(found["none"], i) for i in range(3)] == [True] * 3
    assert found["none"][0].sentences == [""] * 3
    alike = perturbed_conditions([make_record(0), make_record(3), make_record(1)], "p6")["other_image"]
    for i in range(3):
        assert is_asked(alike, i) == (alike[0].sentences[i] != make_record((0, 3, 1)[i]).prompts["p6"])


def test_lines_are_counted_by_batch():
    conditions = prompt_conditions(RECORDS, ["p6", "p7"]) | {"some": prompt_conditions(RECORDS, ["p1"])["p1"]}
    conditions["some"][0].weights[1] = 0
    assert lines_before(conditions, 3, 2) == [0, 5, 8]
    assert lines_before(conditions, 3, 1) == [0, 3, 5, 8]
    assert lines_before(conditions, 3, 4) == [0, 8]


def test_an_unknown_part_of_an_ensemble_is_named():
    assert split_ensemble("sentences+flips") == ("sentences", "flips")
    assert split_ensemble("") == ()
    with pytest.raises(UserError, match=r"--ensemble=crops: 'crops' is not known; give sentences, flips or both"):
        split_ensemble("crops")
