"""Copies across splits are found however they were saved; other images of the kind are not taken for them."""

import dataclasses
import io

import numpy as np
import pytest
from checked_records import make_record
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from medvlsm_jax.data.facts import read_facts
from medvlsm_jax.data.near_copies import find_alike, find_near_copies, parts_of
from medvlsm_jax.data.signatures import find_signature, from_text, to_text

SIZE = 160


def picture(seed: int, kind: str = "photograph") -> Image.Image:
    """Smooth random colours; of `fan` grey speckle in the same fan, black around it, as scanners of ultrasound give."""
    rng = np.random.default_rng(seed)
    values = [gaussian_filter(rng.normal(0, 1, (SIZE, SIZE)), 6) for _ in range(3)]
    shown = np.stack([128 + 50 * v / v.std() for v in values], axis=-1)
    if kind == "fan":
        y, x = np.mgrid[:SIZE, :SIZE] / SIZE
        inside = (np.hypot(x - 0.5, y + 0.1) < 1) & (np.abs(np.arctan2(x - 0.5, y + 0.1)) < 0.6)
        speckle = gaussian_filter(rng.normal(0, 1, (SIZE, SIZE)), 1)
        grey = (90 + 0.4 * (shown[..., 0] - 128) + 20 * speckle / speckle.std()) * inside
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=40)
    return Image.open(stream)


COPIES = {
    "as it is": lambda image: image,
    "compressed": as_jpeg,
    "a third of the size": lambda image: image.resize((50, 60)),
    "brighter": lambda image: image.point(lambda value: 0.9 * value + 20),
    "mirrored": ImageOps.mirror,
    "upside down": lambda image: image.rotate(180),
    "upside down and mirrored": ImageOps.flip,
}


def split_of(folder, images: list[Image.Image], first: int = 0) -> list:
    records = []
    for i, image in enumerate(images):
        record = make_record(folder, first + i)
        image.save(record.image)
        records.append(dataclasses.replace(record))
    return records


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ["photograph", "fan"])
def test_a_copy_is_found_with_how_it_is_turned(tmp_path, kind, how):
    train = split_of(tmp_path, [picture(i, kind) for i in range(6)])
    test = split_of(tmp_path, [picture(9, kind), COPIES[how](picture(3, kind))], first=6)
    splits = {"train": train, "test": test}
    (copy,) = find_near_copies(splits, read_facts([*train, *test], None))
    assert (copy.first, copy.second, copy.splits, copy.indices) == (train[3], test[1], ("train", "test"), (3,))
    assert copy.how.strip() == (how if "mirrored" in how or "upside" in how else "")
    assert f"looks like {test[1].image}{copy.how} of the split test" in copy.finding.text


def test_one_file_in_two_splits_and_images_without_contrast_are_none(tmp_path):
    black = [Image.new("L", (SIZE, SIZE)), Image.new("L", (SIZE, SIZE), 3)]
    shared = split_of(tmp_path, [picture(0)])
    splits = {"train": [*shared, *split_of(tmp_path, black, 1)], "test": [*shared, *split_of(tmp_path, black, 3)]}
    facts = read_facts([record for records in splits.values() for record in records], None)
    assert find_near_copies(splits, facts) == []


def test_a_signature_survives_as_text():
    signature = find_signature(picture(0))
    assert np.linalg.norm(signature) == pytest.approx(1)
    assert (from_text(to_text(signature)) * signature).sum() > 0.999
    assert to_text(find_signature(Image.new("L", (SIZE, SIZE), 7))) == ""


def test_many_are_compared_in_blocks():
    rng = np.random.default_rng(0)
    texts = [to_text(rng.normal(size=(12, 12)).astype(np.float32)) for _ in range(600)]
    ones, others = parts_of(texts), parts_of(texts[::-1])
    assert sorted(find_alike(ones, others)) == [(i, 599 - i) for i in range(600)]


def test_real_images_have_no_false_copies(shared):
    """Every second image of a real dataset against the others."""
    from medvlsm_jax.data.loading import load_records

    for dataset in ("busi", "isic", "kvasir_polyp"):
        splits = {s: load_records(shared / "realdata", dataset, s, is_required=False) for s in ("train", "val", "test")}
        records = [record for several in splits.values() for record in several]
        halves = {"train": records[::2], "test": records[1::2]}
        names = {split: {str(record.image) for record in found} for split, found in halves.items()}
        halves["test"] = [record for record in halves["test"] if str(record.image) not in names["train"]]
        assert find_near_copies(halves, read_facts(records, None)) == []
