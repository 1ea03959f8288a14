"""The sections of a report that are tables by dataset: Table 2, prompt types, groups."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medvlsm_jax.reporting import figures
from medvlsm_jax.reporting.comparison import Key, Result, best_prompts, datasets_of
from medvlsm_jax.reporting.page import Html, Plate, Section, cell, escape, paragraph, table
from medvlsm_jax.reporting.probe_page import signed
from medvlsm_jax.reporting.seeds import SeedGroup, seed_groups
from medvlsm_jax.reporting.tables import (
    DISTANCE,
    MISSING,
    TITLES,
    groups_of,
    interval,
    mean,
    number,
    present_metrics,
    published,
    state_of_the_art,
)

NOT_SHOWN = ("precision_original", "recall_original")  # on the page; they are in metrics.csv
CHOICE = (
    "Of the prompt types of a row the one with the highest mean Dice on the test images is shown, as in the paper; the "
    "choice makes these numbers slightly optimistic."
)


def table2_section(results: Sequence[Result]) -> Section:
    """The paper's Table 2 for these runs, then their other metrics."""
    rows, datasets = best_prompts(results), datasets_of(results)
    definition = (
        "Mean Dice in percent of each test dataset, at the model's resolution: twice the overlap by the sum of both "
        "areas of each record, 1 where truth and prediction are both empty and 0 where one is, averaged over n records."
    )
    caption = (
        "Mean Dice (%) with its 95 % interval (bootstrap over images or patients) and the prompt type; the best of a "
        "training set is bold. In italics the paper's figure for the same training set and network (MIDL 2024, Table "
        "2), and ours minus it, where ours is of the test split, one sentence an image and all training data. An arrow "
        "leads from the prompt type of the training to that of the test."
    )
    if any(one.missing for one in results):
        caption += " A model with classes in brackets was scored on these alone, not on all of the dataset."
    choice = CHOICE if len({one.shown_prompt for one in results}) > 1 else f"Prompt type: {results[0].shown_prompt}."
    body = [paragraph(choice), table(header(results, datasets), table2_lines(rows, datasets), caption, text_columns=2)]
    if metrics := [metric for metric in present_metrics(results) if metric not in NOT_SHOWN]:
        body.append(metrics_table(rows, metrics))
    if groups := seed_groups(results):
        body.append(seeds_table(groups))
    return Section("Segmentation, beside the published figures", definition, body)


def header(results: Sequence[Result], datasets: Sequence[str]) -> list[str]:
    """The head of a table by datasets, with the records of each."""
    counts = {name: sorted({one.values["n"] for one in results if one.dataset == name}) for name in datasets}
    ranges = {name: f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}" for name, n in counts.items()}
    return ["finetuned on", "model", *(cell(name, ranges[name]) for name in datasets)]


def table2_lines(rows: Mapping[Key, Mapping[str, Result]], datasets: Sequence[str]) -> Iterable[list[str]]:
    """The rows of Table 2; the state of the art that the paper cites ends the individual ones."""
    trained = [trained_on for trained_on, _ in rows]
    for i, ((trained_on, model), row) in enumerate(rows.items()):
        peers = [other for key, other in rows.items() if key[0] == trained_on]
        cells = [table2_cell(row[name], peers) if name in row else Html(MISSING) for name in datasets]
        yield [trained_on if trained.index(trained_on) == i else "", model, *cells]
        is_last = trained_on not in trained[i + 1 :]
        own = [one for peer in peers for one in peer.values()]
        if is_last and (best := state_of_the_art(own, datasets)):
            cited = [paper_line("" if value is None else f"{value:.2f}") for value in best]
            yield ["", Html("<i>state of the art, as the paper cites it</i>"), *cited]


def table2_cell(result: Result, peers: Sequence[Mapping[str, Result]]) -> Html:
    """A mean, its interval, its prompt type and the paper's figure."""
    whole = [peer[result.dataset] for peer in peers if result.dataset in peer and not peer[result.dataset].missing]
    top = max((one.values["dice_mean"] for one in whole), default=None)
    is_best = len(peers) > 1 and result in whole and result.values["dice_mean"] == top
    ours = cell(mean(result.values), interval(result.values), figures.shorten(result.shown_prompt, 24), is_best=is_best)
    paper = published(result)
    return ours if paper is None else Html(ours + paper_line(f"{paper.dice:.2f} ({signed(paper.difference / 100)})"))


def paper_line(text: str) -> Html:
    """A figure of the paper."""
    return Html(f'<span class="paper">{escape(text)}</span>')


def metrics_table(rows: Mapping[Key, Mapping[str, Result]], metrics: Sequence[str]) -> Html:
    """Every metric of the results in Table 2."""
    found = [one for row in rows.values() for one in row.values()]
    lines = [
        [*labels, one.dataset, str(one.values["n"])]
        + [cell(mean(one.values, metric), interval(one.values, metric)) for metric in metrics]
        for labels, one in zip(row_labels(found), found, strict=True)
    ]
    names = ["finetuned on", "model", "dataset", "n", *(TITLES[metric] for metric in metrics)]
    caption = "All metrics of the same results, with 95 % intervals; in percent but for HD95. "
    if DISTANCE in metrics:
        missed = sum(one.values.get("hd95_one_empty", 0) for one in found)
        caption += (
            "HD95: the larger 95th percentile of the distances from one boundary to the other; where one mask is empty "
            f"it is the image's diagonal ({missed} records here), so that missing a structure is never rewarded. NSD: "
            "share of both boundaries within the tolerance of the other. Both and what is called original size are of "
            "the probabilities resized to the image's own size."
        )
    return table(names, lines, caption, text_columns=3)


