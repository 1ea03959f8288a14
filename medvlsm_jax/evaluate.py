r"""Scores a checkpoint.

    python -m medvlsm_jax.evaluate --checkpoint=DIR --config.data_dir=DIR --dataset=kvasir_polyp --prompt=p6 \
        --output=DIR

Writes `cases.csv` (one line an image) and `metrics.json` (per dataset and prompt), masks and overlays on request.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from medvlsm_jax.config import base_config, reader_options
from medvlsm_jax.data.annotations import Record, check_classes, load_split, select_target
from medvlsm_jax.data.arrayrecord import check_stored_size
from medvlsm_jax.data.cache import open_cache
from medvlsm_jax.data.cards import JOIN, split_members
from medvlsm_jax.data.facts import default_cache
from medvlsm_jax.data.images import open_image, read_mask, to_rgb
from medvlsm_jax.data.integrity import verify
from medvlsm_jax.data.pipeline import Loader
from medvlsm_jax.data.prompts import split_prompts
from medvlsm_jax.errors import UserError, run_program
from medvlsm_jax.evaluation.pictures import write_prediction
from medvlsm_jax.evaluation.report import summarise, summary_table, write_report
from medvlsm_jax.models import check_image_size
from medvlsm_jax.training import sharding
from medvlsm_jax.training.checkpoints import load_model_tokenizer, load_pretrained
from medvlsm_jax.training.distributed import start_jax
from medvlsm_jax.training.scoring import Fetch, score_records
from medvlsm_jax.training.start import model_overrides
from medvlsm_jax.training.state import make_eval_step

Summary = dict[str, dict[str, dict[str, float]]]


def default_config() -> ml_collections.ConfigDict:
    """The fields that an evaluation reads; they mean what they mean in training, but it computes in float32."""
    training = base_config()
    model = ("tokenizer", "image_size", "zero_prompt", "model_options")
    start = ("mesh", "distributed", "compilation_cache", "deterministic")
    names = ("data_dir", "target", *model, "batch_size", *start, "data")
    training.data.cache = "none"  # of use where several prompt types read the same images
    return ml_collections.ConfigDict({name: training[name] for name in names} | {"dtype": "float32"})


def evaluate(
    config: ml_collections.ConfigDict,
    checkpoint: str | Path,
    datasets: Sequence[str],
    prompts: Sequence[str],
    output: str | Path,
    *,
    split: str = "test",
    save_masks: bool = False,
) -> Summary:
    r"""Scores every dataset with every prompt type; batches of one shape compile once.

    Args:
        config: the fields of `default_config`.
        checkpoint: a converted model folder, or the workdir of a training run.
        datasets: what `cards.named_card` understands; a pool is its datasets, each by itself.
        prompts: prompt types, or `text:A SENTENCE`.
        output: receives metrics.json and cases.csv.
        split: train, val or test.
        save_masks: also write masks, probabilities and overlays at the images' own sizes.

    Returns:
        What metrics.json holds: dataset -> prompt -> n and mean and standard deviation of dice and iou, 0 to 1.

    Raises:
        UserError: the checkpoint, a dataset or a prompt type is missing or broken.
    """
    # --- Devices, input and model ------------------------------------------------------------------------------------
    start_jax(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size(config.batch_size, mesh)
    prompts = list(dict.fromkeys(prompts))
    sets = read_sets(config, datasets, split)
    for dataset, records in sets.items():
        report = Path(output) / "findings" / f"{dataset}.csv" if jax.process_index() == 0 else None
        sets[dataset] = verify(
            records, *prompts, on_bad=config.data.on_bad, cache=default_cache(config.data_dir), report=report
        )
    source = load_pretrained(checkpoint, mesh, **model_overrides(config))
    if config.image_size:
        check_image_size(source.config)
    for records in sets.values():
        check_classes(records, source.config.classes)
        check_stored_size(records, source.config.image_size)
    tokenizer = load_model_tokenizer(config.tokenizer or source.tokenizer, source.config)
    eval_step = make_eval_step(source.graphdef, mesh, probabilities=save_masks)

    # --- Scores ------------------------------------------------------------------------------------------------------
    cases: list[dict[str, Any]] = []
    image_size = source.config.image_size
    for dataset, records in sets.items():
        with open_cache(config.data.cache, image_size, len(records)) as cache:
            for prompt in prompts:
                loader = Loader(records, tokenizer, prompt, image_size, classes=source.config.classes, cache=cache)
                folder = Path(output) / "masks" / dataset / file_name(prompt)

                def write(fetch: Fetch, folder: Path = folder, records: list[Record] = records) -> None:
                    for index, probability in zip(fetch("index"), fetch("probability"), strict=True):
                        write_case(folder, records[index], probability[..., 0], source.config.threshold)

                values = score_records(
                    eval_step,
                    source.arrays,
                    loader,
                    mesh,
                    config.batch_size,
                    on_batch=write if save_masks else None,
                    **reader_options(config.data),
                )
                cases += case_rows(dataset, loader, values)

    # --- Report ------------------------------------------------------------------------------------------------------
    return write_report(Path(output), cases) if jax.process_index() == 0 else summarise(cases)


def read_sets(config: ml_collections.ConfigDict, datasets: Sequence[str], split: str) -> dict[str, list[Record]]:
    """The records of each dataset that has any of the class asked for; raises UserError when none has."""
    cards = split_members(JOIN.join(datasets), split)
    if not cards:
        raise UserError(f"--dataset={','.join(datasets)} has no dataset for --split={split}: name some in its card")
    found = {card.name: load_split(config.data_dir, card, split) for card in cards}
    select_target([record for records in found.values() for record in records], config.target)
    selected = {name: select_target(records, config.target, is_required=False) for name, records in found.items()}
    return {name: records for name, records in selected.items() if records}


def case_rows(dataset: str, loader: Loader, values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The lines of cases.csv for one dataset and prompt type."""
    return [
        {
            "dataset": dataset,
            "prompt": loader.prompt,
            "image": record.image.name,
            "mask": record.name,
            "dice": float(values["dice"][i]),
            "iou": float(values["iou"][i]),
            "sentence": loader.sentence(i),
        }
        for i, record in enumerate(loader.records)
    ]


