"""Which sentence is used: fixed in evaluation, drawn in training."""

from pathlib import Path

import numpy as np
import pytest

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.language.prompts import all_sentences, check_prompt, choose_prompt
from medvlsm_jax.errors import UserError

PROMPTS = {"p0": "", "p1": "polyp", "p2": "round polyp", "p7": ("a", "b", "c"), "other": "an ulcer"}


def make_record(prompts=PROMPTS) -> Record:
    return Record(Card("mine"), Path("a.png"), Path("b.png"), prompts)


def draws(prompt: str, count: int = 200) -> set[str]:
    return {choose_prompt(make_record(), prompt, np.random.default_rng(seed)) for seed in range(count)}


@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)])
@pytest.mark.parametrize("prompt", ["p0", "p1", "p2", "other"])
def test_a_type_with_one_sentence_is_that_sentence(prompt, rng):
    assert choose_prompt(make_record(), prompt, rng) == PROMPTS[prompt]


def test_p0_is_empty_even_where_it_is_not_annotated():
    record = make_record({"p1": "polyp"})
    check_prompt([record], "p0")
    assert choose_prompt(record, "p0") == ""


def test_evaluation_takes_the_first_phrasing():
    assert choose_prompt(make_record(), "p7") == "a"


def test_training_draws_among_all_phrasings():
    assert draws("p7") == {"a", "b", "c"}


def test_random_in_evaluation_is_the_first_phrasing_of_the_last_type():
    assert choose_prompt(make_record(), "random") == "a"


def test_random_in_training_covers_every_type_and_phrasing_from_p1_on():
    assert draws("random") == {"polyp", "round polyp", "a", "b", "c"}


def test_random_is_uniform_over_types_first():
    rng = np.random.default_rng(0)
    sentences = [choose_prompt(make_record(), "random", rng) for _ in range(3000)]
    assert sentences.count("polyp") / 3000 == pytest.approx(1 / 3, abs=0.04)
    assert sentences.count("a") / 3000 == pytest.approx(1 / 9, abs=0.03)


@pytest.mark.parametrize("prompt", ["random", "p7"])
def test_the_same_generator_draws_the_same(prompt):
    first, again = ([choose_prompt(make_record(), prompt, np.random.default_rng(s)) for s in range(30)] for _ in "ab")
    assert first == again
    assert len(set(first)) > 1


def test_random_without_any_sentence_is_empty():
    assert choose_prompt(make_record({"p0": "", "other": "x"}), "random", np.random.default_rng(0)) == ""


@pytest.mark.parametrize("sentence", ["one small polyp, located in left", "p1", "", "Ünïcode: 息肉"])
def test_a_given_sentence_is_taken_as_it_is(sentence):
    check_prompt([make_record()], f"text:{sentence}")
    assert choose_prompt(make_record(), f"text:{sentence}", np.random.default_rng(0)) == sentence


@pytest.mark.parametrize("prompt", ["p3", "p10", "P1", ""])
def test_a_type_that_a_record_lacks_is_an_error_that_lists_what_it_has(prompt):
    with pytest.raises(UserError) as error:
        check_prompt([make_record(PROMPTS | {"p3": "x", "p10": "x", "P1": "x", "": "x"}), make_record()], prompt)
    assert str(error.value).startswith(f"mine: the annotation of a.png has no prompt {prompt!r}")
    assert "p0, p1, p2, p7" in str(error.value)


@pytest.mark.parametrize("empty", ["", ()])
def test_an_annotated_type_without_a_sentence_is_an_error(empty):
    with pytest.raises(UserError, match="has no prompt 'p4'"):
        check_prompt([make_record(PROMPTS | {"p4": empty})], "p4")


@pytest.mark.parametrize("prompt", ["p1", "p7", "random", "other"])
def test_what_every_record_has_passes(prompt):
    check_prompt([make_record()], prompt)


# --- Any subset of attributes ----------------------------------------------------------------------------------------

WORDS = {"class": "polyp", "shape": "round", "size": "small", "number": "one"}
EMPTY = {"class": "polyp", "number": "no"}


