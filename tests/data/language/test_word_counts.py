"""How many training examples stand behind a word is counted and shown."""

from pathlib import Path

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.language.word_counts import count_words, counts_table


def records(*words: dict[str, str], grammar: str = "object") -> list[Record]:
    card = Card("mine", grammar=grammar)
    return [Record(card, Path("a.png"), Path("a.png"), {}, attributes=word) for word in words]


def test_places_count_one_by_one_and_once_a_record():
    counted = count_words(records({"class": "a, b", "location": "top, top, left"}, {"class": "c", "location": "top"}))
    assert counted == {"class": {"a, b": 1, "c": 1}, "location": {"top": 2, "left": 1}}


def test_words_that_no_sentence_tells_are_not_counted():
    assert set(count_words(records({"class": "liver", "color": "gray", "view": "axial"}, grammar="ct"))) == {
        "class",
        "view",
    }


def test_the_table_warns_of_words_with_few_examples():
    text = counts_table(records(*[{"class": "polyp"}] * 12, *[{"class": "wound"}] * 9))
    assert "class      polyp 12, wound 9" in text
    assert text.endswith("warning: fewer than 10 training examples stand behind class 'wound' 9")
    assert "warning" not in counts_table(records(*[{"class": "polyp"}] * 10))
    assert counts_table([]) == ""


def test_a_long_line_says_how_many_words_there_are():
    text = counts_table(records(*[{"class": f"class {i}"} for i in range(12)] * 10))
    assert "class 7 10 and 4 more" in text
