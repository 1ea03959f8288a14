"""Sentences for mirrored images: places change sides, anatomy does not."""

from pathlib import Path

import pytest

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import CARDS, Card
from medvlsm_jax.data.language.mirror import mirrored, mirrored_sentence


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("one polyp, located in top left of the image", "one polyp, located in top right of the image"),
        ("located in left, bottom right, center of it", "located in right, bottom left, center of it"),
        ("Left of RIGHT", "Right of LEFT"),
        ("the right-sided and the upper-left", "the left-sided and the upper-right"),
        ("cleft bright leftover lefty", "cleft bright leftover lefty"),
        ("pink round polyp", "pink round polyp"),
        ("", ""),
    ],
)
def test_left_and_right_change_places_as_whole_words(sentence, expected):
    assert mirrored(sentence) == expected
    assert mirrored(expected) == sentence


@pytest.mark.parametrize("keep", [["left lung"], ["left", "left lung"], ["left lung", "left"], ["LEFT LUNG", ""]])
def test_names_stay_whatever_their_case_and_order(keep):
    sentence = mirrored("Left lung of oval shape at the right", keep)
    assert sentence == "Left lung of oval shape at the left"


def test_a_name_is_kept_only_as_whole_words():
    assert mirrored("left lungs", ["left lung"]) == "right lungs"


def test_the_classes_of_the_heart_stay():
    prompts = {"p1": "Left atrium cavity of the heart."}
    record = Record(CARDS["camus"], Path("a.png"), Path("b.png"), prompts, "left atrium cavity")
    assert mirrored_sentence(record, prompts["p1"]) == prompts["p1"]
    sentence = "Left atrium cavity below the left ventricular cavity, left of the image"
    assert mirrored_sentence(record, sentence).endswith("the left ventricular cavity, right of the image")


def test_a_class_that_no_card_names_stays_as_well():
    words = {"class": "right kidney", "location": "left"}
    record = Record(Card("mine"), Path("a.png"), Path("b.png"), {}, "", words)
    assert mirrored_sentence(record, "right kidney, located in left") == "right kidney, located in right"
