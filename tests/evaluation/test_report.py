"""From one value an image to means with intervals and tables."""

import math

import pytest
from case_lines import make_case

from medvlsm_jax.evaluation.report import summarise, summary_table
from medvlsm_jax.text import percent, table


@pytest.fixture
def summary(cases):
    return summarise(
        cases(
            [
                make_case("busi", "p1", 0.2, cluster="a"),
                make_case("isic", "p1", 0.9, cluster="a"),
                make_case("busi", "p1", 0.4, cluster="b"),
                make_case("busi", "p6", 1.0, cluster="a"),
                make_case("busi", "p1", 0.9, cluster="c"),
            ]
        )
    )


def test_means_and_deviations_are_over_the_images_of_a_dataset_and_prompt(summary):
    row = summary["busi"]["p1"]
    assert (row["n"], row["clusters"]) == (3, 3)
    assert row["dice_mean"] == pytest.approx(0.5)
    assert row["dice_std"] == pytest.approx(math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2))
    assert row["iou_mean"] == pytest.approx(0.25)
    assert 0.2 <= row["dice_low"] < 0.5 < row["dice_high"] <= 0.9
    assert "hd95_mean" not in row


def test_datasets_and_prompts_keep_their_order(summary):
    assert {dataset: list(prompts) for dataset, prompts in summary.items()} == {"busi": ["p1", "p6"], "isic": ["p1"]}


def test_one_image_has_neither_deviation_nor_interval(summary):
    row = summary["busi"]["p6"]
    assert (row["dice_mean"], row["dice_std"], row["dice_low"], row["dice_high"]) == (1, 0, None, None)


def test_nothing_scored_is_an_empty_summary(cases):
    assert summarise(cases([])) == {}


def test_numbers_are_split_by_what_the_records_differ_in(cases):
    people = [("female", 0.2), ("male", 0.4), ("female", 0.6), ("", 1.0)]
    lines = [
        make_case(dice=dice, sex=sex, cluster=str(i), **{"class": "tumor"}) for i, (sex, dice) in enumerate(people)
    ]
    row = summarise(cases(lines))["busi"]["p1"]
    assert list(row["by"]) == ["sex"]  # all are of one class
    assert {sex: part["dice_mean"] for sex, part in row["by"]["sex"].items()} == pytest.approx(
        {"female": 0.4, "male": 0.4, "unknown": 1.0}
    )
    assert sum(part["n"] for part in row["by"]["sex"].values()) == row["n"] == 4


def test_missed_structures_are_counted_and_units_are_told(cases):
    distances = [(3.0, "px", 0), (90.0, "px", 1), (2.0, "mm", 0)]
    lines = [make_case(hd95=hd95, nsd=0.5, unit=unit, one_empty=one) for hd95, unit, one in distances]
    row = summarise(cases(lines))["busi"]["p1"]
    assert (row["hd95_one_empty"], row["unit"]) == (1, "px/mm")
    assert row["hd95_mean"] == pytest.approx(95 / 3)


def test_the_table_is_in_percent(summary):
    lines = summary_table(summary).splitlines()
    assert lines[2].split()[:5] == ["busi", "/", "p1", "3", "50.00"]
    assert lines[3].split() == ["busi", "/", "p6", "1", "100.00", "-", "50.00"]
    assert len({len(line) for line in lines}) == 1


def test_columns_are_aligned():
    assert table([["name", "n"], ["a", "10"], ["longer", "5"]]).splitlines() == [
        "name     n",
        "----------",
        "a       10",
        "longer   5",
    ]


@pytest.mark.parametrize(("value", "text"), [(0.12345, "12.35"), (1.0, "100.00"), (0.0, "0.00"), (math.nan, "-")])
def test_percent_is_the_papers(value, text):
    assert percent(value) == text
