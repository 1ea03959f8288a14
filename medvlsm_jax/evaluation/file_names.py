"""The names of what an evaluation writes: for the program that writes it and the reports that read it."""

import collections
import re
from collections.abc import Sequence

EVALUATION = "evaluation.json"  # what was evaluated, and how; written last
METRICS = "metrics.json"
CASES = "cases.csv"
PROBE, PROBE_PAGE = "probe.json", "probe.html"
CURVES = "curves.json"
PICTURES = "pictures"  # of the KINDS of cases, in folders by dataset and `pictures.file_name` of the condition
MASKS = "masks"
KINDS = ("best", "median", "worst")
PREDICTIONS = ("mask", "probability", "overlay")  # NAME_mask.png, …
PICTURE_FILES = re.compile(rf"({'|'.join(KINDS)})_\d+\.jpg|.+_({'|'.join(PREDICTIONS)})\.png")
# What a folder may hold of an older evaluation, which a new one replaces: what is written last goes first.
RESULTS = (EVALUATION, METRICS, CASES, PROBE, PROBE_PAGE, CURVES, PICTURES, MASKS)


def unique_names(names: Sequence[str], longer: Sequence[str]) -> list[str]:
    """Names of which no two are alike, letter case apart, as some file systems have it.

    Args:
        names: of things, in their order.
        longer: what those are called whose names others have as well; of equal ones all but the first get a number.
    """
    counts = collections.Counter(name.casefold() for name in names)
    wanted = [long if counts[name.casefold()] > 1 else name for name, long in zip(names, longer, strict=True)]
    reserved, taken = {name.casefold() for name in wanted}, set[str]()
    found = []
    for name in wanted:
        unique, number = name, 1
        while unique.casefold() in taken or (unique != name and unique.casefold() in reserved):
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique.casefold())
        found.append(unique)
    return found
