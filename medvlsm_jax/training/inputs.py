"""What a training run reads: batches on the devices, and the loader of its validation."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from medvlsm_jax.config import reader_options
from medvlsm_jax.data.reading.cache import AUTO, MEMORY, NONE, Entries, open_cache
from medvlsm_jax.data.reading.feature_cache import open_features
from medvlsm_jax.data.reading.pipeline import Loader, batch_records, train_batches
from medvlsm_jax.models.apply import Batch, encoder_outputs
from medvlsm_jax.parallel import sharding
from medvlsm_jax.scoring.frozen_encoder import FrozenEncoder, num_bytes
from medvlsm_jax.training.freezing import freezing
from medvlsm_jax.training.run import Run
from medvlsm_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Where batches come from.

    Attributes:
        next_batch: the next batch of the training, on the devices.
        files: the names of the images in the batch that led to a step.
        val_loader: reads the validation records.
        encoder: makes, once, what frozen encoders make of the batches; None where they are trained or not kept.
    """

    next_batch: Callable[[], Batch]
    files: Callable[[int], list[str]]
    val_loader: Loader
    encoder: FrozenEncoder | None

    @property
    def outputs(self) -> dict[str, Any] | None:
        """Shapes of what stands in a batch for what frozen encoders read; None where they are part of the step."""
        return None if self.encoder is None else self.encoder.outputs


@contextlib.contextmanager
def open_inputs(run: Run, state: TrainState) -> Iterator[Inputs]:
    """The inputs of a run from the state's step on, with the caches that it keeps."""
    config, sets, source, mesh = run.config, run.sets, run.source, run.mesh
    first_step, process = int(state.step), (jax.process_index(), jax.process_count())
    image_size = source.config.image_size
    num_records = len(sets.records) * sharding.processes_on_this_host()  # each of them has caches of its own
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(open_cache(config.data.cache, image_size, num_records))
        reading: dict[str, Any] = {"image_size": image_size, "classes": source.config.classes, "cache": cache}
        encoder = None
        if entries := stack.enter_context(open_feature_entries(run, num_records)):
            encoder = FrozenEncoder(source.config, state.arrays(), mesh, entries, config.batch_size // process[1])
            reading["features"] = encoder.cache
        loader = Loader(sets.train, run.tokenizer, config.prompt, seed=config.seed, **reading)
        batches = train_batches(
            loader,
            config.batch_size,
            seed=config.seed,
            weights=sets.weights,
            first_step=first_step,
            last_step=run.last_step,
            process=process,
            **reader_options(config.data),
        )
        stack.enter_context(contextlib.closing(batches))
        on_devices = sharding.prefetch(batches if encoder is None else map(encoder.complete, batches), mesh)

        def next_batch() -> Batch:
            return next(on_devices)[1]

        def files(step: int) -> list[str]:
            records = batch_records(loader, config.batch_size, step - 1, sets.weights)
            return [record.image.name for record in records]

        yield Inputs(next_batch, files, Loader(sets.val, run.tokenizer, config.prompt, **reading), encoder)


def open_feature_entries(run: Run, num_records: int) -> contextlib.AbstractContextManager[Entries | None]:
    """Where the outputs of the encoder are kept; nowhere when it is trained."""
    config = run.config
    if not freezing(config)["freeze_encoder"]:
        return contextlib.nullcontext()
    needed = num_bytes(encoder_outputs(run.source.config), num_records)
    is_folder = config.features.cache not in (AUTO, MEMORY, NONE)
    sharers = jax.process_count() if is_folder else sharding.processes_on_this_host()
    return open_features(config.features.cache, config.features.limit_gib, needed, sharers)
