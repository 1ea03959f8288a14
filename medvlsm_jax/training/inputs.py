"""What a training run reads: records that were checked, and batches of them."""

import contextlib
from pathlib import Path

import jax
import ml_collections

from medvlsm_jax.data.annotations import Record, select_target
from medvlsm_jax.data.facts import default_cache
from medvlsm_jax.data.integrity import verify
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.cache import AUTO, MEMORY, NONE, Entries
from medvlsm_jax.data.reading.feature_cache import open_features
from medvlsm_jax.data.reading.pools import select_amount
from medvlsm_jax.models.apply import encoder_outputs
from medvlsm_jax.parallel import sharding
from medvlsm_jax.scoring.frozen_encoder import num_bytes
from medvlsm_jax.training.freezing import freezing
from medvlsm_jax.training.start import Source


def read_split(
    config: ml_collections.ConfigDict, split: str, workdir: Path, *, is_required: bool = True
) -> list[Record]:
    """The records of a split that can be used; empty where an optional split is.

    What is wrong with images, masks and prompts is found here, before anything else starts.
    """
    records = load_records(config.data_dir, config.dataset, split, is_required=is_required)
    report = workdir / "findings" / f"{split}.csv" if jax.process_index() == 0 else None
    cache = default_cache(config.data_dir)
    records = verify(records, config.prompt, on_bad=config.data.on_bad, cache=cache, report=report)
    records = select_target(records, config.target, is_required=is_required)
    return select_amount(records, config.data_num, config.seed) if split == "train" else records


def feature_entries(
    config: ml_collections.ConfigDict, source: Source, num_records: int
) -> contextlib.AbstractContextManager[Entries | None]:
    """Where the outputs of the encoder are kept; nowhere when it is trained."""
    if not freezing(config)["freeze_encoder"]:
        return contextlib.nullcontext()
    needed = num_bytes(encoder_outputs(source.config), num_records)
    is_folder = config.features.cache not in (AUTO, MEMORY, NONE)
    sharers = jax.process_count() if is_folder else sharding.processes_on_this_host()
    return open_features(config.features.cache, config.features.limit_gib, needed, sharers)
