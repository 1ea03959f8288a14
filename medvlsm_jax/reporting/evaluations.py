"""Finished evaluations below some folders, as a report reads them."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation import file_names as evaluation_files
from medvlsm_jax.evaluation.cases import UNFINISHED, read_cases
from medvlsm_jax.evaluation.file_names import CASES, EVALUATION

RUN = "run.json"  # of a sweep
ZERO_SHOT = "zero-shot"
IMAGE_ONLY = ("unet", "unetplusplus", "deeplabv3plus")  # networks that read no sentence
REQUIRED = ("model", "network", "prompts", "trained")  # of evaluation.json
CURVES = ("train/loss", "val/dice")  # of metrics.jsonl


class Problem(NamedTuple):
    """A run that is not in the report, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """One finished evaluation.

    Attributes:
        name: of its run, the folder below those searched.
        folder: where its files are.
        settings: evaluation.json.
        metrics: metrics.json, dataset -> prompt -> values, 0 to 1.
        dice: (dataset, prompt) -> Dice of each record, 0 to 1, at the model's resolution.
        probe: probe.json, empty if there was none.
        curves: curves.json, empty if there was none.
        history: name -> rows of step and value, of metrics.jsonl.
        domain: datasets it was trained on; None where that is not known, empty for zero-shot.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]
    dice: Mapping[tuple[str, str], Float[np.ndarray, " n"]]
    probe: Mapping[str, Any]
    curves: Mapping[str, Any]
    history: Mapping[str, Float[np.ndarray, "steps 2"]]
    domain: tuple[str, ...] | None

    @property
    def training(self) -> Mapping[str, Any]:
        """The config of the training run; empty for zero-shot."""
        return self.settings["trained"] or {}

    @property
    def trained_on(self) -> str:
        """The dataset or pool of the training run, or zero-shot."""
        names = [Path(name).stem for name in str(self.training.get("dataset", "")).split("+")]
        return "+".join(names) if self.training else ZERO_SHOT

    @property
    def trained_prompt(self) -> str:
        """The prompt type of the training run; empty for zero-shot."""
        return str(self.training.get("prompt", ""))

    @property
    def target(self) -> str:
        """The one class whose records it was trained on, or empty."""
        return str(self.training.get("target") or "")

    @property
    def reads_text(self) -> bool:
        """Whether the network reads a sentence."""
        return self.settings["network"] not in IMAGE_ONLY

    def conditions(self) -> Iterator[tuple[str, str]]:
        """Datasets and prompt types with the right sentences; of a network that reads none, the first type."""
        for dataset, prompts in self.metrics.items():
            found = [prompt for prompt in self.settings["prompts"] if prompt in prompts]
            for prompt in found if self.reads_text else found[:1]:
                yield dataset, prompt


def find_evaluations(
    roots: Sequence[Path], training_datasets: Callable[[str], Sequence[str]]
) -> tuple[list[Evaluation], list[Problem]]:
    """Every finished evaluation below some folders, and what looks like one and is not.

    Args:
        roots: are searched with all folders below them; what is found in two is taken once.
        training_datasets: the single datasets that a dataset or pool trains on; a UserError says that it is not known.

    Raises:
        UserError: a folder does not exist, or there is no finished evaluation.
    """
    evaluations: list[Evaluation] = []
    problems: list[Problem] = []
    others: list[tuple[Problem, Path]] = []
    for name, folder, files in walk(roots):
        if EVALUATION in files:
            name = str(folder) if any(name == other.name for other in evaluations) else name
            try:
                evaluations.append(read_evaluation(name, folder, training_datasets))
            except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
                problems.append(Problem(name, f"cannot be read: {' '.join(str(error).split()) or repr(error)}"))
        elif CASES in files or UNFINISHED in files:
            problems.append(Problem(name, f"unfinished: {folder} has no {EVALUATION} yet, evaluate again"))
        elif RUN in files and not is_done(folder):
            others.append((Problem(name, "not finished: see log.txt"), folder))
        elif "config.json" in files and "metrics.jsonl" in files:
            others.append((Problem(name, "trained, but not evaluated"), folder))
    problems += unevaluated(others, evaluations, problems)
    if not evaluations:
        why = f" ({problems[0].name}: {problems[0].reason})" if problems else ""
        raise UserError(f"{', '.join(map(str, roots))}: no finished evaluation there{why}: evaluate a run first")
    return evaluations, sorted(problems)


def is_done(folder: Path) -> bool:
    """Whether a sweep's run has finished."""
    try:
        return read_json(folder / RUN).get("status") == "done"
    except ValueError:
        return False


