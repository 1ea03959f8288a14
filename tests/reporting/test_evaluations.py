"""Which evaluations a report finds, what it knows of them, and which of them share a row."""

import dataclasses
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from evaluation_files import Run, training, write_evaluation, write_history, write_json

from medvlsm_jax.errors import UserError
from medvlsm_jax.reporting.comparison import best_prompts, collect_results, titles_of
from medvlsm_jax.reporting.evaluations import find_evaluations
from medvlsm_jax.reporting.section_tables import table2_cell
from medvlsm_jax.reporting.seeds import seed_groups
from medvlsm_jax.reporting.tables import published

POOL = ("kvasir_polyp", "clinicdb_polyp")


def datasets(name: str) -> list[str]:
    if name == "gone.toml":
        raise UserError("no such card")
    return list(POOL) if name == "pooled_polyp" else [name]


def find(*roots: Path):
    return find_evaluations(roots, datasets)


def results_of(*roots: Path):
    return collect_results(find(*roots)[0])


def test_every_finished_evaluation_is_found_once_and_named_by_its_run(tmp_path):
    for name in ("a/evaluation", "b/evaluation", "c"):
        write_evaluation(tmp_path / "runs" / name, Run())
    evaluations, problems = find(tmp_path / "runs", tmp_path / "runs" / "a")
    assert [one.name for one in evaluations] == ["runs/a", "runs/b", "runs/c"]
    assert [one.name for one in find(tmp_path / "runs")[0]] == ["a", "b", "c"]
    assert [one.name for one in find(tmp_path / "runs" / "a")[0]] == ["a"]
    assert problems == []


def test_what_is_unfinished_broken_or_not_evaluated_is_named(tmp_path):
    for name in ("good", "unfinished", "broken", "other_cases", "no_model"):
        write_evaluation(tmp_path / name / "evaluation", Run(training("busi")))
    write_history(tmp_path / "good")
    write_history(tmp_path / "only_trained")
    (tmp_path / "unfinished/evaluation/evaluation.json").unlink()
    (tmp_path / "broken/evaluation/metrics.json").write_text('{"busi":')
    (tmp_path / "no_model/evaluation/evaluation.json").write_text("{}")
    write_json(tmp_path / "good" / "run.json", {"status": "started"})  # killed before it wrote that it was done
    write_history(tmp_path / "failed")
    for name, content in (
        ("failed", '{"status": "started"}'),
        ("torn", '{"stat'),
        ("only_trained", '{"status":"done"}'),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "run.json").write_text(content)
    cases = tmp_path / "other_cases/evaluation/cases.csv"
    cases.write_text("\n".join(cases.read_text().splitlines()[:-1]) + "\n")
    evaluations, problems = find(tmp_path)
    assert [one.name for one in evaluations] == ["good"]
    reasons = {problem.name: problem.reason for problem in problems}
    assert set(reasons) == {"unfinished", "broken", "other_cases", "no_model", "only_trained", "failed", "torn"}
    assert reasons["failed"] == reasons["torn"] == "not finished: see log.txt"
    assert "evaluate again" in reasons["unfinished"]
    assert "metrics.json" in reasons["broken"]
    assert "11 lines and metrics.json n=12" in reasons["other_cases"]
    assert "evaluation.json has no model" in reasons["no_model"]
    assert reasons["only_trained"] == "trained, but not evaluated"


def test_a_run_that_is_evaluated_elsewhere_is_not_called_unevaluated(tmp_path):
    write_history(tmp_path / "runs" / "a")
    settings = {"workdir": str(tmp_path / "runs" / "a")}
    write_evaluation(tmp_path / "runs" / "scores", Run(training("busi"), settings=settings))
    evaluations, problems = find(tmp_path / "runs")
    assert problems == []
    assert list(evaluations[0].history) == ["train/loss", "val/dice"]


