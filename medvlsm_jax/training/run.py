"""What a training run is made of, before any array is read."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh

from medvlsm_jax.data.annotations import Record, select_target
from medvlsm_jax.data.apart import find_shared_groups, groups_of_later_splits
from medvlsm_jax.data.facts import Facts, Key, default_cache
from medvlsm_jax.data.findings import Finding
from medvlsm_jax.data.integrity import verify
from medvlsm_jax.data.language.tokenizers import Tokenizer
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading.pipeline import steps_per_epoch
from medvlsm_jax.data.reading.pools import Weights, mixing_weights, select_amount
from medvlsm_jax.data.suspicious import find_meaningless
from medvlsm_jax.training.start import Source


@dataclasses.dataclass(frozen=True)
class Sets:
    """The records that can be used.

    Attributes:
        train: what is trained on.
        val: what is validated on; may be empty.
        weights: how often each dataset of `train` is drawn; empty: every record once an epoch.
    """

    train: list[Record]
    val: list[Record]
    weights: Weights

    @property
    def records(self) -> list[Record]:
        """All of them."""
        return [*self.train, *self.val]


@dataclasses.dataclass(frozen=True)
class Run:
    """Config and folder, devices, records, the model that the run starts from, and that one's tokenizer."""

    config: ml_collections.ConfigDict
    workdir: Path
    mesh: Mesh
    sets: Sets
    source: Source
    tokenizer: Tokenizer | None

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return steps_per_epoch(len(self.sets.train), self.config.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self.config.num_epochs * self.epoch_steps

    @property
    def last_step(self) -> int:
        """Where this start of the run ends, unless a rule ends it earlier."""
        return min(self.total_steps, self.config.max_steps or self.total_steps)


def read_sets(config: ml_collections.ConfigDict, workdir: Path) -> Sets:
    """The records of both splits; raises UserError for what is wrong with images, masks, prompts or a pool's shares."""
    train = read_split(config, "train", workdir)
    val = read_split(config, "val", workdir, is_required=False)
    return Sets(train, val, mixing_weights(train, config.pool.weights, config.pool.temperature))


def read_split(
    config: ml_collections.ConfigDict, split: str, workdir: Path, *, is_required: bool = True
) -> list[Record]:
    """The records of a split that can be used; empty where an optional split is.

    What is wrong with images, masks and prompts is found here, before anything else starts.
    """
    records = load_records(config.data_dir, config.dataset, split, is_required=is_required)
    groups = groups_of_later_splits(config.data_dir, config.dataset, split)

    def check_whole(records: Sequence[Record], facts: Mapping[Key, Facts]) -> Iterator[Finding]:
        yield from find_shared_groups(records, split, groups)
        if split == "train":
            yield from find_meaningless(records, facts)

    is_first, cache = jax.process_index() == 0, default_cache(config.data_dir)
    report = workdir / "findings" / f"{split}.csv" if is_first else None
    options = {"on_bad": config.data.on_bad, "cache": cache, "report": report, "is_shown": is_first}
    records = verify(records, config.prompt, checks=[check_whole], **options)
    records = select_target(records, config.target, is_required=is_required)
    return select_amount(records, config.data_num, config.seed) if split == "train" else records
