"""The sections of a report that are charts by run: domains, learning curves, language use, calibration."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medvlsm_jax.evaluation.probes import SIGNIFICANT
from medvlsm_jax.reporting import figures
from medvlsm_jax.reporting.comparison import titles_of
from medvlsm_jax.reporting.evaluations import Evaluation
from medvlsm_jax.reporting.page import Html, Plate, Section, cell, count, heading, paragraph, table
from medvlsm_jax.reporting.probe_page import PROBE_DEFINITIONS, drop_bar, drop_bars, probe_finding, probe_table, signed
from medvlsm_jax.reporting.tables import number

MAX_POINTS = 400  # of a curve; longer ones are averaged in blocks

Titles = Mapping[Evaluation, str]  # in legends

# --- Domains ------------------------------------------------------------


def domain_section(titles: Titles) -> Section | None:
    """Test datasets among those of the training against all others."""
    short = titles_of(list(titles), names_training=False)
    panels: dict[str, dict[str, dict[str, figures.Bar]]] = {}
    lines: list[list[str]] = []
    for evaluation, title in titles.items():
        inside, outside, prompt = split_domains(evaluation)
        if inside and outside:
            bars = {name: domain_bar(evaluation, name, prompt, name in inside) for name in (*inside, *outside)}
            panels.setdefault(f"finetuned on {evaluation.trained_on}", {})[short[evaluation]] = bars
            lines.append(domain_line(evaluation, title, inside, outside, prompt))
    if not lines:
        return None
    definition = (
        "A test dataset is in-domain if it is among the training datasets of the run, else out-of-domain; a run's "
        "prompt type is the one with the highest mean Dice in its domain. Where there are several, that choice on the "
        "test images makes the Dice in the domain slightly optimistic, and the loss outside it slightly too large."
    )
    unknown = [evaluation.name for evaluation in titles if evaluation.domain is None]
    note = (
        [paragraph(f"Not shown, for their training datasets are not known: {', '.join(unknown)}.")] if unknown else []
    )
    caption = "Mean Dice with 95 % intervals; filled in the domain of the training, hollow outside it."
    plates = [
        Plate(f"domains{suffix}", figures.dots(chosen, figures.names_of(panels.values()), "Dice"), caption)
        for suffix, chosen in figures.split_panels(panels)
    ]
    names = ["run", "prompt", "datasets in", "Dice in, %", "datasets out", "Dice out, %", "difference, points"]
    averages = table(
        names, lines, "Averages of the datasets' mean Dice, in and out of the domain; n is of records.", text_columns=2
    )
    return Section("In-domain and out-of-domain", definition, [*plates, averages, *note])


def split_domains(evaluation: Evaluation) -> tuple[list[str], list[str], str]:
    """The datasets inside and outside the training's domain, and the prompt type that is best inside."""
    conditions: dict[str, list[str]] = {}
    for dataset, prompt in evaluation.conditions():
        conditions.setdefault(prompt, []).append(dataset)
    inside = [name for name in evaluation.metrics if name in (evaluation.domain or ())]
    outside = [name for name in evaluation.metrics if evaluation.domain and name not in inside]
    whole = [prompt for prompt, names in conditions.items() if set(names) == set(evaluation.metrics)]
    if not inside or not outside or not whole:
        return [], [], ""
    return inside, outside, max(whole, key=lambda prompt: average(evaluation, inside, prompt))


def average(evaluation: Evaluation, datasets: Sequence[str], prompt: str) -> float:
    """The average of the datasets' mean Dice, 0 to 1."""
    return float(np.mean([evaluation.metrics[name][prompt]["dice_mean"] for name in datasets]))


def domain_bar(evaluation: Evaluation, dataset: str, prompt: str, is_inside: bool) -> figures.Bar:
    """A mean Dice with its interval, 0 to 1."""
    values = evaluation.metrics[dataset][prompt]
    return figures.Bar(values["dice_mean"], values.get("dice_low"), values.get("dice_high"), is_inside)


