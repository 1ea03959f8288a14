r"""Scores a checkpoint, or several.

    python -m medvlsm_jax.evaluate --checkpoint=DIR --config.data_dir=DIR --dataset=kvasir_polyp --prompt=p6 \
        --output=DIR

Writes `cases.csv` (one line an image and prompt type), `metrics.json` (per dataset and prompt type, with intervals) and
pictures of the best, the median and the worst cases; masks, threshold curves and `--probe` on request. Whatever stops
it, the same command goes on from there. Of several checkpoints each has a folder of its own below the output.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags
from tqdm import tqdm

from medvlsm_jax.command_line import run_program
from medvlsm_jax.config import base_config, reader_options
from medvlsm_jax.data.language.prompts import split_prompts
from medvlsm_jax.data.reading.cache import open_cache
from medvlsm_jax.data.reading.entries import Together
from medvlsm_jax.data.reading.pipeline import Loader
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation import file_names
from medvlsm_jax.evaluation.curves import COUNTS_BYTES
from medvlsm_jax.evaluation.metrics import ORIGINAL
from medvlsm_jax.evaluation.probes import probe_table
from medvlsm_jax.evaluation.report import Summary, summary_table
from medvlsm_jax.folders import output_folder
from medvlsm_jax.models.parameters import Arrays
from medvlsm_jax.parallel.distributed import start_jax
from medvlsm_jax.parallel.first_process import everywhere, holding, on_first_process, say, shared_name
from medvlsm_jax.parallel.interruption import catch_signals, leaving_at_once
from medvlsm_jax.scoring.batch_segmenter import make_batch_segmenter
from medvlsm_jax.scoring.case_pictures import choose_drawn, draw_cases
from medvlsm_jax.scoring.joined_log import JoinedLog
from medvlsm_jax.scoring.outputs import case_rows, score_case, write_results
from medvlsm_jax.scoring.plan import Options, Plan, make_plan, read_done
from medvlsm_jax.scoring.scorer import Scorer


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
        prompts: prompt types, or `text:A SENTENCE`; none are needed for a network that reads no sentence.
        output: receives metrics.json, cases.csv and what the options ask for.
        **options: the fields of `Options`.

    Returns:
        What metrics.json holds: dataset -> prompt type -> `report.describe_cases`.

    Raises:
        UserError: the checkpoint, a dataset or a prompt type is missing or broken, options do not go together, or
            another program writes to `output`.
        SystemExit: SIGTERM or Ctrl-C came.
    """
    output = output_folder("--output", output)
    start_jax(config)
    with catch_signals(), holding("--output", output):
        plan = make_plan(config, checkpoint, datasets, prompts, output, Options(**options))
        return find_done(plan) or carry_out(plan, config)


def carry_out(plan: Plan, config: ml_collections.ConfigDict) -> Summary:
    """Does what a plan says."""
    bytes_each = COUNTS_BYTES if plan.options.curves else 0
    log = JoinedLog(plan.output, plan.settings, plan.mesh, plan.lines(), bytes_each)
    scorer, arrays = make_scorer(plan, reader_options(config.data)), plan.source.arrays
    with open_loaders(plan, config.data.cache) as loaders:
        score_cases(scorer, arrays, loaders, log)
        drawn = log.on_cases(lambda cases: choose_drawn(cases, plan.prompts, plan.options.num_pictures))
        draw_cases(scorer, arrays, loaders, drawn, plan.output / file_names.PICTURES)
    return log.on_cases(lambda cases: write_results(plan, log.written(), cases))


def find_done(plan: Plan) -> Summary | None:
    """The summary of an evaluation that is finished already."""
    done = on_first_process(f"--output={plan.output}", lambda: read_done(plan.output, plan.settings))
    if done and jax.process_index() == 0:
        again = f"remove {plan.output / file_names.EVALUATION} to repeat it"
        print(f"{plan.output} holds this evaluation already; {again}")
    return done


def make_scorer(plan: Plan, reading: Mapping[str, Any]) -> Scorer:
    """What scores the records of a plan; `reading` are `config.reader_options`."""
    options, network = plan.options, plan.source.config
    on_host = functools.partial(score_case, output=plan.output, threshold=network.threshold, options=options)
    return Scorer(
        make_batch_segmenter(network, plan.mesh),
        plan.mesh,
        plan.batch_size,
        on_host=on_host if options.original_size or options.save_masks else None,
        host_names=(*ORIGINAL, "one_empty") if options.original_size else (),
        has_counts=options.curves,
        reading=reading,
    )


@contextlib.contextmanager
def open_loaders(plan: Plan, cache: str) -> Iterator[dict[str, Loader]]:
    """What reads each dataset; all keep images where `config.data.cache` says."""
    network = plan.source.config
    reading = {"image_size": network.image_size, "classes": network.classes}
    together = Together(shared_name(), everywhere, say)
    with open_cache(cache, network.image_size, plan.num_records, together) as opened:
        yield {
            dataset: Loader(
                records, plan.tokenizer, prompt="", cache=opened, variants=plan.conditions[dataset], **reading
            )
            for dataset, records in plan.sets.items()
        }


def score_cases(scorer: Scorer, arrays: Arrays, loaders: Mapping[str, Loader], log: JoinedLog) -> None:
    """Scores what is left of every dataset, and writes a line for each record and condition, batch by batch."""
    count = sum(len(loader.records) for loader in loaders.values())
    is_shown = jax.process_index() == 0
    with tqdm(total=count, desc="scoring", unit="img", disable=None if is_shown else True) as bar:
        for dataset, loader in loaders.items():
            first_step = log.first_steps[dataset]
            bar.update(min(first_step * scorer.batch_size, len(loader.records)))
            for scores in scorer.score(arrays, loader, first_step):
                log.append(functools.partial(case_rows, dataset, loader, scores))
                bar.update(len(scores.indices))


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
    prompts = split_prompts(args.prompt or "")
    for checkpoint, output in name_outputs(args.checkpoint, output_folder("--output", args.output)).items():
        with leaving_at_once():
            summary = evaluate(args.config, checkpoint, args.dataset, prompts, output, **options)
        if jax.process_index() == 0:
            print(summary_table(summary))
            if args.probe:
                print(probe_table(json.loads((output / file_names.PROBE).read_text("utf-8"))))
            print(f"written to {output}")


if __name__ == "__main__":
    flags.DEFINE_list("checkpoint", None, "Converted model folders, or workdirs of training runs, between commas.")
    flags.DEFINE_list("dataset", None, "Datasets in config.data_dir, separated by commas.")
    flags.DEFINE_string(
        "prompt",
        None,
        "Types between commas: p0 … p9, random, 'attributes:size,class'; 'text:A SENTENCE' comes last. A network that "
        "reads no sentence needs none.",
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
    flags.mark_flags_as_required(["checkpoint", "dataset", "output"])
    run_program(main, config=default_config)
