"""A line of cases.csv, for tests that need many."""

from typing import Any


def make_case(dataset: str = "busi", prompt: str = "p1", dice: float = 0.5, **more: Any) -> dict[str, Any]:
    """A line of cases.csv."""
    found = {"dataset": dataset, "prompt": prompt, "image": "a.png", "mask": "b.png"}
    found |= {"record": more.get("mask", "b.png"), "dice": dice, "iou": dice / 2}
    found |= {"precision": dice, "recall": dice, "cluster": "a.png", "sentence": "one polyp, located in left"}
    return found | more
