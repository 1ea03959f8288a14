"""What a report compares: one result for each training set, model, test dataset and prompt type."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from medvlsm_jax.evaluation.cases import Cases, read_cases
from medvlsm_jax.evaluation.file_names import CASES
from medvlsm_jax.evaluation.report import describe_cases
from medvlsm_jax.reporting.evaluations import ZERO_SHOT, Evaluation
from medvlsm_jax.reporting.published import published_datasets

INDIVIDUAL = "individual"  # as in the paper: trained on the very dataset of the test, and on no other
ORDER = (ZERO_SHOT, INDIVIDUAL, "pooled_polyp", "pooled_all")
IMAGE_ONLY_PROMPT = "image only"
# What may tell apart two runs of one model on one dataset: of the training, and of the evaluation.
TRAINING = (
    *("init", "freeze_encoder", "freeze_decoder", "data_num", "loss", "learning_rate", "weight_decay", "batch_size"),
    *("num_epochs", "zero_prompt", "model_options", "seed"),
)
SETTINGS = ("split", "ensemble", "threshold", "tolerance", "image_size")

Key = tuple[str, str]  # of a row: what it was trained on, and the model


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One cell of the tables.

    Attributes:
        trained_on: zero-shot, individual, or a pool or dataset.
        model: a preset, and what tells this run from another of the same model.
        network: of the preset.
        dataset: of the test.
        trained_prompt: the prompt type of the training, where that is another than the test's.
        prompt: the prompt type of the test; of a network that reads no sentence, IMAGE_ONLY_PROMPT.
        values: as in metrics.json.
        dice: of each record, 0 to 1.
        evaluations: where it comes from: one, or one for each class.
        missing: classes of the dataset that no run is of, where each run is of one class.
        source: dataset and prompt as these evaluations call them.
    """

    trained_on: str
    model: str
    network: str
    dataset: str
    trained_prompt: str
    prompt: str
    values: Mapping[str, Any]
    dice: Float[np.ndarray, " n"]
    evaluations: tuple[Evaluation, ...]
    missing: tuple[str, ...]
    source: tuple[str, str]

    @property
    def key(self) -> Key:
        """Of its row."""
        return self.trained_on, self.model

    @property
    def shown_prompt(self) -> str:
        """The prompt types of training and test."""
        return f"{self.trained_prompt} → {self.prompt}" if self.trained_prompt else self.prompt


