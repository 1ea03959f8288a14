"""What an evaluation writes, and that devices and batches do not change it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data.images import open_image
from medvlsm_jax.data.prompts import split_prompts
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluate import default_config, evaluate

SENTENCE = "text:one small polyp, located in left of the image"


@pytest.fixture
def options(sample):
    options = default_config()
    options.data_dir = str(sample)
    options.batch_size = 8
    return options


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
        (prompt, record["img_name"], record["mask_name"]) for prompt in ("p6", "p0", SENTENCE) for record in records
    ]
    assert {case["dataset"] for case in cases} == {"sample"}
    sentences = [record["prompts"]["p6"] for record in records]
    assert [case["sentence"] for case in cases[: len(records)]] == sentences
    assert {case["sentence"] for case in cases[-len(records) :]} == {SENTENCE.removeprefix("text:")}
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "cases.csv"}


def test_the_summary_is_the_mean_and_deviation_of_the_cases(run, options, sample, tmp_path):
    row = evaluate(options, run, ["sample"], ["p6"], tmp_path)["sample"]["p6"]
    assert row["n"] == len(read_records(sample))
    for metric in ("dice", "iou"):
        values = np.array([float(case[metric]) for case in read_cases(tmp_path)])
        assert ((values >= 0) & (values <= 1)).all()
        assert row[f"{metric}_mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert row[f"{metric}_std"] == pytest.approx(values.std(ddof=1), abs=1e-6)


def test_a_split_can_be_chosen(run, options, sample, tmp_path):
    row = evaluate(options, run, ["sample"], ["p6"], tmp_path, split="val")["sample"]["p6"]
    assert row["n"] == len(read_records(sample, "val"))
    validated = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(line["value"] for line in validated if line["name"] == "val/dice")
    assert row["dice_mean"] == pytest.approx(best, abs=1e-6)  # of the best checkpoint, as training saw it


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 8), (1, 3), (8, 16)])
def test_devices_and_batch_size_do_not_change_a_case(
    run, options, use_devices, tmp_path, exact_matmul, devices, batch_size
):
    evaluate(options, run, ["sample"], ["p6"], tmp_path / "two")
    use_devices(devices)
    options.batch_size = batch_size
    evaluate(options, run, ["sample"], ["p6"], tmp_path / "other")
    for case, other in zip(read_cases(tmp_path / "two"), read_cases(tmp_path / "other"), strict=True):
        assert case["mask"] == other["mask"]
        for metric in ("dice", "iou"):
            assert float(case[metric]) == pytest.approx(float(other[metric]), abs=1e-6)


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
