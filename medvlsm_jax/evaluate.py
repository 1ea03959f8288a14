r"""Scores a checkpoint, or several.

    python -m medvlsm_jax.evaluate --checkpoint=DIR --config.data_dir=DIR --dataset=kvasir_polyp --prompt=p6 \
        --output=DIR

Writes `cases.csv` (one line an image and prompt type), `metrics.json` (per dataset and prompt type, with intervals) and
pictures of the best, the median and the worst cases; masks, threshold curves and `--probe` on request. Whatever stops
it, the same command goes on from there. Of several checkpoints each has a folder of its own below the output.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from medvlsm_jax import atomic
from medvlsm_jax.config import base_config, reader_options
from medvlsm_jax.data.annotations import Record, check_classes, load_split, select_target
from medvlsm_jax.data.arrayrecord import check_stored_size
from medvlsm_jax.data.cache import open_cache, stamp
from medvlsm_jax.data.cards import JOIN, split_members
from medvlsm_jax.data.conditions import (
    Conditions,
    is_asked,
    lines_before,
    perturbed_conditions,
    prompt_conditions,
    sentence_of,
    split_ensemble,
)
from medvlsm_jax.data.facts import default_cache
from medvlsm_jax.data.groups import GROUPS, cluster_of, groups_of
from medvlsm_jax.data.images import open_image, to_rgb
from medvlsm_jax.data.integrity import verify
from medvlsm_jax.data.pipeline import Loader
from medvlsm_jax.data.prompts import split_prompts
from medvlsm_jax.errors import UserError, check_folder, run_program
from medvlsm_jax.evaluation import cases as case_files
from medvlsm_jax.evaluation import files
from medvlsm_jax.evaluation.cases import CaseLog, Cases
from medvlsm_jax.evaluation.curves import COUNTS_BYTES, summarise_curves
from medvlsm_jax.evaluation.metrics import ORIGINAL
from medvlsm_jax.evaluation.original import score_original
from medvlsm_jax.evaluation.pictures import file_name, write_prediction
from medvlsm_jax.evaluation.probes import probe_table, probed_name, summarise_probes
from medvlsm_jax.evaluation.report import Summary, summarise, summary_table
from medvlsm_jax.models import check_image_size, network_of, preset_of
from medvlsm_jax.reporting.page import write_probe_page
from medvlsm_jax.training import sharding
from medvlsm_jax.training.case_pictures import choose_drawn, draw_cases
from medvlsm_jax.training.case_scores import BatchScores, Scorer
from medvlsm_jax.training.checkpoints import Pretrained, fingerprint, load_model_tokenizer, load_pretrained
from medvlsm_jax.training.distributed import start_jax
from medvlsm_jax.training.scoring import eval_batch_size
from medvlsm_jax.training.segmenter import make_segmenter
from medvlsm_jax.training.start import model_overrides

VERSION = 1  # raise it when the same command gives other numbers


@dataclasses.dataclass(frozen=True)
class Options:
    """What is evaluated besides Dice, IoU, precision and recall at the model's resolution.

    Attributes:
        split: train, val or test.
        save_masks: write masks, probabilities and overlays at the images' own sizes.
        original_size: score the masks at the images' own sizes too, by HD95 and NSD as well.
        tolerance: of NSD, in mm where a dataset's pixel spacing is known, else in pixels.
        curves: Dice and IoU by threshold, and the calibration of the probabilities.
        probe: perturb the sentences, to see whether the model uses them.
        ensemble: average over `sentences` (all phrasings), `flips` (the mirror image, with left and right exchanged in
            its sentence), or both, joined by `+`.
        num_pictures: best, median and worst cases to draw for each dataset and prompt type.
    """

    split: str = "test"
    save_masks: bool = False
    original_size: bool = True
    tolerance: float = 2.0
    curves: bool = False
    probe: bool = False
    ensemble: str = ""
    num_pictures: int = 3


def default_config() -> ml_collections.ConfigDict:
    """The fields that an evaluation reads; they mean what they mean in training, but it computes in float32."""
    training = base_config()
    model = ("tokenizer", "image_size", "zero_prompt", "model_options")
    start = ("mesh", "distributed", "compilation_cache", "deterministic")
    names = ("data_dir", "target", *model, "batch_size", *start, "data")
    training.data.cache = "none"  # of use where several checkpoints read the same images
    return ml_collections.ConfigDict({name: training[name] for name in names} | {"dtype": "float32"})


def evaluate(
    config: ml_collections.ConfigDict,
    checkpoint: str | Path,
    datasets: Sequence[str],
    prompts: Sequence[str],
    output: str | Path,
    **options: Any,
) -> Summary:
    r"""Scores every dataset with every prompt type, or goes on with what a stopped evaluation left in `output`.

    An image is decoded and encoded once for all prompt types; all datasets, and other checkpoints of the same network
    that are evaluated after this one, use what was compiled for the first.

    Args:
        config: the fields of `default_config`.
        checkpoint: a converted model folder, or the workdir of a training run.
        datasets: what `cards.named_card` understands; a pool is its datasets, each by itself.
        prompts: prompt types, or `text:A SENTENCE`.
        output: receives metrics.json, cases.csv and what the options ask for.
        **options: the fields of `Options`.

    Returns:
        What metrics.json holds: dataset -> prompt type -> `report.describe`.

    Raises:
        UserError: the checkpoint, a dataset or a prompt type is missing or broken, or options do not go together.
    """
    # --- Devices, input and model ------------------------------------------------------------------------------------
    chosen, output = Options(**options), Path(output)
    check_options(chosen)
    check_folder("--output", output)
    if not prompts:
        raise UserError("--prompt names no prompt type: give p0 … p9, random, 'attributes:size,class', 'text:…'")
    start_jax(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size(config.batch_size, mesh)
    prompts = list(dict.fromkeys(prompts))
    sets = read_sets(config, datasets, prompts, chosen.split, output)
    source = load_pretrained(checkpoint, mesh, **model_overrides(config))
    if config.image_size:
        check_image_size(source.config)
    for records in sets.values():
        check_classes(records, source.config.classes)
        check_stored_size(records, source.config.image_size)
    tokenizer = load_model_tokenizer(config.tokenizer or source.tokenizer, source.config)
    conditions = {name: make_conditions(records, prompts, chosen) for name, records in sets.items()}
    batch_size = eval_batch_size(max(map(len, sets.values())), config.batch_size, mesh)

    # --- What is done already ----------------------------------------------------------------------------------------
    settings = describe_settings(config, checkpoint, source, sets, conditions, chosen)
    is_writer = jax.process_index() == 0
    if done := sharding.from_first_process(read_done(output, settings) if is_writer else None):
        print(f"{output} holds this evaluation already; remove {output / files.EVALUATION} to repeat it")
        return done
    log, trouble = open_log(output, settings) if is_writer else (None, "")
    if trouble := sharding.from_first_process(trouble):
        raise UserError(trouble)
    lines = {name: lines_before(conditions[name], len(records), batch_size) for name, records in sets.items()}
    bytes_each = COUNTS_BYTES if chosen.curves else 0
    first_steps = sharding.from_first_process(log and log.go_on(lines, bytes_each))

    # --- Scores ------------------------------------------------------------------------------------------------------
    on_host = functools.partial(score_case, output=output, threshold=source.config.threshold, options=chosen)
    scorer = Scorer(
        make_segmenter(source.config, mesh),
        source.arrays,
        mesh,
        batch_size,
        on_host if chosen.original_size or chosen.save_masks else None,
        (*ORIGINAL, "one_empty") if chosen.original_size else (),
        chosen.curves,
        reader_options(config.data),
    )
    count = sum(map(len, sets.values()))
    bar = tqdm(total=count, desc="scoring", unit="img", disable=None if log else True)
    with bar, open_cache(config.data.cache, source.config.image_size, count) as cache:
        loaders = {
            dataset: Loader(
                records,
                tokenizer,
                prompt="",
                image_size=source.config.image_size,
                classes=source.config.classes,
                cache=cache,
                variants=conditions[dataset],
            )
            for dataset, records in sets.items()
        }
        for dataset, loader in loaders.items():
            first_step = first_steps[dataset]
            bar.update(min(first_step * batch_size, len(loader.records)))
            for scores in scorer.score(loader, first_step):
                if log:
                    log.append(*case_rows(dataset, loader, scores))
                bar.update(len(scores.indices))

        # --- Pictures and tables -------------------------------------------------------------------------------------
        cases = log.read() if log else None
        drawn = None if cases is None else choose_drawn(cases, prompts, chosen.num_pictures)
        draw_cases(scorer, loaders, sharding.from_first_process(drawn), output / files.PICTURES)
    summary = None if cases is None else summarise(cases)
    if log and cases:
        write_tables(log, cases, summary, prompts, chosen, str(checkpoint))
        about = describe_run(checkpoint, source)
        about |= {"datasets": list(sets), "prompts": prompts, "target": config.target}
        about |= dataclasses.asdict(chosen) | {"settings": settings}
        atomic.write_text(output / files.EVALUATION, json.dumps(about, indent=1) + "\n")
    return sharding.from_first_process(summary)


# --- Before -----------------------------------------------------------------------------------------------------------


def check_options(options: Options) -> None:
    """Raises a UserError when options make no sense, or not together."""
    if not 0 <= options.tolerance < math.inf or options.num_pictures < 0:
        raise UserError("--tolerance and --num_pictures must be 0 or larger numbers")
    if split_ensemble(options.ensemble) and options.probe:
        raise UserError("--probe compares single sentences: leave out --ensemble")


def read_sets(
    config: ml_collections.ConfigDict, datasets: Sequence[str], prompts: Sequence[str], split: str, output: Path
) -> dict[str, list[Record]]:
    """The records of each dataset that has any of the class asked for; raises UserError when none has."""
    cards = split_members(JOIN.join(datasets), split)
    if not cards:
        raise UserError(f"--dataset={','.join(datasets)} has no dataset for --split={split}: name some in its card")
    found = {card.name: load_split(config.data_dir, card, split) for card in cards}
    select_target([record for records in found.values() for record in records], config.target)
    selected = {name: select_target(records, config.target, is_required=False) for name, records in found.items()}
    cache = default_cache(config.data_dir)
    sets = {}
    for name, records in selected.items():
        report = output / "findings" / f"{name}.csv" if jax.process_index() == 0 else None
        if records:
            sets[name] = verify(records, *prompts, on_bad=config.data.on_bad, cache=cache, report=report)
    return sets


def make_conditions(records: Sequence[Record], prompts: Sequence[str], options: Options) -> Conditions:
    """What is asked of the records of one dataset, by name: the prompt types, each with its perturbations."""
    found: Conditions = {}
    for prompt in prompts:
        found |= prompt_conditions(records, [prompt], split_ensemble(options.ensemble))
        if options.probe:
            perturbed = perturbed_conditions(records, prompt)
            found |= {probed_name(prompt, name): variants for name, variants in perturbed.items()}
    return found


def describe_settings(
    config: ml_collections.ConfigDict,
    checkpoint: str | Path,
    source: Pretrained,
    sets: Mapping[str, Sequence[Record]],
    conditions: Mapping[str, Conditions],
    options: Options,
) -> dict[str, Any]:
    """All that the numbers depend on: an evaluation goes on, or is kept, as long as it stays the same."""
    digest = hashlib.sha256()
    for dataset, records in sets.items():
        for record in records:
            about = (record.name, record.target, record.spacing, groups_of(record), cluster_of(record))
            digest.update(repr((stamp(record.image), stamp(record.mask), about)).encode())
        digest.update(repr((dataset, conditions[dataset])).encode())
    model = {"network": network_of(source.config), **dataclasses.asdict(source.config)}
    return {
        "version": VERSION,
        "checkpoint": fingerprint(checkpoint),
        "tokenizer": config.tokenizer,
        "records": digest.hexdigest(),
        "model": hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest(),
        **dataclasses.asdict(options),
    }


def read_done(output: Path, settings: Mapping[str, Any]) -> Summary | None:
    """The summary in a folder whose evaluation is finished and of these settings."""
    try:
        done = json.loads((output / files.EVALUATION).read_text("utf-8"))
        is_same = done["settings"] == json.loads(json.dumps(settings))
        return json.loads((output / files.METRICS).read_text("utf-8")) if is_same else None
    except (OSError, ValueError, KeyError):
        return None


def open_log(output: Path, settings: Mapping[str, Any]) -> tuple[CaseLog | None, str]:
    """The log of an evaluation, or why there can be none."""
    try:
        return CaseLog(output, case_files.columns(GROUPS), settings, files.RESULTS), ""
    except OSError as error:
        return None, f"--output={output} cannot be written ({error.strerror}): choose another folder"


# --- Cases ------------------------------------------------------------------------------------------------------------


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
    """The scores of one image at its own size; writes its mask, probability and overlay if that is asked for."""
    if options.save_masks:
        path = (output / files.MASKS / record.dataset / file_name(condition) / record.name).with_suffix("")
        write_prediction(path.parent, path.name, to_rgb(open_image(record.image)), probability, threshold, truth > 0)
    if not options.original_size:
        return {}
    spacing = record.spacing or (1.0, 1.0)
    return score_original(probability, truth, threshold, tolerance=options.tolerance, spacing=spacing)


def case_rows(dataset: str, loader: Loader, scores: BatchScores) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The lines of cases.csv for a batch, record by record, and what is counted for each."""
    rows, counts = [], []
    for row, index in enumerate(scores.indices):
        record = loader.records[index]
        about = {"dataset": dataset, "image": record.image.name, "mask": record.name, "cluster": cluster_of(record)}
        about |= groups_of(record) | {"unit": "mm" if record.spacing else "px"}
        for condition, variants in (loader.variants or {}).items():
            if is_asked(variants, index):
                values: dict[str, Any] = {name: float(column[row]) for name, column in scores.scores[condition].items()}
                if "one_empty" in values:
                    values["one_empty"] = int(values["one_empty"])
                rows.append(about | {"prompt": condition, "sentence": sentence_of(variants, index)} | values)
                counts += [scores.counts[condition][row]] if scores.counts else []
    return rows, counts


