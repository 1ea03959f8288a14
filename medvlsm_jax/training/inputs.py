"""What a training run reads: batches on the devices, and the loader of its validation."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from medvlsm_jax.config import reader_options
from medvlsm_jax.data.arrayrecord import image_path
from medvlsm_jax.data.reading.cache import open_cache
from medvlsm_jax.data.reading.entries import Entries, Together
from medvlsm_jax.data.reading.feature_cache import open_features
from medvlsm_jax.data.reading.pipeline import Loader, order_of, own_rows, train_batches
from medvlsm_jax.models.apply import Batch, encoder_outputs
from medvlsm_jax.parallel import sharding
from medvlsm_jax.parallel.first_process import everywhere, say, shared_name
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
    order = order_of(sets.train, config.batch_size, config.seed, sets.weights)
    # A process reads the records of its rows alone, in every pass.
    part = min(1.0, order.part(own_rows(config.batch_size, process)) * sharding.processes_on_this_host())
    together = Together(shared_name(), everywhere, say)
    with contextlib.ExitStack() as stack:
        num_records = math.ceil(part * len(sets.records))
        cache = stack.enter_context(open_cache(config.data.cache, image_size, num_records, together))
        reading: dict[str, Any] = {"image_size": image_size, "classes": source.config.classes, "cache": cache}
        encoder, taken = None, 0 if cache is None else cache.memory_taken
        if entries := stack.enter_context(open_feature_entries(run, part, taken, together)):
            encoder = FrozenEncoder(source.config, state.arrays(), mesh, entries, config.batch_size // process[1])
            reading["features"] = encoder.cache
        loader = Loader(sets.train, run.tokenizer, config.prompt, seed=config.seed, **reading)
        batches = train_batches(
            loader,
            order,
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
            drawn = [order.draw(step - 1, row)[0] for row in range(config.batch_size)]
            return [sets.train[index].image.name for index in drawn]

        yield Inputs(next_batch, files, Loader(sets.val, run.tokenizer, config.prompt, **reading), encoder)


def open_feature_entries(
    run: Run, part: float, taken: int, together: Together
) -> contextlib.AbstractContextManager[Entries | None]:
    """Where the outputs of the encoder are kept; nowhere when it is trained.

    Args:
        run: whose records are read.
        part: of the records, that this machine reads.
        taken: bytes of shared memory that are to be left to others.
        together: what the processes of the run do together.
    """
    config, records = run.config, run.sets.records
    if not freezing(config)["freeze_encoder"]:
        return contextlib.nullcontext()
    num_images = len({(record.dataset, image_path(record)) for record in records})
    needed = num_bytes(encoder_outputs(run.source.config), math.ceil(part * num_images), math.ceil(part * len(records)))
    return open_features(config.features.cache, config.features.limit_gib, needed, taken, together)
