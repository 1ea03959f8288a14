"""The lines of an evaluation: what is read was written, and a killed one goes on behind its last whole batch."""

import numpy as np
import pytest
from case_lines import make_case

from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.cases import CaseLog, columns, read_cases

NAMES = columns(("class", "sex"))
LINES = {"busi": [0, 2, 4, 5], "isic": [0, 3]}  # 5 and 3 lines, in batches of 2 and 3


@pytest.mark.parametrize("sentence", ['say "round", or not', "größe, 息肉", "", " spaces "])
def test_any_sentence_survives(cases, sentence):
    found = cases([make_case(sentence=sentence)])
    assert found.texts["sentence"] == [sentence]


def test_a_sentence_of_several_lines_stays_one_case(cases):
    found = cases([make_case(sentence="two\nlines"), make_case()])
    assert len(found) == 2
    assert found.texts["sentence"][0] == "two lines"


def test_numbers_have_six_decimals_and_what_was_not_computed_is_not_there(cases):
    found = cases([make_case(dice=1 / 3), make_case(dice=1.0)])
    np.testing.assert_array_equal(found.numbers["dice"], [0.333333, 1.0])
    assert list(found.numbers) == ["dice", "iou", "precision", "recall"]
    assert found.groups == ["class", "sex"]


def test_lines_are_found_by_their_columns(cases):
    found = cases([make_case("a", "p0"), make_case("b", "p0"), make_case("a", "p1"), make_case("a", "p0")])
    assert found.by("dataset", "prompt") == {("a", "p0"): [0, 3], ("b", "p0"): [1], ("a", "p1"): [2]}
    assert found.select([1, 2]).texts["prompt"] == ["p0", "p1"]


@pytest.mark.parametrize(
    ("written", "steps", "kept"),
    [
        (0, {"busi": 0, "isic": 0}, 0),
        (1, {"busi": 0, "isic": 0}, 0),
        (2, {"busi": 1, "isic": 0}, 2),
        (4, {"busi": 2, "isic": 0}, 4),
        (5, {"busi": 3, "isic": 0}, 5),
        (7, {"busi": 3, "isic": 0}, 5),
        (8, {"busi": 3, "isic": 1}, 8),
    ],
)
@pytest.mark.parametrize("torn", ["", "busi,p1,half a li"])
def test_a_stopped_evaluation_goes_on_behind_its_last_whole_batch(log, tmp_path, written, steps, kept, torn):
    every = [make_case("busi" if i < 5 else "isic", mask=f"{i}.png") for i in range(8)]
    log().append(every[:written], [np.full(4, i, np.float32) for i in range(written)])
    with (tmp_path / "unfinished.csv").open("a") as file:
        file.write(torn)
    again = log()
    assert again.go_on(LINES, 16) == steps
    again.append(every[kept:], [np.full(4, i, np.float32) for i in range(kept, 8)])
    assert again.read().texts["mask"] == [f"{i}.png" for i in range(8)]
    counts = np.fromfile(tmp_path / "unfinished.counts", np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(counts[:, 0], np.arange(8))


def test_lines_of_other_settings_are_not_gone_on_with(log):
    log(checkpoint="one").append([make_case()])
    assert len(log(checkpoint="one").read()) == 1
    assert len(log(checkpoint="two").read()) == 0


def test_a_new_evaluation_removes_the_results_of_an_older_one(tmp_path):
    (tmp_path / "evaluation.json").write_text('{"checkpoint": "old"}')
    for name in ("probe.json", "mine.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "pictures" / "busi").mkdir(parents=True)
    (tmp_path / "pictures" / "busi" / "worst_0.jpg").touch()
    results = ("evaluation.json", "probe.json", "pictures", "curves.json")
    CaseLog(tmp_path, NAMES, {"tolerance": 1}, results)
    assert not {path.name for path in tmp_path.iterdir()} & set(results)
    (tmp_path / "pictures").mkdir()
    CaseLog(tmp_path, NAMES, {"tolerance": 1}, results)  # goes on
    assert {"pictures", "mine.txt"} <= {path.name for path in tmp_path.iterdir()}


def test_finished_lines_take_the_place_of_older_ones(log, tmp_path):
    (tmp_path / "cases.csv").write_text("old")
    started = log()
    started.append([make_case()])
    assert (tmp_path / "cases.csv").read_text() == "old"
    started.finish()
    assert len(read_cases(tmp_path / "cases.csv")) == 1
    started.forget_settings()
    assert [path.name for path in tmp_path.iterdir()] == ["cases.csv"]


def test_what_is_no_evaluations_is_neither_replaced_nor_removed(log, tmp_path):
    """A dataset's folder given as --output: its masks are no results."""
    mask = tmp_path / "data" / "masks" / "benign (1)_mask.png"
    mask.parent.mkdir(parents=True)
    mask.touch()
    with pytest.raises(UserError, match=r"holds masks, which no evaluation has written there: choose another folder"):
        CaseLog(tmp_path / "data", NAMES, {}, ("evaluation.json", "masks"))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["masks"]
    (tmp_path / "data" / "evaluation.json").write_text('{"of": "another program"}')
    with pytest.raises(UserError, match=r"holds evaluation.json"):
        CaseLog(tmp_path / "data", NAMES, {}, ("evaluation.json",))


def test_of_an_older_evaluation_what_a_user_has_put_there_stays(tmp_path):
    masks = tmp_path / "masks" / "busi" / "p6"
    masks.mkdir(parents=True)
    for name in ("a_mask.png", "a_overlay.png", "notes.txt"):
        (masks / name).touch()
    CaseLog(tmp_path, NAMES, {"tolerance": 1})
    CaseLog(tmp_path, NAMES, {"tolerance": 2}, ("masks",))
    assert [path.name for path in masks.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["", "dataset,prompt\na\n", "no,such,columns\n1,2,3\n"])
def test_what_is_no_table_of_cases_is_named(tmp_path, text):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(UserError, match=r"cases.csv is no cases.csv of this version .* evaluate again"):
        len(read_cases(tmp_path / "cases.csv"))
