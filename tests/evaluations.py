"""What tests read of the folders that evaluations write."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def read_cases(folder: Path) -> list[dict[str, str]]:
    """The lines of cases.csv."""
    with (folder / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_records(sample: Path, split: str = "test") -> list[dict[str, Any]]:
    """The annotations of the drawn sample."""
    return json.loads((sample / "sample" / "anns" / f"{split}.json").read_text())


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


def write_rectangles(data_dir: Path) -> None:
    """A dataset `rectangles` with images of several sizes, and images and masks of several modes."""
    root = data_dir / "rectangles"
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