def seeds_table(groups: Sequence[SeedGroup]) -> Html:
    """Mean and standard deviation over the seeds of the training."""
    datasets = datasets_of(group.results[0] for group in groups)
    rows: dict[tuple[str, str, str], dict[str, Html]] = {}
    for group in groups:
        one = group.results[0]
        spread = " ± ".join(number(value) for value in group.spread("dice"))
        row = rows.setdefault((one.trained_on, group.model, one.shown_prompt), {})
        row[one.dataset] = cell(spread, f"{len(group.seeds)} seeds")
    lines = [[*key, *(row.get(name, MISSING) for name in datasets)] for key, row in rows.items()]
    caption = (
        "Mean Dice (%) over runs that differ in nothing but the seed of their training, ± the standard deviation "
        "between seeds; seeds.csv has all metrics."
    )
    return table(["finetuned on", "model", "prompt", *datasets], lines, caption, text_columns=3)


def row_labels(results: Sequence[Result]) -> list[tuple[str, str]]:
    """What each was trained on and its model, where it differs from the result before."""
    keys = [one.key for one in results]
    pairs = zip([("", ""), *keys], keys, strict=False)
    return [("" if key[0] == before[0] else key[0], "" if key == before else key[1]) for before, key in pairs]


def prompts_section(results: Sequence[Result]) -> Section:
    """Dice by prompt type, as boxes over the records and as means."""
    definition = "Dice of each record by prompt type: how far the choice of the sentence matters, n as given."
    body: list[Html | Plate] = []
    models = list(dict.fromkeys(result.model for result in results))
    for trained_on in dict.fromkeys(result.trained_on for result in results):
        chosen = [result for result in results if result.trained_on == trained_on]
        caption = (
            f"Dice of each record by prompt type, finetuned on: {trained_on}. Boxes from quartile to quartile with "
            f"median (line) and mean (diamond), whiskers from the {figures.WHISKERS[0]}th to the "
            f"{figures.WHISKERS[1]}th percentile."
        )
        body += [
            Plate(f"dice_by_prompt-{trained_on}{suffix}", figures.box_plots(panels, models, "Dice"), caption)
            for suffix, panels in figures.split_panels(prompt_panels(chosen))
        ]
    if len({result.prompt for result in results}) > 1:
        body.append(prompts_table(results))
    return Section("Prompt types", definition, body)


def prompt_panels(results: Sequence[Result]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Dataset -> prompt type -> model -> Dice of each record."""
    panels: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for dataset in datasets_of(results):
        chosen = [result for result in results if result.dataset == dataset]
        counts = sorted({len(result.dice) for result in chosen})
        trained = {result.trained_prompt for result in chosen}
        title = f"{dataset} (n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))})"
        title += f", trained with {chosen[0].trained_prompt}" if len(trained) == 1 and trained != {""} else ""
        for result in chosen:
            prompt = result.prompt if len(trained) == 1 else result.shown_prompt
            panels.setdefault(title, {}).setdefault(prompt, {})[result.model] = result.dice
    return panels


def prompts_table(results: Sequence[Result]) -> Html:
    """Mean Dice of each row and dataset by prompt type."""
    prompts = sorted({result.prompt for result in results})
    rows: dict[tuple[Key, str, str], dict[str, Result]] = {}
    for result in results:
        rows.setdefault((result.key, result.dataset, result.trained_prompt), {})[result.prompt] = result
    shown = [next(iter(row.values())) for row in rows.values()]
    lines = []
    for labels, one, row in zip(row_labels(shown), shown, rows.values(), strict=True):
        top = max(result.values["dice_mean"] for result in row.values()) if len(row) > 1 else None
        cells = [
            cell(mean(row[name].values), is_best=row[name].values["dice_mean"] == top) if name in row else ""
            for name in prompts
        ]
        lines.append([*labels, one.dataset, one.trained_prompt, str(one.values["n"]), *cells])
    header = ["finetuned on", "model", "dataset", "trained with", "n", *(figures.shorten(name, 24) for name in prompts)]
    caption = (
        "Mean Dice (%) by the prompt type of the test, which is that of the training too unless it is named; the best "
        "of a line is bold."
    )
    return table(header, lines, caption, text_columns=4)


def groups_section(results: Sequence[Result]) -> Section | None:
    """Dice by class, sex, age, …, of the results in Table 2."""
    chosen = [one for row in best_prompts(results).values() for one in row.values()]
    split = list(dict.fromkeys((one.dataset, group) for one in chosen for group, _, _ in groups_of(one.values)))
    if not split:
        return None
    body: list[Html | Plate] = []
    for dataset, group in split:
        some = [one for one in chosen if one.dataset == dataset and group in one.values.get("by", {})]
        names = list(dict.fromkeys(name for one in some for name in one.values["by"][group]))
        lines = [
            [*labels, *(group_cell(one.values["by"][group].get(name)) for name in names)]
            for labels, one in zip(row_labels(some), some, strict=True)
        ]
        caption = f"{dataset} by {group.replace('_', ' ')}: mean Dice (%), 95 % interval and records."
        body.append(table(["finetuned on", "model", *names], lines, caption, text_columns=2))
    definition = (
        "Mean Dice of the records of each group, where a dataset tells them apart; groups differ in more than their "
        "name, so a difference is no effect."
    )
    return Section("By class, sex, age and view", definition, body)


def group_cell(values: Mapping[str, Any] | None) -> Html:
    """Mean, interval and n of a group."""
    return Html(MISSING) if values is None else cell(mean(values), interval(values), f"n = {values['n']}")