def domain_line(
    evaluation: Evaluation, title: str, inside: Sequence[str], outside: Sequence[str], prompt: str
) -> list[str]:
    """A line of the table of averages."""
    means = [average(evaluation, names, prompt) for names in (inside, outside)]
    counts = [sum(evaluation.metrics[name][prompt]["n"] for name in names) for names in (inside, outside)]
    cells = [
        text
        for names, value, n in zip((inside, outside), means, counts, strict=True)
        for text in (str(len(names)), cell(number(value), f"n = {n}"))
    ]
    return [title, prompt, *cells, signed(means[1] - means[0])]


# --- Learning and calibration ------------------------------------------------------------


def learning_section(titles: Titles) -> Section | None:
    """Loss and validation Dice over the steps of the training."""
    plates: list[Html | Plate] = []
    short = titles_of(list(titles), names_training=False)
    trained = [one for one in titles if one.history]
    caption = (
        "Training loss and mean Dice over the validation records, by training step; long curves are averaged in blocks "
        f"to {MAX_POINTS} points."
    )
    for trained_on in dict.fromkeys(one.trained_on for one in trained):
        for i, chosen in enumerate(in_figures([one for one in trained if one.trained_on == trained_on]), 1):
            panels: dict[str, dict[str, np.ndarray]] = {}
            for name, label in (("train/loss", "training loss"), ("val/dice", "validation Dice")):
                curves = {short[one]: thin(one.history[name]) for one in chosen if name in one.history}
                panels |= {label: curves} if curves else {}
            chart = figures.lines(panels, [short[one] for one in chosen], ["step"] * len(panels), list(panels))
            plates.append(Plate(f"learning_curves-{trained_on}-{i}", chart, f"Finetuned on {trained_on}. {caption}"))
    definition = f"The course of the training of {count(len(trained), 'run')}; a step is one batch."
    return Section("Learning curves", definition, plates) if plates else None


def in_figures(evaluations: Sequence[Evaluation]) -> Iterable[Sequence[Evaluation]]:
    """Evaluations in groups that one legend can hold."""
    for i in range(0, len(evaluations), figures.MAX_SERIES):
        yield evaluations[i : i + figures.MAX_SERIES]