# --- After ------------------------------------------------------------------------------------------------------------


def write_tables(
    log: CaseLog, cases: Cases, summary: Summary | None, prompts: Sequence[str], options: Options, title: str
) -> None:
    """Writes cases.csv, metrics.json, and curves.json, probe.json and probe.html where they are asked for."""

    def write(name: str, content: Any) -> None:
        atomic.write_text(log.folder / name, json.dumps(content, indent=1) + "\n")

    if options.curves:
        write(files.CURVES, summarise_curves(cases, log.folder / case_files.COUNTS))
    if options.probe:
        probes = summarise_probes(cases, prompts)
        write(files.PROBE, probes)
        write_probe_page(log.folder / files.PROBE_PAGE, probes, title)
    write(files.METRICS, summary)
    log.finish()


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


def name_outputs(checkpoints: Sequence[str], output: Path) -> dict[str, Path]:
    """Where the evaluation of each checkpoint goes: a folder of its name below the output if there are several."""
    if len(checkpoints) == 1:
        return {checkpoints[0]: output}
    paths = {checkpoint: Path(checkpoint).absolute() for checkpoint in checkpoints}
    names = {checkpoint: path.name for checkpoint, path in paths.items()}
    if len(set(names.values())) < len(names):
        names = {checkpoint: f"{path.parent.name}-{path.name}" for checkpoint, path in paths.items()}
    if len(set(names.values())) < len(names):
        raise UserError(f"--checkpoint={','.join(checkpoints)}: two have the same name; evaluate them one by one")
    return {checkpoint: output / name for checkpoint, name in names.items()}


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    options = {field.name: args[field.name].value for field in dataclasses.fields(Options)}
    for checkpoint, output in name_outputs(args.checkpoint, Path(args.output)).items():
        summary = evaluate(args.config, checkpoint, args.dataset, split_prompts(args.prompt), output, **options)
        print(summary_table(summary))
        if args.probe and jax.process_index() == 0:
            print(probe_table(json.loads((output / files.PROBE).read_text("utf-8"))))
        print(f"written to {output}")


