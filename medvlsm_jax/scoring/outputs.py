"""What an evaluation writes: lines of cases.csv, masks, tables and pages."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from medvlsm_jax import atomic
from medvlsm_jax.checkpoints.model_folder import Pretrained
from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.groups import cluster_of, groups_of
from medvlsm_jax.data.images import open_image, to_rgb
from medvlsm_jax.data.language.conditions import is_asked, sentence_of
from medvlsm_jax.data.reading.pipeline import Loader
from medvlsm_jax.evaluation import cases as case_files
from medvlsm_jax.evaluation import file_names
from medvlsm_jax.evaluation.cases import CaseLog, Cases
from medvlsm_jax.evaluation.curves import summarise_curves
from medvlsm_jax.evaluation.original import score_original
from medvlsm_jax.evaluation.pictures import file_name, write_prediction
from medvlsm_jax.evaluation.probes import summarise_probes
from medvlsm_jax.evaluation.report import Summary, summarise
from medvlsm_jax.models import network_of, preset_of
from medvlsm_jax.parallel.first_process import cannot_write
from medvlsm_jax.reporting.probe_page import write_probe_page
from medvlsm_jax.scoring.plan import Options, Plan
from medvlsm_jax.scoring.scorer import BatchScores, check_finite


def score_case(
    record: Record,
    condition: str,
    probability: np.ndarray,
    truth: np.ndarray,
    *,
    output: Path,
    threshold: float,
    options: Options,
) -> dict[str, float]:
    """The scores of one image at its own size; writes its mask, probability and overlay if that is asked for.

    Raises:
        UserError: they cannot be written, or probabilities are not finite.
    """
    check_finite(record, bool(np.isfinite(probability).all()))
    if options.save_masks:
        path = output / file_names.MASKS / record.dataset / file_name(condition) / record.key
        image = to_rgb(open_image(record.image))
        try:
            write_prediction(path.parent, path.name, image, probability, threshold, truth > 0)
        except OSError as error:
            raise cannot_write(f"--output={output}", error) from error
    if not options.original_size:
        return {}
    spacing = record.spacing or (1.0, 1.0)
    return score_original(probability, truth, threshold, tolerance=options.tolerance, spacing=spacing)


def case_rows(dataset: str, loader: Loader, scores: BatchScores) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The lines of cases.csv for a batch, record by record, and what is counted for each."""
    rows, counts = [], []
    for row, index in enumerate(scores.indices):
        record = loader.records[index]
        about = {"dataset": dataset, "image": record.image.name, "mask": record.name, "record": record.key}
        about |= {"cluster": cluster_of(record)} | groups_of(record) | {"unit": "mm" if record.spacing else "px"}
        for condition, variants in (loader.variants or {}).items():
            if is_asked(variants, index):
                values: dict[str, Any] = {name: float(column[row]) for name, column in scores.scores[condition].items()}
                if "one_empty" in values:
                    values["one_empty"] = int(values["one_empty"])
                rows.append(about | {"prompt": condition, "sentence": sentence_of(variants, index)} | values)
                counts += [scores.counts[condition][row]] if scores.counts else []
    return rows, counts


def write_results(plan: Plan, log: CaseLog, cases: Cases) -> Summary:
    """Writes the tables of all cases, what else is asked for, and at last that the evaluation is finished."""
    summary = summarise(cases)
    write_tables(plan, log, cases, summary)
    about = describe_run(plan.checkpoint, plan.source)
    about |= {"datasets": list(plan.sets), "prompts": plan.prompts, "target": plan.target}
    about |= dataclasses.asdict(plan.options) | {"settings": plan.settings}
    write_json(plan.output / file_names.EVALUATION, about)
    log.forget_settings()
    return summary


def write_tables(plan: Plan, log: CaseLog, cases: Cases, summary: Summary) -> None:
    """Writes cases.csv, metrics.json, and curves.json, probe.json and probe.html where they are asked for."""
    if plan.options.curves:
        write_json(plan.output / file_names.CURVES, summarise_curves(cases, plan.output / case_files.COUNTS))
    if plan.options.probe:
        probes = summarise_probes(cases, plan.prompts)
        write_json(plan.output / file_names.PROBE, probes)
        write_probe_page(plan.output / file_names.PROBE_PAGE, probes, plan.checkpoint)
    write_json(plan.output / file_names.METRICS, summary)
    log.finish()


def write_json(path: Path, content: Any) -> None:
    """Writes a json file, whole or not at all."""
    atomic.write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def describe_run(checkpoint: str | Path, source: Pretrained) -> dict[str, Any]:
    """Which model is evaluated, and on what it was trained; `trained` is null for a converted checkpoint."""
    trained = None
    if (Path(checkpoint) / "config.json").is_file():
        trained = json.loads((Path(checkpoint) / "config.json").read_text("utf-8"))
    return {
        "checkpoint": str(checkpoint),
        "model": trained["model"] if trained else preset_of(source.config),
        "network": network_of(source.config),
        "threshold": source.config.threshold,
        "image_size": source.config.image_size,
        "parameters": sum(array.size for array in source.arrays.values()),
        "trained": trained,
        "workdir": str(checkpoint) if trained else None,
    }
