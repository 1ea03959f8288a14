"""From one value an image to means, files and tables."""

import csv
import json
import math

import pytest

from medvlsm_jax.evaluation.report import COLUMNS, percent, summarise, summary_table, table, to_csv, write_report


def case(dataset: str, prompt: str, dice: float, iou: float, **more) -> dict:
    names = {"image": "a.png", "mask": "b.png", "sentence": "one polyp, located in left"}
    return {"dataset": dataset, "prompt": prompt, "dice": dice, "iou": iou} | names | more


CASES = [
    case("busi", "p1", 0.2, 0.1),
    case("isic", "p1", 0.9, 0.8),
    case("busi", "p1", 0.4, 0.3),
    case("busi", "p6", 1.0, 1.0),
    case("busi", "p1", 0.9, 0.5),
]


def test_means_and_deviations_are_over_the_images_of_a_dataset_and_prompt():
    row = summarise(CASES)["busi"]["p1"]
    assert row["n"] == 3
    assert row["dice_mean"] == pytest.approx(0.5)
    assert row["dice_std"] == pytest.approx(math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2))
    assert row["iou_mean"] == pytest.approx(0.3)
    assert row["iou_std"] == pytest.approx(0.2)


def test_datasets_and_prompts_keep_their_order():
    summary = summarise(CASES)
    assert {dataset: list(prompts) for dataset, prompts in summary.items()} == {"busi": ["p1", "p6"], "isic": ["p1"]}
    assert list(summary) == ["busi", "isic"]


def test_one_image_has_no_deviation():
    assert summarise(CASES)["busi"]["p6"] == {"n": 1, "dice_mean": 1, "dice_std": 0, "iou_mean": 1, "iou_std": 0}


def test_nothing_scored_is_an_empty_summary():
    assert summarise([]) == {}


def test_the_csv_has_one_line_an_image(tmp_path):
    lines = to_csv(CASES).splitlines()
    assert lines[0] == "dataset,prompt,image,mask,dice,iou,sentence" == ",".join(COLUMNS)
    assert lines[1] == 'busi,p1,a.png,b.png,0.200000,0.100000,"one polyp, located in left"'
    assert len(lines) == 1 + len(CASES)


@pytest.mark.parametrize("sentence", ['say "round"', "two\nlines", "größe, 息肉", ""])
def test_any_sentence_survives_the_csv(sentence):
    text = to_csv([case("busi", "p1", 0.5, 0.5, sentence=sentence)])
    assert [row["sentence"] for row in csv.DictReader(text.splitlines(keepends=True))] == [sentence]


def test_the_report_is_written_and_returned(tmp_path):
    folder = tmp_path / "new" / "folder"
    summary = write_report(folder, CASES)
    assert sorted(path.name for path in folder.iterdir()) == ["cases.csv", "metrics.json"]
    assert json.loads((folder / "metrics.json").read_text("utf-8")) == summary == summarise(CASES)
    assert (folder / "cases.csv").read_text("utf-8") == to_csv(CASES)


def test_a_second_report_replaces_the_first(tmp_path):
    write_report(tmp_path, CASES)
    write_report(tmp_path, CASES[:1])
    assert len((tmp_path / "cases.csv").read_text().splitlines()) == 2
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["busi"]


def test_the_table_is_in_percent():
    lines = summary_table(summarise(CASES)).splitlines()
    assert lines[2].split() == ["busi", "/", "p1", "3", "50.00", "36.06", "30.00", "20.00"]
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