if __name__ == "__main__":
    config_flags.DEFINE_config_dict("config", default_config())
    flags.DEFINE_list("checkpoint", None, "Converted model folders, or workdirs of training runs, between commas.")
    flags.DEFINE_list("dataset", None, "Datasets in config.data_dir, separated by commas.")
    flags.DEFINE_string(
        "prompt", None, "Types between commas: p0 … p9, random, 'attributes:size,class'; 'text:A SENTENCE' comes last."
    )
    flags.DEFINE_string("output", None, "Receives metrics.json, cases.csv and what else is asked for.")
    flags.DEFINE_enum("split", "test", ("train", "val", "test"), "Which split is scored.")
    flags.DEFINE_bool("original_size", True, "Score masks at the images' own sizes too, by HD95 and NSD as well.")
    flags.DEFINE_float("tolerance", 2.0, "Of NSD, in mm where a dataset's pixel spacing is known, else in pixels.")
    flags.DEFINE_bool("probe", False, "Perturb the sentences, to see whether the model uses them.")
    flags.DEFINE_string("ensemble", "", "Average over sentences (all phrasings), flips, or sentences+flips.")
    flags.DEFINE_bool("curves", False, "Write Dice and IoU by threshold, and the calibration of the probabilities.")
    flags.DEFINE_bool("save_masks", False, "Write masks, probabilities and overlays at the images' own sizes.")
    flags.DEFINE_integer("num_pictures", 3, "Best, median and worst cases to draw for each dataset and prompt type.")
    flags.mark_flags_as_required(["checkpoint", "dataset", "prompt", "output"])
    run_program(main)
