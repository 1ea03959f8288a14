"""Records with files of their own, and the ways to spoil them."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.findings import Finding

PROMPTS = {"p0": "", "p1": "polyp"}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def make_record(folder: Path, i: int = 0, dataset: str = "mine", prompts: dict = PROMPTS) -> Record:
    """A good record: a colour image and a mask of 0 and 255."""
    image, mask = folder / dataset / "images" / f"{i}.png", folder / dataset / "masks" / f"{i}_mask.png"
    for path, pixels in ((image, noise(20, 30, 3)), (mask, noise(20, 30) // 128 * 255)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return Record(Card(dataset), image, mask, prompts, name=mask.name)


def with_image(record: Record, image: Image.Image, suffix: str = ".png", **options) -> Record:
    path = record.image.with_suffix(suffix)
    image.save(path, **options)
    return dataclasses.replace(record, image=path)


def with_mask(record: Record, mask: Image.Image) -> Record:
    mask.save(record.mask)
    return record


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    assert "\n" not in str(finding)
    return finding