@pytest.mark.parametrize("make", [False, True])
def test_nothing_to_report_is_an_error(tmp_path, make):
    root = tmp_path / "runs"
    if make:
        root.mkdir()
    with pytest.raises(UserError, match="no finished evaluation" if make else "does not exist"):
        find(root)


def test_learning_curves_are_found_beside_a_moved_evaluation_and_end_where_the_log_does(tmp_path):
    write_history(tmp_path / "a", steps=10)
    settings = {"workdir": "/gone"}
    write_evaluation(tmp_path / "a" / "evaluation", Run(training("busi"), settings=settings))
    history = find(tmp_path)[0][0].history
    np.testing.assert_allclose(history["val/dice"], [[5, 0.8], [10, 0.9]])
    assert len(history["train/loss"]) == 10


def test_a_zero_shot_evaluation_has_no_learning_curve(tmp_path):
    write_history(tmp_path / "a")
    write_evaluation(tmp_path / "a" / "evaluation", Run())
    assert find(tmp_path)[0][0].history == {}


def test_results_are_filed_as_in_the_paper(tmp_path):
    write_evaluation(tmp_path / "zero", Run(datasets=["busi"]))
    write_evaluation(tmp_path / "own", Run(training("kvasir_polyp"), datasets=["kvasir_polyp", "busi"]))
    write_evaluation(tmp_path / "pool", Run(training("pooled_polyp", "random"), datasets=POOL, prompts=["p1", "p6"]))
    write_evaluation(tmp_path / "lost", Run(training("gone.toml"), datasets=["busi"]))
    found = [(one.trained_on, one.dataset, one.shown_prompt) for one in results_of(tmp_path)]
    assert found == [
        ("zero-shot", "busi", "p6"),
        ("individual", "kvasir_polyp", "p6"),
        ("pooled_polyp", "kvasir_polyp", "random → p1"),
        ("pooled_polyp", "kvasir_polyp", "random → p6"),
        ("pooled_polyp", "clinicdb_polyp", "random → p1"),
        ("pooled_polyp", "clinicdb_polyp", "random → p6"),
        ("gone", "busi", "p6"),
        ("kvasir_polyp", "busi", "p6"),
    ]


def test_perturbed_sentences_are_no_prompt_types(tmp_path):
    write_evaluation(tmp_path / "a", Run(is_probed=True, prompts=["p1", "p6"]))
    assert [one.prompt for one in results_of(tmp_path)] == ["p1", "p6"]


def test_a_network_without_text_has_one_result_for_all_prompt_types(tmp_path):
    write_evaluation(tmp_path / "a", Run(training("busi"), "unet_tiny", "unet", prompts=["p0", "p6"]))
    assert [(one.model, one.shown_prompt) for one in results_of(tmp_path)] == [("unet_tiny", "image only")]


def test_runs_that_would_share_a_cell_are_told_apart_by_what_differs(tmp_path):
    for seed in (1, 2):
        write_evaluation(tmp_path / f"seed{seed}", Run(training("busi", seed=seed)))
    write_evaluation(tmp_path / "other", Run(training("isic", seed=3), datasets=["isic"]))
    write_evaluation(tmp_path / "cris", Run(training("busi"), "cris", "cris"))
    write_evaluation(tmp_path / "zero", Run())
    models = {one.model for one in results_of(tmp_path)}
    assert models == {"clipseg, seed=1", "clipseg, seed=2", "clipseg, seed=3", "cris", "clipseg"}


def test_runs_that_differ_in_nothing_are_numbered(tmp_path):
    write_evaluation(tmp_path / "a", Run(training("busi")))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    evaluations, _ = find(tmp_path)
    assert [one.model for one in collect_results(evaluations)] == ["clipseg", "clipseg, run 2"]
    assert len(set(titles_of(evaluations).values())) == 2


