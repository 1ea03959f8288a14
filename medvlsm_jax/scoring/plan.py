"""What an evaluation is asked for, and what its numbers depend on."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from medvlsm_jax.checkpoints.model_folder import Pretrained, load_model_tokenizer, load_pretrained, read_description
from medvlsm_jax.config import check_numbers, model_overrides
from medvlsm_jax.data.annotations import Record, check_classes, select_target
from medvlsm_jax.data.arrayrecord import check_stored_size
from medvlsm_jax.data.cards import JOIN, split_members
from medvlsm_jax.data.facts import default_cache
from medvlsm_jax.data.groups import cluster_of, groups_of
from medvlsm_jax.data.integrity import verify
from medvlsm_jax.data.language.conditions import (
    Conditions,
    lines_before,
    perturbed_conditions,
    prompt_conditions,
    split_ensemble,
)
from medvlsm_jax.data.language.tokenizers import Tokenizer
from medvlsm_jax.data.loading import load_split
from medvlsm_jax.data.reading.entries import stamp
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation import file_names
from medvlsm_jax.evaluation.probes import probed_name
from medvlsm_jax.evaluation.report import Summary
from medvlsm_jax.folders import check_fields, local_folder
from medvlsm_jax.models import check_image_size, network_of
from medvlsm_jax.parallel import sharding
from medvlsm_jax.scoring.scorer import eval_batch_size

VERSION = 2  # raise it when the same command gives other numbers


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is evaluated, on what, and where it goes: all that is known before an image is scored.

    Attributes:
        checkpoint: as it was given.
        output: receives everything.
        options: what is asked for besides.
        prompts: prompt types, each once.
        target: the class that the records are of; empty: any.
        source: the model.
        tokenizer: None for a network that reads no sentence.
        mesh: the devices.
        sets: dataset -> its records.
        conditions: dataset -> what is asked of them.
        batch_size: of all processes together.
        settings: all that the numbers depend on.
    """

    checkpoint: str
    output: Path
    options: Options
    prompts: list[str]
    target: str
    source: Pretrained
    tokenizer: Tokenizer | None
    mesh: Mesh
    sets: dict[str, list[Record]]
    conditions: dict[str, Conditions]
    batch_size: int
    settings: dict[str, Any]

    @property
    def num_records(self) -> int:
        """Of all datasets."""
        return sum(map(len, self.sets.values()))

    def lines(self) -> dict[str, list[int]]:
        """How many lines of cases.csv come before each batch of a dataset, and behind the last one."""
        return {
            name: lines_before(self.conditions[name], len(records), self.batch_size)
            for name, records in self.sets.items()
        }


def make_plan(
    config: ml_collections.ConfigDict,
    checkpoint: str | Path,
    datasets: Sequence[str],
    prompts: Sequence[str],
    output: Path,
    options: Options,
) -> Plan:
    """Checks everything, reads the records and the model; arguments are those of `evaluate.evaluate`.

    Raises:
        UserError: something is missing, broken or does not fit.
    """
    check_options(options)
    check_fields(config)
    check_numbers(config)
    checkpoint = local_folder("--checkpoint", checkpoint)
    prompts = list(dict.fromkeys(prompts)) or default_prompts(checkpoint)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch_size(config.batch_size, mesh)
    sets = read_sets(config, datasets, prompts, options.split, output)
    source = load_pretrained(checkpoint, mesh, **model_overrides(config))
    if config.image_size:
        check_image_size(source.config)
    for records in sets.values():
        check_classes(records, source.config.classes)
        check_stored_size(records, source.config.image_size)
    tokenizer = load_model_tokenizer(config.tokenizer or source.tokenizer, source.config)
    conditions = {name: make_conditions(records, prompts, options) for name, records in sets.items()}
    if tokenizer is not None:
        tokenizer.say_cut(sentences_of(conditions.values()), is_shown=jax.process_index() == 0)
    batch_size = eval_batch_size(max(map(len, sets.values())), config.batch_size, mesh)
    settings = describe_settings(config, source, sets, conditions, options)
    about = (str(checkpoint), output, options, prompts, config.target)
    return Plan(*about, source, tokenizer, mesh, sets, conditions, batch_size, settings)


def default_prompts(checkpoint: str | Path) -> list[str]:
    """Those of an evaluation that was given none; raises a UserError when the network reads sentences."""
    _, config = read_description(Path(checkpoint))
    if config.text is not None:
        raise UserError("--prompt is missing: give p0 … p9, random, 'attributes:size,class' or 'text:A SENTENCE'")
    return ["p0"]  # the empty sentence, which every record has


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
    sets, is_first = {}, jax.process_index() == 0
    for name, records in selected.items():
        if records:
            report = output / "findings" / f"{name}.csv" if is_first else None
            options = {"on_bad": config.data.on_bad, "cache": cache, "report": report, "is_shown": is_first}
            sets[name] = with_keys(verify(records, *prompts, **options))
    return sets


def with_keys(records: Sequence[Record]) -> list[Record]:
    """The records of a dataset with their keys: the mask's name, and the image's where several have the same mask."""
    masks = [str(PurePosixPath(record.name).with_suffix("")) for record in records]
    longer = [f"{mask}_{record.image.stem}" for mask, record in zip(masks, records, strict=True)]
    keys = file_names.unique_names(masks, longer)
    return [dataclasses.replace(record, key=key) for record, key in zip(records, keys, strict=True)]


def make_conditions(records: Sequence[Record], prompts: Sequence[str], options: Options) -> Conditions:
    """What is asked of the records of one dataset, by name: the prompt types, each with its perturbations."""
    found: Conditions = {}
    for prompt in prompts:
        found |= prompt_conditions(records, [prompt], split_ensemble(options.ensemble))
        if options.probe:
            perturbed = perturbed_conditions(records, prompt)
            found |= {probed_name(prompt, name): variants for name, variants in perturbed.items()}
    return found


def sentences_of(conditions: Iterable[Conditions]) -> Iterator[str]:
    """Every sentence of some conditions."""
    for variants in itertools.chain.from_iterable(several.values() for several in conditions):
        for variant in variants:
            yield from variant.sentences


def describe_settings(
    config: ml_collections.ConfigDict,
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
        "checkpoint": source.fingerprint,
        "tokenizer": config.tokenizer,
        "records": digest.hexdigest(),
        "model": hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest(),
        **dataclasses.asdict(options),
    }


def read_done(output: Path, settings: Mapping[str, Any]) -> Summary | None:
    """The summary in a folder whose evaluation is finished and of these settings."""
    try:
        done = json.loads((output / file_names.EVALUATION).read_text("utf-8"))
        is_same = done["settings"] == json.loads(json.dumps(settings))
        return json.loads((output / file_names.METRICS).read_text("utf-8")) if is_same else None
    except (OSError, ValueError, KeyError):
        return None
