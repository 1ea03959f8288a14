"""What an evaluation writes, and that devices and batches do not change it."""

import contextlib
import csv
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from processes import run_processes

from medvlsm_jax import evaluate as evaluation
from medvlsm_jax.data.images import open_image
from medvlsm_jax.data.language.prompts import split_prompts
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluate import default_config, evaluate, name_outputs
from medvlsm_jax.evaluation.cases import CaseLog

SENTENCE = "text:one small polyp, located in left of the image"


@pytest.fixture
def options(sample):
    options = default_config()
    options.data_dir = str(sample)
    options.batch_size = 8
    return options


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


def read_cases(folder: Path) -> list[dict[str, str]]:
    with (folder / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_records(sample: Path, split: str = "test") -> list[dict]:
    return json.loads((sample / "sample" / "anns" / f"{split}.json").read_text())


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


def numbers(found: object) -> list[float]:
    """All numbers in nested dictionaries, in their order."""
    if isinstance(found, dict):
        return [number for key in sorted(found) for number in numbers(found[key])]
    return [found] if isinstance(found, (int, float)) else []


def assert_same(folder: Path, other: Path) -> None:
    """The tables of two evaluations agree to 1e-6, and word for word."""
    for case, again in zip(read_cases(folder), read_cases(other), strict=True):
        for column, text in case.items():
            if re.fullmatch(r"[\d.]+", text):
                assert float(text) == pytest.approx(float(again[column]), abs=1e-6)
            else:
                assert text == again[column]
    ours, theirs = (json.loads((path / "metrics.json").read_text()) for path in (folder, other))
    assert numbers(ours) == pytest.approx(numbers(theirs), abs=1e-6)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 8), (1, 3), (8, 16)])
def test_devices_and_batch_size_do_not_change_a_table(
    run, options, use_devices, tmp_path, exact_matmul, devices, batch_size
):
    evaluate(options, run, ["sample"], ["p6", "p0"], tmp_path / "two")
    use_devices(devices)
    options.batch_size = batch_size
    evaluate(options, run, ["sample"], ["p6", "p0"], tmp_path / "other")
    assert_same(tmp_path / "two", tmp_path / "other")


def test_two_processes_with_workers_are_one(run, options, sample, tmp_path):
    evaluate(options, run, ["sample"], ["p6"], tmp_path / "one", probe=True, curves=True, save_masks=True)
    flags = [f"--checkpoint={run}", f"--config.data_dir={sample}", "--dataset=sample", "--prompt=p6", "--save_masks"]
    flags += [
        "--config.batch_size=8",
        "--config.data.num_workers=1",
        f"--output={tmp_path / 'two'}",
        "--probe",
        "--curves",
    ]
    for process in run_processes(2, 1, "medvlsm_jax.evaluate", *flags):
        assert process.returncode == 0, process.stderr
    assert_same(tmp_path / "one", tmp_path / "two")
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*")}
    assert {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*")} == files
    for name in ("probe.json", "curves.json"):
        ours, theirs = (json.loads((tmp_path / folder / name).read_text()) for folder in ("one", "two"))
        assert numbers(ours) == pytest.approx(numbers(theirs), abs=1e-5)


def test_prompt_types_and_datasets_do_not_influence_each_other(run, options, tmp_path, exact_matmul):
    both = evaluate(options, run, ["sample"], ["p0", "p6"], tmp_path / "both", num_pictures=0)["sample"]
    for prompt in ("p0", "p6"):
        alone = evaluate(options, run, ["sample"], [prompt], tmp_path / prompt, num_pictures=0)["sample"][prompt]
        assert numbers(both[prompt]) == pytest.approx(numbers(alone), abs=1e-6)


# --- Stopped and continued --------------------------------------------------------------------------------------------

STEPS = {  # what is killed, and which call of it
    "at once": (CaseLog, "append", 0),
    "between batches": (CaseLog, "append", 1),
    "in the last batch": (CaseLog, "append", 2),
    "before the pictures": (evaluation, "draw_cases", 0),
    "before the tables": (evaluation, "write_tables", 0),
    "while curves are made": (evaluation, "summarise_curves", 0),
    "when the tables are written": (CaseLog, "finish", 0),
    "before the end is noted": (evaluation, "describe_run", 0),
}


@pytest.fixture
def start(run, options):
    """An evaluation with tables, curves and pictures."""
    options.batch_size = 4

    def start(folder: Path) -> Path:
        evaluate(options, run, ["sample"], ["p6", "p0"], folder, curves=True, num_pictures=1)
        return folder

    return start


@pytest.fixture(scope="module")
def kept() -> list[Path]:
    """The folder of an evaluation that nothing stopped."""
    return []


@pytest.fixture
def whole(kept, start, tmp_path_factory) -> Path:
    kept += [] if kept else [start(tmp_path_factory.mktemp("whole"))]
    return kept[0]


@pytest.mark.parametrize("step", STEPS)
def test_an_evaluation_that_was_killed_ends_in_the_same_tables(start, whole, tmp_path, monkeypatch, step):
    owner, name, call = STEPS[step]
    calls = iter(range(99))
    function = getattr(owner, name)

    def killed(*args: object, **more: object) -> object:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path)
        assert not (tmp_path / "evaluation.json").exists()
    start(tmp_path)
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")} == files
    for file in files:
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_stopped_evaluation_repeats_no_batch(run, options, tmp_path, monkeypatch):
    scored: list[int] = []
    append = CaseLog.append

    def watched(self: CaseLog, rows: list, counts: object) -> None:
        scored.append(len(rows))
        if len(scored) == 2:
            raise KeyboardInterrupt
        append(self, rows, counts)

    monkeypatch.setattr(CaseLog, "append", watched)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options, run, ["sample"], ["p6"], tmp_path)
    count = evaluate(options, run, ["sample"], ["p6"], tmp_path)["sample"]["p6"]["n"]
    assert scored[0] + sum(scored[2:]) == count