def unevaluated(
    runs: Sequence[tuple[Problem, Path]], evaluations: Sequence[Evaluation], problems: Sequence[Problem]
) -> list[Problem]:
    """Those of the runs, each with its folder, that none of the evaluations is of."""
    known = {one.name for one in (*evaluations, *problems)}
    known_folders = {Path(one.settings["workdir"]).resolve() for one in evaluations if one.settings.get("workdir")}
    return [problem for problem, folder in runs if problem.name not in known and folder.resolve() not in known_folders]


def walk(roots: Sequence[Path]) -> Iterator[tuple[str, Path, list[str]]]:
    """The name, path and files of every folder below the roots, in the order of their paths."""
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} does not exist: give folders of runs or evaluations")
        for path, folders, files in os.walk(root):
            folders.sort()
            folder = Path(path)
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield run_name(folder, root, is_only=len(roots) == 1), folder, files


def run_name(folder: Path, root: Path, *, is_only: bool) -> str:
    """The path of a run below the folder searched, without the `evaluation` at its end."""
    run = folder.parent if folder.name == "evaluation" else folder
    if not run.is_relative_to(root) or run == root:
        return run.resolve().name
    return str(run.relative_to(root if is_only else root.parent))


def read_evaluation(name: str, folder: Path, training_datasets: Callable[[str], Sequence[str]]) -> Evaluation:
    """Reads the files of an evaluation; raises UserError, KeyError, TypeError or ValueError when one is broken."""
    settings, metrics = read_json(folder / EVALUATION), read_json(folder / evaluation_files.METRICS)
    cases = read_cases(folder / CASES)
    dice = {
        (dataset, prompt): cases.numbers["dice"][rows]
        for (dataset, prompt), rows in cases.by("dataset", "prompt").items()
    }
    if missing := [name for name in REQUIRED if name not in settings]:
        raise ValueError(f"{EVALUATION} has no {missing[0]}")
    evaluation = Evaluation(
        name,
        folder,
        settings,
        metrics,
        dice,
        probe=read_json(folder / evaluation_files.PROBE, is_required=False),
        curves=read_json(folder / evaluation_files.CURVES, is_required=False),
        history=read_history(history_file(folder, settings)),
        domain=domain_of(settings, training_datasets),
    )
    for dataset, prompt in evaluation.conditions():
        found, n = len(dice[dataset, prompt]), metrics[dataset][prompt]["n"]
        if found != n:
            raise ValueError(f"{dataset}, {prompt}: cases.csv has {found} lines and metrics.json n={n}")
    return evaluation


def read_json(path: Path, *, is_required: bool = True) -> dict[str, Any]:
    """A json object; raises ValueError, with the file's name, when it is none."""
    if not is_required and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no json object")
    return content


def domain_of(settings: Mapping[str, Any], training_datasets: Callable[[str], Sequence[str]]) -> tuple[str, ...] | None:
    """The datasets of a training run; None where its pool or card is not to be found any more."""
    if not settings["trained"]:
        return ()
    try:
        return tuple(training_datasets(settings["trained"]["dataset"]))
    except UserError:
        return None


def history_file(folder: Path, settings: Mapping[str, Any]) -> Path | None:
    """The metrics.jsonl of the training run: in its workdir, which may have been moved with the evaluation."""
    if not settings["trained"]:
        return None
    places = [Path(settings["workdir"])] if settings.get("workdir") else []
    return next((place / "metrics.jsonl" for place in (*places, folder.parent, folder) if has_log(place)), None)


def has_log(folder: Path) -> bool:
    """Whether a folder holds the numbers of a training run."""
    return (folder / "metrics.jsonl").is_file()


def read_history(path: Path | None) -> dict[str, Float[np.ndarray, "steps 2"]]:
    """The CURVES of a metrics.jsonl; lines that are broken, or whose value is no number, are left out."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text("utf-8", errors="replace").splitlines() if path else ():
        try:
            row = json.loads(line)
            if row["name"] in CURVES and row["value"] is not None:
                rows.setdefault(row["name"], []).append((row["step"], row["value"]))
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a run that was killed
    return {name: np.array(rows[name], np.float64) for name in CURVES if name in rows}
