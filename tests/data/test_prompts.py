"""Which sentence is used: fixed in evaluation, drawn in training."""

from pathlib import Path

import numpy as np
import pytest

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.prompts import check_prompt, choose_prompt
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