def test_a_finished_evaluation_is_not_repeated_unless_something_changed(run_copy, options, tmp_path, capsys):
    first = evaluate(options, run_copy, ["sample"], ["p6"], tmp_path / "out")
    before = (tmp_path / "out" / "cases.csv").stat().st_mtime_ns
    assert evaluate(options, run_copy, ["sample"], ["p6"], tmp_path / "out") == first
    assert "holds this evaluation already" in capsys.readouterr().out
    assert (tmp_path / "out" / "cases.csv").stat().st_mtime_ns == before
    (array,) = [path for path in (run_copy / "frozen").rglob("*") if path.is_file()][:1]
    array.touch()
    evaluate(options, run_copy, ["sample"], ["p6"], tmp_path / "out")
    assert (tmp_path / "out" / "cases.csv").stat().st_mtime_ns > before


# --- Options ----------------------------------------------------------------------------------------------------------


def test_without_original_size_there_are_the_papers_metrics_alone(run, options, tmp_path):
    row = evaluate(options, run, ["sample"], ["p6"], tmp_path, original_size=False, num_pictures=0)["sample"]["p6"]
    assert {name for name in row if name.endswith("_mean")} == {
        f"{m}_mean" for m in ("dice", "iou", "precision", "recall")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "cases.csv", "evaluation.json"}


def test_a_probe_perturbs_every_sentence(run, options, sample, tmp_path):
    evaluate(options, run, ["sample"], ["p6"], tmp_path, probe=True, num_pictures=0)
    found = json.loads((tmp_path / "probe.json").read_text())["sample"]["p6"]
    names = {"none", "shuffled", "other_image"} | {f"wrong_{name}" for name in ("class", "location", "color", "size")}
    assert names <= set(found["probes"])
    count = len(read_records(sample))
    assert found["probes"]["none"]["n"] == count
    right, wrong = (
        {case["mask"]: case for case in read_cases(tmp_path) if case["prompt"] == name}
        for name in ("p6", "p6/wrong_location")
    )
    for mask, case in wrong.items():
        place, other = (re.search("located in (.*) of", found["sentence"])[1] for found in (right[mask], case))
        assert place != other
        assert case["sentence"] == right[mask]["sentence"].replace(f"in {place} of", f"in {other} of")
    assert (
        "wrong_location" in (tmp_path / "probe.html").read_text() or "location" in (tmp_path / "probe.html").read_text()
    )


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


