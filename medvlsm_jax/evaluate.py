r"""Scores a checkpoint, or several.

    python -m medvlsm_jax.evaluate --checkpoint=DIR --config.data_dir=DIR --dataset=kvasir_polyp --prompt=p6 \
        --output=DIR

Writes `cases.csv` (one line an image and prompt type), `metrics.json` (per dataset and prompt type, with intervals) and
pictures of the best, the median and the worst cases; masks, threshold curves and `--probe` on request. Whatever stops
it, the same command goes on from there. Of several checkpoints each has a folder of its own below the output.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from medvlsm_jax import atomic
from medvlsm_jax.checkpoints.model_folder import load_model_tokenizer, load_pretrained
from medvlsm_jax.config import base_config, model_overrides, reader_options
from medvlsm_jax.data.annotations import check_classes
from medvlsm_jax.data.arrayrecord import check_stored_size
from medvlsm_jax.data.language.conditions import (
    lines_before,
)
from medvlsm_jax.data.language.prompts import split_prompts
from medvlsm_jax.data.reading.cache import open_cache
from medvlsm_jax.data.reading.pipeline import Loader
from medvlsm_jax.errors import UserError, check_folder, run_program
from medvlsm_jax.evaluation import files
from medvlsm_jax.evaluation.curves import COUNTS_BYTES
from medvlsm_jax.evaluation.metrics import ORIGINAL
from medvlsm_jax.evaluation.probes import probe_table
from medvlsm_jax.evaluation.report import Summary, summarise, summary_table
from medvlsm_jax.models import check_image_size
from medvlsm_jax.parallel import sharding
from medvlsm_jax.parallel.distributed import start_jax
from medvlsm_jax.scoring.case_pictures import choose_drawn, draw_cases
from medvlsm_jax.scoring.outputs import case_rows, describe_run, open_log, score_case, write_tables
from medvlsm_jax.scoring.plan import Options, check_options, describe_settings, make_conditions, read_done, read_sets
from medvlsm_jax.scoring.scorer import Scorer
from medvlsm_jax.scoring.segmenter import make_segmenter
from medvlsm_jax.scoring.validation import eval_batch_size


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


# --- Cases ------------------------------------------------------------------------------------------------------------


# --- After ------------------------------------------------------------------------------------------------------------


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
