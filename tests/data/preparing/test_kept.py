"""Patients and pixel sizes come through every tool that writes records anew: intervals and millimetres rest on them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medvlsm_jax.data.cards import SPLITS, Card
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.preparing.annotate import annotate
from medvlsm_jax.data.preparing.arrayrecord_writer import write_store
from medvlsm_jax.data.preparing.prepare import prepare

CARD = Card("mine", targets=("polyp",), descriptions=("a lump",))
KNOWN = {i: (f"patient {i // 2}", (0.5, 0.25)) for i in range(6)}  # of each image; a patient has two, one is called so
IN = {"train": (0, 1), "val": (2, 3), "test": (4, 5)}


def write_dataset(root: Path, draw, card: Card, *, published: bool) -> None:
    """A dataset of other origin, with patients and pixel sizes; `published` words or none."""
    for split, numbers in IN.items():
        inner = card.subfolder
        draw.write_pairs(numbers, root / "images" / inner, root / "masks" / inner, ".png", ".png")
        entries = [
            {
                "img_name": f"{i}.png",
                "mask_name": f"{i}.png",
                "prompts": {"p0": "", "p1": "polyp"} | ({"p2": "heart polyp"} if published else {}),
                "group": KNOWN[i][0],
                "spacing": list(KNOWN[i][1]),
            }
            for i in numbers
        ]
        (root / "anns").mkdir(exist_ok=True)
        (root / "anns" / f"{split}.json").write_text(json.dumps(entries))


def made_again(data_dir: Path, card: Card) -> Path:
    annotate(data_dir / "mine", card, workers=1)
    return data_dir


def with_words(data_dir: Path, card: Card) -> Path:
    annotate(data_dir / "mine", card, workers=1, overrides={"0.png": {"color": "gold"}}, descriptions=["a bump"])
    return data_dir


def keeping_words(data_dir: Path, card: Card) -> Path:
    annotate(data_dir / "mine", card, workers=1, keep=["shape"])
    return data_dir


def twice(data_dir: Path, card: Card) -> Path:
    return made_again(keeping_words(data_dir, card), card)


def from_csv(data_dir: Path, card: Card) -> Path:
    """The annotations as published ones of a download: to records.csv, and from there to annotations again."""
    anns = (data_dir / "mine" / "anns").rename(data_dir / "published")
    raw = (data_dir / "mine").rename(data_dir / "raw")
    prepare(dataclasses.replace(card, importer="folders"), raw, data_dir / "new", annotations=anns, workers=1)
    return made_again(data_dir / "new", card)


def as_published(data_dir: Path, card: Card) -> Path:
    anns = (data_dir / "mine" / "anns").rename(data_dir / "published")
    raw = (data_dir / "mine").rename(data_dir / "raw")
    prepare(dataclasses.replace(card, importer="folders"), raw, data_dir / "new", annotations=anns, workers=1)
    return data_dir / "new"


def as_store(data_dir: Path, card: Card) -> Path:
    pytest.importorskip("tensorflow_datasets")
    write_store(data_dir, card, data_dir / "stores")
    return data_dir / "stores"


TOOLS = (made_again, with_words, keeping_words, twice, from_csv, as_published, as_store)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
@pytest.mark.parametrize("subfolder", ["", "inner"])
def test_patients_and_pixel_sizes_survive(tmp_path, draw, tool: Callable[[Path, Card], Path], subfolder):
    card = dataclasses.replace(CARD, subfolder=subfolder)
    write_dataset(tmp_path / "mine", draw, card, published=True)
    (tmp_path / "mine.toml").write_text(f'name = "mine"\ntargets = ["polyp"]\nsubfolder = "{subfolder}"\n')
    data_dir = tool(tmp_path, card)
    for split in SPLITS:
        records = load_records(data_dir, str(tmp_path / "mine.toml"), split)
        assert {int(record.image.stem): (record.group, record.spacing) for record in records} == {
            i: KNOWN[i] for i in IN[split]
        }