def test_pictures_show_the_best_the_median_and_the_worst(run, options, tmp_path):
    evaluate(options, run, ["sample"], ["p6"], tmp_path, num_pictures=2)
    folder = tmp_path / "pictures" / "sample" / "p6"
    names = {f"{kind}_{i}.jpg" for kind in ("best", "median", "worst") for i in range(2)}
    assert {path.name for path in folder.iterdir()} == names
    assert open_image(folder / "best_0.jpg").size[0] > 2 * 300  # the image and its overlay


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ensemble": "crops"}, "--ensemble=crops: 'crops' is not known"),
        ({"ensemble": "flips", "probe": True}, "--probe compares single sentences: leave out --ensemble"),
        ({"tolerance": float("nan")}, "--tolerance and --num_pictures must be 0 or larger numbers"),
        ({"tolerance": -1.0}, "--tolerance and --num_pictures must be 0 or larger numbers"),
    ],
)
def test_options_that_make_no_sense_are_named(run, options, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        evaluate(options, run, ["sample"], ["p6"], tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_made_is_named(run, options, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is a file: give a folder"):
        evaluate(options, run, ["sample"], ["p6"], tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be written .*: choose another folder"):
        evaluate(options, run, ["sample"], ["p6"], tmp_path / "file" / "below")
    with pytest.raises(UserError, match="--prompt names no prompt type"):
        evaluate(options, run, ["sample"], [], tmp_path / "out")


def test_another_evaluation_that_is_killed_leaves_no_mixture(run, options, tmp_path, monkeypatch):
    first = evaluate(options, run, ["sample"], ["p6"], tmp_path, probe=True, tolerance=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "describe_run", lambda *_: 1 / 0)  # just before the end is noted
        with pytest.raises(ZeroDivisionError):
            evaluate(options, run, ["sample"], ["p6"], tmp_path, tolerance=8.0, num_pictures=1)
    assert {path.name for path in tmp_path.rglob("*.jpg")} == {"best_0.jpg", "median_0.jpg", "worst_0.jpg"}
    assert not (tmp_path / "probe.json").exists()
    assert evaluate(options, run, ["sample"], ["p6"], tmp_path, probe=True, tolerance=1.0) == first


def test_new_patients_in_the_annotations_are_seen(run, options, sample, tmp_path):
    (tmp_path / "data" / "sample" / "anns").mkdir(parents=True)
    for name in ("images", "masks"):
        (tmp_path / "data" / "sample" / name).symlink_to(sample / "sample" / name)
    options.data_dir = str(tmp_path / "data")
    clusters = []
    for patients in (False, True):
        records = [r | ({"group": f"patient{i % 3}"} if patients else {}) for i, r in enumerate(read_records(sample))]
        (tmp_path / "data" / "sample" / "anns" / "test.json").write_text(json.dumps(records))
        row = evaluate(options, run, ["sample"], ["p6"], tmp_path / "out", num_pictures=0)["sample"]["p6"]
        clusters.append(row["clusters"])
    assert clusters == [len({record["img_name"] for record in read_records(sample)}), 3]


def test_masks_of_sentences_that_are_not_asked_are_not_written(run, options, rectangles, tmp_path):
    options.data_dir = str(rectangles)
    path = rectangles / "rectangles" / "anns" / "test.json"
    records = json.loads(path.read_text())
    records[0]["prompts"]["p6"] = "polyp"  # one word cannot be shuffled
    path.write_text(json.dumps(records))
    evaluate(options, run, ["rectangles"], ["p6"], tmp_path, probe=True, save_masks=True, original_size=False)
    folders = {folder.name: folder for folder in (tmp_path / "masks" / "rectangles").iterdir()}
    assert len(list(folders["p6"].glob("*_mask.png"))) == 4
    assert len(list(folders["p6-shuffled"].glob("*_mask.png"))) == 3


def test_several_checkpoints_have_folders_of_their_own(tmp_path):
    assert name_outputs(["a/b"], tmp_path) == {"a/b": tmp_path}
    assert name_outputs(["a/b", "a/c"], tmp_path) == {"a/b": tmp_path / "b", "a/c": tmp_path / "c"}
    assert name_outputs(["a/x", "b/x"], tmp_path) == {"a/x": tmp_path / "a-x", "b/x": tmp_path / "b-x"}
    with pytest.raises(UserError, match="two have the same name"):
        name_outputs(["a/x", "b/../a/x"], tmp_path)


def test_a_second_checkpoint_of_a_network_compiles_nothing(run, run_copy, options, tmp_path):
    evaluate(options, run, ["sample"], ["p6", "p0"], tmp_path / "first")
    with jax.log_compiles(), compilations() as compiled:
        evaluate(options, run_copy, ["sample"], ["p0", "p6"], tmp_path / "second")
    assert not [name for name in compiled if name in ("encode", "decode", "measure")]


# --- Pictures and files -----------------------------------------------------------------------------------------------


@pytest.fixture
def rectangles(tmp_path) -> Path:
    """A data folder with images of several sizes, and masks of several modes."""
    root = tmp_path / "data" / "rectangles"
    for name in ("images", "masks", "anns"):
        (root / name).mkdir(parents=True)
    rng, records = np.random.default_rng(0), []
    for i, (width, height, image_mode, mask_mode) in enumerate(
        [(50, 30, "RGBA", "RGBA"), (41, 67, "RGB", "L"), (33, 90, "L", "1"), (64, 20, "RGBA", "RGB")]
    ):
        pixels = rng.integers(0, 255, (height, width, 4), np.uint8)
        truth = np.zeros((height, width), np.uint8)
        truth[: height // 2] = 255
        Image.fromarray(pixels).convert(image_mode).save(root / "images" / f"case.{i}.png")
        Image.fromarray(truth).convert(mask_mode).save(root / "masks" / f"case.{i}.png")
        records.append(
            {"img_name": f"case.{i}.png", "mask_name": f"case.{i}.png", "prompts": {"p0": "", "p6": "one polyp"}}
        )
    (root / "anns" / "test.json").write_text(json.dumps(records))
    return tmp_path / "data"


def test_masks_and_overlays_have_the_sizes_of_their_images(run, options, rectangles, tmp_path):
    options.data_dir = str(rectangles)
    evaluate(options, run, ["rectangles"], ["p6"], tmp_path / "out", save_masks=True)
    folder = tmp_path / "out" / "masks" / "rectangles" / "p6"
    kinds = {"mask": "L", "probability": "L", "overlay": "RGB"}
    assert {path.name for path in folder.iterdir()} == {f"case.{i}_{kind}.png" for i in range(4) for kind in kinds}
    for i in range(4):
        size = open_image(rectangles / "rectangles" / "images" / f"case.{i}.png").size
        pictures = {kind: open_image(folder / f"case.{i}_{kind}.png") for kind in kinds}
        assert {kind: picture.mode for kind, picture in pictures.items()} == kinds
        assert {picture.size for picture in pictures.values()} == {size}
        mask, probability = (np.asarray(pictures[kind]) for kind in ("mask", "probability"))
        assert set(np.unique(mask)) <= {0, 255}
        assert (probability[mask > 0] >= 127).all()
        assert (probability[mask == 0] <= 128).all()


def test_several_datasets_are_scored_side_by_side(run, options, sample, rectangles, tmp_path):
    (rectangles / "sample").symlink_to(sample / "sample")
    options.data_dir = str(rectangles)
    summary = evaluate(options, run, ["sample", "rectangles"], ["p6", "random"], tmp_path / "out")
    assert {dataset: list(prompts) for dataset, prompts in summary.items()} == {
        "sample": ["p6", "random"],
        "rectangles": ["p6", "random"],
    }
    assert summary["rectangles"]["p6"]["n"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "nowhere"}, "checkpoint folder .*nowhere does not exist"),
        ({"datasets": ["nowhere"]}, "dataset 'nowhere' is not a dataset that the package knows"),
        ({"prompts": ["p6", "p9"]}, "has no prompt 'p9'; it has other, p0"),
        ({"split": "tset"}, "unknown split 'tset': choose one of train, val, test"),
        ({"batch_size": 5}, "config.batch_size=5 is not a multiple of the 2 devices"),
        ({"tokenizer": "nowhere"}, "cannot load the tokenizer 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(run, options, tmp_path, change, message):
    arguments = {"checkpoint": run, "datasets": ["sample"], "prompts": ["p6"], "split": "test"}
    for name, value in change.items():
        (arguments if name in arguments else options)[name] = value
    checkpoint, datasets, prompts = (arguments.pop(name) for name in ("checkpoint", "datasets", "prompts"))
    with pytest.raises(UserError, match=message):
        evaluate(options, checkpoint, datasets, prompts, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "prompts"),
    [
        ("p6", ["p6"]),
        ("p6,p0", ["p6", "p0"]),
        ("text:one polyp, located in left", ["text:one polyp, located in left"]),
        ("p6,text:one polyp, located in left", ["p6", "text:one polyp, located in left"]),
        ("attributes:size,class", ["attributes:size,class"]),
        (
            "p0,attributes:size,class,p6,attributes:class,random",
            ["p0", "attributes:size,class", "p6", "attributes:class", "random"],
        ),
        ("attributes:size,text:a, b", ["attributes:size", "text:a, b"]),
    ],
)
def test_commas_part_prompt_types_and_stay_in_a_sentence(flag, prompts):
    assert split_prompts(flag) == prompts
