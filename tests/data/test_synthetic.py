"""The drawn sample: its layout, its sentences, what the masks have to do with them, and how it is written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlsm_jax.data import synthetic
from medvlsm_jax.errors import UserError

NUM_IMAGES, SIZE = 12, 128
P6 = re.compile(
    r"one (?P<size>small|medium) (?P<color>\w+) (?P<shape>round|oval|irregular) "
    r"(?P<noun>polyp|skin lesion|tumor|opacity)"
    r", located in (?P<location>center|left|right|(top|bottom)( left| right)?) of the image"
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return synthetic.write_sample(tmp_path_factory.mktemp("data"), num_images=NUM_IMAGES, size=SIZE)


def read_split(sample: Path, split: str) -> list[dict]:
    return json.loads((sample / "anns" / f"{split}.json").read_text())


def read_objects(sample: Path) -> dict[str, list[dict]]:
    """The records of all splits by image."""
    objects: dict[str, list[dict]] = {}
    for split in ("train", "val", "test"):
        for record in read_split(sample, split):
            objects.setdefault(record["img_name"], []).append(record)
    return objects


def read_mask(sample: Path, record: dict) -> np.ndarray:
    return np.asarray(Image.open(sample / "masks" / record["mask_name"]))


def read_bytes(sample: Path) -> dict[str, bytes]:
    return {str(path.relative_to(sample)): path.read_bytes() for path in sample.rglob("*") if path.is_file()}


def test_the_layout_is_the_datasets(sample):
    objects = read_objects(sample)
    assert sample.name == synthetic.SAMPLE
    assert {path.name for path in (sample / "images").iterdir()} == set(objects)
    masks = [record["mask_name"] for records in objects.values() for record in records]
    assert sorted(path.name for path in (sample / "masks").iterdir()) == sorted(masks)
    assert all(2 <= len(records) <= 3 for records in objects.values())
    with Image.open(sample / "images" / next(iter(objects))) as image:
        assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))


def test_splits_share_no_image_and_modalities_are_even(sample):
    splits = [{record["img_name"] for record in read_split(sample, split)} for split in ("train", "val", "test")]
    assert [len(names) for names in splits] == [10, 1, 1]
    assert len(set.union(*splits)) == NUM_IMAGES
    prefixes = [name.split("_")[0] for name in set.union(*splits)]
    assert {prefix: prefixes.count(prefix) for prefix in prefixes} == dict.fromkeys(synthetic.MODALITIES, 3)


def test_prompts_follow_the_papers_grammar(sample):
    words = set(synthetic.vocabulary())
    assert list(synthetic.vocabulary()) == sorted(words)
    for records in read_objects(sample).values():
        for record in records:
            prompts = record["prompts"]
            match = P6.fullmatch(prompts["p6"])
            assert match, prompts["p6"]
            assert list(prompts) == ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "other"]
            assert (prompts["p0"], prompts["p1"]) == ("", match["noun"])
            assert prompts["p2"] == f"{match['shape']} {prompts['p1']}"
            assert prompts["p3"] == f"{match['color']} {prompts['p2']}"
            assert prompts["p4"] == f"{match['size']} {prompts['p3']}"
            assert prompts["p5"] == f"one {prompts['p4']}"
            assert set(re.findall(r"\w+", prompts["p6"])) <= words


def test_objects_of_an_image_differ_in_colour_location_and_sentence(sample):
    for records in read_objects(sample).values():
        sentences = [record["prompts"]["p6"] for record in records]
        for attribute in ("color", "location"):
            assert len({P6.fullmatch(sentence)[attribute] for sentence in sentences}) == len(records)
        assert [record["prompts"]["other"] for record in records] == sentences[1:] + sentences[:1]


def test_masks_are_binary_and_disjoint(sample):
    for records in read_objects(sample).values():
        masks = np.stack([read_mask(sample, record) for record in records])
        assert masks.shape == (len(records), SIZE, SIZE)
        assert set(np.unique(masks)) == {0, 255}
        assert np.sum(masks > 127, axis=0).max() == 1
        assert np.all(np.mean(masks > 127, axis=(1, 2)) >= 0.02)


def test_words_describe_the_mask(sample):
    for records in read_objects(sample).values():
        for record in records:
            mask, words = read_mask(sample, record) > 127, P6.fullmatch(record["prompts"]["p6"])
            assert words["size"] == ("medium" if mask.mean() > 0.08 else "small")
            rows, columns = np.nonzero(mask)
            row = ("top", "center", "bottom")[int((rows.min() + rows.max() + 1) / 2 * 3 / SIZE)]
            column = ("left", "center", "right")[int((columns.min() + columns.max() + 1) / 2 * 3 / SIZE)]
            expected = " ".join(word for word in (row, column) if word != "center") or "center"
            assert words["location"] == expected


def test_colour_words_describe_the_pixels(sample):
    """Mean brightness in the mask is on the right side of the rest of the image for the grey modalities' words."""
    for name, records in read_objects(sample).items():
        image = np.asarray(Image.open(sample / "images" / name)).mean(-1)
        rest = image[~np.any([read_mask(sample, record) > 127 for record in records], axis=0)].mean()
        for record in records:
            contrast = image[read_mask(sample, record) > 127].mean() - rest
            color = P6.fullmatch(record["prompts"]["p6"])["color"]
            assert color not in ("dark", "black") or contrast < -20
            assert color not in ("bright", "white") or contrast > 20