def write_case(folder: Path, record: Record, probability: np.ndarray, threshold: float) -> None:
    """Mask, probability and overlay of one record, in the folders that its mask has below its dataset's."""
    image, truth = to_rgb(open_image(record.image)), read_mask(record.mask) > 0
    path = (folder / record.name).with_suffix("")
    write_prediction(path.parent, path.name, image, probability, threshold, truth)


def file_name(prompt: str) -> str:
    """A prompt type as a folder name, or `text-` and a sentence."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", prompt).strip("-")[:80]


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    summary = evaluate(
        args.config,
        args.checkpoint,
        args.dataset,
        split_prompts(args.prompt),
        args.output,
        split=args.split,
        save_masks=args.save_masks,
    )
    print(summary_table(summary))
    print(f"written to {args.output}")


if __name__ == "__main__":
    config_flags.DEFINE_config_dict("config", default_config())
    flags.DEFINE_string("checkpoint", None, "A converted model folder, or the workdir of a training run.")
    flags.DEFINE_list("dataset", None, "Datasets in config.data_dir, separated by commas.")
    flags.DEFINE_string(
        "prompt", None, "Types between commas: p0 … p9, random, 'attributes:size,class'; 'text:A SENTENCE' comes last."
    )
    flags.DEFINE_enum("split", "test", ("train", "val", "test"), "Which split is scored.")
    flags.DEFINE_string("output", None, "Receives metrics.json, cases.csv and, if asked for, masks/.")
    flags.DEFINE_bool("save_masks", False, "Write masks, probabilities and overlays at the images' own sizes.")
    flags.mark_flags_as_required(["checkpoint", "dataset", "prompt", "output"])
    run_program(main)
