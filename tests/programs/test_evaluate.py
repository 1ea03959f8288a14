"""What an evaluation of a network tells, and that devices and batches do not change it."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from evaluations import assert_same, numbers, read_cases, read_records

from medvlsm_jax.evaluate import evaluate

SENTENCE = "text:one small polyp, located in left of the image"


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the functions that jax compiles meanwhile."""
    names: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.search(r"Compiling (?:jit\()?(\w+)", record.getMessage()):
                names.append(found[1])

    handler, logger = Listener(), logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        yield names
    finally:
        logger.removeHandler(handler)


def test_every_record_is_one_case_of_every_prompt(run, options, sample, tmp_path):
    summary = evaluate(options, run, ["sample"], ["p6", "p0", SENTENCE], tmp_path)
    records, cases = read_records(sample), read_cases(tmp_path)
    assert len(records) % options.batch_size  # the last batch is filled up
    assert [(case["prompt"], case["image"], case["mask"]) for case in cases] == [
        (prompt, record["img_name"], record["mask_name"]) for record in records for prompt in ("p6", "p0", SENTENCE)
    ]
    assert {case["dataset"] for case in cases} == {"sample"}
    assert [case["sentence"] for case in cases[::3]] == [record["prompts"]["p6"] for record in records]
    assert {case["sentence"] for case in cases[2::3]} == {SENTENCE.removeprefix("text:")}
    assert {case["class"] for case in cases} <= {"polyp", "skin lesion", "tumor", "opacity"}
    assert {case["cluster"] for case in cases} == {record["img_name"] for record in records}
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    names = {"metrics.json", "cases.csv", "evaluation.json", "pictures"}
    assert {path.name for path in tmp_path.iterdir()} == names
    about = json.loads((tmp_path / "evaluation.json").read_text())
    assert (about["model"], about["datasets"], about["trained"]["prompt"]) == ("small", ["sample"], "p6")


def test_the_summary_is_the_mean_and_deviation_of_the_cases(run, options, sample, tmp_path):
    row = evaluate(options, run, ["sample"], ["p6"], tmp_path)["sample"]["p6"]
    assert row["n"] == len(read_records(sample))
    for metric in ("dice", "iou", "precision", "recall", "dice_original", "recall_original", "hd95", "nsd"):
        values = np.array([float(case[metric]) for case in read_cases(tmp_path)])
        assert (values >= 0).all()
        assert (values <= (100 if metric == "hd95" else 1)).all()
        assert row[f"{metric}_mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert row[f"{metric}_std"] == pytest.approx(values.std(ddof=1), abs=1e-6)
        assert row[f"{metric}_low"] <= row[f"{metric}_mean"] <= row[f"{metric}_high"]


def test_a_split_can_be_chosen(run, options, sample, tmp_path):
    row = evaluate(options, run, ["sample"], ["p6"], tmp_path, split="val")["sample"]["p6"]
    assert row["n"] == len(read_records(sample, "val"))
    validated = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(line["value"] for line in validated if line["name"] == "val/dice")
    assert row["dice_mean"] == pytest.approx(best, abs=1e-6)  # of the best checkpoint, as training saw it


def test_devices_and_batch_size_do_not_change_a_table(run, options, use_devices, tmp_path, exact_matmul):
    evaluate(options, run, ["sample"], ["p6", "p0"], tmp_path / "two")
    for devices, batch_size in ((1, 8), (1, 3), (8, 16)):
        use_devices(devices)
        options.batch_size = batch_size
        evaluate(options, run, ["sample"], ["p6", "p0"], tmp_path / f"{devices}_{batch_size}")
        assert_same(tmp_path / "two", tmp_path / f"{devices}_{batch_size}")


def test_prompt_types_and_datasets_do_not_influence_each_other(run, options, tmp_path, exact_matmul):
    both = evaluate(options, run, ["sample"], ["p0", "p6"], tmp_path / "both", num_pictures=0)["sample"]
    for prompt in ("p0", "p6"):
        alone = evaluate(options, run, ["sample"], [prompt], tmp_path / prompt, num_pictures=0)["sample"][prompt]
        assert numbers(both[prompt]) == pytest.approx(numbers(alone), abs=1e-6)


def test_an_image_only_network_does_not_use_the_language(findings, two_classes, options, tmp_path):
    options.data_dir = str(findings)
    evaluate(options, two_classes, ["chexlocalize"], ["p6"], tmp_path, probe=True, num_pictures=0)
    use = json.loads((tmp_path / "probe.json").read_text())["chexlocalize"]["p6"]["language_use"]
    assert (use["mean"], use["low"], use["high"], use["p"]) == (0, 0, 0, 1)


def test_an_ensemble_changes_the_prediction_and_tells_all_its_sentences(run, options, findings, tmp_path):
    options.data_dir = str(findings)
    plain, flipped = (tmp_path / name for name in ("plain", "flipped"))
    evaluate(options, run, ["chexlocalize"], ["p6"], plain, num_pictures=0)
    evaluate(options, run, ["chexlocalize"], ["p6"], flipped, ensemble="sentences+flips", num_pictures=0)
    assert [case["sentence"] for case in read_cases(plain)] == [case["sentence"] for case in read_cases(flipped)]
    assert [case["dice"] for case in read_cases(plain)] != [case["dice"] for case in read_cases(flipped)]


def test_a_second_checkpoint_of_a_network_compiles_nothing(run, run_copy, options, tmp_path):
    evaluate(options, run, ["sample"], ["p6", "p0"], tmp_path / "first")
    with jax.log_compiles(), compilations() as compiled:
        evaluate(options, run_copy, ["sample"], ["p0", "p6"], tmp_path / "second")
    assert not [name for name in compiled if name in ("encode", "decode", "measure")]