def test_a_repeated_run_leaves_the_others_of_its_model_in_one_row(tmp_path):
    for dataset in ("busi", "isic", "camus"):
        write_evaluation(tmp_path / f"individual-{dataset}", Run(training(dataset), datasets=[dataset]))
    write_evaluation(tmp_path / "seeds-busi", Run(training("busi"), datasets=["busi"]))
    rows = best_prompts(results_of(tmp_path))
    assert {model: sorted(row) for (_, model), row in rows.items()} == {
        "clipseg": ["busi", "camus", "isic"],
        "clipseg, run 2": ["busi"],
    }


def test_a_class_without_a_run_is_missed_where_the_card_names_it(tmp_path):
    for target in ("myocardium", "left atrium cavity"):
        run = Run(training("camus", target=target), "unet", "unet", datasets=["camus"], classes=[target])
        write_evaluation(tmp_path / target, run)
    evaluations, _ = find(tmp_path)
    classes = {"camus": ["left ventricular cavity", "myocardium", "left atrium cavity"]}
    (result,) = collect_results(evaluations, classes)
    assert result.missing == ("left ventricular cavity",)
    assert result.model == "unet, one run a class (left atrium cavity, myocardium)"
    (whole,) = collect_results(evaluations, {"camus": classes["camus"][1:]})
    assert (whole.missing, whole.model) == ((), "unet, one run a class")
    assert published(result) is None
    assert published(whole) is not None
    lower = dataclasses.replace(whole, values={**whole.values, "dice_mean": 0.1})
    is_bold = ["<b>" in table2_cell(one, [{"camus": result}, {"camus": lower}]) for one in (result, lower)]
    assert is_bold == [False, True]  # some classes alone are not the best of all


def test_results_of_several_seeds_are_taken_together(tmp_path):
    for name, fields in {"a": {"seed": 41}, "b": {"seed": 42}, "again": {"seed": 42}, "c": {"seed": 43}}.items():
        write_evaluation(tmp_path / name, Run(training("busi", **fields)))
    write_evaluation(tmp_path / "other", Run(training("busi", seed=41, freeze_encoder=True)))
    write_evaluation(tmp_path / "zero", Run())
    (group,) = seed_groups(results_of(tmp_path))
    assert (group.model, group.seeds) == ("clipseg", ["41", "42", "43"])
    means = [json.loads((tmp_path / x / "metrics.json").read_text())["busi"]["p6"]["dice_mean"] for x in ("a", "c")]
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())["busi"]["p6"]["dice_mean"]
    means.append(again)  # the first by name of those with its seed
    assert group.spread("dice") == pytest.approx((statistics.mean(means), statistics.stdev(means)))
    assert group.spread("nothing") == (None, None)


def test_runs_on_one_class_each_become_one_result_over_all_records(tmp_path):
    for target, n in (("benign", 8), ("malignant", 12)):
        run = Run(training("busi", target=target), "unet", "unet", n=n, classes=[target], mean=0.1 + n / 20)
        write_evaluation(tmp_path / target, run)
    (result,) = results_of(tmp_path)
    parts = [
        json.loads((tmp_path / name / "metrics.json").read_text())["busi"]["p6"] for name in ("benign", "malignant")
    ]
    assert result.values["n"] == len(result.dice) == 20
    assert result.values["dice_mean"] == pytest.approx((8 * parts[0]["dice_mean"] + 12 * parts[1]["dice_mean"]) / 20)
    assert result.values["by"]["class"] == {"benign": parts[0], "malignant": parts[1]}
    assert result.values["dice_low"] < result.values["dice_mean"] < result.values["dice_high"]


def test_the_best_prompt_type_is_that_of_the_highest_mean(tmp_path):
    for prompt, mean in (("p1", 0.5), ("p3", 0.8), ("p6", 0.6)):
        write_evaluation(tmp_path / prompt, Run(training("busi", prompt), prompts=[prompt], mean=mean))
    ((row, best),) = best_prompts(results_of(tmp_path)).items()
    assert row == ("individual", "clipseg")
    assert best["busi"].prompt == "p3"
