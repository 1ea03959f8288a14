"""From one value an image to the tables that people read."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medvlsm_jax.evaluation.cases import Cases
from medvlsm_jax.evaluation.statistics import estimate_columns
from medvlsm_jax.text import interval, percent, table

Summary = dict[str, dict[str, dict[str, Any]]]  # dataset -> condition -> name -> number


def summarise(cases: Cases) -> Summary:
    """What metrics.json holds: dataset -> condition -> `describe_cases`, and so `by` class, sex and others."""
    summary: Summary = {}
    for (dataset, prompt), rows in cases.by("dataset", "prompt").items():
        group = cases.select(rows)
        row = describe_cases(group)
        if parts := {name: split(group, name) for name in group.groups if is_telling(group, name)}:
            row["by"] = parts
        summary.setdefault(dataset, {})[prompt] = row
    return summary


def describe_cases(cases: Cases) -> dict[str, Any]:
    """Of each metric mean, sample standard deviation and 95 % interval over all the cases.

    `n` are the records, `clusters` the images or patients that are resampled for the interval, which is null for
    fewer than two; `hd95_one_empty` are the records whose HD95 is the image's diagonal.
    """
    names = list(cases.numbers)
    estimates = estimate_columns(np.stack(list(cases.numbers.values()), axis=1), cases.texts["cluster"])
    row: dict[str, Any] = {"n": estimates[0].n, "clusters": estimates[0].clusters}
    for name, found in zip(names, estimates, strict=True):
        row |= {f"{name}_{field}": getattr(found, field) for field in ("mean", "std", "low", "high")}
    if "hd95" in names:
        row["unit"] = "/".join(dict.fromkeys(cases.texts["unit"]))
        row["hd95_one_empty"] = cases.texts["one_empty"].count("1")
    return row


def is_telling(cases: Cases, group: str) -> bool:
    """Whether the cases differ in a group."""
    return len(set(cases.texts[group])) > 1


def split(cases: Cases, group: str) -> dict[str, dict[str, Any]]:
    """The cases of each value of a group, by themselves; those that do not tell are `unknown`."""
    return {
        value or "unknown": describe_cases(cases.select(rows)) for (value,), rows in sorted(cases.by(group).items())
    }


def summary_table(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The content of metrics.json as a table, in percent but for HD95."""
    has_surface = any("hd95_mean" in row for prompts in summary.values() for row in prompts.values())
    rows = [["dataset / prompt", "n", "Dice", "95 % interval", "IoU", *(["HD95", "NSD"] if has_surface else [])]]
    for dataset, prompts in summary.items():
        for prompt, row in prompts.items():
            values = [percent(row["dice_mean"]), interval(row["dice_low"], row["dice_high"]), percent(row["iou_mean"])]
            if has_surface:
                values += [f"{row['hd95_mean']:.2f} {row['unit']}", percent(row["nsd_mean"])]
            rows.append([f"{dataset} / {prompt}", str(row["n"]), *values])
    return table(rows)
