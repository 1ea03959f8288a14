"""The sections of a report, in their order; cases and runs are made here."""

from collections.abc import Sequence
from pathlib import Path

from medvlsm_jax.evaluation.file_names import KINDS, PICTURES
from medvlsm_jax.evaluation.pictures import file_name
from medvlsm_jax.reporting.comparison import Result, datasets_of, settings_of, titles_of
from medvlsm_jax.reporting.evaluations import Evaluation, Problem
from medvlsm_jax.reporting.figures import shorten
from medvlsm_jax.reporting.page import Html, Plate, Section, count, heading, image, paragraph, table
from medvlsm_jax.reporting.section_charts import curves_section, domain_section, language_section, learning_section
from medvlsm_jax.reporting.section_tables import groups_section, prompts_section, table2_section
from medvlsm_jax.reporting.tables import mean

SETTINGS = ("init", "freeze_encoder", "data_num", "seed", "split", "ensemble", "threshold", "image_size")


def make_sections(
    evaluations: Sequence[Evaluation], results: Sequence[Result], problems: Sequence[Problem]
) -> list[Section]:
    """The sections that these runs have data for, in their order."""
    titles = titles_of(evaluations)
    sections = [
        table2_section(results),
        prompts_section(results),
        domain_section(titles),
        learning_section(titles),
        language_section(titles),
        cases_section(results),
        groups_section(results),
        curves_section(titles),
        runs_section(evaluations, problems),
    ]
    return [section for section in sections if section]


def cases_section(results: Sequence[Result]) -> Section | None:
    """Overlays of the best, median and worst records of each dataset's best run that has pictures."""
    body: list[Html | Plate] = []
    for dataset in datasets_of(results):
        chosen = [(one, picture_files(one)) for one in results if one.dataset == dataset]
        chosen = [(one, files) for one, files in chosen if files]
        if chosen:
            one, files = max(chosen, key=lambda pair: pair[0].values["dice_mean"])
            where = f"{one.model}, finetuned on {one.trained_on}, prompt {shorten(one.prompt)}"
            body += [heading(dataset), paragraph(f"{where}: mean Dice {mean(one.values)} %, n = {one.values['n']}.")]
            body += [picture_row(kind, [file for file in files if file.stem.startswith(kind)]) for kind in KINDS]
    definition = (
        "The three records with the highest Dice, the three around the median and the three with the lowest, of the "
        "best run and prompt type of each dataset; prediction blue, truth outlined in yellow. Those of other runs are "
        "in pictures/ of their evaluations."
    )
    return Section("Best, median and worst cases", definition, body) if body else None


def picture_files(result: Result) -> list[Path]:
    """The overlays of a result, in folders named after dataset and prompt."""
    dataset, prompt = result.source
    return sorted((result.evaluations[0].folder / PICTURES / dataset / file_name(prompt)).glob("*.jpg"))


def picture_row(kind: str, files: Sequence[Path]) -> Html:
    """Overlays side by side."""
    images = "".join(image(file.read_bytes(), "jpeg", f"{kind} case") for file in files)
    return Html(
        f'<figure><div class="cases">{images}</div><figcaption>{kind.capitalize()} cases.</figcaption></figure>'
    )


def runs_section(evaluations: Sequence[Evaluation], problems: Sequence[Problem]) -> Section:
    """What was evaluated, with which settings, and what is left out."""
    lines = []
    for one in evaluations:
        settings = settings_of(one)
        model = [one.name, str(one.settings["model"]), parameters(one.settings.get("parameters"))]
        tested = [", ".join(one.metrics), ", ".join(one.settings["prompts"])]
        training = [one.trained_on, one.trained_prompt, one.target]
        lines.append([*model, *training, *(settings[name] for name in SETTINGS), *tested])
    names = [name.replace("_", " ") for name in SETTINGS]
    header = ["run", "model", "parameters", "finetuned on", "prompt", "target", *names, "test datasets", "test prompts"]
    body: list[Html | Plate] = [
        table(header, lines, "The evaluations of this report and their settings.", is_text=True)
    ]
    if problems:
        caption = "Left out of this report."
        body.append(table(["run", "reason"], problems, caption, is_text=True))
    definition = f"This report holds {count(len(evaluations), 'evaluation')}; left out: {len(problems)}."
    return Section("Runs", definition, body)


def parameters(count: int | None) -> str:
    """A number of parameters in millions."""
    return "" if count is None else f"{count / 1e6:.2f} M"