def record_with(attributes: dict[str, str], grammar: str = "object", dataset: str = "mine", descriptions=()) -> Record:
    card = Card(dataset, grammar=grammar, descriptions=descriptions)
    return Record(card, Path("a.png"), Path("b.png"), {}, "", attributes)


def test_a_subset_of_attributes_is_told_in_the_grammars_order():
    record = record_with(WORDS)
    for prompt in ("attributes:number,size,class", "attributes:class, size ,number"):
        check_prompt([record], prompt)
        assert choose_prompt(record, prompt) == "one small polyp"
        assert choose_prompt(record, prompt, np.random.default_rng(0)) == "one small polyp"


def test_attributes_are_read_from_sentences_where_the_file_has_none():
    record = make_record()
    check_prompt([record], "attributes:shape")
    assert choose_prompt(record, "attributes:shape") == "round"


def test_colour_may_be_spelt_in_the_british_way():
    record = record_with(WORDS | {"color": "pink"})
    check_prompt([record], "attributes:colour,class")
    assert choose_prompt(record, "attributes:colour,class") == "pink polyp"


def test_training_draws_among_the_phrasings_of_a_subset():
    record = record_with(WORDS, descriptions=("a lump", "a bump"))
    prompt = "attributes:class,general"
    check_prompt([record], prompt)
    drawn = {choose_prompt(record, prompt, np.random.default_rng(seed)) for seed in range(40)}
    assert drawn == {"polyp which is a lump", "polyp which is a bump"}
    assert choose_prompt(record, prompt) == "polyp which is a lump"


def test_descriptions_of_the_annotations_go_before_those_of_the_card():
    prompts = {"p1": "polyp", "p7": ("polyp which is a mound",)}
    record = Record(Card("mine", descriptions=("a lump",)), Path("a.png"), Path("b.png"), prompts)
    assert choose_prompt(record, "attributes:general") == "a mound"


def test_a_record_that_lacks_an_attribute_leaves_it_out():
    records = [record_with(WORDS), record_with({"class": "polyp", "number": "two"}), record_with(EMPTY)]
    check_prompt(records, "attributes:size,class")
    sentences = [choose_prompt(record, "attributes:size,class") for record in records]
    assert sentences == ["small polyp", "polyp", "no polyp"]


@pytest.mark.parametrize("prompt", ["attributes:size,weight", "attributes:", "attributes:size,,class", "attributes:p1"])
def test_an_unknown_attribute_lists_the_fourteen(prompt):
    with pytest.raises(UserError, match=r"is no attribute; there are class, .*, organ$") as error:
        check_prompt([record_with(WORDS)], prompt)
    assert f"--prompt={prompt}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["color", "general", "sex"])
def test_an_attribute_that_no_record_of_a_dataset_has_is_an_error_that_names_the_dataset(name):
    rich = record_with(WORDS | {"color": "pink", "sex": "male"}, dataset="rich", descriptions=("a lump",))
    with pytest.raises(
        UserError, match=rf"^{'rich' if name == 'sex' else 'mine'}: no record has .*\({name}\)"
    ) as error:
        check_prompt([rich, record_with(WORDS), record_with(EMPTY)], f"attributes:class,{name}")
    assert "can tell class, shape, " in str(error.value)
    assert "tools/make_prompts.py" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_dataset_of_a_pool_must_have_the_attributes():
    heart = record_with({"class": "myocardium", "shape": "oval", "size": "small"}, grammar="camus", dataset="camus")
    check_prompt([record_with(WORDS), heart], "attributes:shape,class")
    with pytest.raises(UserError, match=r"^camus: no record has .*\(size\); grammar 'camus' can tell class, shape:"):
        check_prompt([record_with(WORDS), heart], "attributes:shape,size")


def test_all_sentences_of_a_prompt_type_are_those_that_training_may_draw():
    record = Record(Card("mine"), Path("a"), Path("a"), {"p0": "", "p1": "polyp", "p2": ("a polyp", "one polyp")})
    assert list(all_sentences([record], "p2")) == ["a polyp", "one polyp"]
    assert list(all_sentences([record], "random")) == ["polyp", "a polyp", "one polyp"]
    assert list(all_sentences([record], "text:a")) == ["a"]
