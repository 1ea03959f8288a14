"""From one value an image to the files and tables that people read."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvlsm_jax import atomic

METRICS = ("dice", "iou")
COLUMNS = ("dataset", "prompt", "image", "mask", *METRICS, "sentence")

Case = Mapping[str, Any]  # one image: the COLUMNS


def summarise(cases: Sequence[Case]) -> dict[str, dict[str, dict[str, float]]]:
    """Dataset -> prompt -> n, and mean and sample standard deviation of each metric over images, 0 to 1."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    groups = dict.fromkeys((case["dataset"], case["prompt"]) for case in cases)
    for dataset, prompt in groups:
        group = [case for case in cases if (case["dataset"], case["prompt"]) == (dataset, prompt)]
        row: dict[str, float] = {"n": len(group)}
        for metric in METRICS:
            values = np.array([case[metric] for case in group], np.float64)
            row[f"{metric}_mean"] = float(values.mean())
            row[f"{metric}_std"] = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        summary.setdefault(dataset, {})[prompt] = row
    return summary


def write_report(folder: Path, cases: Sequence[Case]) -> dict[str, dict[str, dict[str, float]]]:
    """Writes cases.csv and metrics.json, and returns what metrics.json holds."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(cases)
    atomic.write_text(folder / "cases.csv", to_csv(cases))
    atomic.write_text(folder / "metrics.json", json.dumps(summary, indent=1) + "\n")
    return summary


def to_csv(cases: Iterable[Case]) -> str:
    """One line an image under a header."""
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for case in cases:
        writer.writerow({**case, **{metric: f"{case[metric]:.6f}" for metric in METRICS}})
    return text.getvalue()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Plain text in aligned columns; the first row is the header, columns after the first are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def percent(value: float) -> str:
    """A share as the paper prints it."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def summary_table(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The content of metrics.json as a table, in percent."""
    rows = [["dataset / prompt", "n", "Dice", "± std", "IoU", "± std"]]
    for dataset, prompts in summary.items():
        for prompt, row in prompts.items():
            values = [percent(row[f"{metric}_{kind}"]) for metric in METRICS for kind in ("mean", "std")]
            rows.append([f"{dataset} / {prompt}", str(int(row["n"])), *values])
    return table(rows)
