"""Groups that numbers are split by, and what is resampled together."""

from pathlib import Path

import pytest

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.arrayrecord import StoredFile
from medvlsm_jax.data.cards import CARDS, Card
from medvlsm_jax.data.groups import GROUPS, age_band, cluster_of, groups_of
from medvlsm_jax.data.language.attributes import number_word
from medvlsm_jax.data.language.grammars import make_prompts

HEART = {
    **{"class": "myocardium", "view": "two-chamber", "cycle": "diastole", "sex": "female"},
    **{"age": "fifty-six-year-old", "quality": "good", "shape": "oval"},
}


def make(image: str, card: Card, target: str = "", words: dict[str, str] | None = None, **fields) -> Record:
    return Record(card, Path("images", image), Path("m.png"), {}, target, words or {}, **fields)


@pytest.mark.parametrize(("image", "cluster"), [("25.png", "sequence 1"), ("26.png", "sequence 2"), ("x.png", "x.png")])
def test_frames_of_one_video_are_one_cluster(image, cluster):
    assert cluster_of(make(f"data/images/{image}", CARDS["clinicdb_polyp"])) == cluster


@pytest.mark.parametrize("is_written", [True, False])
def test_groups_are_read_from_attributes_or_from_sentences(is_written):
    record = make("a.png", CARDS["camus"], "myocardium", HEART)
    if not is_written:
        prompts = {kind: tuple(texts) for kind, texts in make_prompts("camus", HEART, ()).items()}
        record = Record(CARDS["camus"], Path("a.png"), Path("m.png"), prompts, "myocardium")
    assert groups_of(record) == {
        **{"class": "myocardium", "view": "two-chamber", "sex": "female", "age": "40-59"},
        **{"quality": "good", "cycle": "diastole", "tumor_type": ""},
    }


def test_every_group_is_there_and_empty_where_it_is_not_known():
    assert groups_of(make("a.png", Card("mine"))) == dict.fromkeys(GROUPS, "")
    assert groups_of(make("a.png", Card("mine"), "", {"class": "ulcer", "tumor_type": "benign"})) == {
        **dict.fromkeys(GROUPS, ""),
        **{"class": "ulcer", "tumor_type": "benign"},
    }


@pytest.mark.parametrize(
    ("years", "band"),
    [
        *((1, "under 40"), (39, "under 40"), (40, "40-59"), (59, "40-59"), (60, "60-79"), (79, "60-79")),
        *((80, "80 and over"), (99, "80 and over"), (101, "80 and over")),
    ],
)
def test_an_age_in_words_or_digits_has_a_band(years, band):
    for age in (f"{number_word(years)}-year-old", f"{years}-year-old", str(years), number_word(years).title()):
        assert age_band(age) == band


@pytest.mark.parametrize("age", ["", "old", "fifty-ten-year-old", "-5"])
def test_what_is_no_age_has_no_band(age):
    assert age_band(age) == ""


@pytest.mark.parametrize(
    ("dataset", "image", "cluster"),
    [
        ("camus", "patient0001_2CH_ES.png", "patient0001"),
        ("camus", "test_patient0001_2CH_ES.png", "test_patient0001"),
        ("chexlocalize", "patient65102_study1_view1_frontal.jpg", "patient65102"),
        ("camus", "other.png", "images/other.png"),
        ("busi", "patient0001.png", "images/patient0001.png"),
    ],
)
def test_what_is_resampled_together(dataset, image, cluster):
    assert cluster_of(make(image, CARDS[dataset])) == cluster


@pytest.mark.parametrize("dataset", ["camus", "clinicdb_polyp", "mine"])
def test_the_group_of_an_annotation_goes_before_file_names(dataset):
    record = make("patient0001_2CH_ES.png", CARDS.get(dataset, Card(dataset)), group="sequence 3")
    assert cluster_of(record) == "sequence 3"


def test_copies_of_an_image_in_a_store_are_one_cluster():
    files = [StoredFile(Path("store"), "test", i, "image", "a/b.png") for i in range(2)]
    records = [Record(Card("mine"), file, file, {}) for file in files]
    assert [cluster_of(record) for record in records] == ["a/b.png", "a/b.png"]
