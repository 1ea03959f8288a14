"""Tables as CSV for computing and as LaTeX (booktabs) for print."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medvlsm_jax import atomic
from medvlsm_jax.evaluation.cases import METRICS
from medvlsm_jax.reporting.comparison import INDIVIDUAL, Result, best_prompts, datasets_of, settings_of
from medvlsm_jax.reporting.evaluations import ZERO_SHOT, Evaluation
from medvlsm_jax.reporting.published import STATE_OF_THE_ART, published_dice
from medvlsm_jax.reporting.seeds import SeedGroup, seed_groups

TITLES = {
    **{"dice": "Dice", "iou": "IoU", "precision": "Precision", "recall": "Recall"},
    **{"dice_original": "Dice, original size", "iou_original": "IoU, original size"},
    **{"precision_original": "Precision, original size", "recall_original": "Recall, original size"},
    **{"hd95": "HD95", "nsd": "NSD"},
}
DISTANCE = "hd95"  # in pixels or mm, and better when small; all others are shares
# The settings of the paper's figures; what a zero-shot evaluation or an older one lacks is empty.
AS_PUBLISHED = {"split": ("", "test"), "ensemble": ("",), "data_num": ("", "1.0"), "zero_prompt": ("", "False")}
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
    """What the paper reports for the same training set, network and dataset, of a result that compares with it."""
    dice = published_dice().get((result.trained_on, result.network, result.dataset))
    return (
        None if dice is None or not is_comparable(result) else Published(dice, 100 * result.values["dice_mean"] - dice)
    )


def is_comparable(result: Result) -> bool:
    """Whether a result is of what the paper's are: all training data, all classes, the test split, one sentence."""
    if result.missing or any(one.settings.get("target", one.target) != one.target for one in result.evaluations):
        return False
    settings = [settings_of(evaluation) for evaluation in result.evaluations]
    return all(one[name] in values for one in settings for name, values in AS_PUBLISHED.items())


def state_of_the_art(results: Sequence[Result], datasets: Sequence[str]) -> list[float | None]:
    """What the paper cites as best for each dataset, in percent, where results of its own training compare with it."""
    own = {result.dataset for result in results if result.trained_on == INDIVIDUAL and is_comparable(result)}
    found = [published_dice().get((INDIVIDUAL, STATE_OF_THE_ART, name)) if name in own else None for name in datasets]
    return found if any(found) else []


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


def seed_rows(groups: Sequence[SeedGroup]) -> Iterable[Sequence[object]]:
    """Mean and standard deviation of every metric over the seeds, one a line; shares from 0 to 1."""
    names = ("finetuned_on", "model", "network", "dataset", "trained_prompt", "prompt", "metric", "seeds", "k")
    yield (*names, "mean", "std", "unit")
    for group in groups:
        one, seeds = group.results[0], "+".join(group.seeds)
        about = (one.trained_on, group.model, one.network, one.dataset, one.trained_prompt, one.prompt)
        for metric in present_metrics(group.results):
            spread = [rounded(value) for value in group.spread(metric)]
            unit = one.values.get("unit", "") if metric == DISTANCE else ""
            yield (*about, metric, seeds, len(group.seeds), *spread, unit)


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
        own = [one for one in results if one.trained_on == trained_on]
        if metric == "dice" and (best := state_of_the_art(own, datasets)):
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


def write_tables(folder: Path, evaluations: Sequence[Evaluation], results: Sequence[Result]) -> set[Path]:
    """Writes metrics.csv, table2.csv and table2.tex, a LaTeX table for every other metric, probes.csv and seeds.csv.

    Returns:
        What was written.
    """
    lists = {"metrics": metric_rows(evaluations), "table2": table2_rows(results)}
    if any(evaluation.probe for evaluation in evaluations):
        lists["probes"] = probe_rows(evaluations)
    if groups := seed_groups(results):
        lists["seeds"] = seed_rows(groups)
    written = {folder / f"{name}.csv": rows for name, rows in lists.items()}
    for path, rows in written.items():
        atomic.write_csv(path, rows)
    texts = {
        folder / f"{'table2' if metric == 'dice' else metric}.tex": latex_table(results, metric)
        for metric in present_metrics(results)
    }
    for path, text in texts.items():
        atomic.write_text(path, text)
    return {*written, *texts}
