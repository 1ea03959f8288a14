"""Tables as CSV for computing and as LaTeX (booktabs) for print."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medvlsm_jax import atomic
from medvlsm_jax.evaluation.cases import METRICS
from medvlsm_jax.reporting.comparison import INDIVIDUAL, Result, best_prompts, datasets_of
from medvlsm_jax.reporting.published import STATE_OF_THE_ART, published_dice
from medvlsm_jax.reporting.runs import ZERO_SHOT, Evaluation

TITLES = {
    **{"dice": "Dice", "iou": "IoU", "precision": "Precision", "recall": "Recall"},
    **{"dice_original": "Dice, original size", "iou_original": "IoU, original size"},
    **{"precision_original": "Precision, original size", "recall_original": "Recall, original size"},
    **{"hd95": "HD95", "nsd": "NSD"},
}
DISTANCE = "hd95"  # in pixels or mm, and better when small; all others are shares
KINDS = ("mean", "std", "low", "high")
MISSING = "–"


class Published(NamedTuple):
    """The paper's figure for a cell, and how far ours is above it; both in percent."""

    dice: float
    difference: float


def number(value: float | None, metric: str = "dice") -> str:
    """A share in percent as the paper prints it, or a distance with one decimal."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:.1f}" if metric == DISTANCE else f"{100 * value:.2f}"


def interval(values: Mapping[str, Any], metric: str = "dice") -> str:
    """The 95 % interval of a mean in brackets; empty where there is none."""
    low, high = values.get(f"{metric}_low"), values.get(f"{metric}_high")
    return "" if low is None or high is None else f"[{number(low, metric)}, {number(high, metric)}]"


def mean(values: Mapping[str, Any], metric: str = "dice") -> str:
    """A mean, with its unit where it is a distance."""
    text = number(values.get(f"{metric}_mean"), metric)
    return f"{text} {values.get('unit', 'px')}" if metric == DISTANCE and text != MISSING else text


def published(result: Result) -> Published | None:
    """What the paper reports for the same training set, network and dataset."""
    dice = published_dice().get((result.trained_on, result.network, result.dataset))
    return None if dice is None else Published(dice, 100 * result.values["dice_mean"] - dice)


def state_of_the_art(trained_on: str, datasets: Sequence[str]) -> list[float | None]:
    """What the paper cites as best for each dataset, in percent; nothing but for networks of their own."""
    found = [published_dice().get((trained_on, STATE_OF_THE_ART, dataset)) for dataset in datasets]
    return found if trained_on == INDIVIDUAL and any(found) else []


def present_metrics(results: Iterable[Result]) -> list[str]:
    """The metrics that some result has."""
    names = {name for result in results for name in result.values}
    return [metric for metric in METRICS if f"{metric}_mean" in names]


# --- CSV -------------------------------------------------------------------------------------------------------------


def metric_rows(evaluations: Sequence[Evaluation]) -> Iterable[Sequence[object]]:
    """Every number of every metrics.json, one a line: shares from 0 to 1, distances in their unit."""
    names = ("run", "model", "trained_on", "trained_prompt", "target", "dataset", "prompt", "group", "value", "metric")
    yield (*names, "n", "clusters", *KINDS, "unit")
    for evaluation in evaluations:
        settings = (evaluation.trained_on, evaluation.trained_prompt, evaluation.target)
        for dataset, prompts in evaluation.metrics.items():
            for prompt, values in prompts.items():
                run = (evaluation.name, evaluation.settings["model"], *settings, dataset, prompt)
                for group, value, numbers in [("", "", values), *groups_of(values)]:
                    for metric in [name for name in METRICS if f"{name}_mean" in numbers]:
                        found = [rounded(numbers.get(f"{metric}_{kind}")) for kind in KINDS]
                        unit = numbers.get("unit", "") if metric == DISTANCE else ""
                        counts = (numbers["n"], numbers.get("clusters", ""))
                        yield (*run, group, value, metric, *counts, *found, unit)


def groups_of(values: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Group, value and numbers of every split of a result."""
    return [(group, value, found) for group, split in values.get("by", {}).items() for value, found in split.items()]


def rounded(value: float | None) -> str:
    """A number with six decimals; empty where there is none."""
    return "" if value is None else f"{value:.6f}"


def table2_rows(results: Sequence[Result]) -> Iterable[Sequence[object]]:
    """The paper's Table 2 for these runs, a cell a line, in percent; prompt types are of training and test."""
    names = ("finetuned_on", "model", "network", "dataset", "trained_prompt", "prompt", "n", "dice", "low", "high")
    yield (*names, "published", "difference")
    for row in best_prompts(results).values():
        for one in row.values():
            trained = "" if one.trained_on == ZERO_SHOT else one.trained_prompt or one.prompt
            dice = [percents(one.values.get(f"dice_{kind}")) for kind in ("mean", "low", "high")]
            paper = published(one)
            beside = ("", "") if paper is None else (f"{paper.dice:.2f}", f"{paper.difference:+.2f}")
            yield (*one.key, one.network, one.dataset, trained, one.prompt, one.values["n"], *dice, *beside)


