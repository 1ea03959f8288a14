"""The options of an evaluation: what is written, and what is refused. Its scores are drawn."""

import json
import re

import numpy as np
import pytest
from evaluations import read_cases, read_records

from medvlsm_jax.data.images import open_image
from medvlsm_jax.data.language.prompts import split_prompts
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluate import evaluate, name_outputs

# --- What is written --------------------------------------------------------------------------------------------------


def test_without_original_size_there_are_the_papers_metrics_alone(drawn, options, tmp_path):
    row = evaluate(options, drawn, ["sample"], ["p6"], tmp_path, original_size=False, num_pictures=0)["sample"]["p6"]
    assert {name for name in row if name.endswith("_mean")} == {
        f"{m}_mean" for m in ("dice", "iou", "precision", "recall")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "cases.csv", "evaluation.json"}


def test_a_probe_perturbs_every_sentence(drawn, options, sample, tmp_path):
    evaluate(options, drawn, ["sample"], ["p6"], tmp_path, probe=True, num_pictures=0)
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


def test_pictures_show_the_best_the_median_and_the_worst(drawn, options, tmp_path):
    evaluate(options, drawn, ["sample"], ["p6"], tmp_path, num_pictures=2)
    folder = tmp_path / "pictures" / "sample" / "p6"
    names = {f"{kind}_{i}.jpg" for kind in ("best", "median", "worst") for i in range(2)}
    assert {path.name for path in folder.iterdir()} == names
    assert open_image(folder / "best_0.jpg").size[0] > 2 * 300  # the image and its overlay


def test_masks_and_overlays_have_the_sizes_of_their_images(drawn, options, rectangles, tmp_path):
    options.data_dir = str(rectangles)
    evaluate(options, drawn, ["rectangles"], ["p6"], tmp_path / "out", save_masks=True)
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


def test_masks_of_sentences_that_are_not_asked_are_not_written(drawn, options, rectangles, tmp_path):
    options.data_dir = str(rectangles)
    path = rectangles / "rectangles" / "anns" / "test.json"
    records = json.loads(path.read_text())
    records[0]["prompts"]["p6"] = "polyp"  # one word cannot be shuffled
    path.write_text(json.dumps(records))
    evaluate(options, drawn, ["rectangles"], ["p6"], tmp_path, probe=True, save_masks=True, original_size=False)
    folders = {folder.name: folder for folder in (tmp_path / "masks" / "rectangles").iterdir()}
    assert len(list(folders["p6"].glob("*_mask.png"))) == 4
    assert len(list(folders["p6-shuffled"].glob("*_mask.png"))) == 3


def test_several_datasets_are_scored_side_by_side(drawn, options, sample, rectangles, tmp_path):
    (rectangles / "sample").symlink_to(sample / "sample")
    options.data_dir = str(rectangles)
    summary = evaluate(options, drawn, ["sample", "rectangles"], ["p6", "random"], tmp_path / "out")
    assert {dataset: list(prompts) for dataset, prompts in summary.items()} == {
        "sample": ["p6", "random"],
        "rectangles": ["p6", "random"],
    }
    assert summary["rectangles"]["p6"]["n"] == 4


def test_new_patients_in_the_annotations_are_seen(drawn, options, sample, tmp_path):
    (tmp_path / "data" / "sample" / "anns").mkdir(parents=True)
    for name in ("images", "masks"):
        (tmp_path / "data" / "sample" / name).symlink_to(sample / "sample" / name)
    options.data_dir = str(tmp_path / "data")
    clusters = []
    for patients in (False, True):
        records = [r | ({"group": f"patient{i % 3}"} if patients else {}) for i, r in enumerate(read_records(sample))]
        (tmp_path / "data" / "sample" / "anns" / "test.json").write_text(json.dumps(records))
        row = evaluate(options, drawn, ["sample"], ["p6"], tmp_path / "out", num_pictures=0)["sample"]["p6"]
        clusters.append(row["clusters"])
    assert clusters == [len({record["img_name"] for record in read_records(sample)}), 3]


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ensemble": "crops"}, "--ensemble=crops: 'crops' is not known"),
        ({"ensemble": "flips", "probe": True}, "--probe compares single sentences: leave out --ensemble"),
        ({"tolerance": float("nan")}, "--tolerance and --num_pictures must be 0 or larger numbers"),
        ({"tolerance": -1.0}, "--tolerance and --num_pictures must be 0 or larger numbers"),
    ],
)
def test_options_that_make_no_sense_are_named(drawn, options, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        evaluate(options, drawn, ["sample"], ["p6"], tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_made_is_named(drawn, options, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is a file: give a folder"):
        evaluate(options, drawn, ["sample"], ["p6"], tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be written .*: choose another folder"):
        evaluate(options, drawn, ["sample"], ["p6"], tmp_path / "file" / "below")
    with pytest.raises(UserError, match="--prompt is missing: give p0"):
        evaluate(options, drawn, ["sample"], [], tmp_path / "out")


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
def test_what_does_not_fit_is_named_and_nothing_is_written(drawn, options, tmp_path, change, message):
    arguments = {"checkpoint": drawn, "datasets": ["sample"], "prompts": ["p6"], "split": "test"}
    for name, value in change.items():
        (arguments if name in arguments else options)[name] = value
    checkpoint, datasets, prompts = (arguments.pop(name) for name in ("checkpoint", "datasets", "prompts"))
    with pytest.raises(UserError, match=message):
        evaluate(options, checkpoint, datasets, prompts, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_several_checkpoints_have_folders_of_their_own(tmp_path):
    assert name_outputs(["a/b"], tmp_path) == {"a/b": tmp_path}
    assert name_outputs(["a/b", "a/c"], tmp_path) == {"a/b": tmp_path / "b", "a/c": tmp_path / "c"}
    assert name_outputs(["a/x", "b/x"], tmp_path) == {"a/x": tmp_path / "a-x", "b/x": tmp_path / "b-x"}
    with pytest.raises(UserError, match="two have the same name"):
        name_outputs(["a/x", "b/../a/x"], tmp_path)


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
