"""CSV and LaTeX tables of several runs."""

import csv
import json
import re
import statistics

import pytest
from evaluation_files import Run, training, write_evaluation

from medvlsm_jax.reporting.comparison import collect_results
from medvlsm_jax.reporting.evaluations import find_evaluations
from medvlsm_jax.reporting.published import published_datasets, published_dice
from medvlsm_jax.reporting.tables import escape_latex, interval, latex_table, mean, number, published, write_tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tables of a few runs, in `tables`."""
    root = tmp_path_factory.mktemp("runs")
    write_evaluation(root / "own", Run(training("busi"), is_probed=True))
    write_evaluation(root / "tiny", Run(training("busi"), "unet_tiny", "unet"))
    write_evaluation(root / "pool", Run(training("pooled_all", "random"), datasets=["busi", "wound_1"], mean=0.6))
    evaluations, _ = find_evaluations([root], lambda name: ["busi", "isic"] if name == "pooled_all" else [name])
    write_tables(root / "tables", evaluations, collect_results(evaluations))
    return root


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_published_figures_are_the_papers(shared):
    with (shared / "paper_table2.csv").open() as file:
        table = list(csv.DictReader(file))
    found = {
        (row["finetuned_on"], row["model"], name): float(row[name])
        for row in table
        for name in published_datasets()
        if row[name]
    }
    assert found == published_dice()
    assert published_dice()["individual", "cris", "kvasir_polyp"] == 91.39


def test_every_number_of_metrics_json_is_in_the_long_table(folder):
    found = rows(folder / "tables" / "metrics.csv")
    (row,) = [
        row
        for row in found
        if (row["run"], row["prompt"], row["group"], row["metric"]) == ("own", "p6/wrong_location", "", "nsd")
    ]
    values = json.loads((folder / "own" / "metrics.json").read_text())["busi"]["p6/wrong_location"]
    assert float(row["mean"]) == pytest.approx(values["nsd_mean"], abs=1e-6)
    assert float(row["low"]) == pytest.approx(values["nsd_low"], abs=1e-6)
    assert (row["n"], row["clusters"]) == ("12", "6")
    groups = {(row["group"], row["value"]) for row in found if row["run"] == "own"}
    assert groups == {("", ""), ("class", "benign"), ("class", "malignant")}
    assert {row["unit"] for row in found if row["metric"] == "hd95"} == {"px"}
    assert {row["unit"] for row in found if row["metric"] != "hd95"} == {""}


def test_table_2_has_ours_and_the_published_figure_beside_it(folder):
    found = {(row["finetuned_on"], row["model"], row["dataset"]): row for row in rows(folder / "tables" / "table2.csv")}
    own = found["individual", "clipseg", "busi"]
    assert own["published"] == "64.32"
    assert float(own["difference"]) == pytest.approx(float(own["dice"]) - 64.32, abs=0.011)
    assert float(own["low"]) < float(own["dice"]) < float(own["high"])
    assert found["individual", "unet_tiny", "busi"]["published"] == "75.21"  # of the network
    pool = found["pooled_all", "clipseg", "busi"]
    assert (pool["published"], pool["trained_prompt"], pool["prompt"]) == ("66.02", "random", "p6")
    assert found["pooled_all", "clipseg", "wound_1"]["published"] == ""


@pytest.mark.parametrize(
    ("fields", "settings", "is_shown"),
    [
        ({"data_num": "1.0"}, {}, True),
        ({"data_num": None, "zero_prompt": False}, {}, True),
        ({"data_num": "0.1"}, {}, False),
        ({"zero_prompt": True}, {}, False),
        ({}, {"split": "val"}, False),
        ({}, {"ensemble": "flips"}, False),
    ],
)
def test_the_papers_figures_stand_beside_what_compares_with_them_alone(tmp_path, fields, settings, is_shown):
    write_evaluation(tmp_path / "run", Run(training("busi", **fields), settings=settings))
    results = collect_results(find_evaluations([tmp_path], lambda name: [name])[0])
    text = latex_table(results, "dice")
    assert (published(results[0]) is not None) == ("64.32" in text) == ("89.80" in text) == is_shown


def test_seeds_have_a_table_of_all_metrics(tmp_path):
    for seed in (1, 2, 3):
        write_evaluation(tmp_path / f"seed{seed}", Run(training("busi", seed=seed)))
    evaluations, _ = find_evaluations([tmp_path], lambda name: [name])
    results = collect_results(evaluations)
    written = write_tables(tmp_path / "tables", evaluations, results)
    assert written == set((tmp_path / "tables").iterdir())
    found = {row["metric"]: row for row in rows(tmp_path / "tables" / "seeds.csv")}
    assert {"dice", "iou", "hd95", "nsd"} <= set(found)
    assert (found["dice"]["model"], found["dice"]["seeds"], found["dice"]["k"]) == ("clipseg", "1+2+3", "3")
    means = [one.values["dice_mean"] for one in results]
    assert float(found["dice"]["mean"]) == pytest.approx(statistics.mean(means), abs=1e-6)
    assert float(found["dice"]["std"]) == pytest.approx(statistics.stdev(means), abs=1e-6)
    assert (found["hd95"]["unit"], found["dice"]["unit"]) == ("px", "")


def test_probes_are_one_a_line(folder):
    found = {row["probe"]: row for row in rows(folder / "tables" / "probes.csv")}
    assert list(found) == ["none", "shuffled", "other_image", "wrong_location", "language use"]
    assert float(found["none"]["drop"]) == pytest.approx(0.2, abs=0.02)
    assert found["language use"]["drop"] == found["other_image"]["drop"]


def test_latex_has_the_same_cells_in_every_line(folder):
    text = (folder / "tables" / "table2.tex").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {3}
    assert r"\begin{tabular}{llrr}" in text
    assert r"wound\_1" in text
    assert r"\textit{64.32}" in text
    assert r"\textit{89.80}" in text  # the state of the art
    assert not re.search(r"(?<!\\)_", text)


def test_there_is_a_latex_table_for_each_metric(folder):
    names = {path.stem for path in (folder / "tables").glob("*.tex")}
    assert {"table2", "iou", "precision", "recall", "dice_original", "hd95", "nsd"} <= names
    assert " px" in (folder / "tables" / "hd95.tex").read_text()
    assert "published}" not in (folder / "tables" / "iou.tex").read_text()


def test_the_same_runs_give_the_same_bytes(folder, tmp_path):
    evaluations, _ = find_evaluations([folder], lambda name: ["busi", "isic"] if name == "pooled_all" else [name])
    write_tables(tmp_path, evaluations, collect_results(evaluations))
    for path in (folder / "tables").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_metric_that_was_not_computed_is_a_dash(folder):
    evaluations, _ = find_evaluations([folder / "own"], lambda name: [name])
    (result,) = collect_results(evaluations)
    values = {name: value for name, value in result.values.items() if not name.startswith("nsd")}
    assert mean(values, "nsd") == "–"
    assert interval(values, "nsd") == ""
    assert "busi" in latex_table([result], "dice")


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [(0.91392, "dice", "91.39"), (1.0, "nsd", "100.00"), (12.34, "hd95", "12.3"), (None, "dice", "–")],
)
def test_numbers_are_as_the_paper_prints_them(value, metric, text):
    assert number(value, metric) == text


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a_b & 50 % #1 {x} $", r"a\_b \& 50 \% \#1 \{x\} \$"),
        (r"\input", r"\textbackslash{}input"),
        ("p1 → p6", r"p1 $\rightarrow$ p6"),
    ],
)
def test_latex_prints_any_name(text, latex):
    assert escape_latex(text) == latex