def percents(value: float | None) -> str:
    """A share in percent; empty where there is none."""
    return "" if value is None else number(value)


def probe_rows(evaluations: Sequence[Evaluation]) -> Iterable[Sequence[object]]:
    """The drop of every perturbation, and language use, one a line; Dice from 0 to 1."""
    yield ("run", "dataset", "prompt", "probe", "n", "unchanged", "drop", "low", "high", "p", "p_holm", "dice")
    for evaluation in evaluations:
        for dataset, prompts in evaluation.probe.items():
            for prompt, found in prompts.items():
                use = found["language_use"]
                named = {"language use": {**use, "drop": use["mean"]}} if use else {}
                for name, probe in {**found["probes"], **named}.items():
                    numbers = [rounded(probe.get(key)) for key in ("drop", "low", "high")]
                    tests = [f"{probe[key]:.3g}" if key in probe else "" for key in ("p", "p_holm")]
                    counts = (probe["n"], probe.get("unchanged", ""))
                    yield (
                        evaluation.name,
                        dataset,
                        prompt,
                        name,
                        *counts,
                        *numbers,
                        *tests,
                        rounded(probe.get("dice")),
                    )


# --- LaTeX -----------------------------------------------------------------------------------------------------------

SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"→": r"$\rightarrow$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(SPECIAL.get(character, character) for character in text)


def tabular(header: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], comment: str) -> str:
    """A tabular of finished cells with rules between groups of rows, to be input by a document."""
    lines = [f"% {comment}", r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}"]
    bodies = ["\n".join(f"{' & '.join(row)} \\\\" for row in rows) for rows in groups]
    head = " & ".join(map(escape_latex, header))
    lines += [r"\toprule", f"{head} \\\\", r"\midrule", "\n\\midrule\n".join(bodies), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def latex_table(results: Sequence[Result], metric: str) -> str:
    """A metric of every row and dataset with its interval below; of Dice, the paper's figure below that."""
    datasets = datasets_of(results)
    groups: dict[str, list[list[str]]] = {}
    for (trained_on, model), row in best_prompts(results).items():
        lines = groups.setdefault(trained_on, [])
        name = "" if lines else escape_latex(trained_on)
        cells = [mean(row[name].values, metric) if name in row else MISSING for name in datasets]
        lines.append([name, escape_latex(model), *map(escape_latex, cells)])
        lines.append(["", "", *(small(interval(row[name].values, metric) if name in row else "") for name in datasets)])
        if metric == "dice" and (beside := published_line(row, datasets)):
            lines.append(beside)
    for trained_on, lines in groups.items():
        if metric == "dice" and (best := state_of_the_art(trained_on, datasets)):
            lines.append(["", r"\textit{state of the art}", *(italic(value) for value in best)])
    unit = "" if metric == DISTANCE else " in percent"
    comment = (
        f"mean {TITLES[metric]}{unit}, 95 % interval; of each cell's best prompt type; published figures in italics"
    )
    return tabular(["Finetuned on", "Model", *datasets], list(groups.values()), comment)


def published_line(row: Mapping[str, Result], datasets: Sequence[str]) -> list[str]:
    """The paper's figures below a row of ours; empty where it has none."""
    found = [published(row[name]) if name in row else None for name in datasets]
    if not any(found):
        return []
    return ["", r"\textit{published}", *(italic(one.dice if one else None) for one in found)]


def italic(value: float | None) -> str:
    """A figure of the paper."""
    return "" if value is None else rf"\textit{{{value:.2f}}}"


def small(text: str) -> str:
    """An interval below its mean."""
    return rf"{{\scriptsize {text}}}" if text else ""


# --- All of them -----------------------------------------------------------------------------------------------------


def write_tables(folder: Path, evaluations: Sequence[Evaluation], results: Sequence[Result]) -> None:
    """Writes metrics.csv, table2.csv and table2.tex, a LaTeX table for every other metric, and probes.csv."""
    atomic.write_csv(folder / "metrics.csv", metric_rows(evaluations))
    atomic.write_csv(folder / "table2.csv", table2_rows(results))
    for metric in present_metrics(results):
        name = "table2" if metric == "dice" else metric
        atomic.write_text(folder / f"{name}.tex", latex_table(results, metric))
    if any(evaluation.probe for evaluation in evaluations):
        atomic.write_csv(folder / "probes.csv", probe_rows(evaluations))