def test_files_do_not_depend_on_the_workers(sample, tmp_path):
    parallel = synthetic.write_sample(tmp_path, num_images=NUM_IMAGES, size=SIZE, workers=2)
    assert read_bytes(parallel) == read_bytes(sample)


def test_an_image_does_not_depend_on_how_many_there_are(sample, tmp_path):
    longer = synthetic.write_sample(tmp_path, num_images=NUM_IMAGES + 4, size=SIZE)
    name = "endoscopy_00000.png"
    assert (longer / "images" / name).read_bytes() == (sample / "images" / name).read_bytes()


def test_a_finished_sample_is_reused_and_another_seed_replaces_it(tmp_path):
    first = synthetic.write_sample(tmp_path, num_images=NUM_IMAGES, size=64)
    before, stamp = read_bytes(first), (first / "SOURCE.json").stat()
    assert synthetic.write_sample(tmp_path, num_images=NUM_IMAGES, size=64) == first
    after = (first / "SOURCE.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    synthetic.write_sample(tmp_path, num_images=NUM_IMAGES, size=64, seed=1)
    other = read_bytes(first)
    assert all(other[name] != before[name] for name in before if name.startswith(("images", "anns")))
    assert [path.name for path in tmp_path.iterdir()] == [synthetic.SAMPLE]


@pytest.mark.parametrize("finished_before", [False, True])
def test_a_broken_run_leaves_no_half_sample(tmp_path, monkeypatch, finished_before):
    if finished_before:
        synthetic.write_sample(tmp_path, num_images=NUM_IMAGES, size=64)
    before = read_bytes(tmp_path)
    draw = synthetic._draw

    def broken_draw(seed, index, size):
        if index == 5:
            raise KeyboardInterrupt
        return draw(seed, index, size)

    monkeypatch.setattr(synthetic, "_draw", broken_draw)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_sample(tmp_path, num_images=NUM_IMAGES, size=64, seed=1, workers=1)
    assert read_bytes(tmp_path) == before
    assert (tmp_path / synthetic.SAMPLE).exists() == finished_before


@pytest.mark.parametrize("content", [None, "[1, 2", "[]", '{"dataset": "Kvasir-SEG"}'])
def test_a_folder_from_elsewhere_is_left_alone(tmp_path, content):
    mine = tmp_path / synthetic.SAMPLE / ("SOURCE.json" if content else "mine.txt")
    mine.parent.mkdir()
    mine.write_text(content or "keep")
    with pytest.raises(UserError, match="was not drawn by this program"):
        synthetic.write_sample(tmp_path, num_images=NUM_IMAGES)
    assert mine.read_text() == (content or "keep")


@pytest.mark.parametrize("bad", [{"num_images": 9}, {"size": 63}, {"seed": -1}, {"workers": 0}])
def test_arguments_out_of_range_are_refused(tmp_path, bad):
    with pytest.raises(UserError, match="cannot draw"):
        synthetic.write_sample(tmp_path, **bad)
