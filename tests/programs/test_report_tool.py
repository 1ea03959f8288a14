"""From finished evaluations to the page, tables and figures."""

import re
from pathlib import Path

import pytest
import report
from evaluation_files import Run, training, write_evaluation, write_history, write_json
from processes import run_here

from medvlsm_jax.errors import UserError
from medvlsm_jax.written import Written

POLYPS = ["kvasir_polyp", "clinicdb_polyp", "bkai_polyp", "cvc300_polyp"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs that have something for every section."""
    root = tmp_path_factory.mktemp("sweep")
    full = {"is_probed": True, "has_curves": True, "has_pictures": True, "sentence": "one <b>tumor</b>"}
    write_evaluation(root / "clipseg-busi-p6" / "evaluation", Run(training("busi"), **full))
    write_history(root / "clipseg-busi-p6")
    write_evaluation(root / "clipseg-busi-p1" / "evaluation", Run(training("busi", "p1"), prompts=["p1"]))
    write_evaluation(root / "pool" / "evaluation", Run(training("pooled_polyp"), datasets=POLYPS))
    write_evaluation(root / "zero-shot" / "evaluation", Run(datasets=["busi"], prompts=["p0", "p6"], mean=0.3))
    write_history(root / "not-evaluated")
    return root


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    """The report of these runs."""
    return report.write_report([runs], tmp_path_factory.mktemp("report"), "Our runs")


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>\d* ?(.*?)</h2>", text)


def test_the_page_has_every_section_that_there_are_data_for(page):
    assert headings(page.read_text("utf-8")) == [
        "Segmentation, beside the published figures",
        "Prompt types",
        "In-domain and out-of-domain",
        "Learning curves",
        "Does the model use the language?",
        "Best, median and worst cases",
        "By class, sex, age and view",
        "Threshold and calibration",
        "Runs",
    ]


def test_sections_without_data_are_left_out(runs, tmp_path):
    text = report.write_report([runs / "zero-shot"], tmp_path).read_text("utf-8")
    assert headings(text) == [
        "Segmentation, beside the published figures",
        "Prompt types",
        "By class, sex, age and view",
        "Runs",
    ]


def test_the_page_holds_all_it_shows(page):
    text = page.read_text("utf-8")
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    sources = re.findall(r'src="(.{20})', text)
    assert all(source.startswith("data:image/") for source in sources)
    assert sum("jpeg" in source for source in sources) == 9


def test_ours_and_the_published_figures_stand_beside_each_other(page):
    text = page.read_text("utf-8")
    assert re.search(r'<span class="paper">64\.32 \([+−][\d.]+\)</span>', text)  # CLIPSeg on BUSI
    assert re.search(r'<span class="paper">89\.80</span>', text)  # the state of the art there
    assert re.search(r'<span class="paper">88\.98 \([+−][\d.]+\)</span>', text)  # the pool on CVC-300


def test_what_is_left_out_is_listed(page, runs, tmp_path, capsys):
    assert "trained, but not evaluated" in page.read_text("utf-8")
    report.write_report([runs / "zero-shot", runs / "not-evaluated"], tmp_path)
    assert "left out: not-evaluated: trained, but not evaluated\n" in capsys.readouterr().out


def test_tables_and_figures_lie_beside_the_page(page):
    assert {"metrics.csv", "table2.csv", "table2.tex", "hd95.tex"} <= {
        p.name for p in (page.parent / "tables").iterdir()
    }
    figures = sorted(path.name for path in (page.parent / "figures").iterdir())
    assert "dice_by_prompt-individual.pdf" in figures
    assert "probes-1.png" in figures
    assert len(figures) == 2 * page.read_text("utf-8").count("data:image/svg")
    assert all((page.parent / "figures" / name).stat().st_size > 1000 for name in figures)


def test_the_same_runs_give_the_same_page(page, runs, tmp_path):
    assert report.write_report([runs], tmp_path, "Our runs").read_bytes() == page.read_bytes()


def test_domains_are_those_of_the_pool(page):
    text = page.read_text("utf-8")
    line = re.search(r"<td[^>]*>clipseg \(pooled_polyp, p6\)</td>.*?</tr>", text)
    assert line
    cells = re.findall(r"<td>(\d+)</td>", line[0])
    assert cells == ["3", "1"]


def test_seeds_classes_and_domains_say_what_they_are(tmp_path):
    root = tmp_path / "runs"
    for seed in (1, 2):
        write_evaluation(root / f"seed{seed}" / "evaluation", Run(training("busi", seed=seed)))
    target = {"target": "myocardium"}
    write_evaluation(root / "myocardium", Run(training("camus", **target), "unet", "unet", datasets=["camus"]))
    write_evaluation(root / "pool", Run(training("pooled_polyp"), datasets=POLYPS))
    write_json(root / "seed1" / "run.json", {"status": "done"})
    (root / "myocardium_2").mkdir()
    write_json(root / "myocardium_2" / "run.json", {"status": "started"})
    text = report.write_report([root], tmp_path / "report").read_text("utf-8")
    assert re.search(r"<td>\d\d\.\d\d ± \d+\.\d\d<small>2 seeds</small></td>", text)
    assert (tmp_path / "report/tables/seeds.csv").exists()
    assert "unet, one run a class (myocardium)" in text
    assert "A model with classes in brackets was scored on these alone" in text
    assert "90.19" not in text  # the paper's, of all classes
    assert "myocardium_2</td><td" in text
    assert "not finished: see log.txt" in text
    assert "makes the Dice in the domain slightly optimistic" in text


def test_what_an_older_report_has_left_is_removed(runs, tmp_path):
    old = ["tables/nsd_old.csv", "tables/old.tex", "figures/old.pdf", "figures/old.png"]
    kept = ["tables/notes.csv", "figures/mine.png", "mine.csv"]
    with Written("--output", tmp_path).adding() as staged:
        for folder, names in ((staged, old), (tmp_path, kept)):
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).touch()
    for _ in range(2):
        report.write_report([runs / "zero-shot"], tmp_path)
    assert [name for name in (*old, *kept) if (tmp_path / name).exists()] == kept
    assert (tmp_path / "tables/table2.csv").exists()
    assert list((tmp_path / "figures").glob("*.pdf"))


def test_a_users_table_is_not_replaced(runs, tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "table2.csv").write_text("mine")
    with pytest.raises(UserError, match=r"holds tables/table2.csv, which this program has not written"):
        report.write_report([runs / "zero-shot"], tmp_path)
    assert (tmp_path / "tables" / "table2.csv").read_text() == "mine"
    assert not (tmp_path / "report.html").exists()


def test_an_output_that_is_a_file_is_named(runs, tmp_path):
    (tmp_path / "report").touch()
    with pytest.raises(UserError, match="report is a file: give a folder"):
        report.write_report([runs], tmp_path / "report")


def test_a_folder_without_evaluations_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no finished evaluation"):
        report.write_report([tmp_path], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_command_line_says_what_is_missing():
    run = run_here("tools/report.py", "--output=x")
    assert run.returncode == 2
    assert run.stderr.strip() == "error: give the folders of runs: python tools/report.py RUNS --output=DIR"