def thin(points: np.ndarray) -> np.ndarray:
    """A curve of at most MAX_POINTS, each the mean of as many neighbours."""
    size = -(-len(points) // MAX_POINTS)
    return np.stack([points[i : i + size].mean(axis=0) for i in range(0, len(points), size)])


def curves_section(titles: Titles) -> Section | None:
    """Dice over the threshold, and how often a probability is right."""
    chosen = [one for one in titles if one.curves]
    if not chosen:
        return None
    plates: list[Html | Plate] = []
    lines: list[list[str]] = []
    for dataset in dict.fromkeys(name for one in chosen for name in one.curves):
        for i, some in enumerate(in_figures([one for one in chosen if dataset in one.curves])):
            named = {
                f"{titles[one]}, {prompt}": one.curves[dataset][prompt]
                for one in some
                for prompt in right(one, dataset)
            }
            caption = f"{dataset}: mean Dice by threshold, and reliability of the probabilities of all pixels."
            plates.append(Plate(f"calibration-{dataset}-{i + 1}", calibration_figure(named), caption))
            lines += [
                [dataset, name, f"{found['best_threshold']:.2f}", number(found["best_dice"]), f"{found['ece']:.4f}"]
                for name, found in named.items()
            ]
    definition = (
        "Threshold: mean Dice where a pixel is predicted if its probability exceeds it, best one chosen on these very "
        "records. Reliability: of the pixels in a bin of probabilities, the share that is foreground; on the diagonal "
        "the probabilities are right. ECE: mean distance from it, weighted by pixels."
    )
    names = ["dataset", "run", "best threshold", "Dice there, %", "ECE"]
    best = table(names, lines, "Best threshold and expected calibration error (ECE).", text_columns=2)
    return Section("Threshold and calibration", definition, [*plates, best])


def right(evaluation: Evaluation, dataset: str) -> list[str]:
    """The prompt types of a dataset's curves, without the perturbed sentences of probes."""
    return [prompt for name, prompt in evaluation.conditions() if name == dataset and prompt in evaluation.curves[name]]


def calibration_figure(named: Mapping[str, Mapping[str, Any]]) -> Any:
    """Both panels of a dataset."""
    sweep = {name: np.column_stack([found["thresholds"], found["dice"]]) for name, found in named.items()}
    reliability = {name: reliable(found["reliability"]) for name, found in named.items()}
    return figures.lines(
        {"mean Dice by threshold": sweep, "reliability": reliability},
        list(named),
        ["threshold", "predicted probability"],
        ["Dice", "share of foreground"],
        diagonal="reliability",
    )


def reliable(found: Mapping[str, Sequence[float | None]]) -> np.ndarray:
    """The points of a reliability diagram; bins without pixels are left out."""
    bins = zip(found["confidence"], found["frequency"], found["pixels"], strict=True)
    points = [(x, y) for x, y, pixels in bins if pixels]
    return np.array(points, np.float64).reshape(-1, 2)


# --- Language ------------------------------------------------------------


def language_section(titles: Titles) -> Section | None:
    """Language use of each run, and the drop of each perturbation."""
    probed = [one for one in titles if one.probe]
    body: list[Html | Plate] = []
    mark = f"Filled bars with an asterisk are shown to be above 0 (p < {SIGNIFICANT:g})."
    for i, chosen in enumerate(in_figures(probed), 1):
        series = [titles[one] for one in chosen]
        for suffix, panels in figures.split_panels(use_panels(chosen, titles)):
            chart = figures.bars(panels, series, "language use, percentage points of Dice")
            body.append(Plate(f"language_use-{i}{suffix}", chart, f"Language use with 95 % intervals. {mark}"))
        caption = f"Drop in Dice when the sentence is changed, with 95 % intervals. {mark}"
        for suffix, panels in figures.split_panels(drop_panels(chosen, titles)):
            chart = figures.bars(panels, series, "drop in Dice, percentage points")
            body.append(Plate(f"probes-{i}{suffix}", chart, caption))
    for one in probed:
        body.append(heading(titles[one]))
        for key, found in probed_conditions(one).items():
            name = ", ".join(key)
            body.append(paragraph(f"{name}: {probe_finding(found)}", "finding"))
            body.append(probe_table(found, f"Perturbations, {titles[one]}, {name}."))
    return Section("Does the model use the language?", " ".join(PROBE_DEFINITIONS), body) if body else None


def probed_conditions(evaluation: Evaluation) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(dataset, prompt type) -> what its probes show, where a sentence could be changed."""
    return {
        (dataset, prompt): found
        for dataset, prompts in evaluation.probe.items()
        for prompt, found in prompts.items()
        if found["probes"]
    }


def use_panels(evaluations: Sequence[Evaluation], titles: Titles) -> dict[str, dict[str, dict[str, figures.Bar]]]:
    """Dataset -> run -> prompt type -> language use."""
    panels: dict[str, dict[str, dict[str, figures.Bar]]] = {}
    for one in evaluations:
        for (dataset, prompt), found in probed_conditions(one).items():
            if use := found["language_use"]:
                panels.setdefault(dataset, {}).setdefault(titles[one], {})[prompt] = drop_bar(use, "mean")
    return panels


def drop_panels(evaluations: Sequence[Evaluation], titles: Titles) -> dict[str, dict[str, dict[str, figures.Bar]]]:
    """Dataset and prompt type -> run -> perturbation -> drop."""
    panels: dict[str, dict[str, dict[str, figures.Bar]]] = {}
    for one in evaluations:
        for key, found in probed_conditions(one).items():
            panels.setdefault(", ".join(key), {})[titles[one]] = drop_bars(found)
    return panels