def collect_results(
    evaluations: Sequence[Evaluation], classes: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> list[Result]:
    """All results in the order of the paper's table; runs on one class each become one result over all of them.

    Args:
        evaluations: what the results come from.
        classes: dataset -> its classes, so that a class of which no run has come out is not passed over in silence.
    """
    labels = label_models(evaluations)
    found: dict[tuple[str, str, str, str, str], list[tuple[Evaluation, str, str]]] = {}
    for evaluation in evaluations:
        for dataset, prompt in evaluation.conditions():
            key = (group_of(evaluation, dataset), labels[evaluation], dataset, *prompts_of(evaluation, prompt))
            found.setdefault(key, []).append((evaluation, dataset, prompt))
    results = [make_result(*key, parts, classes.get(key[2], ())) for key, parts in found.items()]
    return sorted(
        results,
        key=lambda one: (rank(one.trained_on), one.model, place(one.dataset), one.trained_prompt, one.prompt),
    )


def make_result(
    trained_on: str,
    model: str,
    dataset: str,
    trained_prompt: str,
    prompt: str,
    parts: Sequence[tuple[Evaluation, str, str]],
    classes: Sequence[str],
) -> Result:
    """A result from the evaluations that are part of it; where classes are missing, the model names those there."""
    evaluation, *source = parts[0]
    there = [part.target for part, _, _ in parts if part.target]
    missing = tuple(name for name in classes if there and name not in there)
    model = name_classes(model, there) if missing else model
    return Result(
        trained_on,
        model,
        str(evaluation.settings["network"]),
        dataset,
        trained_prompt,
        prompt,
        values=evaluation.metrics[source[0]][source[1]] if len(parts) == 1 else merge(parts),
        dice=np.concatenate([part.dice[name, condition] for part, name, condition in parts]),
        evaluations=tuple(part for part, _, _ in parts),
        missing=missing,
        source=(source[0], source[1]),
    )


def merge(parts: Sequence[tuple[Evaluation, str, str]]) -> dict[str, Any]:
    """The values over all records of several evaluations, each of another class, from their cases.csv."""
    selected: list[Cases] = []
    for evaluation, dataset, prompt in parts:
        cases = read_cases(evaluation.folder / CASES)
        selected.append(cases.select(cases.by("dataset", "prompt")[dataset, prompt]))
    of_classes = {evaluation.target: evaluation.metrics[dataset][prompt] for evaluation, dataset, prompt in parts}
    return describe_cases(join(selected)) | {"by": {"class": of_classes}}


def join(parts: Sequence[Cases]) -> Cases:
    """The lines of several files, with what all of them have."""
    texts = [name for name in parts[0].texts if all(name in part.texts for part in parts)]
    numbers = [name for name in parts[0].numbers if all(name in part.numbers for part in parts)]
    return Cases(
        {name: [text for part in parts for text in part.texts[name]] for name in texts},
        {name: np.concatenate([part.numbers[name] for part in parts]) for name in numbers},
    )


# --- Names and order -------------------------------------------------------------------------------------------------


def group_of(evaluation: Evaluation, dataset: str) -> str:
    """What a result is filed under: individual where the run was trained on the dataset alone."""
    return INDIVIDUAL if evaluation.domain == (dataset,) else evaluation.trained_on


def prompts_of(evaluation: Evaluation, prompt: str) -> tuple[str, str]:
    """The prompt type of the training, where that is another, and that of the test."""
    if not evaluation.reads_text:
        return "", IMAGE_ONLY_PROMPT
    return "" if evaluation.trained_prompt == prompt else evaluation.trained_prompt, prompt


def model_name(evaluation: Evaluation) -> str:
    """The preset; runs on one class each are another model than one run on all."""
    return f"{evaluation.settings['model']}{', one run a class' if evaluation.target else ''}"


def label_models(evaluations: Sequence[Evaluation]) -> dict[Evaluation, str]:
    """The model of each evaluation, with those settings that tell apart what would else share a cell."""
    varying = varying_settings(evaluations)
    return number_repeats({one: label(one, varying.get(model_name(one), [])) for one in evaluations})


def varying_settings(evaluations: Sequence[Evaluation]) -> dict[str, list[str]]:
    """Model -> the settings that differ between evaluations of it which would else share a cell."""
    cells: dict[tuple[str, ...], list[Evaluation]] = {}
    for evaluation in evaluations:
        for dataset, prompt in evaluation.conditions():
            cell = (group_of(evaluation, dataset), dataset, *prompts_of(evaluation, prompt))
            cells.setdefault((model_name(evaluation), evaluation.target, *cell), []).append(evaluation)
    varying: dict[str, list[str]] = {}
    for (model, *_), sharing in cells.items():
        settings = [settings_of(evaluation) for evaluation in sharing]
        names = [name for name in settings[0] if len({setting[name] for setting in settings}) > 1]
        varying[model] = list(dict.fromkeys([*varying.get(model, []), *names]))
    return varying


def number_repeats(labels: Mapping[Evaluation, str]) -> dict[Evaluation, str]:
    """The labels, with `run 2`, … where runs of the very same settings would share a cell."""
    taken: dict[tuple[str, ...], set[int]] = {}
    numbered: dict[Evaluation, str] = {}
    for one in sorted(labels, key=lambda one: one.name):
        cells = [
            (labels[one], one.target, group_of(one, dataset), dataset, *prompts_of(one, prompt))
            for dataset, prompt in one.conditions()
        ]
        used = {number for cell in cells for number in taken.get(cell, ())}
        number = next(number for number in itertools.count(1) if number not in used)
        for cell in cells:
            taken.setdefault(cell, set()).add(number)
        numbered[one] = labels[one] if number == 1 else f"{labels[one]}, run {number}"
    return numbered


def label(evaluation: Evaluation, names: Iterable[str]) -> str:
    """A model with some of its settings."""
    settings = settings_of(evaluation)
    return ", ".join([model_name(evaluation), *(f"{name}={settings[name]}" for name in names if settings[name])])


def name_classes(model: str, classes: Iterable[str]) -> str:
    """A model that was scored on some classes of a dataset alone."""
    return f"{model} ({', '.join(classes)})"


def settings_of(evaluation: Evaluation) -> dict[str, str]:
    """The settings that may tell two runs apart, as texts; of a path its last part."""
    values = {name: evaluation.training.get(name) for name in TRAINING}
    values |= {name: evaluation.settings.get(name) for name in SETTINGS}
    texts = {name: "" if value is None else str(value) for name, value in values.items()}
    return texts | {"init": Path(texts["init"]).name}


def titles_of(evaluations: Sequence[Evaluation], *, names_training: bool = True) -> dict[Evaluation, str]:
    """Each evaluation in a legend, by training set; what shares its title with another also has its run's name.

    Args:
        evaluations: all that stand in one report.
        names_training: whether the training set is said; else titles tell apart the runs of one training set alone.
    """
    labels = label_models(evaluations)
    short: dict[Evaluation, str] = {}
    for one in sorted(evaluations, key=lambda one: (rank(one.trained_on), labels[one], one.trained_prompt, one.name)):
        prompt = one.trained_prompt if one.training and one.reads_text else ""
        parts = [part for part in (one.trained_on if names_training else "", prompt, one.target) if part]
        short[one] = f"{labels[one]} ({', '.join(parts)})" if parts else labels[one]
    counts = Counter((one.trained_on, text) for one, text in short.items())
    return {one: text if counts[one.trained_on, text] == 1 else f"{text}: {one.name}" for one, text in short.items()}


def rank(trained_on: str) -> tuple[int, str]:
    """The order of training sets: the paper's, then by name."""
    return (ORDER.index(trained_on) if trained_on in ORDER else len(ORDER), trained_on)


def place(dataset: str) -> tuple[int, str]:
    """The order of datasets: the paper's columns, then by name."""
    known = published_datasets()
    return (known.index(dataset) if dataset in known else len(known), dataset)


# --- Choices ---------------------------------------------------------------------------------------------------------


def best_prompts(results: Iterable[Result]) -> dict[Key, dict[str, Result]]:
    """Row -> dataset -> the result of the prompt type with the highest mean Dice, which the paper reports."""
    best: dict[Key, dict[str, Result]] = {}
    for result in results:
        row = best.setdefault(result.key, {})
        if result.dataset not in row or result.values["dice_mean"] > row[result.dataset].values["dice_mean"]:
            row[result.dataset] = result
    return best


def datasets_of(results: Iterable[Result]) -> list[str]:
    """The datasets of some results, in the order of the paper's table."""
    return sorted({result.dataset for result in results}, key=place)
